"""Checkpoints: refused when unsafe or foreign, enough alone to rebuild the model."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapely
import torch

from geopak.build import build_model
from geopak.checkpoint import (
    BEST_NAME,
    CHECKPOINT_FOLDER,
    find_latest,
    find_parent,
    load_state,
    newest_finished,
    read_checkpoint,
    read_matching,
    shared_overrides,
    write_run_record,
)
from geopak.errors import CheckpointError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.identity import model_identity
from geopak.models.decode import DecodingOptions, decode
from geopak.models.fusion import FUSED_ENCODERS, GatedFusion
from geopak.models.geolocator import Geolocator
from geopak.models.heads import CellHeads
from geopak.phases import Phase
from geopak.trained import load_trained
from geopak.types import Batch
from tests.conftest import make_cells


def make_phase(index: int) -> Phase:
    return Phase(
        index=index,
        title=f"phase {index}",
        parent=index - 1 if index else None,
        train=("province_head",),
        unfreeze={},
        lr={"heads": 1e-3, "semantic": 1e-5, "scene": 1e-5},
        losses=("province",),
        province_temperature=1.2,
        monitor="val/median_km",
        monitor_mode="min",
        epochs=1,
        schedule="constant",
        warmup=0.0,
    )


@pytest.fixture
def content(
    model: Geolocator, region: Region, cells: CellTable, model_config: dict[str, Any]
) -> dict[str, Any]:
    """What a checkpoint of phase 1 holds, as Lightning and the task write it."""
    outlines = Outlines(tuple(shapely.box(60 + i, 25, 61 + i, 26) for i in range(3)))
    decoding = DecodingOptions(rule="mean", top_cells=3)
    return {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}
        | {"cell_urban": torch.zeros(44)},
        "geopak": model_identity(
            model_config, region, cells, outlines, make_phase(1), decoding, {"seed": 0}
        ),
        "epoch": 3,
        "optimizer_states": [],
    }


@pytest.fixture
def path(content: dict[str, Any], tmp_path: Path) -> Path:
    torch.save(content, tmp_path / "best.ckpt")
    return tmp_path / "best.ckpt"


def fresh_model(config: dict[str, Any], region: Region, cells: CellTable) -> Geolocator:
    torch.manual_seed(77)
    return build_model(config, region, cells)


def test_a_checkpoint_alone_rebuilds_the_model_and_what_it_means(
    path: Path,
    model: Geolocator,
    region: Region,
    cells: CellTable,
    make_batch: Callable[..., Batch],
) -> None:
    trained = load_trained(path)
    model.eval()
    model.province_head.temperature = 1.2
    assert not trained.model.training
    with torch.no_grad():
        image = make_batch(4)["image"]
        ours, theirs = model(image), trained.model(image)
        for field in dataclasses.fields(ours):
            assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name))
        assert trained.decoding == DecodingOptions(rule="mean", top_cells=3)
        place = decode(trained.model, theirs, trained.decoding)["mean"].latlon_deg
        assert torch.equal(place, decode(model, ours, trained.decoding)["mean"].latlon_deg)
    assert trained.region.names == region.names
    assert trained.cells.fingerprint() == cells.fingerprint()
    assert trained.outlines.province_of([[25.5, 61.5]]).tolist() == [1]
    assert trained.phase == {"index": 1, "title": "phase 1"}


def test_a_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "not a checkpoint\n", "PK\x03\x04 nearly a zip"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "text.ckpt").write_text(text)
    with pytest.raises(CheckpointError, match=r"text\.ckpt is not a checkpoint"):
        read_checkpoint(tmp_path / "text.ckpt")


def test_a_truncated_checkpoint_is_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        read_checkpoint(path)


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_code_in_a_checkpoint_is_refused_and_does_not_run(
    content: dict[str, Any], tmp_path: Path
) -> None:
    torch.save(content | {"callbacks": Evil(tmp_path / "made")}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="can be loaded safely"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "other",
    [
        {"state_dict": {"weight": torch.zeros(2)}, "pytorch-lightning_version": "2.6.0"},
        {"weight": torch.zeros(2)},
        {"geopak": {"format": 1}},
        [torch.zeros(2)],
    ],
    ids=["lightning", "state dict", "no weights", "list"],
)
def test_a_checkpoint_of_something_else_is_refused(tmp_path: Path, other: object) -> None:
    torch.save(other, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of geopak"):
        read_checkpoint(tmp_path / "other.ckpt")


def test_a_checkpoint_of_another_format_is_refused(content: dict[str, Any], tmp_path: Path) -> None:
    content["geopak"]["format"] = 99
    torch.save(content, tmp_path / "future.ckpt")
    with pytest.raises(CheckpointError, match="has checkpoint format 99"):
        read_checkpoint(tmp_path / "future.ckpt")


def test_a_warm_start_takes_all_weights_of_the_parent(
    path: Path,
    model: Geolocator,
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
) -> None:
    child = fresh_model(model_config, region, cells)
    load_state(child, read_matching(path, region, cells, model_config, expected_phase=1), path)
    theirs = model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in child.state_dict().items())


def test_a_parent_of_another_region_is_refused(
    path: Path,
    cells: CellTable,
    model_config: dict[str, Any],
    region_config: dict[str, Any],
) -> None:
    renamed = Region.from_config(region_config | {"name": "elsewhere"})
    with pytest.raises(CheckpointError, match=r"of the region Smallland .* region=smallland"):
        read_matching(path, renamed, cells, model_config, expected_phase=1)
    region_config["provinces"]["capital"]["name"] = "Old Capital"
    changed = Region.from_config(region_config)
    with pytest.raises(CheckpointError, match="of the region Smallland"):
        read_matching(path, changed, cells, model_config, expected_phase=1)


@pytest.mark.parametrize(("expected", "message"), [(0, "wanted is phase 0"), (2, "phase 2")])
def test_a_parent_of_the_wrong_phase_is_refused(
    path: Path,
    model: Geolocator,
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
    expected: int,
    message: str,
) -> None:
    with pytest.raises(CheckpointError, match=rf"comes from phase 1.*{message}.*resume_from="):
        read_matching(path, region, cells, model_config, expected_phase=expected)


def test_a_parent_with_other_cells_is_refused(
    path: Path, region: Region, model_config: dict[str, Any]
) -> None:
    cells = make_cells(seed=1)
    with pytest.raises(CheckpointError, match=r"other geocells.*phase=0,1,2"):
        read_matching(path, region, cells, model_config, expected_phase=1)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("semantic", {"shape": {"width": 64}}),
        ("scene", {"shape": {"architecture": "resnet34"}}),
        ("sizes", {"dim": 48}),
        ("image_size", 64),
        ("fusion", {"kind": "mean"}),
        ("cell_heads", "flat"),
        ("offset", {"bound": "clamp"}),
    ],
)
def test_a_parent_with_another_model_is_refused_by_the_part_that_differs(
    path: Path,
    model: Geolocator,
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
    part: str,
    change: Any,
) -> None:
    other = copy.deepcopy(model_config)
    if isinstance(change, (int, str)):
        other[part] = change
    elif "shape" not in change:
        other.setdefault(part, {}).update(change)
    else:
        other[part]["shape"] |= change["shape"]
    with pytest.raises(CheckpointError, match=f"another {part}"):
        read_matching(path, region, cells, other, expected_phase=1)


CHOICES: list[dict[str, Any]] = [
    *({"fusion": {"kind": kind, "gate_bias": -0.4}} for kind in FUSED_ENCODERS),
    {"cell_heads": "flat"},
    {"offset": {"bound": "clamp"}},
    {"offset": {"bound": "none"}},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
@torch.no_grad()
def test_a_checkpoint_rebuilds_whatever_was_chosen(
    content: dict[str, Any],
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
    make_batch: Callable[..., Batch],
    tmp_path: Path,
    choice: dict[str, Any],
) -> None:
    config = {**model_config, **choice}
    model = fresh_model(config, region, cells).eval()
    # Offsets that reach their bounds.
    torch.nn.init.normal_(model.offset_head.output.weight, std=30)
    decoding = DecodingOptions(rule="regression")
    outlines = Outlines.from_dict(content["geopak"]["outlines"])
    identity = model_identity(config, region, cells, outlines, make_phase(1), decoding, {})
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    torch.save({"state_dict": state, "geopak": identity}, tmp_path / "best.ckpt")
    trained = load_trained(tmp_path / "best.ckpt")
    model.province_head.temperature = 1.2
    assert trained.decoding == decoding
    image = make_batch(4)["image"]
    ours, theirs = model(image), trained.model(image)
    for field in dataclasses.fields(ours):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name
    cell_id = torch.tensor([0, 2, 9, 43])
    place = trained.model.locate(theirs.fused, cell_id)
    assert torch.equal(place, model.locate(ours.fused, cell_id))
    read_matching(tmp_path / "best.ckpt", region, cells, config, expected_phase=1)


def test_a_checkpoint_of_before_there_were_choices_is_of_the_published_model(
    content: dict[str, Any],
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
    tmp_path: Path,
) -> None:
    older = content["geopak"]["model"]
    older["fusion"] = {"gate_bias": -0.4}
    del older["cell_heads"], older["offset"], older["auxiliary"]
    older["semantic"]["shape"].pop("class_token", None)
    torch.save(content, tmp_path / "older.ckpt")
    model = load_trained(tmp_path / "older.ckpt").model
    assert isinstance(model.fusion, GatedFusion)
    assert isinstance(model.cell_heads, CellHeads)
    assert model.offset_bound == "smooth"
    chosen = {
        **model_config,
        "fusion": {"kind": "gated", "gate_bias": 0.0},
        "cell_heads": "per_province",
        "offset": {"bound": "smooth", "bounded": "always"},
        "auxiliary": {"output": "region"},
    }
    chosen["semantic"]["shape"]["class_token"] = "after_norm"
    read_matching(tmp_path / "older.ckpt", region, cells, chosen, expected_phase=1)
    other = {**chosen, "auxiliary": {"output": "degrees"}}
    with pytest.raises(CheckpointError, match="with another auxiliary"):
        read_matching(tmp_path / "older.ckpt", region, cells, other, expected_phase=1)


def test_where_the_encoders_came_from_does_not_make_another_model(
    path: Path,
    model: Geolocator,
    region: Region,
    cells: CellTable,
    model_config: dict[str, Any],
) -> None:
    model_config["semantic"]["checkpoint"] = "/elsewhere/clip.pt"
    model_config["pretrained"] = True
    read_matching(path, region, cells, model_config, expected_phase=1)


def test_weights_that_do_not_fit_are_refused_by_key(
    content: dict[str, Any], tmp_path: Path
) -> None:
    del content["state_dict"]["model.fusion.gate.bias"]
    torch.save(content, tmp_path / "lacking.ckpt")
    with pytest.raises(CheckpointError, match=r"(?s)holds another model.*fusion\.gate\.bias"):
        load_trained(tmp_path / "lacking.ckpt")


def finished_run(root: Path, phase: int, name: str, finished: float) -> Path:
    run = root / f"phase-{phase}" / name
    (run / CHECKPOINT_FOLDER).mkdir(parents=True)
    best = run / CHECKPOINT_FOLDER / f"{BEST_NAME}.ckpt"
    best.touch()
    write_run_record(run, {"phase": phase, "overrides": []})
    text = (run / "run.json").read_text()
    start = text.index('"finished_unix"')
    (run / "run.json").write_text(text[:start] + f'"finished_unix": {finished}\n}}')
    return best


def test_the_parent_is_the_run_that_finished_last(tmp_path: Path) -> None:
    late = finished_run(tmp_path, 1, "a", 200.0)
    finished_run(tmp_path, 1, "b", 100.0)
    finished_run(tmp_path, 0, "c", 300.0)
    # A run without a best checkpoint, and one that never finished.
    finished_run(tmp_path, 1, "d", 400.0).unlink()
    (finished_run(tmp_path, 1, "e", 500.0).parent.parent / "run.json").unlink()
    assert newest_finished(tmp_path, 1) == late
    assert find_parent(tmp_path, 1, []) == late
    assert newest_finished(tmp_path, 2) is None


def test_a_missing_parent_names_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python -m geopak\.train phase=1 name=mine"):
        find_parent(tmp_path, 1, ["phase=2", "name=mine", "trainer=cpu"])


def test_a_parent_that_was_interrupted_is_pointed_out(tmp_path: Path) -> None:
    folder = tmp_path / "phase-1" / "run" / CHECKPOINT_FOLDER
    folder.mkdir(parents=True)
    (folder / "last.ckpt").touch()
    with pytest.raises(CheckpointError, match=r"last\.ckpt: continue it with resume_from="):
        find_parent(tmp_path, 1, [])


def test_the_latest_model_is_that_of_the_highest_finished_phase(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished run"):
        find_latest(tmp_path)
    first = finished_run(tmp_path, 0, "a", 900.0)
    assert find_latest(tmp_path) == first
    second = finished_run(tmp_path, 1, "b", 100.0)
    finished_run(tmp_path, 2, "c", 950.0).unlink()
    assert find_latest(tmp_path) == second


def test_a_branch_of_a_sweep_finds_its_own_parent(tmp_path: Path) -> None:
    for name, finished, overrides in (
        ("a", 100.0, ["phase=0", "seed=0", "phase.lr.heads=1e-3"]),
        ("b", 200.0, ["phase=0", "seed=1"]),
    ):
        best = finished_run(tmp_path, 0, name, finished)
        record = json.loads((best.parents[1] / "run.json").read_text())
        record["overrides"] = shared_overrides(overrides)
        (best.parents[1] / "run.json").write_text(json.dumps(record))
    for seed, run in ((0, "a"), (1, "b"), (2, "b")):
        found = find_parent(tmp_path, 0, [f"seed={seed}", "phase=1", "trainer=cpu"])
        assert found.parents[1].name == run


def test_a_broken_run_record_is_named(tmp_path: Path) -> None:
    best = finished_run(tmp_path, 0, "a", 100.0)
    (best.parents[1] / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"run\.json is not a run record"):
        newest_finished(tmp_path, 0)


def test_folders_that_only_look_like_a_phase_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "phase-2.bak").mkdir()
    best = finished_run(tmp_path, 1, "a", 100.0)
    assert find_latest(tmp_path) == best
