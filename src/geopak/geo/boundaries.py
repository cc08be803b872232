"""Province outlines: reading them from GeoJSON and asking which province a coordinate is in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import ArrayLike, NDArray
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.validation import explain_validity, make_valid

from geopak.errors import RegionError, nearest_name
from geopak.geo.region import Region

log = logging.getLogger(__name__)

# Published outlines often touch themselves in a point; a repair that moves less area than this
# share is taken silently, anything larger (a bow tie, crossed rings) is the user's to decide.
_REPAIR_AREA_SHARE = 1e-3


@dataclass(frozen=True, eq=False)
class Outlines:
    """Outlines of all provinces of a region, in class-index order.

    Attributes:
        polygons: one (multi)polygon per province, coordinates (longitude, latitude) in degrees as
            GeoJSON has them.
        ignored: names of features of the file that are no province of the region.
    """

    polygons: tuple[Polygon | MultiPolygon, ...]
    ignored: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for polygon in self.polygons:
            shapely.prepare(polygon)

    @classmethod
    def load(cls, path: str | Path, region: Region, name_field: str | None = None) -> Outlines:
        """Reads the outlines of every province of a region from a GeoJSON file.

        Several features of one province are united. Features that name no province are left out,
        with a warning.

        Args:
            path: GeoJSON FeatureCollection of Polygons or MultiPolygons in WGS84 degrees.
            region: its names and aliases say which feature is which province.
            name_field: attribute that holds the province name; ``None``: the attribute whose
                values are province names is found.

        Raises:
            RegionError: the file is missing or no GeoJSON, the attribute is not there, a province
                has no feature, or a geometry is invalid; names file, feature and attribute.
        """
        path = Path(path)
        features = _read_features(path)
        field = name_field or _detect_name_field(path, features, region)
        parts: list[list[BaseGeometry]] = [[] for _ in region.provinces]
        unknown = []
        for number, feature in enumerate(features):
            properties = feature.get("properties") or {}
            if field not in properties:
                raise RegionError(
                    f"{path}: feature {number} has no attribute {field!r}."
                    f"{nearest_name(field, properties)} It has: {', '.join(properties) or 'none'}. "
                    "Set region.boundary_name_field to the attribute with the province names."
                )
            name = properties[field]
            index = region.find(name)
            if index is None:
                unknown.append(str(name))
            else:
                parts[index].append(_geometry(path, number, str(name), feature.get("geometry")))
        missing = [region.names[i] for i, found in enumerate(parts) if not found]
        if missing:
            hints = "".join(
                f" {name!r} is unknown.{nearest_name(name, region.names)}" for name in unknown[:5]
            )
            raise RegionError(
                f"{path}: no feature for {', '.join(missing)} (attribute {field!r}).{hints} Add "
                "the file's spelling to region.provinces.<key>.aliases, or choose another "
                "attribute with region.boundary_name_field."
            )
        if unknown:
            log.warning("%s: left out, no province of %s: %s", path, region.title, unknown)
        return cls(tuple(_as_polygon(shapely.union_all(p)) for p in parts), tuple(unknown))

    @classmethod
    def of_region(cls, region: Region) -> Outlines:
        """Loads the file that the region's configuration names.

        Raises:
            RegionError: the region names no file, or as :meth:`load`.
        """
        if not region.boundaries:
            raise RegionError(
                f"Region {region.name!r} has no outlines. Set region.boundaries to a GeoJSON file."
            )
        return cls.load(region.boundaries, region, region.boundary_name_field)

    def province_of(self, latlon_deg: ArrayLike) -> NDArray[np.int64]:
        """Class index of the province that each coordinate lies in.

        Borders belong to the province with the lower index, so every point has at most one.

        Args:
            latlon_deg: (N, 2) degrees, latitude first; not-a-number is outside.

        Returns:
            (N,) int64; -1 outside all provinces.
        """
        points = np.asarray(latlon_deg, float).reshape(-1, 2)
        out = np.full(len(points), -1, np.int64)
        for index, polygon in enumerate(self.polygons):
            west, south, east, north = polygon.bounds
            lat, lon = points[:, 0], points[:, 1]
            inside_box = (lat >= south) & (lat <= north) & (lon >= west) & (lon <= east)
            rows = np.flatnonzero(inside_box & (out < 0))
            hit = shapely.intersects_xy(polygon, points[rows, 1], points[rows, 0])
            out[rows[hit]] = index
        return out

    @property
    def bounds_deg(self) -> tuple[float, float, float, float]:
        """(south, west, north, east) of all provinces together, degrees."""
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
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Outlines:
        """Inverse of :meth:`to_dict`."""
        polygons = tuple(shapely.from_wkb(text) for text in data["polygons_wkb_hex"])
        return cls(polygons, tuple(data["ignored"]))


def _read_features(path: Path) -> list[dict[str, Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise RegionError(
            f"No outlines at {path}. Set region.boundaries to a GeoJSON file."
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RegionError(
            f"{path} is not GeoJSON ({error}). Convert it: "
            "ogr2ogr -f GeoJSON -t_srs EPSG:4326 out.geojson FILE"
        ) from error
    features = content.get("features") if isinstance(content, dict) else None
    well_formed = isinstance(features, list) and all(isinstance(f, dict) for f in features)
    if not well_formed or not features:
        raise RegionError(
            f"{path} is not a GeoJSON FeatureCollection with features. It needs one feature per "
            "province, with the province's name in an attribute."
        )
    return features


def _detect_name_field(path: Path, features: Sequence[dict[str, Any]], region: Region) -> str:
    """The attribute whose values name the most provinces; the first one wins a tie."""
    found: dict[str, set[int]] = {}
    for feature in features:
        for key, value in (feature.get("properties") or {}).items():
            index = region.find(value)
            found.setdefault(key, set()).update(() if index is None else (index,))
    best = max(found, key=lambda key: len(found[key]), default=None)
    if best is None or not found[best]:
        raise RegionError(
            f"{path}: no attribute holds names of provinces of {region.title} "
            f"({', '.join(region.names)}). Attributes: {', '.join(found) or 'none'}. Set "
            "region.boundary_name_field, and other spellings in region.provinces.<key>.aliases."
        )
    return best


def _geometry(path: Path, number: int, name: str, geometry: Any) -> BaseGeometry:
    where = f"{path}: feature {number} ({name})"
    if not isinstance(geometry, dict) or geometry.get("type") not in ("Polygon", "MultiPolygon"):
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        raise RegionError(f"{where} is a {kind}. A province must be a Polygon or MultiPolygon.")
    try:
        polygon = shapely.from_geojson(json.dumps(geometry))
    except shapely.errors.GEOSException as error:
        raise RegionError(
            f"{where} has an invalid ring: {error}. A ring needs at least four points, the last "
            "equal to the first."
        ) from error
    if polygon.is_empty:
        raise RegionError(f"{where} has no points. Give it a ring or leave the feature out.")
    west, south, east, north = polygon.bounds
    if not (-180 <= west <= east <= 180 and -90 <= south <= north <= 90):
        raise RegionError(
            f"{where} reaches from {west:g}, {south:g} to {east:g}, {north:g}, which is not "
            "longitude and latitude in degrees. Convert it: ogr2ogr -f GeoJSON -t_srs EPSG:4326 "
            "out.geojson FILE"
        )
    if polygon.is_valid:
        return polygon
    repaired = make_valid(polygon)
    pieces = [g for g in shapely.get_parts(repaired) if g.geom_type.endswith("Polygon")]
    united = shapely.union_all(pieces)
    if not pieces or abs(united.area - polygon.area) > _REPAIR_AREA_SHARE * united.area:
        raise RegionError(
            f"{where} has an invalid ring: {explain_validity(polygon)} (longitude latitude). Mend "
            "it: ogr2ogr -makevalid -f GeoJSON out.geojson FILE"
        )
    return united


def _as_polygon(geometry: BaseGeometry) -> Polygon | MultiPolygon:
    parts = [p for p in shapely.get_parts(geometry) if isinstance(p, Polygon)]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)
