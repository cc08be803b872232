"""What is wrong with a checkpoint or its table is said by the names in them."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from geopak.cli import compose
from geopak.errors import CheckpointError, GeopakError
from geopak.geo.region import Region
from geopak.import_geopak import import_geopak
from geopak.models.weight_files import read_weights
from geopak.options import plain
from geopak.published.cells import COLUMN_NAMES, read_cell_metadata
from geopak.published.weights import arrange
from tests.published.restatement import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    SMALL,
    Published,
    cell_metadata,
    overrides,
    random_weights,
    training_checkpoint,
)

CELLS = (4, 3, 2, 1, 2, 2, 2)
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def region() -> Region:
    return Region.from_config(plain(compose("import_geopak", ["checkpoint=a", "cells=b"]).region))


@pytest.fixture(scope="module")
def published() -> Published:
    torch.manual_seed(0)
    return random_weights(Published(SMALL, cell_metadata(CELLS)))


def run(folder: Path, state: dict[str, Any], metadata: pd.DataFrame, *arguments: str) -> Path:
    torch.save(state, folder / "best_model.pth")
    metadata.to_csv(folder / "cell_metadata.csv", index=False)
    files = [
        f"checkpoint={folder / 'best_model.pth'}",
        f"cells={folder / 'cell_metadata.csv'}",
        f"out={folder / 'imported.ckpt'}",
    ]
    return import_geopak(compose("import_geopak", [*files, *overrides(SMALL), *arguments]))


def test_its_keys_are_the_published_ones(published: Published) -> None:
    keys = published.state_dict().keys()
    for key in (
        "encoder.clip_model.vision_model.embeddings.class_embedding",
        "encoder.clip_model.vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "encoder.clip_model.vision_model.post_layernorm.weight",
        "encoder.scene_encoder.0.weight",
        "encoder.scene_encoder.7.0.downsample.0.weight",
        "encoder.clip_projection.linear.weight",
        "encoder.scene_projection.norm.bias",
        "encoder.fusion.gate.weight",
        "province_head.linear_out.bias",
        "geocell_heads.Khyber Pakhtunkhwa.linear1.weight",
        "geocell_heads.ICT.norm.weight",
        "offset_head.norm_prov.weight",
        "offset_head.linear3.bias",
        "aux_head.linear_out.weight",
        "cell_radii_km",
    ):
        assert key in keys, key


def _without(key: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(key)


def _with(key: str, value: Tensor) -> Callable[[State], None]:
    return lambda state: state.__setitem__(key, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _without("encoder.clip_model.vision_model.encoder.layers.1.self_attn.k_proj.bias"),
            r"missing keys: encoder\.clip_model\.vision_model\.encoder\.layers\.1\.self_attn\.k",
        ),
        (_without("offset_head.norm2.weight"), r"missing keys: offset_head\.norm2\.weight"),
        (_without("cell_embedding.weight"), r"missing keys: cell_embedding\.weight"),
        (_without("encoder.fusion.gate.bias"), r"missing keys: encoder\.fusion\.gate\.bias"),
        (
            _without("encoder.clip_projection.linear.weight"),
            r"missing keys: encoder\.clip_projection\.\w+\.weight",
        ),
        (_with("gate_prior", torch.zeros(2)), "unexpected keys: gate_prior"),
        (
            _with("encoder.scene_encoder.9.weight", torch.zeros(365, 2048)),
            r"unexpected keys: encoder\.scene_encoder\.9\.weight",
        ),
        (
            _with("aux_head.linear1.weight", torch.zeros(8, 24)),
            r"aux_head\.linear1\.weight \(8, 24\) instead of \(16, 24\)",
        ),
        (
            _with(
                "encoder.clip_model.vision_model.encoder.layers.0.self_attn.v_proj.weight",
                torch.zeros(16, 32),
            ),
            r"v_proj\.weight \(16, 32\) instead of \(32, 32\)",
        ),
        (
            _with("geocell_heads.Sindh.linear_out.weight", torch.zeros(5, 12)),
            r"Sindh\.linear_out\.weight has 5 cells, but cell_metadata\.csv has 4 of Sindh",
        ),
        (
            _with("geocell_heads.Fata.linear1.weight", torch.zeros(5, 12)),
            r"head geocell_heads\.Fata, which is no province",
        ),
        (
            _with("cell_centers_lat", torch.zeros(16)),
            r"cell_centers_lat of cell 0 is 0\.0, in cell_metadata\.csv it is",
        ),
        (_with("cell_radii_km", torch.zeros(16)), r"cell_radii_km of cell 0"),
        (_with("cell_radii_km", torch.zeros(15)), r"cell_radii_km has 15 cells, .* has 16"),
        (_with("cell_province_ids", torch.zeros(16).long()), "The order of provinces is Sindh"),
        (
            _with("local_to_global_map_3", torch.tensor([99])),
            r"local_to_global_map_3 .*cell 99 is not among them",
        ),
        (_with("local_to_global_map_9", torch.tensor([1])), "names no province"),
        (
            _with("cell_embedding.weight", torch.zeros(20, 8)),
            r"cell_embedding has 20 cells, but cell_metadata\.csv has 16",
        ),
    ],
)
def test_what_a_checkpoint_lacks_or_has_beyond_is_named(
    published: Published, tmp_path: Path, change: Callable[[State], None], message: str
) -> None:
    state = dict(published.state_dict())
    change(state)
    with pytest.raises(CheckpointError, match=message):
        run(tmp_path, state, cell_metadata(CELLS))
    assert not (tmp_path / "imported.ckpt").exists()


def test_every_problem_is_told_at_once(published: Published, tmp_path: Path) -> None:
    state = dict(published.state_dict())
    del state["aux_head.linear1.bias"]
    state["extra"] = torch.zeros(1)
    state["province_head.norm.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"missing.*linear1.*unexpected.*extra.*wrong.*norm"):
        run(tmp_path, state, cell_metadata(CELLS))


def test_other_kinds_of_files_are_refused(published: Published, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no geocell_heads\.\*.*holds conv1"):
        run(tmp_path, {"conv1.weight": torch.zeros(1)}, cell_metadata(CELLS))
    state = {k: v for k, v in published.state_dict().items() if ".ICT." not in k}
    with pytest.raises(CheckpointError, match=r"has no geocell_heads\.\* for ICT"):
        run(tmp_path, state, cell_metadata(CELLS))


def test_nothing_but_tensors_is_unpickled(published: Published, tmp_path: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "made"),)

    refused = r"best_model\.pth cannot be read as model weights: it holds posix\.mkdir.*run code"
    for state in ({**published.state_dict(), "x": Harmful()}, {"epoch": Harmful()}):
        with pytest.raises(CheckpointError, match=refused):
            run(tmp_path, state, cell_metadata(CELLS))
    assert not (tmp_path / "made").exists()
    # The trap is one.
    pickle.loads(pickle.dumps(Harmful()))
    assert (tmp_path / "made").exists()


def test_a_trainings_checkpoint_and_ways_of_saving_are_understood(
    published: Published, tmp_path: Path
) -> None:
    state = published.state_dict()
    vision = "encoder.clip_model.vision_model"
    saved = {f"module.{k}": v.half() if v.is_floating_point() and v.dim() > 1 else v
             for k, v in state.items() if not k.endswith("num_batches_tracked")}  # fmt: skip
    saved[f"module.{vision}.embeddings.position_ids"] = torch.arange(5)
    saved["module.encoder.clip_model.visual_projection.weight"] = torch.zeros(2, 32)
    wrapped = {"epoch": 3, "model_state_dict": saved, "optimizer_state_dict": {"state": {}}}
    path = run(tmp_path, wrapped, cell_metadata(CELLS))
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert all(v.dtype == torch.float32 for v in weights.values() if v.is_floating_point())
    gate = state["encoder.fusion.gate.weight"].half().float()
    assert torch.equal(weights["model.fusion.gate.weight"], gate)


def test_numbers_of_numpy_beside_the_weights_are_numbers(
    published: Published, tmp_path: Path
) -> None:
    whole = training_checkpoint(published)
    for number in (np.float16(1), np.int64(3), np.bool_(True), np.float64("nan")):
        run(tmp_path, {**whole, "median_error_km": number}, cell_metadata(CELLS), "overwrite=true")
    # As numpy 1 called them.
    with ZipFile(tmp_path / "best_model.pth") as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in files if name.endswith("data.pkl"))
    assert b"numpy._core" in files[pickled]
    files[pickled] = files[pickled].replace(b"numpy._core", b"numpy.core")
    with ZipFile(tmp_path / "best_model.pth", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    assert len(read_weights(tmp_path / "best_model.pth")) == len(whole["model_state_dict"])


@pytest.mark.parametrize("stored", [0.0, -1.0, float("nan"), float("inf"), "warm", [1.0]])
def test_a_temperature_that_is_none_is_refused(
    published: Published, tmp_path: Path, stored: object
) -> None:
    whole = {**training_checkpoint(published), "temperature": stored}
    with pytest.raises(CheckpointError, match=r"best_model\.pth: temperature=.* is not a positive"):
        run(tmp_path, whole, cell_metadata(CELLS))


def test_stored_channel_statistics_must_be_the_encoders(
    published: Published, tmp_path: Path
) -> None:
    state = dict(published.state_dict())
    state["encoder.clip_mean"] = torch.tensor(CLIP_MEAN).view(1, 3, 1, 1)
    state["encoder.imagenet_std"] = torch.tensor(IMAGENET_STD)
    run(tmp_path, state, cell_metadata(CELLS))
    state["encoder.clip_mean"] = torch.tensor(IMAGENET_MEAN)
    wanted = r"encoder\.clip_mean .*pass model\.semantic\.shape\.mean=\[0\.485,0\.456,0\.406\]"
    with pytest.raises(CheckpointError, match=wanted):
        run(tmp_path, state, cell_metadata(CELLS), "overwrite=true")
    mended = ["overwrite=true", "model.semantic.shape.mean=[0.485,0.456,0.406]"]
    run(tmp_path, state, cell_metadata(CELLS), *mended)
    state["encoder.std"] = torch.tensor(CLIP_STD)
    with pytest.raises(CheckpointError, match=r"encoder\.std is not what the scene encoder"):
        run(tmp_path, state, cell_metadata(CELLS), *mended)


def test_an_existing_checkpoint_is_kept_unless_asked(published: Published, tmp_path: Path) -> None:
    (tmp_path / "imported.ckpt").write_text("precious")
    with pytest.raises(CheckpointError, match=r"is there already.*overwrite=true"):
        run(tmp_path, published.state_dict(), cell_metadata(CELLS))
    assert (tmp_path / "imported.ckpt").read_text() == "precious"
    run(tmp_path, published.state_dict(), cell_metadata(CELLS), "overwrite=true")
    assert (tmp_path / "imported.ckpt").stat().st_size > 1000


def test_a_model_of_other_choices_is_refused(published: Published, tmp_path: Path) -> None:
    with pytest.raises(GeopakError, match=r"model\.cell_heads=per_province"):
        run(tmp_path, published.state_dict(), cell_metadata(CELLS), "model.cell_heads=flat")
    with pytest.raises(GeopakError, match=r"prepared= and prepared_out= go together"):
        run(tmp_path, published.state_dict(), cell_metadata(CELLS), "prepared=x")


# --- the table --------------------------------------------------------------------------------


def read(folder: Path, table: pd.DataFrame, region: Region, **columns: str):
    table.to_csv(folder / "cells.csv", index=False)
    return read_cell_metadata(folder / "cells.csv", region, columns)


@pytest.mark.parametrize(
    "names",
    [
        {},
        {"center_lat": "Latitude", "center_lon": "LONGITUDE", "radius_km": "Radius KM"},
        {"cell_id": "geocell-id", "center_lat": "centroid_lat", "center_lon": "centroid_lon"},
        {"num_images": "count", "province": "Province Name"},
    ],
)
def test_usual_names_of_columns_are_found(
    tmp_path: Path, region: Region, names: dict[str, str]
) -> None:
    table = cell_metadata(CELLS)
    found = read(tmp_path, table.rename(columns=names), region)
    wanted = table.sort_values("cell_id")
    np.testing.assert_array_equal(found.cell_id, wanted["cell_id"])
    np.testing.assert_array_equal(found.province_id, wanted["province_id"])
    np.testing.assert_allclose(found.center_latlon_deg, wanted[["center_lat", "center_lon"]])
    np.testing.assert_array_equal(found.count, wanted["num_images"])


def test_unusual_names_can_be_said(tmp_path: Path, region: Region) -> None:
    table = cell_metadata(CELLS).rename(columns={"center_lat": "y", "num_images": "fotos"})
    with pytest.raises(CheckpointError, match=r"columns cell_id, .*, y, .*columns\.latitude=…"):
        read(tmp_path, table, region)
    found = read(tmp_path, table, region, latitude="y", count="fotos")
    np.testing.assert_allclose(
        found.center_latlon_deg[:, 0], table.sort_values("cell_id")["y"].to_numpy()
    )
    assert found.count is not None
    with pytest.raises(CheckpointError, match=r"columns\.latitude=z is none of them"):
        read(tmp_path, table, region, latitude="z")


def test_names_of_the_configuration_are_those_of_the_reader() -> None:
    cfg = compose("import_geopak", ["checkpoint=a", "cells=b"])
    assert sorted(cfg.columns) == sorted(COLUMN_NAMES)


def test_a_number_is_enough_for_a_province_and_must_agree_with_the_name(
    tmp_path: Path, region: Region
) -> None:
    table = cell_metadata(CELLS)
    alone = read(tmp_path, table.drop(columns="province"), region)
    np.testing.assert_array_equal(alone.province_id, table.sort_values("cell_id")["province_id"])
    table.loc[4, "province_id"] = (table.loc[4, "province_id"] + 1) % 7
    with pytest.raises(CheckpointError, match=r"cells\.csv line 6: .* has province_id"):
        read(tmp_path, table, region)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("center_lat", "north", r"line 5: center_lat=north is not a number between -90 and 90"),
        ("center_lon", 181, r"line 5: center_lon=181.* is not a number between -180"),
        ("radius_km", None, r"line 5: radius_km=nan is not a number"),
        ("cell_id", 3.5, r"line 5: cell_id=3\.5 is not a whole number"),
        ("province", "Sind h", r"line 5: 'Sind h' is not a province of Pakistan\. Did you mean"),
        ("province_id", 7, r"line 5: province_id=7, but Pakistan has 7 provinces"),
    ],
)
def test_a_wrong_value_is_named_by_its_line(
    tmp_path: Path, region: Region, column: str, value: object, message: str
) -> None:
    table = cell_metadata(CELLS).astype({column: object})
    table.loc[3, column] = value
    with pytest.raises(CheckpointError, match=message):
        read(tmp_path, table, region)


def test_a_cell_that_is_there_twice_is_refused(tmp_path: Path, region: Region) -> None:
    table = cell_metadata(CELLS)
    table.loc[3, "cell_id"] = table.loc[5, "cell_id"]
    with pytest.raises(CheckpointError, match=f"cell_id {table.loc[5, 'cell_id']} is there twice"):
        read(tmp_path, table, region)
    with pytest.raises(CheckpointError, match="No table of cells"):
        read_cell_metadata(tmp_path / "none.csv", region, {})
    with pytest.raises(CheckpointError, match="has no cells"):
        read(tmp_path, table.iloc[:0], region)


@pytest.mark.parametrize("stored", ["rank", "id", "ids as ids", "one table"])
def test_ids_with_gaps_are_followed(region: Region, tmp_path: Path, stored: str) -> None:
    """Arrays of theirs may hold a cell by its rank or by its id, and heads name either."""
    table = cell_metadata(CELLS)
    table["cell_id"] = 3 * table["cell_id"] + 2
    metadata = read(tmp_path, table, region)
    ids, province = metadata.cell_id, metadata.province_id
    size = 16 if stored != "id" else int(ids[-1]) + 1
    state: State = {"cell_embedding.weight": torch.arange(float(size)).unsqueeze(1)}
    wanted: list[int] = []
    local = -torch.ones(7, 4, dtype=torch.long)
    for p, name in enumerate(region.names):
        state[f"geocell_heads.{name}.linear_out.weight"] = torch.zeros(CELLS[p], 1)
        rank = np.flatnonzero(province == p)[::-1].copy()
        wanted += rank.tolist()
        own = rank if stored == "rank" else ids[rank]
        local[p, : len(own)] = torch.from_numpy(own)
        if stored != "one table":
            key = f"local_to_global.{region.provinces[p].key}" if p % 2 else f"l2g_{name}"
            state[key] = torch.from_numpy(own)
    if stored == "one table":
        state["cell_local_to_global"] = local
    layout = arrange(state, metadata, region, "x.pth")
    assert layout.metadata_row.tolist() == wanted
    held = state["cell_embedding.weight"][layout.embedding_row, 0].long().tolist()
    assert held == (ids[wanted].tolist() if stored == "id" else wanted)


def test_missing_counts_are_said(
    published: Published, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = run(tmp_path, published.state_dict(), cell_metadata(CELLS, counts=False))
    assert "no column of photos per cell" in caplog.text
    identity = torch.load(path, weights_only=True)["geopak"]
    assert identity["imported"]["counts"] is False
    assert identity["cells"]["count"].unique().tolist() == [1]
    assert not identity["cells"]["sparse"].any()
