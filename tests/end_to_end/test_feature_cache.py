"""Training and evaluation from cached features, through the commands as users type them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from geopak.errors import FeatureCacheError
from tests.end_to_end.conftest import TINY, Outcome

Command = Callable[..., Outcome]


def best_of(home: Path, name: str, phase: int = 1) -> list[Path]:
    return sorted((home / f"outputs/{name}/phase-{phase}").glob("*/checkpoints/best.ckpt"))


def validations(home: Path, name: str) -> pd.DataFrame:
    """Every end-to-end metric of every validation of a run."""
    (log,) = (home / f"outputs/{name}/phase-1").glob("*/csv/metrics.csv")
    table = pd.read_csv(log)
    columns = [c for c in table if c.startswith("val/")]
    return table[columns].dropna().reset_index(drop=True)


@pytest.fixture
def arguments(phases: dict[int, Path]) -> list[str]:
    return ["phase=1", f"init_from={phases[0]}", *TINY]


def test_a_sweep_encodes_every_picture_once(
    home: Path, command: Command, arguments: list[str]
) -> None:
    outcome = command(
        "train", "-m", *arguments, "name=shared", "data.feature_cache=true",
        "phase.lr.heads=1e-3,1e-2", "seed=0,1",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("encoded ") == 2
    assert outcome.text.count("in 4 views") == 1
    assert len(best_of(home, "shared")) == 4
    # Another draw of views leaves the val photos as they are.
    outcome = command(
        "train", *arguments, "name=redrawn", "data.feature_cache=true", "data.feature_draw=1"
    )
    assert outcome.text.count("encoded ") == 1


def test_without_training_validation_is_the_same_from_features_as_from_photos(
    home: Path, command: Command, arguments: list[str]
) -> None:
    for name, choice in (("cached", "true"), ("photos", "false")):
        outcome = command(
            "train", *arguments, f"name={name}", f"data.feature_cache={choice}", "phase.lr.heads=0"
        )
        assert outcome.status == 0, outcome.text
    cached, photos = validations(home, "cached"), validations(home, "photos")
    assert len(cached) == 2
    pd.testing.assert_frame_equal(cached, photos, rtol=1e-3, atol=1e-3)


def test_heads_learn_from_features_and_encoders_stay(
    home: Path, phases: dict[int, Path], command: Command, arguments: list[str]
) -> None:
    outcome = command(
        "train", *arguments, "name=learns", "data.feature_cache=true", "data.feature_dtype=float16",
        "data.batches_per_epoch=40", "phase.epochs=3",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    (best,) = best_of(home, "learns")
    before = torch.load(phases[0], weights_only=True)["state_dict"]
    after = torch.load(best, weights_only=True)["state_dict"]
    moved = {key.split(".")[1] for key in after if not torch.equal(after[key], before[key])}
    assert {"cell_heads", "offset_head", "fusion"} <= moved
    assert not moved & {"semantic", "scene"}
    losses = pd.read_csv(best.parents[1] / "csv/metrics.csv")["train/loss"].dropna()
    assert losses.iloc[-20:].mean() < losses.iloc[:20].mean()


def test_auto_caches_only_where_it_saves_work(
    home: Path, command: Command, arguments: list[str]
) -> None:
    # Two epochs of three batches see fewer pictures than all photos in four views,
    outcome = command("train", *arguments, "name=few")
    assert outcome.status == 0, outcome.text
    assert "encod" not in outcome.text
    # many epochs see more.
    outcome = command(
        "train", *arguments, "name=many", "data.batches_per_epoch=40", "data.feature_draw=5"
    )
    assert outcome.status == 0, outcome.text
    assert "in 4 views" in outcome.text


def test_a_phase_that_trains_an_encoder_refuses_the_cache(
    home: Path, phases: dict[int, Path], command: Command
) -> None:
    outcome = command(
        "train",
        "phase=2",
        f"init_from={phases[1]}",
        *TINY,
        "data.feature_cache=true",
        "name=bare",
    )
    assert outcome.status == 2
    assert "phase 2 trains an encoder" in outcome.text
    assert "data.feature_cache=auto" in outcome.text
    # And by default goes without.
    outcome = command(
        "train",
        "phase=2",
        f"init_from={phases[1]}",
        *TINY,
        "name=bare",
        "data.batches_per_epoch=1",
    )
    assert outcome.status == 0, outcome.text
    assert "encod" not in outcome.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.feature_cache=maybe", "must be true or false or auto"),
        ("data.feature_dtype=int8", "use float32, float16, bfloat16"),
        ("data.feature_views=0", "at least 1"),
        ("data.feature_draw=-1", "0 or more"),
        ("data.feature_folder=/proc/nowhere", "feature_folder="),
    ],
)
def test_options_that_cannot_be_are_refused(
    command: Command, arguments: list[str], override: str, message: str
) -> None:
    outcome = command("train", *arguments, "name=refused", "data.feature_cache=true", override)
    assert outcome.status == 2
    assert message in outcome.text


@pytest.mark.slow
def test_evaluation_from_features_reports_the_same(
    home: Path, phases: dict[int, Path], command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "features"
    common = [f"ckpt={phases[1]}", f"feature_folder={folder}", "bootstrap_resamples=20"]
    reports = {}
    for name, more in {
        "photos": ["feature_cache=false"],
        # Nothing is known of these encoders there yet.
        "auto, unknown": [],
        "cached": ["feature_cache=true"],
        "auto, known": [],
    }.items():
        outcome = command("evaluate", *common, f"out={tmp_path / 'report'}", *more)
        assert outcome.status == 0, outcome.text
        assert ("encoded " in outcome.text) == (name == "cached")
        assert folder.exists() == (name in ("cached", "auto, known"))
        reports[name] = json.loads((tmp_path / "report" / "report.json").read_text())
    exact = reports["photos"]["end_to_end"]
    for report in reports.values():
        for metric, entry in exact.items():
            got = report["end_to_end"][metric]["value"]
            assert got == pytest.approx(entry["value"], rel=1e-3, abs=1e-3), metric


def test_evaluation_does_without_a_cache_that_cannot_be_used(
    phases: dict[int, Path], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(root: object) -> Path:
        raise FeatureCacheError("The feature cache cannot be written to.")

    monkeypatch.setattr("geopak.data.features.are_known", lambda folder, fingerprint: True)
    monkeypatch.setattr("geopak.inference.hash_folder", refuse)
    arguments = [f"ckpt={phases[1]}", f"out={tmp_path / 'report'}", "bootstrap_resamples=20"]
    outcome = command("evaluate", *arguments)
    assert outcome.status == 0, outcome.text
    assert "measuring on the photos themselves: The feature cache cannot" in outcome.text
    outcome = command("evaluate", *arguments, "feature_cache=true")
    assert outcome.status == 2
    assert "cannot be written to" in outcome.text
