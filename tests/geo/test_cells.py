"""The cell table: its checks, nearest cells against a loop, and every way to store it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
import torch

from geopak.errors import PreparedSetError
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region


def equal(a: CellTable, b: CellTable) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name))
        and getattr(a, f.name).dtype == getattr(b, f.name).dtype
        for f in dataclasses.fields(CellTable)
    )


def test_provinces_start_where_the_one_before_ends(cells: CellTable) -> None:
    assert cells.num_cells == 44
    assert cells.province_start(3).tolist() == [0, 1, 4, 44]


def test_nearest_cell_is_that_of_a_loop_over_the_cells_of_the_province(cells: CellTable) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform((20, 60), (40, 80), (200, 2))
    province_id = rng.integers(0, 3, 200)
    found = cells.nearest(points, province_id)
    for point, province, cell in zip(points, province_id, found, strict=True):
        candidates = [k for k in range(cells.num_cells) if cells.province_id[k] == province]
        assert cell == min(
            candidates, key=lambda k: haversine_km_array(point, cells.center_latlon_deg[k])
        )


def test_nearest_cell_of_a_province_without_cells_is_an_error(cells: CellTable) -> None:
    with pytest.raises(PreparedSetError, match="Province index 7 has no geocell"):
        cells.nearest([[30, 70]], [7])


def test_a_table_survives_parquet(cells: CellTable, region: Region, tmp_path: Path) -> None:
    cells.write(tmp_path, region)
    assert equal(CellTable.read(tmp_path / "cells.parquet"), cells)


def test_a_table_survives_a_checkpoint_that_unpickles_nothing(
    cells: CellTable, tmp_path: Path
) -> None:
    torch.save(cells.to_dict(), tmp_path / "cells.pt")
    again = CellTable.from_dict(torch.load(tmp_path / "cells.pt", weights_only=True))
    assert equal(again, cells)
    assert again.fingerprint() == cells.fingerprint()


def test_equally_near_cells_give_the_lowest_id(cells: CellTable) -> None:
    # Cells 2 and 3 mirror each other about the meridian of 70, all others are far.
    centers = cells.center_latlon_deg.copy()
    centers[1:4] = [[-40.0, 70.0], [30.0, 71.0], [30.0, 69.0]]
    mirrored = dataclasses.replace(cells, center_latlon_deg=centers)
    points = np.stack((np.linspace(25, 35, 50), np.full(50, 70.0)), 1)
    away = haversine_km_array(points[:, None], centers[None, 1:4])
    expected = 1 + away.argmin(1)
    assert mirrored.nearest(points, np.ones(50, int)).tolist() == expected.tolist()
    assert mirrored.nearest([[30.0, 70.0]], [1]).tolist() == [2]


def test_nearest_cell_across_the_antimeridian_and_at_the_pole(cells: CellTable) -> None:
    centers = cells.center_latlon_deg.copy()
    centers[1:4] = [[10.0, 179.9], [10.0, -178.0], [89.9, 0.0]]
    table = dataclasses.replace(cells, center_latlon_deg=centers)
    points = [[10.0, -179.8], [10.0, -179.0], [90.0, 123.0], [10.0, 180.0], [10.0, -180.0]]
    assert table.nearest(points, np.ones(5, int)).tolist() == [1, 2, 3, 1, 1]


def test_nearest_cell_of_no_photos_is_empty(cells: CellTable) -> None:
    assert cells.nearest(np.zeros((0, 2)), np.zeros(0, int)).tolist() == []


def test_geojson_has_the_area_of_every_cell_with_its_attributes(
    cells: CellTable, region: Region, tmp_path: Path
) -> None:
    cells.write(tmp_path, region)
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert len(features) == cells.num_cells
    for k, feature in enumerate(features):
        area = shapely.geometry.shape(feature["geometry"])
        assert area.contains(shapely.Point(cells.center_latlon_deg[k][::-1]))
        properties = feature["properties"]
        assert properties["cell_id"] == feature["id"] == k
        assert properties["province"] == region.names[cells.province_id[k]]
        assert [properties["latitude"], properties["longitude"]] == cells.center_latlon_deg[
            k
        ].tolist()
        assert properties["radius_km"] == cells.radius_km[k]
        assert properties["count"] == cells.count[k]
        assert properties["urban"] is bool(cells.urban[k])
        assert properties["sparse"] is bool(cells.sparse[k])
        assert properties["neighbours"] == [n for n in cells.neighbours[k].tolist() if n >= 0]


def test_gdal_reads_the_areas_as_qgis_does(
    cells: CellTable, region: Region, tmp_path: Path
) -> None:
    cells.write(tmp_path, region)
    frame = geopandas.read_file(tmp_path / "cells.geojson", engine="pyogrio")
    assert frame.crs.to_epsg() == 4326
    assert set(frame.geom_type) <= {"Polygon", "MultiPolygon"}
    assert frame.is_valid.all()
    assert frame["radius_km"].tolist() == cells.radius_km.tolist()
    assert frame["count"].tolist() == cells.count.tolist()
    assert frame["urban"].tolist() == cells.urban.tolist()
    assert frame["latitude"].tolist() == cells.center_latlon_deg[:, 0].tolist()


@pytest.mark.parametrize("field", [f.name for f in dataclasses.fields(CellTable)])
def test_the_fingerprint_tells_a_change_of_any_field(cells: CellTable, field: str) -> None:
    changed = getattr(cells, field).copy()
    changed.flat[-1] = not changed.flat[-1] if changed.dtype == bool else changed.flat[-1] + 1
    other = dataclasses.replace(cells, **{field: changed})
    assert other.fingerprint() != cells.fingerprint()


def test_a_column_of_another_length_is_refused_by_name(cells: CellTable) -> None:
    with pytest.raises(PreparedSetError, match=r"radius_km has shape \(43,\), expected \(44,\)"):
        dataclasses.replace(cells, radius_km=cells.radius_km[1:])


def test_provinces_out_of_order_are_refused(cells: CellTable) -> None:
    with pytest.raises(PreparedSetError, match="grouped by province"):
        dataclasses.replace(cells, province_id=cells.province_id[::-1].copy())


def test_a_missing_table_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(PreparedSetError, match=r"python -m geopak\.prepare"):
        CellTable.read(tmp_path / "cells.parquet")


def test_a_file_that_is_no_cell_table_is_refused(
    cells: CellTable, region: Region, tmp_path: Path
) -> None:
    text = tmp_path / "text.parquet"
    text.write_text("cell_id,latitude\n")
    with pytest.raises(PreparedSetError, match="is not a cell table"):
        CellTable.read(text)
    lacking = tmp_path / "lacking.parquet"
    cells.to_frame(region).drop(columns="radius_km").to_parquet(lacking)
    with pytest.raises(PreparedSetError, match="radius_km"):
        CellTable.read(lacking)
