"""One frame of longitudes: outlines and points across 180 degrees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box

from geopak.errors import RegionError
from geopak.geo.antimeridian import common_frame, into_frame, unwrapped
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Province, Region

REGION = Region("isles", "Isles", (Province("west", "West"), Province("east", "East")))
WEST, EAST = box(177, -19, 180, -16), box(180, -19, 182, -16)
POINTS = [[-17, 178.0], [-17, 179.9], [-17, -179.5], [-17, 180.5], [-17, -177.5], [-17, 0.0]]


def turned(polygon: Polygon, jump: bool) -> Polygon:
    """Longitudes as most files have them, between -180 and 180."""

    def turn(xy: Any) -> Any:
        lon = np.where(xy[:, 0] > 180, xy[:, 0] - 360, xy[:, 0])
        return np.stack((lon if jump else xy[:, 0] - 360, xy[:, 1]), axis=1)

    return shapely.transform(polygon, turn)


def load(path: Path, west: Polygon | MultiPolygon, east: Polygon | MultiPolygon) -> Outlines:
    features = [
        {
            "type": "Feature",
            "properties": {"name": name},
            "geometry": shapely.geometry.mapping(polygon),
        }
        for name, polygon in (("West", west), ("East", east))
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return Outlines.load(path, REGION)


CROSSING = box(179, -19, 181, -16)
SPLIT = MultiPolygon([box(179, -19, 180, -16), box(-180, -19, -179, -16)])


@pytest.mark.parametrize(
    ("west", "east"),
    [
        (WEST, EAST),  # counted beyond 180
        (WEST, turned(EAST, jump=False)),
        (turned(WEST, jump=False), turned(EAST, jump=False)),  # counted below -180
    ],
)
def test_a_region_that_meets_at_the_antimeridian(
    tmp_path: Path, west: Polygon, east: Polygon
) -> None:
    outlines = load(tmp_path / "o.geojson", west, east)
    assert outlines.bounds_deg == (-19, 177, -16, 182)
    assert outlines.province_of(POINTS).tolist() == [0, 0, 1, 1, -1, -1]
    shared = outlines.polygons[0].intersection(outlines.polygons[1])
    assert shared.length == pytest.approx(3)


@pytest.mark.parametrize("across", [CROSSING, turned(CROSSING, jump=True), SPLIT])
def test_a_province_across_the_antimeridian(tmp_path: Path, across: Polygon | MultiPolygon) -> None:
    outlines = load(tmp_path / "o.geojson", box(177, -19, 179, -16), across)
    assert outlines.bounds_deg == (-19, 177, -16, 181)
    assert outlines.polygons[1].geom_type == "Polygon"
    assert outlines.polygons[1].area == pytest.approx(6)
    assert outlines.province_of(POINTS).tolist() == [0, 1, 1, 1, -1, -1]
    assert outlines.check(REGION).is_clean
    assert len(outlines.rings_deg(1)) == 1
    np.testing.assert_allclose(
        outlines.in_frame(POINTS)[:, 1], [178, 179.9, 180.5, 180.5, 182.5, 0]
    )
    again = Outlines.from_dict(outlines.to_dict())
    assert again.province_of(POINTS).tolist() == outlines.province_of(POINTS).tolist()


def test_a_hole_goes_with_its_shell() -> None:
    hole = box(180.2, -18, 180.8, -17)
    polygon = Polygon(CROSSING.exterior.coords, [turned(hole, jump=True).exterior.coords])
    jumping = Polygon(turned(CROSSING, jump=True).exterior.coords, polygon.interiors)
    mended = unwrapped(jumping)
    assert mended.is_valid
    assert mended.area == pytest.approx(6 - 0.6)


@pytest.mark.parametrize("start", [0, 290, 100, -400])
def test_a_region_elsewhere_is_brought_to_the_usual_count(start: float) -> None:
    found = common_frame([box(start, 0, start + 10, 5), box(start + 10, 0, start + 20, 5)])
    west, _, east, _ = shapely.total_bounds(np.array(found, object))
    assert -180 <= (west + east) / 2 < 180
    assert east - west == 20
    assert (west - start) % 360 == 0


def test_islands_far_from_the_mainland_stay_near_it() -> None:
    mainland, isles = box(-170, 50, -66, 70), box(172, 51, 180, 53)
    frame = common_frame([mainland, MultiPolygon([isles, box(-180, 51, -175, 53)])])
    assert shapely.total_bounds(np.array(frame, object)).tolist() == [-188, 50, -66, 70]


def test_a_region_round_the_pole(tmp_path: Path) -> None:
    """As flat maps have it, to 180 degrees and along the edge, it works; else it is refused."""
    ring = [(-180, -90), (-180, -70), (-60, -75), (60, -70), (180, -70), (180, -90), (-180, -90)]
    outlines = load(tmp_path / "o.geojson", Polygon(ring), box(10, -60, 20, -50))
    found = outlines.province_of([[-89.9, 100.0], [-80, 180.0], [-80, -180.0], [-55, 15], [0, 0]])
    assert found.tolist() == [0, 0, 0, 1, -1]
    around = [(-170, -70), (-60, -75), (60, -70), (170, -72), (-170, -70)]
    with pytest.raises(RegionError, match=r"feature 0 \(West\) goes round a pole.*Cut it"):
        load(tmp_path / "p.geojson", Polygon(around), box(10, -60, 20, -50))


@given(st.floats(-180, 180), st.floats(-180, 180), st.floats(0.01, 359))
def test_points_come_into_the_frame_unharmed(lon: float, west: float, width: float) -> None:
    moved = into_frame(np.array([lon]), west, west + width)
    assert abs(moved[0] - (west + width / 2)) <= 180 + 1e-9
    assert moved[0] == lon or abs(abs(moved[0] - lon) - 360) < 1e-9
    if west <= lon <= west + width:
        assert moved[0] == lon


@given(st.floats(-180, 179), st.lists(st.tuples(st.floats(0, 100), st.floats(0.1, 40)), min_size=1))
def test_the_frame_is_the_narrowest(start: float, spans: list[tuple[float, float]]) -> None:
    """However the pieces are counted, they come to lie as they did when laid out in a row."""
    laid_out = [box(start + at, 0, start + at + width, 1) for at, width in spans]
    low, _, high, _ = shapely.total_bounds(np.array(laid_out, object))
    counted = [
        shapely.transform(p, lambda xy, k=k: xy + np.array((360 * (k % 3 - 1), 0)))
        for k, p in enumerate(laid_out)
    ]
    found = shapely.total_bounds(np.array(common_frame(counted), object))
    assert found[2] - found[0] == pytest.approx(high - low, abs=1e-9)
