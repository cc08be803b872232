"""Outline files: every format and reference system gives the same polygons, or says why not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyproj
import pytest
import shapely
from shapely.geometry import MultiPolygon, Polygon, box

from geopak.errors import RegionError
from geopak.geo.boundaries import Outlines
from geopak.geo.outline_files import along_geodesics, read_outline_file
from geopak.geo.region import Province, Region

REGION = Region("toy", "Toyland", (Province("west", "West", ("W.",)), Province("east", "East")))
# Of a size and place that UTM zone 42 is made for.
WEST = box(67.0, 25.0, 68.0, 26.0)
EAST = Polygon([(68, 25), (69.5, 25), (69.5, 26.5), (68, 26.5), (68, 26)])
UTM = "EPSG:32642"


def frame(crs: str | None = "EPSG:4326", **columns: Any) -> geopandas.GeoDataFrame:
    columns = columns or {"label": ["west", "EAST"], "code": [7, 8]}
    return geopandas.GeoDataFrame(columns, geometry=[WEST, EAST], crs=crs)


def write(table: geopandas.GeoDataFrame, path: Path, **options: Any) -> Path:
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif path.suffix == ".zip":
        folder = path.with_suffix("")
        folder.mkdir()
        table.to_file(folder / "o.shp")
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(folder.iterdir()):
                archive.write(file, file.name)
    else:
        table.to_file(path, **options)
    return path


NAMES = ["o.geojson", "o.shp", "o.zip", "o.gpkg", "o.parquet"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_polygons(tmp_path: Path, name: str) -> None:
    outlines = Outlines.load(write(frame(), tmp_path / name), REGION)
    for polygon, original in zip(outlines.polygons, (WEST, EAST), strict=True):
        assert shapely.equals_exact(polygon.normalize(), original.normalize(), tolerance=1e-9)
    assert outlines.num_features == (1, 1)
    assert outlines.repaired == ()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("crs", [UTM, "EPSG:3857", "EPSG:4267", "EPSG:24379"])
def test_any_reference_system_becomes_degrees(tmp_path: Path, name: str, crs: str) -> None:
    there = frame().to_crs(crs)
    outlines = Outlines.load(write(there, tmp_path / name), REGION)
    for polygon, original in zip(outlines.polygons, (WEST, EAST), strict=True):
        for corner in shapely.get_coordinates(original):
            assert shapely.distance(polygon, shapely.Point(corner)) < 1e-6
        # The straight edges of another projection are bowed in degrees: at most this far.
        assert shapely.hausdorff_distance(polygon, original) < 6e-3


def test_geojson_of_the_old_standard_names_its_system(tmp_path: Path) -> None:
    path = tmp_path / "o.geojson"
    frame().to_crs(UTM).to_file(path)
    assert "crs" in json.loads(path.read_text())
    assert Outlines.load(path, REGION).province_of([[25.5, 67.5]]).tolist() == [0]
    content = json.loads(path.read_text()) | {"crs": {"type": "name", "properties": {}}}
    path.write_text(json.dumps(content))
    with pytest.raises(RegionError, match=r"o\.geojson: its member 'crs' names no known"):
        Outlines.load(path, REGION)


def test_neighbours_still_share_their_border_after_projection(tmp_path: Path) -> None:
    path = write(frame().to_crs(UTM), tmp_path / "o.gpkg")
    west, east = Outlines.load(path, REGION).polygons
    assert west.intersection(east).area == 0
    assert west.union(east).geom_type == "Polygon"
    assert not west.union(east).interiors


def test_straight_edges_of_a_projection_stay_straight_in_it(tmp_path: Path) -> None:
    there = frame().to_crs(UTM).geometry[1]
    outlines = Outlines.load(write(frame().to_crs(UTM), tmp_path / "o.gpkg"), REGION)
    project = pyproj.Transformer.from_crs("EPSG:4326", UTM, always_xy=True).transform
    back = shapely.transform(outlines.polygons[1], project, interleaved=False)
    assert shapely.hausdorff_distance(there, back) < 0.01
    assert shapely.get_num_coordinates(back) > 60


@pytest.mark.filterwarnings("ignore:'crs' was not provided")
@pytest.mark.parametrize("name", ["o.shp", "o.gpkg", "o.parquet"])
def test_without_a_system_degrees_are_assumed_where_the_numbers_are_degrees(
    tmp_path: Path, name: str
) -> None:
    path = write(frame(crs=None), tmp_path / name)
    assert Outlines.load(path, REGION).province_of([[25.5, 68.5]]).tolist() == [1]
    metres = frame().to_crs(UTM).set_crs(None, allow_override=True)
    path = write(metres, tmp_path / f"m{name}")
    with pytest.raises(RegionError, match=r"not longitude and latitude.* names no reference sys"):
        Outlines.load(path, REGION)


def test_a_layer_is_chosen(tmp_path: Path) -> None:
    path = tmp_path / "o.gpkg"
    write(frame(label=["Nowhere", "Elsewhere"]), path, layer="level_2")
    write(frame(), path, layer="level_1")
    with pytest.raises(RegionError, match=r"several layers.*region\.boundary_layer.*level_1"):
        Outlines.load(path, REGION)
    with pytest.raises(RegionError, match=r"no layer 'levle_1'\. Did you mean 'level_1'"):
        Outlines.load(path, REGION, layer="levle_1")
    assert Outlines.load(path, REGION, layer="level_1").num_features == (1, 1)
    assert read_outline_file(path, "level_2").layer == "level_2"
    with pytest.raises(RegionError, match="without layers"):
        Outlines.load(write(frame(), tmp_path / "o.geojson"), REGION, layer="level_1")


def test_a_shapefile_without_its_companions_says_which_it_needs(tmp_path: Path) -> None:
    path = write(frame(), tmp_path / "o.shp")
    (tmp_path / "alone").mkdir()
    alone = Path(shutil.copy(path, tmp_path / "alone" / "o.shp"))
    with pytest.raises(RegionError, match=r"o\.shp cannot be read.*\.shx, \.dbf and \.prj"):
        Outlines.load(alone, REGION)


@pytest.mark.parametrize("name", ["o.shp", "o.zip", "o.gpkg", "o.parquet", "o.kml", "o"])
@pytest.mark.parametrize("content", [b"", b"not an outline file", b"\x00" * 2000])
def test_what_is_no_outline_file_is_refused_with_the_formats(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RegionError, match=r"o(\.\w+)? (is not|cannot be read).*GeoPackage"):
        Outlines.load(path, REGION)


def test_a_parquet_table_without_geometries_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "o.parquet"
    frame().drop(columns="geometry").to_parquet(path)
    with pytest.raises(RegionError, match=r"o\.parquet is not GeoParquet"):
        Outlines.load(path, REGION)


@pytest.mark.parametrize("name", ["o.gpkg", "o.parquet"])
def test_a_file_without_features_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(RegionError, match="has no features"):
        Outlines.load(write(frame().iloc[:0], tmp_path / name), REGION)


@pytest.mark.parametrize("name", ["o.gpkg", "o.parquet"])
def test_a_feature_that_is_no_polygon_is_named(tmp_path: Path, name: str) -> None:
    table = frame()
    table.loc[1, "geometry"] = shapely.Point(68, 25)
    with pytest.raises(RegionError, match=r"feature 1 \(EAST\) is a Point"):
        Outlines.load(write(table, tmp_path / name), REGION)
    table.loc[1, "geometry"] = None
    with pytest.raises(RegionError, match=r"feature 1 \(EAST\) is a None"):
        Outlines.load(write(table, tmp_path / f"n{name}"), REGION)


def test_heights_are_left_out(tmp_path: Path) -> None:
    table = frame()
    table["geometry"] = shapely.force_3d(table.geometry.array, 5.0)
    for name in NAMES:
        outlines = Outlines.load(write(table, tmp_path / f"z{name}"), REGION)
        assert not any(polygon.has_z for polygon in outlines.polygons)


def test_names_are_mapped_by_the_configuration(tmp_path: Path) -> None:
    path = write(frame(adm=["PK-1", "PK-2"], code=[7, 8]), tmp_path / "o.gpkg")
    with pytest.raises(RegionError, match=r"region\.boundary_names"):
        Outlines.load(path, REGION)
    for names in ({"pk-1": "West", "PK 2": "east"}, {"7": "w.", "8": "East"}):
        settings = {**REGION.to_dict(), "boundary_names": names, "boundaries": str(path)}
        outlines = Outlines.of_region(Region.from_dict(settings))
        assert outlines.province_of([[25.5, 67.5], [25.5, 68.5]]).tolist() == [0, 1]
    # A mapping goes before the province's own spellings.
    settings = {**REGION.to_dict(), "boundary_names": {"west": "East", "EAST": "West"}}
    swapped = Outlines.load(write(frame(), tmp_path / "p.gpkg"), Region.from_dict(settings))
    assert swapped.province_of([[25.5, 67.5], [25.5, 68.5]]).tolist() == [1, 0]


def test_geodesic_edges_are_the_shortest_way() -> None:
    parallel = box(-123.0, 45.0, -95.0, 49.0)
    bent = along_geodesics(parallel)
    geod = pyproj.Geod(ellps="WGS84")
    middle = geod.npts(-123, 49, -95, 49, 1)[0]
    # 28 degrees of the 49th parallel: the shortest way runs 95 km further north.
    assert middle[1] == pytest.approx(49.856, abs=0.001)
    assert bent.distance(shapely.Point(middle)) < 1e-4
    assert bent.contains(shapely.Point(middle[0], middle[1] - 0.001))
    assert not bent.contains(shapely.Point(middle[0], middle[1] + 0.001))
    # Between vertices too: 10 km apart, they leave the shortest way by metres at most.
    for lon, lat in geod.npts(-123, 49, -95, 49, 1111):
        assert bent.boundary.distance(shapely.Point(lon, lat)) < 3e-5
    # Meridians are shortest ways as they are.
    assert bent.bounds[0] == -123.0
    assert bent.bounds[2] == -95.0


def test_geodesic_edges_are_shared_like_the_planar_ones(tmp_path: Path) -> None:
    halves = [
        Polygon([(0, 40), (20, 45), (20, 60), (0, 60)]),
        Polygon([(20, 45), (0, 40), (0, 30), (20, 30)]),
    ]
    table = geopandas.GeoDataFrame({"label": ["West", "East"]}, geometry=halves, crs=4326)
    path = write(table, tmp_path / "o.gpkg")
    settings = {**REGION.to_dict(), "boundaries": str(path), "boundary_edges": "geodesic"}
    outlines = Outlines.of_region(Region.from_dict(settings))
    first, second = outlines.polygons
    assert first.intersection(second).area == 0
    assert first.union(second).geom_type == "Polygon"
    assert not first.union(second).interiors
    # A point between the straight line and the shortest way changes sides.
    point = [[42.7, 10.0]]
    assert Outlines.load(path, REGION).province_of(point).tolist() == [0]
    assert outlines.province_of(point).tolist() == [1]


def test_a_hole_is_bent_too() -> None:
    ring = Polygon(box(0, 40, 30, 60).exterior.coords, [box(10, 45, 20, 50).exterior.coords])
    bent = along_geodesics(MultiPolygon([ring, box(40, 40, 41, 41)]))
    assert len(bent.geoms) == 2
    assert len(bent.geoms[0].interiors) == 1
    assert len(bent.geoms[0].interiors[0].coords) > 100
    assert bent.is_valid


def test_files_of_other_formats_are_read_only_when_there_is_one(tmp_path: Path) -> None:
    path = write(frame(), tmp_path / "o.geojson")
    program = (
        "import sys; from geopak.geo.boundaries import Outlines; "
        "from geopak.geo.region import Province, Region; "
        f"Outlines.load({str(path)!r}, Region('t', 'T', (Province('west', 'West'), "
        "Province('east', 'East')))); "
        "print([m for m in ('geopandas', 'pyogrio', 'torch', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_rounding_from_a_projection_is_a_tenth_of_a_millimetre(tmp_path: Path) -> None:
    path = write(frame().to_crs(UTM), tmp_path / "o.gpkg")
    for polygon in Outlines.load(path, REGION).polygons:
        degrees = shapely.get_coordinates(polygon)
        assert np.array_equal(degrees, np.round(degrees, 9))
