"""Trainings that break, that learn badly, that only try whether they run, and searches."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from geopak.checkpoint import find_latest
from geopak.errors import CheckpointError
from geopak.trained import load_trained

from .conftest import TINY, Outcome
from .test_train import batches_of

Command = Callable[..., Outcome]
# Few photos are looked at: no cache of all of them, no processes that load more.
QUICK = [*TINY, "data.memory_cache=false", "data.num_workers=0"]
SMOKE = [o for o in QUICK if not o.startswith(("trainer", "phase", "data.memory"))]


def run_of(home: Path, name: str, phase: int) -> Path:
    """The only run folder of a name and phase."""
    (folder,) = (home / f"outputs/{name}/phase-{phase}").iterdir()
    return folder


def test_a_rate_that_blows_up_stops_before_the_bad_step(home: Path, command: Command) -> None:
    arguments = ["phase.lr.heads=1e30", "callbacks.checkpoint_every_n_batches=1"]
    outcome = command("train", "phase=0", "name=blown", *QUICK, *arguments)
    assert outcome.status == 2
    assert "Traceback" not in outcome.text
    assert "stopped in epoch 1, step 2: the loss is not finite: province = nan" in outcome.text
    assert "Every photo of the batch alone has the same" in outcome.text
    assert "Lower the learning rates (phase.lr.heads" in outcome.text
    folder = run_of(home, "blown", 0)
    last = folder / "checkpoints/last.ckpt"
    assert f"{last} is of before this step" in outcome.text
    saved = torch.load(last, weights_only=True)
    assert saved["global_step"] == 1
    assert all(v.isfinite().all() for v in saved["state_dict"].values())
    (stop,) = json.loads((folder / "health.json").read_text())["stops"]
    ids = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")["id"]
    rows = batches_of(home, epoch=0)[1]
    assert {photo.split()[0] for photo in stop["photos_of_the_step"]} == {ids[r] for r in rows}
    assert not (folder / "run.json").exists()


def test_a_photo_without_a_place_is_named_alone(
    home: Path, command: Command, phases: dict[int, Path], tmp_path: Path
) -> None:
    prepared = tmp_path / "prepared"
    shutil.copytree(home / "data/synthetic/prepared", prepared)
    photos = pd.read_parquet(prepared / "photos.parquet")
    row = batches_of(home, epoch=0)[1][5]
    photos.loc[row, "latitude"] = float("nan")
    photos.to_parquet(prepared / "photos.parquet", index=False)
    arguments = [f"init_from={phases[0]}", f"data.prepared={prepared}"]
    outcome = command("train", "phase=1", "name=nowhere", *QUICK, *arguments)
    assert outcome.status == 2
    assert "offset = nan, auxiliary = nan" in outcome.text
    photo = photos.loc[row]
    assert f"Photos to blame: {photo['id']} ({photo['path']})." in outcome.text


def test_a_broken_parent_is_named_as_the_cause(
    home: Path, command: Command, phases: dict[int, Path], tmp_path: Path
) -> None:
    checkpoint = torch.load(phases[0], weights_only=True)
    checkpoint["state_dict"]["model.fusion.gate.weight"][0, 0] = torch.nan
    broken = tmp_path / "broken.ckpt"
    torch.save(checkpoint, broken)
    outcome = command("train", "phase=1", "name=heir", f"init_from={broken}", *QUICK)
    assert outcome.status == 2
    assert "epoch 1, step 1: the loss is not finite" in outcome.text
    assert "Weights were not finite before this step: fusion.gate.weight" in outcome.text
    assert "start from another (init_from=)" in outcome.text.replace("\n", " ")


def test_a_gradient_without_a_norm_stops_too(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    arguments = [f"init_from={phases[0]}", "loss.province=1e38"]
    outcome = command("train", "phase=1", "name=steep", *QUICK, *arguments)
    assert outcome.status == 2
    assert "epoch 1, step 1: the gradient is too large for its norm" in outcome.text


def test_what_learns_badly_is_warned_of_once_in_a_window(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    outcome = command(
        "train", "phase=1", "name=ailing", f"init_from={phases[0]}", *QUICK,
        "phase.epochs=4", "loss.auxiliary=1000", "callbacks.health.repeat_epochs=2",
        "callbacks.health.province_collapse=null", "callbacks.health.province_swallow=null",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("the auxiliary loss is") == 2
    assert "Lower loss.auxiliary" in outcome.text
    folder = run_of(home, "ailing", 1)
    warned = json.loads((folder / "health.json").read_text())["warnings"]
    assert [(w["epoch"], w["kind"]) for w in warned] == [
        (2, "auxiliary_share"), (4, "auxiliary_share"),
    ]  # fmt: skip
    log = pd.read_csv(folder / "csv/metrics.csv")
    logged = log["health/auxiliary_share"].dropna()
    # Every step is logged here: its mean over an epoch is known from them.
    steps = log["train/share/auxiliary"].dropna()
    assert logged.tolist() == pytest.approx(steps.to_numpy().reshape(4, 3).mean(1), rel=1e-4)
    # It starts at the centers.
    assert (log["health/offset_ratio"].dropna() < 0.9).all()
    assert {"health/gate_mean", "health/gate_std"} <= set(log)
    assert log["health/gate_mean"].dropna().tolist() == pytest.approx(
        log["val/gate_mean"].dropna().tolist(), rel=1e-4
    )


def test_smoke_runs_every_phase_where_no_other_run_looks(home: Path, command: Command) -> None:
    outcome = command("train", "-m", "phase=0,1,2", "name=quick", "trainer=smoke", *SMOKE)
    assert outcome.status == 0, outcome.text
    for phase in (0, 1, 2):
        folder = run_of(home, "quick-smoke", phase)
        saved = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
        assert saved["global_step"] == 2
        parent = json.loads((folder / "run.json").read_text())["parent"]
        if phase:
            assert Path(parent).parents[1] == run_of(home, "quick-smoke", phase - 1)
    with pytest.raises(CheckpointError):
        find_latest(home / "outputs/quick")
    assert load_trained(find_latest(home / "outputs/quick-smoke")).phase["index"] == 2


def test_smoke_needs_no_parent(home: Path, command: Command) -> None:
    outcome = command("train", "phase=2", "name=alone", "trainer=smoke", *SMOKE)
    assert outcome.status == 0, outcome.text
    assert "random heads: there is no finished phase 1" in " ".join(outcome.text.split())


def test_a_rate_is_found_that_keeps_the_ratios(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    outcome = command(
        "train", "phase=2", "name=search", f"init_from={phases[1]}", "finder=lr",
        "finder.num_steps=20", *QUICK, "phase.lr.semantic=2.5e-4", "optimizer.lr_scaling=sqrt",
        "data.batch_size=16", "optimizer.reference_batch=4",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    (folder,) = (home / "outputs/search/finder-lr/phase-2").iterdir()
    found = json.loads((folder / "lr_finder.json").read_text())
    rates = found["suggestion"]
    assert rates["semantic"] == pytest.approx(rates["heads"] / 2)
    assert rates["scene"] == pytest.approx(rates["heads"] * 2)
    # The rates of a step of 16 photos are twice those that are typed.
    assert any(2 * rates["heads"] == pytest.approx(rate) for rate in found["lr"])
    assert f"phase.lr.heads={rates['heads']:.2g}" in outcome.text
    assert (folder / "lr_finder.png").stat().st_size > 1000
    # Nothing that a later phase could start from.
    assert not list((home / "outputs/search").rglob("*.ckpt"))
    assert not list((home / "outputs/search").rglob("run.json"))


def test_a_batch_size_is_found_in_steps_of_the_quotas(
    home: Path, command: Command, phases: dict[int, Path]
) -> None:
    arguments = ["finder=batch_size", "finder.max_batch_size=20", "finder.steps_per_trial=1"]
    outcome = command(
        "train", "phase=1", "name=sizes", f"init_from={phases[0]}", *arguments, *QUICK
    )
    assert outcome.status == 0, outcome.text
    assert "data.batch_size=16" in outcome.text
    assert "the largest that was tried" in outcome.text
    (folder,) = (home / "outputs/sizes/finder-batch_size/phase-1").iterdir()
    assert json.loads((folder / "batch_size_finder.json").read_text())["batch_size"] == 16
    assert not list((home / "outputs/sizes").rglob("*.ckpt"))


def test_a_model_without_a_gate_is_not_said_to_have_one_that_is_stuck(
    home: Path, command: Command
) -> None:
    outcome = command("train", "phase=0", "name=gateless", "model.fusion.kind=semantic", *TINY)
    assert outcome.status == 0, outcome.text
    assert "gate is stuck" not in " ".join(outcome.text.split())
    (log,) = (home / "outputs/gateless/phase-0").glob("*/csv/metrics.csv")
    assert "health/gate_mean" not in pd.read_csv(log)


def test_a_regression_is_not_warned_of_the_provinces_it_leaves_out(
    home: Path, command: Command
) -> None:
    outcome = command(
        "train", "phase=1", "name=plain", "experiment=ablation/regression_only", *TINY,
        "data.feature_cache=false",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    assert "warning: epoch" not in outcome.text
