"""Reading outline files: whatever the format and reference system, polygons in WGS84 degrees.

GeoJSON is read with the standard library; Shapefile, GeoPackage and whatever else GDAL knows with
pyogrio; GeoParquet with geopandas. These two are imported when a file needs them, not before.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry
from shapely.validation import explain_validity, make_valid

from geopak.errors import RegionError, nearest_name
from geopak.geo.antimeridian import unwrapped

if TYPE_CHECKING:
    import pyproj

log = logging.getLogger(__name__)

# Published outlines often touch themselves in a point; a repair that moves less area than this
# share is taken and reported, anything larger (a bow tie, crossed rings) is the user's to decide.
_REPAIR_AREA_SHARE = 1e-3
# Edges longer than this get vertices in between before they are bent, by another projection or by
# the curvature of the Earth: a chord of 10 km leaves its arc by less than 2 m.
_CHORD_KM = 10.0
# Longitudes may be counted up to a turn beyond the usual range.
_LON_RANGE_DEG = (-360.0, 540.0)
# Coordinates from a projection are rounded to 0.1 mm, so that neighbours' borders stay equal.
_PROJECTED_DECIMALS = 9


@dataclass(frozen=True, eq=False)
class OutlineFile:
    """The features of an outline file, their geometries still as the file has them.

    Attributes:
        path: the file.
        properties: attributes of each feature, by name.
        geometries: each feature's geometry: a GeoJSON object, WKB, or ``None``.
        crs: reference system of the coordinates; ``None``: the file names none.
        layer: layer that was read; ``None``: the format has none.
    """

    path: Path
    properties: Sequence[Mapping[str, Any]]
    geometries: Sequence[Any]
    crs: pyproj.CRS | None = None
    layer: str | None = None

    def __len__(self) -> int:
        return len(self.properties)

    def polygon(
        self, number: int, name: str, edges: str = "planar"
    ) -> tuple[Polygon | MultiPolygon, str | None]:
        """The geometry of a feature as a valid polygon in degrees, longitude first.

        Args:
            number: position of the feature in the file.
            name: what to call it in messages.
            edges: between two vertices ``planar``, a straight line in the file's own coordinates,
                or ``geodesic``, the shortest way over ground. Long edges get vertices in between
                where that is not a straight line in degrees.

        Returns:
            The polygon, and what had to be repaired in it, if anything. Longitudes go on beyond
            180 where a ring crosses the antimeridian.

        Raises:
            RegionError: no polygon, no degrees, or a ring that cannot be mended safely.
        """
        where = f"{self.path}: feature {number} ({name})"
        geometry = _parse(where, self.geometries[number])
        geometry = shapely.force_2d(geometry)
        if self.crs is not None and not _is_lonlat_wgs84(self.crs):
            geometry = self._reprojected(where, geometry, bend=edges == "planar")
        self._check_degrees(where, geometry)
        try:
            geometry = unwrapped(geometry)
        except ValueError as error:
            raise RegionError(f"{where} {error}, or leave the feature out.") from None
        if edges == "geodesic":
            geometry = along_geodesics(geometry)
        return _valid(where, geometry)

    def _reprojected(self, where: str, geometry: BaseGeometry, bend: bool) -> BaseGeometry:
        assert self.crs is not None
        if bend and self.crs.is_projected:
            unit_m = self.crs.axis_info[0].unit_conversion_factor or 1.0
            geometry = shapely.segmentize(geometry, _CHORD_KM * 1000 / unit_m)
        project = _to_degrees(self.crs)

        def to_degrees(xy: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.stack(project.transform(xy[:, 0], xy[:, 1]), axis=1)

        degrees = shapely.transform(geometry, to_degrees)
        coordinates = shapely.get_coordinates(degrees)
        if not np.isfinite(coordinates).all():
            raise RegionError(
                f"{where} has coordinates that the file's reference system ({self.crs.name}) does "
                "not have. Is it the right one? Convert the file with the system stated: "
                "ogr2ogr -s_srs EPSG:CODE -t_srs EPSG:4326 OUT.gpkg FILE"
            )
        return shapely.transform(degrees, lambda xy: np.round(xy, _PROJECTED_DECIMALS))

    def _check_degrees(self, where: str, geometry: BaseGeometry) -> None:
        west, south, east, north = geometry.bounds
        low, high = _LON_RANGE_DEG
        if low <= west <= east <= high and -90 <= south <= north <= 90:
            return
        named = (
            "Their reference system is said to be degrees, so the file is wrong about it"
            if self.crs is not None
            else "the file names no reference system (a Shapefile has it in its .prj file)"
        )
        raise RegionError(
            f"{where} reaches from {west:g}, {south:g} to {east:g}, {north:g}, which is not "
            f"longitude and latitude in degrees. {named[:1].upper()}{named[1:]}. Convert it with "
            "its system stated: ogr2ogr -s_srs EPSG:CODE -t_srs EPSG:4326 OUT.geojson FILE"
        )


def read_outline_file(path: str | Path, layer: str | None = None) -> OutlineFile:
    """Reads GeoJSON, Shapefile (zipped too), GeoPackage, GeoParquet or what else GDAL reads.

    Args:
        path: the file; its name's ending says what it is.
        layer: which layer of a file that has several; ``None``: the only one.

    Raises:
        RegionError: missing, unreadable or without features; or a layer has to be chosen.
    """
    path = Path(path)
    if not path.exists():
        raise RegionError(
            f"No outlines at {path}. Set region.boundaries to a GeoJSON, Shapefile, GeoPackage or "
            "GeoParquet file."
        )
    ending = path.suffix.lower()
    if ending in (".geojson", ".json"):
        found = _read_geojson(path)
    elif ending in (".parquet", ".geoparquet", ".pq"):
        found = _read_geoparquet(path)
    else:
        found = _read_with_gdal(path, layer)
    if layer is not None and found.layer is None:
        raise RegionError(
            f"region.boundary_layer={layer!r}, but {path} is of a format without layers. Set it to "
            "null."
        )
    return found


def along_geodesics(
    polygon: Polygon | MultiPolygon, chord_km: float = _CHORD_KM
) -> Polygon | MultiPolygon:
    """The polygon with vertices added to long edges, on the ellipsoid's shortest way.

    An edge is cut the same way from both of its ends, so that neighbours that share it still do.

    Args:
        polygon: coordinates (longitude, latitude) in degrees, unwrapped.
        chord_km: edges are cut until none is longer.
    """
    import pyproj

    geod = pyproj.Geod(ellps="WGS84")

    def bent(ring: Any) -> NDArray[np.float64]:
        points = shapely.get_coordinates(ring)
        lon, lat = points.T
        _, _, length_m = geod.inv(lon[:-1], lat[:-1], lon[1:], lat[1:])
        pieces = np.ceil(np.asarray(length_m) / (1000 * chord_km)).astype(int)
        # Along a meridian the straight line is the shortest way already.
        pieces[lon[:-1] == lon[1:]] = 1
        out: list[NDArray[np.float64]] = []
        last = 0
        for edge in np.flatnonzero(pieces > 1).tolist():
            out.append(points[last : edge + 1])
            ends = points[edge : edge + 2]
            forward = tuple(ends[0]) <= tuple(ends[1])
            (lon_a, lat_a), (lon_b, lat_b) = (ends if forward else ends[::-1]).tolist()
            between = geod.inv_intermediate(
                lon_a, lat_a, lon_b, lat_b, npts=int(pieces[edge]) - 1, return_back_azimuth=False
            )
            inner = np.stack((between.lons, between.lats), axis=1)
            inner[:, 0] += 360 * np.round((lon_a - inner[:, 0]) / 360)
            out.append(inner if forward else inner[::-1])
            last = edge + 1
        return np.concatenate([*out, points[last:]])

    parts = [
        Polygon(bent(part.exterior), [bent(ring) for ring in part.interiors])
        for part in shapely.get_parts(polygon)
    ]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


# --- formats --------------------------------------------------------------------------------------


def _read_geojson(path: Path) -> OutlineFile:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise RegionError(
            f"{path} is not GeoJSON ({error}). Export the outlines anew as GeoJSON or GeoPackage."
        ) from error
    features = content.get("features") if isinstance(content, dict) else None
    well_formed = isinstance(features, list) and all(isinstance(f, dict) for f in features)
    if not well_formed or not features:
        raise RegionError(
            f"{path} is not a GeoJSON FeatureCollection with features. It needs one feature per "
            "province, with the province's name in an attribute."
        )
    properties = [f.get("properties") for f in features]
    return OutlineFile(
        path,
        [p if isinstance(p, dict) else {} for p in properties],
        [f.get("geometry") for f in features],
        _geojson_crs(path, content.get("crs")),
    )


def _geojson_crs(path: Path, member: Any) -> pyproj.CRS | None:
    """The reference system of files older than RFC 7946, which may name one."""
    import pyproj

    if member is None:
        return None
    try:
        return pyproj.CRS.from_user_input(member["properties"]["name"])
    except (TypeError, KeyError, pyproj.exceptions.CRSError) as error:
        raise RegionError(
            f"{path}: its member 'crs' names no known reference system ({error}). Take it out if "
            "the coordinates are longitude and latitude in degrees."
        ) from error


def _read_geoparquet(path: Path) -> OutlineFile:
    import geopandas
    import pyproj

    try:
        frame = geopandas.read_parquet(path)
    except (ValueError, OSError, KeyError) as error:
        raise RegionError(
            f"{path} is not GeoParquet: {error} Write it with geopandas' to_parquet, or give the "
            "outlines as GeoPackage or GeoJSON."
        ) from error
    _check_any(path, len(frame))
    attributes = frame.drop(columns=frame.geometry.name)
    return OutlineFile(
        path,
        [dict(row) for row in attributes.to_dict("records")],
        list(frame.geometry.to_wkb()),
        None if frame.crs is None else pyproj.CRS(frame.crs),
    )


def _read_with_gdal(path: Path, layer: str | None) -> OutlineFile:
    import pyogrio
    import pyproj

    try:
        # GDAL's remarks are for the log: what matters is checked geometry by geometry.
        with warnings.catch_warnings(record=True) as remarks:
            warnings.simplefilter("always")
            layers = [str(name) for name in pyogrio.list_layers(path)[:, 0]]
            chosen = _choose_layer(path, layers, layer)
            meta, _, geometries, columns = pyogrio.raw.read(path, layer=chosen)
        for remark in remarks:
            log.warning("%s: %s", path, remark.message)
        crs = pyproj.CRS.from_user_input(meta["crs"]) if meta["crs"] else None
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        pyproj.exceptions.CRSError,
        ValueError,
    ) as error:
        raise RegionError(
            f"{path} cannot be read: {str(error).rstrip('.')}. Outlines may be GeoJSON, GeoPackage "
            "(.gpkg), GeoParquet (.parquet), or a Shapefile: its .shp, .shx, .dbf and .prj files "
            "side by side, or together in one .zip."
        ) from error
    if geometries is None:
        raise RegionError(f"{path}: layer {chosen!r} has no geometries. Choose another layer.")
    _check_any(path, len(geometries))
    names = [str(name) for name in meta["fields"]]
    rows = zip(*columns, strict=True) if names else (() for _ in geometries)
    properties = [dict(zip(names, row, strict=True)) for row in rows]
    return OutlineFile(path, properties, list(geometries), crs, chosen)


def _choose_layer(path: Path, layers: Sequence[str], wanted: str | None) -> str:
    if wanted is None and len(layers) == 1:
        return layers[0]
    if wanted in layers:
        return str(wanted)
    said = ("has several layers" if wanted is None else f"has no layer {wanted!r}.") + nearest_name(
        str(wanted), layers
    )
    raise RegionError(
        f"{path} {said.rstrip('.')}. Set region.boundary_layer to the one with the provinces. "
        f"Layers: {', '.join(layers) or 'none'}."
    )


def _check_any(path: Path, num_features: int) -> None:
    if not num_features:
        raise RegionError(f"{path} has no features. It needs one per province.")


# --- geometries -----------------------------------------------------------------------------------


def _parse(where: str, raw: Any) -> BaseGeometry:
    kind = raw.get("type") if isinstance(raw, dict) else None
    try:
        if isinstance(raw, bytes):
            geometry = shapely.from_wkb(raw)
            kind = geometry.geom_type
        elif kind in ("Polygon", "MultiPolygon"):
            geometry = shapely.from_geojson(json.dumps(raw))
        else:
            geometry = None
    except shapely.errors.GEOSException as error:
        raise RegionError(
            f"{where} has an invalid ring: {error}. A ring needs at least four points, the last "
            "equal to the first."
        ) from error
    if geometry is None or kind not in ("Polygon", "MultiPolygon"):
        raise RegionError(f"{where} is a {kind}. A province must be a Polygon or MultiPolygon.")
    if geometry.is_empty:
        raise RegionError(f"{where} has no points. Give it a ring or leave the feature out.")
    return geometry


def _valid(
    where: str, polygon: Polygon | MultiPolygon
) -> tuple[Polygon | MultiPolygon, str | None]:
    if polygon.is_valid:
        return polygon, None
    flaw = explain_validity(polygon)
    repaired = make_valid(polygon)
    pieces = [g for g in shapely.get_parts(repaired) if g.geom_type.endswith("Polygon")]
    united = shapely.union_all(pieces)
    if not pieces or abs(united.area - polygon.area) > _REPAIR_AREA_SHARE * united.area:
        raise RegionError(
            f"{where} has an invalid ring: {flaw} (longitude latitude). Mend it: "
            "ogr2ogr -makevalid OUT.geojson FILE"
        )
    return as_polygon(united), flaw


def as_polygon(geometry: BaseGeometry) -> Polygon | MultiPolygon:
    """The polygons of a geometry, without the points and lines that overlays leave."""
    parts = [
        part
        for piece in shapely.get_parts(geometry)
        for part in shapely.get_parts(piece)
        if isinstance(part, Polygon) and not part.is_empty
    ]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


@cache
def _to_degrees(crs: pyproj.CRS) -> pyproj.Transformer:
    import pyproj

    return pyproj.Transformer.from_crs(crs, "EPSG:4326", always_xy=True)


@cache
def _is_lonlat_wgs84(crs: pyproj.CRS) -> bool:
    import pyproj

    return any(
        crs.equals(pyproj.CRS(code), ignore_axis_order=True) for code in ("EPSG:4326", "OGC:CRS84")
    )
