"""A prepared set is checked before it is used, and gives batches of the rows asked for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from geopak.data.dataset import PhotoDataset, PreparedSet
from geopak.data.images import load_image
from geopak.errors import PhotoError, PreparedSetError
from geopak.geo.region import Region
from geopak.schema.model import FRAMINGS


def test_splits_are_rows_of_the_table(prepared: PreparedSet) -> None:
    assert prepared.rows("train").tolist() == list(range(30))
    assert prepared.rows("val").tolist() == list(range(30, 39))
    assert prepared.rows("test").tolist() == list(range(39, 48))
    with pytest.raises(PreparedSetError, match=r"split='trian' is unknown"):
        prepared.rows("trian")


def test_an_empty_split_is_an_error(prepared: PreparedSet) -> None:
    only_train = prepared.photos[prepared.photos["split"] == "train"]
    with pytest.raises(PreparedSetError, match="has no test photos"):
        PreparedSet(only_train, prepared.cells, prepared.root).rows("test")


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_holds_the_rows_asked_for_in_their_order(
    prepared: PreparedSet, cached: bool, framing: str
) -> None:
    rows = [33, 2, 2, 17]
    every = np.array([2, 3, 17, 33])
    dataset = PhotoDataset(prepared, 32, every if cached else None, 2, framing)
    assert len(dataset) == 48
    batch = dataset[rows]
    assert batch["row"].tolist() == rows
    assert batch["image"].dtype == torch.uint8
    for i, row in enumerate(rows):
        photo = prepared.photos.iloc[row]
        assert torch.equal(
            batch["image"][i], load_image(prepared.root / photo["path"], 32, framing)
        )
        assert batch["latlon_deg"][i].tolist() == pytest.approx(
            [photo["latitude"], photo["longitude"]], abs=1e-5
        )
        assert int(batch["province_id"][i]) == photo["province_id"]
        assert int(batch["cell_id"][i]) == photo["cell_id"]
    assert batch["latlon_deg"].dtype == torch.float32
    assert batch["province_id"].dtype == batch["cell_id"].dtype == torch.int64


def test_a_row_that_was_not_cached_is_an_error_and_not_another_photo(
    prepared: PreparedSet,
) -> None:
    dataset = PhotoDataset(prepared, 32, np.array([2, 3]))
    with pytest.raises(IndexError, match="17"):
        dataset[[2, 17]]


@pytest.mark.parametrize("cached", [False, True])
def test_a_photo_that_vanished_is_named(prepared: PreparedSet, cached: bool) -> None:
    photos = prepared.photos.assign(path=prepared.photos["path"].replace("0/0.jpg", "0/gone.jpg"))
    changed = PreparedSet(photos, prepared.cells, prepared.root)
    with pytest.raises(PhotoError, match=r"0/gone\.jpg"):
        PhotoDataset(changed, 32, np.array([0]) if cached else None)[[0]]


@pytest.fixture
def folder(prepared_folder: Path, tmp_path: Path) -> Path:
    """A copy of the prepared set to break."""
    return Path(shutil.copytree(prepared_folder / "prepared", tmp_path / "prepared"))


def rewrite(folder: Path, change: Any) -> None:
    table = folder / "photos.parquet"
    change(pd.read_parquet(table)).to_parquet(table)


def test_a_missing_set_names_the_command_that_makes_it(tmp_path: Path, region: Region) -> None:
    with pytest.raises(PreparedSetError, match=r"python -m geopak\.prepare root="):
        PreparedSet.read(tmp_path, tmp_path, region)


@pytest.mark.parametrize("column", ["path", "cell_id", "split", "province"])
def test_a_missing_column_is_named(folder: Path, region: Region, column: str) -> None:
    rewrite(folder, lambda photos: photos.drop(columns=column))
    with pytest.raises(PreparedSetError, match=f"has no column '{column}'"):
        PreparedSet.read(folder, folder, region)


def test_a_table_that_is_no_parquet_file_is_refused(folder: Path, region: Region) -> None:
    (folder / "photos.parquet").write_text("id,path\n")
    with pytest.raises(PreparedSetError, match=r"photos\.parquet is not a photo table"):
        PreparedSet.read(folder, folder, region)


def test_missing_cells_are_an_error(folder: Path, region: Region) -> None:
    (folder / "cells.parquet").unlink()
    with pytest.raises(PreparedSetError, match="No cell table"):
        PreparedSet.read(folder, folder, region)


def test_a_set_of_another_region_is_refused(folder: Path, region_config: dict[str, Any]) -> None:
    provinces = region_config["provinces"]
    region_config["provinces"] = dict(reversed(provinces.items()))
    with pytest.raises(PreparedSetError, match="was prepared for another region"):
        PreparedSet.read(folder, folder, Region.from_config(region_config))


def test_a_province_without_cells_is_named(folder: Path, region_config: dict[str, Any]) -> None:
    region_config["provinces"]["moon"] = {}
    with pytest.raises(PreparedSetError, match="has no geocells for Moon"):
        PreparedSet.read(folder, folder, Region.from_config(region_config))
