"""The ground that belongs to each cell, and how large it is."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyproj
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon

from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.distance import EARTH_RADIUS_KM

Ground: TypeAlias = Polygon | MultiPolygon
_SPHERE = f"+R={EARTH_RADIUS_KM * 1000}"
# Straight lines in degrees and in the plane part by a metre over such a length.
_LONGEST_EDGE_KM = 8.0
_KM_PER_DEGREE = np.pi / 180 * EARTH_RADIUS_KM


def cell_extents(cells: CellTable, outlines: Outlines) -> list[Ground]:
    """The ground of each cell: all of its province that is nearer to its center than to another's.

    A place of a province lies in the extent of :meth:`geopak.geo.cells.CellTable.nearest`, so that
    the extents of a province fill its outline and overlap nowhere. Distances are compared in an
    equal-area plane around the province, which bends borders between cells: by less than 0.2% of
    their distance from the centers in a province 1,000 km wide.

    Args:
        cells: the cells.
        outlines: of the provinces, in class-index order.

    Returns:
        N polygons, longitude first, degrees in the frame of ``outlines``; an empty one for a cell
        whose center is that of another cell with a lower id, or lies too far outside the outline.
    """
    return [
        shapely.transform(ground, lambda xy, plane=plane: plane.degrees(xy))
        for plane, grounds in _planes(cells, outlines)
        for ground in grounds
    ]


def cell_areas_km2(cells: CellTable, outlines: Outlines) -> NDArray[np.float64]:
    """(N,) square kilometres of :func:`cell_extents`; together the area of the region."""
    return np.array(
        [ground.area / 1e6 for _, grounds in _planes(cells, outlines) for ground in grounds]
    )


class _Plane:
    """Metres in Lambert's azimuthal equal-area projection around the middle of a province."""

    def __init__(self, outline: Ground) -> None:
        west, south, east, north = outline.bounds
        # The frame of the outlines may go on beyond 180 degrees: the plane is turned with it.
        self._turn = (west + east) / 2
        self._project = pyproj.Transformer.from_crs(
            f"+proj=longlat {_SPHERE}",
            f"+proj=laea +lat_0={(south + north) / 2} +lon_0=0 {_SPHERE}",
            always_xy=True,
        )

    def metres(self, lonlat_deg: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = self._project.transform(lonlat_deg[:, 0] - self._turn, lonlat_deg[:, 1])
        return np.stack((x, y), axis=1)

    def degrees(self, xy_m: NDArray[np.float64]) -> NDArray[np.float64]:
        lon, lat = self._project.transform(xy_m[:, 0], xy_m[:, 1], direction="INVERSE")
        return np.stack((np.asarray(lon) + self._turn, lat), axis=1)


def _planes(cells: CellTable, outlines: Outlines) -> list[tuple[_Plane, list[Ground]]]:
    """Of every province its plane and its cells' extents in it."""
    centers = outlines.in_frame(cells.center_latlon_deg)[:, ::-1]
    found = []
    for province, outline in enumerate(outlines.polygons):
        plane = _Plane(outline)
        dense = shapely.segmentize(outline, _LONGEST_EDGE_KM / _KM_PER_DEGREE)
        land = shapely.make_valid(shapely.transform(dense, plane.metres))
        own = plane.metres(centers[cells.province_id == province])
        found.append((plane, _shares(own, land)))
    return found


def _shares(center_m: NDArray[np.float64], land: Ground) -> list[Ground]:
    """The part of the land that is nearest to each of (N, 2) centers."""
    shares: list[Ground] = [Polygon()] * len(center_m)
    _, first = np.unique(center_m, axis=0, return_index=True)
    if len(first) == 1:
        shares[int(first[0])] = land
        return shares
    points = shapely.points(center_m[first])
    # Large enough to hold the land: the outermost areas would end where the centers do.
    fields = shapely.get_parts(
        shapely.voronoi_polygons(shapely.multipoints(points), extend_to=shapely.envelope(land))
    )
    owner, field = shapely.STRtree(fields).query(points, predicate="intersects")
    for k, f in zip(owner.tolist(), field.tolist(), strict=True):
        # Edges get their vertices here, so that degrees follow them closely.
        edges = shapely.segmentize(fields[f], _LONGEST_EDGE_KM * 1000)
        shares[int(first[k])] = _areas(shapely.intersection(edges, land))
    return shares


def _areas(geometry: shapely.Geometry) -> Ground:
    """The polygons of a geometry alone: land and a field may also touch in a line."""
    parts = [p for p in shapely.get_parts(geometry) if isinstance(p, Polygon) and not p.is_empty]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts) if parts else Polygon()
