"""Circles as polygons: they hold what is near enough, wherever on the globe."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import shape

from geopak.geo.circles import NUM_VERTICES, circle_geojson
from geopak.geo.distance import haversine_km_array

CENTERS = {
    "inland": (30.0, 70.0),
    "west of the antimeridian": (10.0, 179.95),
    "east of the antimeridian": (-40.0, -179.99),
    "on the antimeridian": (0.0, 180.0),
    "beside the north pole": (89.9, 40.0),
    "beside the south pole": (-89.8, -170.0),
    "at the north pole": (90.0, 0.0),
    "far north, across": (85.0, 178.0),
}


@pytest.mark.parametrize("center", CENTERS.values(), ids=CENTERS.keys())
@pytest.mark.parametrize("radius_km", [0.05, 5.0, 50.0, 600.0])
def test_what_is_within_the_radius_is_inside_and_what_is_well_beyond_is_not(
    center: tuple[float, float], radius_km: float
) -> None:
    geometry = circle_geojson(center, radius_km)
    area = shape(geometry)
    assert area.is_valid
    rng = np.random.default_rng(0)
    spread = 3 * radius_km / 111.2
    lat = np.clip(center[0] + rng.uniform(-spread, spread, 3000), -90, 90)
    wide = min(180.0, spread / max(math.cos(math.radians(center[0])), 1e-3))
    lon = (center[1] + rng.uniform(-wide, wide, 3000) + 180) % 360 - 180
    away = haversine_km_array(np.stack((lat, lon), 1), center)
    inside = shapely.intersects_xy(area, lon, lat)
    # Edges are straight on the map, not on the globe: near a pole they bulge.
    slack = 1.03 if abs(center[0]) < 60 else 1.3
    assert (away[inside] <= radius_km * slack + 2e-5).all()
    if abs(center[0]) < 60:
        assert inside[away <= radius_km * 0.999 - 2e-5].all()
    else:
        assert inside[away <= radius_km * 0.7].all()


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(0.05, 100))
def test_rings_follow_the_standard(latitude: float, longitude: float, radius_km: float) -> None:
    geometry = circle_geojson((latitude, longitude), radius_km)
    parts = geometry["coordinates"]
    for rings in [parts] if geometry["type"] == "Polygon" else parts:
        assert len(rings) == 1
        ring = rings[0]
        assert ring[0] == ring[-1]
        assert 4 <= len(ring) <= NUM_VERTICES + 6
        assert shapely.LinearRing(ring).is_ccw
        assert all(-180 <= lon <= 180 and -90 <= lat <= 90 for lon, lat in ring)
