"""Distance to borders: great-circle kilometres from points to the nearest outline.

Edges are laid out in Mercator's projection, whose scale is the same in all directions at a point,
so that the edge that is nearest in the plane is nearest on the ground; the distance to it is then
computed on the sphere. The choice of the edge is off by no more than the projection's scale changes
over the distance asked for: 0.03% for 2 km and 0.7% for 50 km at 40 degrees of latitude, several
percent for hundreds of kilometres. Not for points within half a degree of a pole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter
from shapely.geometry import MultiPolygon, Polygon

from geopak.geo.antimeridian import into_frame
from geopak.geo.distance import EARTH_RADIUS_KM, unit_vectors_array

_Array = NDArray[np.float64]

_MAX_LATITUDE_DEG = 89.5
# Edges are cut to about this, so that straight in degrees, straight in Mercator's projection and
# shortest on the sphere are the same within centimetres.
_PIECE_DEG = 0.02
_MAX_PIXELS = 2000


class Borders:
    """The edges of some polygons, made to be asked for distances.

    Args:
        polygons: coordinates (longitude, latitude) in degrees, in one frame of longitudes; edges
            are straight in degrees.
    """

    def __init__(self, polygons: Sequence[Polygon | MultiPolygon]) -> None:
        pieces = [_edges(shapely.segmentize(polygon, _PIECE_DEG)) for polygon in polygons]
        edges = np.concatenate(pieces)
        backwards = (edges[:, 0, 0] > edges[:, 1, 0]) | (
            (edges[:, 0, 0] == edges[:, 1, 0]) & (edges[:, 0, 1] > edges[:, 1, 1])
        )
        edges[backwards] = edges[backwards, ::-1]
        # Neighbours share most of their edges.
        edges = np.unique(edges.reshape(-1, 4), axis=0).reshape(-1, 2, 2)
        self._edges_deg = edges
        self._lon_range_deg = float(edges[..., 0].min()), float(edges[..., 0].max())
        self._ends = unit_vectors_array(edges[..., ::-1])
        self._tree = shapely.STRtree(shapely.linestrings(_mercator(edges)))

    def distance_km(self, latlon_deg: _Array, max_km: float, chunk: int = 500_000) -> _Array:
        """Great-circle kilometres to the nearest edge, infinite beyond ``max_km``.

        Args:
            latlon_deg: (N, 2) degrees, latitude first; not-a-number is infinitely far.
            max_km: distances beyond this are not told; the smaller, the faster.
            chunk: points worked on at a time, which bounds the memory.

        Returns:
            (N,) kilometres.
        """
        out = np.full(len(latlon_deg), np.inf)
        if not len(latlon_deg):
            return out
        reach_deg = min(math.degrees(max_km / EARTH_RADIUS_KM), 180.0)
        around = _Surroundings(self._edges_deg, reach_deg)
        for start in range(0, len(latlon_deg), chunk):
            lat, lon = latlon_deg[start : start + chunk].T
            lonlat = np.stack((into_frame(lon, *self._lon_range_deg), lat), axis=1)
            rows = np.flatnonzero(around.has(lonlat))
            distance = self._nearest_km(lonlat[rows], reach_deg)
            out[start + rows] = np.where(distance <= max_km, distance, np.inf)
        return out

    def _nearest_km(self, lonlat_deg: _Array, reach_deg: float) -> _Array:
        out = np.full(len(lonlat_deg), np.inf)
        if not len(lonlat_deg):
            return out
        # A little more than the distance in the plane, whose scale grows towards the pole.
        highest_deg = min(np.abs(lonlat_deg[:, 1]).max() + reach_deg, _MAX_LATITUDE_DEG)
        reach = 1e-6 + 1.01 * reach_deg / math.cos(math.radians(highest_deg))
        rows, edges = self._tree.query_nearest(
            shapely.points(_mercator(lonlat_deg)), max_distance=reach, all_matches=False
        )
        points = unit_vectors_array(lonlat_deg[rows, ::-1])
        out[rows] = _to_edge_km(points, self._ends[edges, 0], self._ends[edges, 1])
        return out


class _Surroundings:
    """A coarse picture of the ground near edges: most points of a country are not there."""

    def __init__(self, edges_deg: _Array, reach_deg: float) -> None:
        """Args:
        edges_deg: (E, 2, 2) ends of edges no longer than ``_PIECE_DEG``, longitude first.
        reach_deg: degrees of latitude that count as near.
        """
        highest_deg = min(np.abs(edges_deg[..., 1]).max() + reach_deg, _MAX_LATITUDE_DEG)
        # An edge is somewhere within its own length of where it begins.
        margin = np.array((reach_deg / math.cos(math.radians(highest_deg)), reach_deg)) + _PIECE_DEG
        start = edges_deg[:, 0]
        self._corner = start.min(axis=0) - margin
        extent = start.max(axis=0) + margin - self._corner
        self._pixel = np.maximum(margin / 2, extent / _MAX_PIXELS)
        shape = np.floor(extent / self._pixel).astype(int) + 1
        self._near = np.zeros(shape, bool)
        column, row = self._pixels(start).T
        self._near[column, row] = True
        reach = np.ceil(margin / self._pixel).astype(int)
        self._near = maximum_filter(self._near, size=tuple(2 * reach + 1), mode="constant")

    def has(self, lonlat_deg: _Array) -> NDArray[np.bool_]:
        """(N,) whether an edge may be near; never false where one is."""
        out = np.zeros(len(lonlat_deg), bool)
        with np.errstate(invalid="ignore"):
            inside = (lonlat_deg >= self._corner).all(axis=1)
            inside &= (lonlat_deg < self._corner + self._pixel * self._near.shape).all(axis=1)
        column, row = self._pixels(lonlat_deg[inside]).T
        out[inside] = self._near[column, row]
        return out

    def _pixels(self, lonlat_deg: _Array) -> NDArray[np.int64]:
        pixels = np.floor((lonlat_deg - self._corner) / self._pixel).astype(np.int64)
        return np.minimum(pixels, np.array(self._near.shape) - 1)


def _edges(polygon: Polygon | MultiPolygon) -> _Array:
    """(E, 2, 2) both ends of every edge of every ring, longitude first."""
    rings = shapely.get_rings(shapely.get_parts(polygon))
    coordinates, ring = shapely.get_coordinates(rings, return_index=True)
    same = (ring[1:] == ring[:-1]) & (coordinates[1:] != coordinates[:-1]).any(axis=1)
    return np.stack((coordinates[:-1][same], coordinates[1:][same]), axis=1)


def _mercator(lonlat_deg: _Array) -> _Array:
    """(..., 2) in degrees of the equator."""
    lat = np.radians(np.clip(lonlat_deg[..., 1], -_MAX_LATITUDE_DEG, _MAX_LATITUDE_DEG))
    return np.stack((lonlat_deg[..., 0], np.degrees(np.arctanh(np.sin(lat)))), axis=-1)


def _to_edge_km(point: _Array, a: _Array, b: _Array) -> _Array:
    """(N,) distances of unit vectors (N, 3) to the great-circle arcs from a to b."""
    normal = np.cross(a, b)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    beside = np.einsum("nk,nk->n", np.cross(normal, a), point) >= 0
    beside &= np.einsum("nk,nk->n", np.cross(b, normal), point) >= 0
    across = np.abs(np.arcsin(np.clip(np.einsum("nk,nk->n", normal, point), -1, 1)))
    to_end = np.minimum(np.linalg.norm(point - a, axis=1), np.linalg.norm(point - b, axis=1))
    angle = np.where(beside, across, 2 * np.arcsin(np.minimum(to_end / 2, 1)))
    distance: _Array = EARTH_RADIUS_KM * angle
    return distance
