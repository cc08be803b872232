"""Province outlines: which province a coordinate is in, and how far from a border.

*Exact* means exact for the outlines as they are given. Between two vertices GeoJSON has a straight
line in longitude and latitude (RFC 7946), which along a parallel is not the shortest way: on the
49th parallel an edge of 100 km leaves the great circle by 230 m, one of 2,000 km by 91 km. With
``region.boundary_edges=geodesic`` long edges get vertices on the shortest way first.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry import MultiPolygon, Polygon

from geopak.errors import RegionError, nearest_name
from geopak.geo.antimeridian import common_frame, into_frame
from geopak.geo.outline_files import OutlineFile, as_polygon, read_outline_file
from geopak.geo.outline_report import OutlineReport, examine_outlines
from geopak.geo.region import Region

if TYPE_CHECKING:
    # Brings torch with it, which the processes that draw photos do without.
    from geopak.geo.borders import Borders

__all__ = ["OutlineReport", "Outlines"]

log = logging.getLogger(__name__)

# So many points are looked up at a time, which bounds the memory.
_CHUNK = 1_000_000


@dataclass(frozen=True, eq=False)
class Outlines:
    """Outlines of all provinces of a region, in class-index order.

    Attributes:
        polygons: one (multi)polygon per province, coordinates (longitude, latitude) in degrees as
            GeoJSON has them, but in one frame of longitudes without a seam: a region across the
            antimeridian goes on beyond 180 (or below -180).
        ignored: names of features of the file that are no province of the region.
        repaired: features that had an invalid ring, with what it was and where.
        num_features: of how many features of the file each province is made; empty: not known.
    """

    polygons: tuple[Polygon | MultiPolygon, ...]
    ignored: tuple[str, ...] = ()
    repaired: tuple[str, ...] = ()
    num_features: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for polygon in self.polygons:
            shapely.prepare(polygon)

    @classmethod
    def load(
        cls,
        path: str | Path,
        region: Region,
        name_field: str | None = None,
        *,
        layer: str | None = None,
        edges: str = "planar",
    ) -> Outlines:
        """Reads the outlines of every province of a region from a file.

        Several features of one province are united. Features that name no province are left out,
        with a warning.

        Args:
            path: GeoJSON, Shapefile (zipped too), GeoPackage or GeoParquet with Polygons or
                MultiPolygons in any reference system; without one they must be degrees.
            region: its names, aliases and ``boundary_names`` say which feature is which province.
            name_field: attribute that holds the province name; ``None``: the attribute whose
                values are province names is found.
            layer: layer of the file; ``None``: the only one.
            edges: ``planar`` or ``geodesic``, see :class:`geopak.geo.region.Region`.

        Raises:
            RegionError: the file is missing or not readable, the attribute is not there, a
                province has no feature, or a geometry is invalid; names file, feature, attribute.
        """
        file = read_outline_file(path, layer)
        field = name_field or _detect_name_field(file, region)
        parts: list[list[Polygon | MultiPolygon]] = [[] for _ in region.provinces]
        unknown, repaired = [], []
        for number, properties in enumerate(file.properties):
            if field not in properties:
                raise RegionError(
                    f"{path}: feature {number} has no attribute {field!r}."
                    f"{nearest_name(field, properties)} It has: {', '.join(properties) or 'none'}. "
                    "Set region.boundary_name_field to the attribute with the province names."
                )
            name = properties[field]
            index = region.find_in_file(name)
            if index is None:
                unknown.append(str(name))
                continue
            polygon, flaw = file.polygon(number, str(name), edges)
            if flaw is not None:
                repaired.append(f"feature {number} ({name}): {flaw}")
            parts[index].append(polygon)
        missing = [region.names[i] for i, found in enumerate(parts) if not found]
        if missing:
            hints = "".join(
                f" {name!r} is unknown.{nearest_name(name, region.names)}" for name in unknown[:5]
            )
            raise RegionError(
                f"{path}: no feature for {', '.join(missing)} (attribute {field!r}).{hints} Add "
                "the file's spelling to region.provinces.<key>.aliases, map it in "
                "region.boundary_names, or choose another attribute with "
                "region.boundary_name_field."
            )
        if unknown:
            log.warning("%s: left out, no province of %s: %s", path, region.title, unknown)
        if repaired:
            log.warning("%s: invalid rings repaired: %s", path, "; ".join(repaired))
        return cls(
            _united(parts), tuple(unknown), tuple(repaired), tuple(len(found) for found in parts)
        )

    @classmethod
    def of_region(cls, region: Region) -> Outlines:
        """Loads the file that the region's configuration names.

        Raises:
            RegionError: the region names no file, or as :meth:`load`.
        """
        if not region.boundaries:
            raise RegionError(
                f"Region {region.name!r} has no outlines. Set region.boundaries to a GeoJSON, "
                "Shapefile, GeoPackage or GeoParquet file."
            )
        return cls.load(
            region.boundaries,
            region,
            region.boundary_name_field,
            layer=region.boundary_layer,
            edges=region.boundary_edges,
        )

    def province_of(self, latlon_deg: ArrayLike) -> NDArray[np.int64]:
        """Class index of the province that each coordinate lies in.

        Borders and overlaps belong to the province with the lower index, so every point has at
        most one.

        Args:
            latlon_deg: (N, 2) degrees, latitude first; not-a-number is outside.

        Returns:
            (N,) int64; -1 outside all provinces.
        """
        points = np.asarray(latlon_deg, float).reshape(-1, 2)
        out = np.full(len(points), -1, np.int64)
        for start in range(0, len(points), _CHUNK):
            out[start : start + _CHUNK] = self._province_of(points[start : start + _CHUNK])
        return out

    def _province_of(self, points: NDArray[np.float64]) -> NDArray[np.int64]:
        _, region_west, _, region_east = self.bounds_deg
        lat, lon = points[:, 0], into_frame(points[:, 1], region_west, region_east)
        out = np.full(len(points), -1, np.int64)
        for index, polygon in enumerate(self.polygons):
            west, south, east, north = polygon.bounds
            inside_box = (lat >= south) & (lat <= north) & (lon >= west) & (lon <= east)
            rows = np.flatnonzero(inside_box & (out < 0))
            hit = shapely.intersects_xy(polygon, lon[rows], lat[rows])
            out[rows[hit]] = index
        return out

    def border_distance_km(self, latlon_deg: ArrayLike, max_km: float) -> NDArray[np.float64]:
        """Great-circle distance to the nearest outline, of a province's inside or outer border.

        Args:
            latlon_deg: (N, 2) degrees, latitude first.
            max_km: distances beyond this are not told; the smaller, the faster.

        Returns:
            (N,) kilometres; infinite beyond ``max_km`` and for not-a-number.
        """
        points = np.asarray(latlon_deg, float).reshape(-1, 2)
        return self._borders.distance_km(points, max_km)

    def away_km(self, latlon_deg: ArrayLike, province_id: ArrayLike) -> NDArray[np.float64]:
        """Great-circle distance from each coordinate to a province that it need not lie in.

        Args:
            latlon_deg: (N, 2) degrees, latitude first.
            province_id: (N,) class index of the province to measure to.

        Returns:
            (N,) kilometres; 0 inside the province.
        """
        from geopak.geo.borders import Borders

        points = np.asarray(latlon_deg, float).reshape(-1, 2)
        wanted = np.asarray(province_id, np.int64)
        _, west, _, east = self.bounds_deg
        out = np.zeros(len(points))
        for index in np.unique(wanted).tolist():
            polygon = self.polygons[index]
            rows = np.flatnonzero(wanted == index)
            lon = into_frame(points[rows, 1], west, east)
            rows = rows[~shapely.intersects_xy(polygon, lon, points[rows, 0])]
            out[rows] = Borders([polygon]).distance_km(points[rows], np.inf)
        return out

    def check(self, region: Region) -> OutlineReport:
        """What is questionable about the outlines: overlaps, gaps, repairs, what was left out.

        Args:
            region: names the provinces.
        """
        return examine_outlines(self, region)

    def in_frame(self, latlon_deg: ArrayLike) -> NDArray[np.float64]:
        """(N, 2) coordinates with longitudes counted as the outlines count them, for drawing.

        Only a region across the antimeridian counts differently from the usual -180 to 180.
        """
        points = np.array(latlon_deg, float).reshape(-1, 2)
        _, west, _, east = self.bounds_deg
        points[:, 1] = into_frame(points[:, 1], west, east)
        return points

    @cached_property
    def _borders(self) -> Borders:
        from geopak.geo.borders import Borders

        return Borders(self.polygons)

    @cached_property
    def bounds_deg(self) -> tuple[float, float, float, float]:
        """(south, west, north, east) of all provinces together, degrees; east may exceed 180."""
        west, south, east, north = shapely.total_bounds(np.array(self.polygons, object)).tolist()
        return south, west, north, east

    def rings_deg(self, province_id: int) -> list[NDArray[np.float64]]:
        """Outer rings of a province for drawing: arrays (K, 2) of latitude, longitude."""
        parts = shapely.get_parts(self.polygons[province_id])
        return [shapely.get_coordinates(p.exterior)[:, ::-1].copy() for p in parts]

    def to_dict(self) -> dict[str, Any]:
        """Plain strings in lists (hexadecimal WKB), so that a checkpoint with it loads safely."""
        return {
            "polygons_wkb_hex": [shapely.to_wkb(p, hex=True) for p in self.polygons],
            "ignored": list(self.ignored),
            "repaired": list(self.repaired),
            "num_features": list(self.num_features),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outlines:
        """Inverse of :meth:`to_dict`; what an older version did not write is empty."""
        polygons = tuple(shapely.from_wkb(text) for text in data["polygons_wkb_hex"])
        return cls(
            polygons,
            tuple(data["ignored"]),
            tuple(data.get("repaired", ())),
            tuple(data.get("num_features", ())),
        )


def _united(
    parts: Sequence[Sequence[Polygon | MultiPolygon]],
) -> tuple[Polygon | MultiPolygon, ...]:
    """One polygon per province, all in one frame of longitudes."""
    framed = iter(common_frame([polygon for found in parts for polygon in found]))
    return tuple(as_polygon(shapely.union_all([next(framed) for _ in found])) for found in parts)


def _detect_name_field(file: OutlineFile, region: Region) -> str:
    """The attribute whose values name the most provinces; the first one wins a tie."""
    found: dict[str, set[int]] = {}
    for properties in file.properties:
        for key, value in properties.items():
            index = region.find_in_file(value)
            found.setdefault(key, set()).update(() if index is None else (index,))
    best = max(found, key=lambda key: len(found[key]), default=None)
    if best is None or not found[best]:
        raise RegionError(
            f"{file.path}: no attribute holds names of provinces of {region.title} "
            f"({', '.join(region.names)}). Attributes: {', '.join(found) or 'none'}. Set "
            "region.boundary_name_field, and other spellings in region.provinces.<key>.aliases or "
            "region.boundary_names."
        )
    return best
