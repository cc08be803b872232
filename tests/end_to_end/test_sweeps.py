"""Sweeps as a user types them: a run that fails ends no other, a study goes on and prunes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from .conftest import TINY, run_command

CACHED = ["data.feature_cache=true", "data.feature_views=1"]


@pytest.fixture(scope="module")
def parent(phases: dict[int, Path]) -> str:
    """The finished phase 0 that every run of this file starts from."""
    return f"init_from={phases[0]}"


def the_sweep(home: Path, name: str) -> Path:
    (folder,) = (home / "outputs" / name / "sweeps").iterdir()
    return folder


def test_a_run_that_fails_is_recorded_and_ends_no_other(home: Path, parent: str) -> None:
    # A rate at which the weights are no longer finite after a step.
    swept = ["-m", "phase=1", "phase.lr.heads=1e30,1e-3,3e-4", "name=grid", parent]
    outcome = run_command("train", *swept, *TINY, *CACHED)
    assert outcome.status == 1, outcome.text
    assert "1 of 3 runs failed, 2 ended" in outcome.text
    folder = the_sweep(home, "grid")
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["state"].tolist() == ["failed", "complete", "complete"]
    assert trials["phase.lr.heads"].tolist() == [1e30, 1e-3, 3e-4]
    best = trials.loc[trials["score"].idxmin()]
    record = json.loads((Path(best["folder"]) / "trial.json").read_text())
    assert record["score"] == best["score"]
    assert Path(record["checkpoint"]).is_file()
    failed = json.loads((Path(trials.loc[0, "folder"]) / "trial.json").read_text())
    assert "finite" in failed["error"]
    assert "<img" in (folder / "report.html").read_text()
    # What failed before anything was trained is no reason not to compare the others.
    folders = [str(path) for path in (home / "outputs/grid/phase-1").iterdir()]
    compared = run_command(
        "compare", *folders, "split=val", "unfinished=skip", "evaluate=true", "resamples=20",
        'evaluate_with=["num_workers=0"]',
    )  # fmt: skip
    assert compared.status == 0, compared.text
    again = run_command("sweep", "name=grid")
    assert again.status == 0, again.text
    assert f"run {best['run']}, {best['score']:.4g}. Train it again" in again.text


@pytest.mark.slow
def test_a_phase_does_not_start_from_another_runs_parent(home: Path) -> None:
    """Phase 0 of one of two models fails: its phase 1 must not take the other's weights."""
    swept = ["-m", "phase=0,1", "optimizer.weight_decay=1e-5,1e30", "name=chain"]
    outcome = run_command("train", *swept, *TINY)
    assert outcome.status == 1, outcome.text
    records = [
        json.loads(path.read_text())
        for path in (home / "outputs/chain").glob("phase-*/*/trial.json")
    ]
    states = {(r["phase"], r["overrides"][1].partition("=")[2]): r for r in records}
    assert states.pop((0, "1e-05"))["state"] == "complete"
    assert states.pop((1, "1e-05"))["state"] == "complete"
    assert {r["state"] for r in states.values()} == {"failed"}
    (refused,) = (r for r in states.values() if r["phase"] == 1)
    assert "No other run takes its place" in refused["error"]


def test_a_study_goes_on_where_it_stood(home: Path, parent: str, tmp_path: Path) -> None:
    study = [
        "phase=1", "sweep=optuna_heads", "name=study", parent, *TINY, *CACHED,
        "hydra.sweeper.sampler.n_startup_trials=1", "hydra.sweeper.pruner.n_startup_trials=1",
        "hydra.sweeper.pruner.n_warmup_steps=0",
    ]  # fmt: skip
    first = run_command("train", *study, "hydra.sweeper.n_trials=2")
    assert first.status == 0, first.text
    folder = the_sweep(home, "study")
    # No photo of the test split is there to be read.
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    test = [home / "data/synthetic" / p for p in photos.loc[photos["split"] == "test", "path"]]
    for number, path in enumerate(test):
        shutil.move(path, tmp_path / str(number))
    try:
        second = run_command("train", *study, "hydra.sweeper.n_trials=4")
    finally:
        for number, path in enumerate(test):
            shutil.move(tmp_path / str(number), path)
    assert second.status == 0, second.text
    assert "2 of 4 runs have ended" in second.text
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["run"].tolist() == [0, 1, 2, 3]
    assert set(trials["state"]) <= {"complete", "pruned"}
    assert trials["phase.lr.heads"].nunique() == 4
    third = run_command("train", *study, "hydra.sweeper.n_trials=4", "resume_from=auto")
    assert "4 of 4 runs have ended" in third.text
    # Which of its runs phase 2 is to start from is for its user to say.
    later = run_command("train", "phase=2", "name=study", *TINY)
    assert later.status == 2
    assert "there is no finished run" in later.text
    other = run_command("train", *study, "hydra.sweeper.n_trials=5", "loss.province=0.3")
    assert other.status == 2
    assert "Give the new one a name" in other.text


@pytest.mark.slow
def test_a_run_of_a_study_that_cannot_be_is_recorded_and_does_not_end_it(
    home: Path, parent: str
) -> None:
    study = ["phase=1", "sweep=optuna_heads", "name=refusals", parent, *TINY, *CACHED]
    # An epoch more than there are is one that cannot be validated.
    study += ["~hydra.sweeper.params", "+hydra.sweeper.params={}", "hydra.sweeper.n_trials=6"]
    study += ["hydra.sweeper.max_failure_rate=1", "trainer.check_val_every_n_epoch=choice(1,9)"]
    outcome = run_command("train", *study)
    assert outcome.status == 1, outcome.text
    trials = pd.read_csv(the_sweep(home, "refusals") / "trials.csv")
    assert trials["run"].tolist() == list(range(6))
    refused = trials["trainer.check_val_every_n_epoch"] == 9
    assert 0 < refused.sum() < 6
    assert (trials["state"] == "failed").tolist() == refused.tolist()
    assert trials.loc[refused, "error"].str.contains("no epoch would be validated").all()


def test_a_gate_bias_that_comes_too_late_is_said(home: Path, parent: str) -> None:
    outcome = run_command(
        "train", "phase=1", "name=bias", parent, *TINY, *CACHED, "model.fusion.gate_bias=0.7"
    )
    assert outcome.status == 0, outcome.text
    assert "model.fusion.gate_bias=0.7 has no effect in phase 1" in " ".join(outcome.text.split())
