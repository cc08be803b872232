"""Circles on the sphere as GeoJSON polygons, across the antimeridian and around a pole too."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.affinity import translate
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.polygon import orient

from geopak.geo.distance import EARTH_RADIUS_KM

NUM_VERTICES = 32
# A centimetre.
_DECIMALS = 7
_WORLD = shapely.box(-180, -90, 180, 90)


def circle_geojson(center_latlon_deg: ArrayLike, radius_km: float) -> dict[str, Any]:
    """The area within a distance of a point, as a GeoJSON geometry after RFC 7946.

    The polygon touches the circle from outside, so that everything within the distance is inside;
    rings run counter-clockwise, and an area across the antimeridian is cut there in two.

    Args:
        center_latlon_deg: (2,) degrees, latitude first.
        radius_km: great-circle kilometres, less than a quarter of the way around the globe.

    Returns:
        A ``Polygon`` or ``MultiPolygon``, longitude first.
    """
    latitude, longitude = np.asarray(center_latlon_deg, float).tolist()
    # Half-way between two vertices the edge is nearest to the center: there it touches.
    apart = math.atan(math.tan(radius_km / EARTH_RADIUS_KM) / math.cos(math.pi / NUM_VERTICES))
    ring = _ring_deg(latitude, apart) + np.array([longitude, 0.0])
    pole = math.copysign(90.0, latitude)
    if math.radians(90.0 - abs(latitude)) <= apart:
        area = _around_pole(ring, pole)
    else:
        area = cut_at_antimeridian(Polygon(ring))
    parts = [orient(part, 1.0) for part in shapely.get_parts(area) if isinstance(part, Polygon)]
    rings = [[np.round(np.array(part.exterior.coords), _DECIMALS).tolist()] for part in parts]
    if len(rings) == 1:
        return {"type": "Polygon", "coordinates": rings[0]}
    return {"type": "MultiPolygon", "coordinates": rings}


def _ring_deg(latitude: float, apart: float) -> NDArray[np.float64]:
    """(V, 2) degrees: longitude from the center, and latitude; counter-clockwise."""
    bearing = -2 * np.pi * np.arange(NUM_VERTICES) / NUM_VERTICES
    phi = math.radians(latitude)
    sine = math.sin(phi) * math.cos(apart) + math.cos(phi) * math.sin(apart) * np.cos(bearing)
    sine = np.clip(sine, -1.0, 1.0)
    east = np.arctan2(
        np.sin(bearing) * math.sin(apart) * math.cos(phi), math.cos(apart) - math.sin(phi) * sine
    )
    return np.degrees(np.stack((east, np.arcsin(sine)), axis=1))


def _around_pole(ring: NDArray[np.float64], pole: float) -> Polygon:
    """The area between a ring around a pole and the edge of a flat map."""
    longitude = (ring[:, 0] + 180) % 360 - 180
    order = np.argsort(longitude, kind="stable")
    longitude, latitude = longitude[order], ring[order, 1]
    at_edge = float(np.interp(180.0, [longitude[-1], longitude[0] + 360], latitude[[-1, 0]]))
    edge = np.array([[180.0, at_edge], [180.0, pole], [-180.0, pole], [-180.0, at_edge]])
    return Polygon(np.concatenate((np.stack((longitude, latitude), axis=1), edge)))


def cut_at_antimeridian(area: Polygon | MultiPolygon) -> Polygon | MultiPolygon:
    """The area with longitudes between -180 and 180."""
    west, _, east, _ = area.bounds
    if west >= -180 and east <= 180:
        return area
    parts = [
        part
        for turn in (-360, 0, 360)
        for part in shapely.get_parts(translate(area, turn).intersection(_WORLD))
        if isinstance(part, Polygon) and not part.is_empty
    ]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)
