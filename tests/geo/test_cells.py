"""The cell table: its checks, nearest cells against a loop, and every way to store it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
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


def test_geojson_has_every_cell_longitude_first_with_its_attributes(
    cells: CellTable, region: Region, tmp_path: Path
) -> None:
    cells.write(tmp_path, region)
    features = json.loads((tmp_path / "cells.geojson").read_text())["features"]
    assert len(features) == cells.num_cells
    for k, feature in enumerate(features):
        assert feature["geometry"]["coordinates"] == cells.center_latlon_deg[k][::-1].tolist()
        properties = feature["properties"]
        assert properties["cell_id"] == k
        assert properties["province"] == region.names[cells.province_id[k]]
        assert properties["radius_km"] == cells.radius_km[k]
        assert properties["count"] == cells.count[k]
        assert properties["urban"] is bool(cells.urban[k])
        assert properties["sparse"] is bool(cells.sparse[k])
        assert properties["neighbours"] == [n for n in cells.neighbours[k].tolist() if n >= 0]


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
