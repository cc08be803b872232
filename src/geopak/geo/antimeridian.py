"""Longitudes where they jump from 180 to -180: outlines and points in one frame without a seam.

A file may split a polygon at the antimeridian (RFC 7946), draw it across with longitudes that jump
by 360, or count beyond 180. Here all become one frame of longitudes whose edge lies in the widest
stretch that the region does not touch, so that Fiji reaches from 177 to 182.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon


def unwrapped(polygon: Polygon | MultiPolygon) -> Polygon | MultiPolygon:
    """The polygon with rings that go on beyond 180 degrees instead of jumping to the other side.

    Rings that reach a pole the way flat maps have it, down the meridian of 180 and along the
    latitude of 90, stay as they are.

    Args:
        polygon: coordinates (longitude, latitude) in degrees.

    Raises:
        ValueError: a ring goes round a pole, which a flat polygon cannot express.
    """
    coordinates = shapely.get_coordinates(polygon)
    if not (np.abs(np.diff(coordinates[:, 0])) > 180).any():
        return polygon
    parts = []
    for part in shapely.get_parts(polygon):
        shell = _unwrapped_ring(shapely.get_coordinates(part.exterior))
        middle = _middle(shell[:, 0])
        holes = [_unwrapped_ring(shapely.get_coordinates(ring)) for ring in part.interiors]
        for hole in holes:
            hole[:, 0] += 360 * np.round((middle - _middle(hole[:, 0])) / 360)
        parts.append(Polygon(shell, holes))
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _unwrapped_ring(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    step = np.diff(ring[:, 0])
    along_pole = (np.abs(ring[:-1, 1]) == 90) & (np.abs(ring[1:, 1]) == 90)
    jumps = (np.abs(step) > 180) & (np.abs(step) < 360) & ~along_pole
    if not jumps.any():
        return ring.copy()
    turns = np.concatenate(([0.0], np.cumsum(-np.round(step / 360))))
    if turns[-1] != 0:
        lat = ring[np.flatnonzero(jumps)[0], 1]
        raise ValueError(
            f"goes round a pole (it crosses 180 degrees of longitude at latitude {lat:g} and does "
            "not come back). Cut it at that meridian"
        )
    out = ring.copy()
    out[:, 0] += 360 * turns
    return out


def common_frame(
    polygons: Sequence[Polygon | MultiPolygon],
) -> list[Polygon | MultiPolygon]:
    """The polygons with their parts moved by whole turns into the narrowest common frame.

    The middle of the frame lies between -180 and 180, and parts that meet at the antimeridian
    come to touch each other there.
    """
    pieces = [shapely.get_parts(polygon) for polygon in polygons]
    bounds = shapely.bounds(np.concatenate(pieces))
    west, width = bounds[:, 0], bounds[:, 2] - bounds[:, 0]
    start = west - 360 * np.floor((west + 180) / 360)
    order = np.argsort(start, kind="stable")
    # How far the parts so far reach, against where the next one begins.
    reach = np.maximum.accumulate((start + width)[order])
    following = np.append(start[order][1:], start[order][0] + 360)
    widest = int(np.argmax(following - reach))
    cut = following[widest] if widest + 1 < len(order) else start[order][0]
    narrow = start - 360 * np.floor((start - cut) / 360)
    if np.ptp(bounds[:, [0, 2]]) <= (narrow + width).max() - narrow.min() + 1e-9:
        narrow = west
    middle = (narrow.min() + (narrow + width).max()) / 2
    turns = np.round((narrow - west) / 360) - np.floor((middle + 180) / 360)
    if not turns.any():
        return list(polygons)
    moved = iter(turns.tolist())
    out: list[Polygon | MultiPolygon] = []
    for parts in pieces:
        shifted = [_moved(part, 360 * next(moved)) for part in parts]
        out.append(shifted[0] if len(shifted) == 1 else MultiPolygon(shifted))
    return out


def into_frame(
    longitude_deg: NDArray[np.float64], west_deg: float, east_deg: float
) -> NDArray[np.float64]:
    """Longitudes moved by whole turns to less than half a turn from the middle of a frame.

    Those that need no turn keep every bit.
    """
    middle = (west_deg + east_deg) / 2
    turns = np.round((middle - longitude_deg) / 360)
    moved: NDArray[np.float64] = longitude_deg + 360 * turns
    return moved


def _middle(longitude_deg: NDArray[np.float64]) -> float:
    return float(longitude_deg.min() + longitude_deg.max()) / 2


def _moved(polygon: Polygon, by_deg: float) -> Polygon:
    if by_deg == 0:
        return polygon
    shifted: Polygon = shapely.transform(polygon, lambda xy: xy + np.array((by_deg, 0.0)))
    return shifted
