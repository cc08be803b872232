"""Sweeps in full: the test split, parents, W&B, an interrupted study, runs at once."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pandas as pd
import pytest

from geopak.data.dataset import PreparedSet
from geopak.sweeps.trials import COMPLETE, FAILED, PRUNED, Trial, trials_of

from .conftest import TINY, Outcome
from .offline_runs import OfflineRun

Command = Callable[..., Outcome]
pytestmark = pytest.mark.slow
# A rate at which the weights leave the range of numbers: a failure that no check foresees.
EXPLODES = "1e+30"


def sweep_of(home: Path, name: str) -> Path:
    (folder,) = (home / f"outputs/{name}/sweeps").iterdir()
    return folder


def runs_of(home: Path, name: str) -> list[Trial]:
    folder = sweep_of(home, name)
    return trials_of(home / "outputs" / name, folder.name)


@pytest.fixture
def heads(phases: dict[int, Path]) -> list[str]:
    """Phase 1 on features that all tests here share."""
    return ["phase=1", f"init_from={phases[0]}", *TINY, "data.feature_cache=true"]


@pytest.fixture
def without_test_photos(home: Path, tmp_path: Path) -> list[str]:
    """The prepared set in a folder that lacks every photo of the test split."""
    root = home / "data/synthetic"
    photos = pd.read_parquet(root / "prepared/photos.parquet")
    assert (photos["split"] == "test").any()
    for path in photos["path"][photos["split"] != "test"]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        os.link(root / path, tmp_path / path)
    return [f"data.root={tmp_path}", f"data.prepared={root / 'prepared'}"]


def test_a_grid_outlives_a_failing_run_and_never_opens_the_test_split(
    home: Path,
    command: Command,
    heads: list[str],
    without_test_photos: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    original = PreparedSet.rows

    def rows(self: PreparedSet, split: str) -> object:
        asked.append(split)
        return original(self, split)

    monkeypatch.setattr(PreparedSet, "rows", rows)
    outcome = command(
        "train", "-m", *heads, *without_test_photos, "name=table",
        f"phase.lr.heads=1e-3,{EXPLODES},1e-2",
    )  # fmt: skip
    assert set(asked) == {"train", "val"}
    assert outcome.status == 1, outcome.text
    trials = runs_of(home, "table")
    assert [t.state for t in trials] == [COMPLETE, FAILED, COMPLETE]
    # Failures are told once more at the end, by the folder of the run.
    ending = outcome.text[outcome.text.index("1 of 3 runs failed, 2 ended") :]
    for trial in trials:
        assert (trial.folder in ending) == (trial.state == FAILED)
        if trial.state == FAILED:
            assert trial.error
            assert trial.error.split()[0] in ending
    best = min((t for t in trials if t.score is not None), key=lambda t: t.score or 0)
    assert f"run {best.number}, {best.score:.4g}" in outcome.text
    folder = sweep_of(home, "table")
    table = pd.read_csv(folder / "trials.csv")
    assert table["phase.lr.heads"].tolist() == [1e-3, 1e30, 1e-2]
    assert table["state"].tolist() == [t.state for t in trials]
    page = (folder / "report.html").read_text()
    assert "Best so far" in page
    assert "Not said from 2 runs" in page
    # Nothing is fetched: all pictures are in the page.
    assert not re.findall(r"(?:src|href)=[\"'](?!data:)", page)
    # The command that it gives trains the same run again.
    (line,) = [x for x in outcome.text.splitlines() if x.startswith("    python -m geopak.train")]
    again = command("train", *shlex.split(line)[3:], "name=again")
    assert again.status == 0, again.text
    (record,) = (home / "outputs/again/phase-1").glob("*/run.json")
    assert json.loads(record.read_text())["score"] == best.score
    # The table of a sweep is made anew from the runs' records.
    (folder / "report.html").unlink()
    remade = command("sweep", "name=table")
    assert remade.status == 0, remade.text
    assert (folder / "report.html").is_file()
    assert str(best.checkpoint) in remade.text


def test_a_phase_is_refused_whose_parent_failed_in_the_sweep(home: Path, command: Command) -> None:
    chain = ["name=mended", *TINY, "phase.epochs=1"]
    outcome = command("train", "-m", "phase=0,1", *chain, f"optimizer.weight_decay=0,{EXPLODES}")
    assert outcome.status == 1, outcome.text
    trials = {(t.phase, t.number): t for t in runs_of(home, "mended")}
    assert [t.state for t in trials.values()] == [COMPLETE, FAILED, COMPLETE, FAILED]
    refused = trials[1, 3]
    assert refused.error
    assert trials[0, 1].folder in refused.error
    assert not list(Path(refused.folder).glob("checkpoints/*"))
    # So it is afterwards, until a run of the same overrides has finished by itself.
    nought = "phase.lr={heads: 0, semantic: 0, scene: 0}"
    still = [*chain, f"optimizer.weight_decay={EXPLODES}", nought]
    later = command("train", "phase=1", *still)
    assert later.status == 2, later.text
    assert trials[0, 1].folder in later.text
    assert command("train", "phase=0", *still).status == 0
    outcome = command("train", "phase=1", *still)
    assert outcome.status == 0, outcome.text


def test_a_sweep_is_a_run_of_wandb_and_can_be_gone_on_with(
    home: Path, command: Command, heads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = ["train", "-m", *heads, "name=shown", "phase.epochs=1", "loss.cell=1.0,2.0"]
    assert command(*arguments).status == 0
    # Finished runs are passed over.
    again = command(*arguments, "resume_from=auto", "logger=wandb")
    assert again.status == 0, again.text
    assert len(list((home / "outputs/shown/phase-1").glob("*/run.json"))) == 2
    newest = max((home / "outputs/shown/sweeps").iterdir())
    [run] = OfflineRun.below(newest)
    assert run.run["job_type"] == "sweep"
    [row] = run.history
    shown = {key.partition(".")[0] for key in row}
    assert {"sweep/trials", "sweep/report", "sweep/best_so_far"} <= shown


STUDY = [
    "sweep=optuna_heads", "hydra.sweeper.n_trials=6", "hydra.sweeper.sampler.n_startup_trials=2",
    "hydra.sweeper.pruner.n_startup_trials=1", "hydra.sweeper.pruner.n_warmup_steps=0",
    "hydra.sweeper.study_name=tiny",
    # Rates whose scores lie far apart, so that the worse one is pruned.
    "phase.lr.heads=choice(3e-3,0)",
]  # fmt: skip


def study_trials(home: Path, name: str) -> list[object]:
    from geopak.sweeps.study import optuna

    path = home / f"outputs/{name}/sweeps/tiny/study.db"
    return optuna.load_study(study_name="tiny", storage=f"sqlite:///{path}").get_trials()


def test_an_interrupted_study_goes_on_as_if_it_had_not_been(
    home: Path, command: Command, heads: list[str]
) -> None:
    whole = command("train", *heads, *STUDY, "name=undisturbed")
    assert whole.status == 0, whole.text
    arguments = ["train", *heads, *STUDY, "name=in-parts"]
    with pytest.MonkeyPatch.context() as patch:
        begun: list[int] = []
        fit = L.Trainer.fit

        def interrupted(self: L.Trainer, *args: object, **kwargs: object) -> None:
            begun.append(1)
            if len(begun) == 3:
                raise KeyboardInterrupt
            fit(self, *args, **kwargs)  # type: ignore[arg-type]

        patch.setattr(L.Trainer, "fit", interrupted)
        assert command(*arguments).status == 130
    assert len(begun) == 3
    continued = command(*arguments)
    assert continued.status == 0, continued.text
    assert "2 of 6 runs have ended" in continued.text
    trials = study_trials(home, "in-parts")
    lost = [t for t in trials if t.user_attrs.get("lost")]
    assert [t.number for t in lost] == [2]
    # The lost run is done again, and all others try what they would have tried.
    kept = [t for t in trials if t not in lost]
    uninterrupted = study_trials(home, "undisturbed")
    assert [t.params for t in kept] == [t.params for t in uninterrupted]
    assert [t.values for t in kept] == [t.values for t in uninterrupted]
    assert lost[0].params == kept[2].params
    # Nothing is left to do, and the same command says so.
    done = command(*arguments)
    assert done.status == 0, done.text
    assert len(study_trials(home, "in-parts")) == len(trials)
    # Pruned runs are no failures, and parents of nothing.
    runs = trials_of(home / "outputs/undisturbed", "tiny")
    states = Counter(t.state for t in runs)
    assert states[PRUNED] >= 1
    assert states[COMPLETE] + states[PRUNED] == 6
    for run in runs:
        assert (Path(run.folder) / "run.json").is_file() == (run.state == COMPLETE)
    assert [str(t.state.name).lower() for t in uninterrupted] == [t.state for t in runs]


# The encoders that are shipped: trained, so that no phase changes them here.
SHIPPED = [o for o in TINY if not o.startswith(("model.pretrained", "model.se", "model.sc"))]


def _as_a_command(home: Path, *arguments: str) -> str:
    """The output of a command that trains by processes of its own; they must find this package."""
    command = [sys.executable, "-m", "geopak.train", *arguments]
    threads = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    run = subprocess.run(
        command, env={**threads, "GEOPAK_HOME": str(home)}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_runs_at_once_encode_once_and_wait_for_their_parents(home: Path, launcher: str) -> None:
    jobs = ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
    name = f"at-once-{launcher}"
    features = home / f"features-{launcher}"
    text = _as_a_command(
        home, "-m", "seed=0,1", "phase=0,1", f"name={name}", *SHIPPED,
        f"launcher={launcher}", *jobs,
        "model.pretrained=true", "data.feature_cache=true", f"data.feature_folder={features}",
    )  # fmt: skip
    trials = runs_of(home, name)
    assert [(t.phase, t.state) for t in trials] == [
        (0, COMPLETE), (0, COMPLETE), (1, COMPLETE), (1, COMPLETE),
    ]  # fmt: skip
    for trial in trials[2:]:
        record = json.loads((Path(trial.folder) / "run.json").read_text())
        # Of the same seed, and finished before this one began.
        [parent] = [t for t in trials[:2] if t.checkpoint == record["parent"]]
        assert [o for o in parent.overrides if o.startswith("seed")] == [
            o for o in trial.overrides if o.startswith("seed")
        ]
    # Train and val photos, each encoded once: those who come second wait, or take on a part.
    assert len(list(features.glob("*/about.json"))) == 2, text
    printed = text + "".join(
        p.read_text() for p in (home / f"outputs/{name}/.submitit").glob("*/*_log.out")
    )
    encoded = [int(n.replace(",", "")) for n in re.findall(r"encoded ([\d,]+) photos", printed)]
    split = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")["split"]
    assert sum(encoded) == split.isin(["train", "val"]).sum(), text


RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "data.feature_cache=false"]


def command_line(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A training by itself, as ranks that Lightning starts repeat its command line."""
    command = [sys.executable, "-m", "geopak.train", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def test_every_run_of_a_multirun_has_ranks_of_its_own(home: Path) -> None:
    outcome = command_line("-m", "phase=0,1", "seed=0,1", "name=each-ranks", *TINY, *RANKS)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    runs = runs_of(home, "each-ranks")
    assert [(run.phase, run.state) for run in runs] == [(phase, COMPLETE) for phase in (0, 0, 1, 1)]
    # Other ranks keep no folders or records.
    assert len(list((home / "outputs/each-ranks").glob("phase-*/*"))) == 4
    assert (outcome.stdout + outcome.stderr).count("× 2 devices") == 4
    alone = command_line("phase=0", "seed=1", "name=ranks-alone", *TINY, *RANKS)
    assert alone.returncode == 0, alone.stderr
    (record,) = (home / "outputs/ranks-alone").glob("phase-0/*/run.json")
    assert json.loads(record.read_text())["score"] == runs[1].score


def test_a_study_asks_once_for_all_ranks(home: Path) -> None:
    outcome = command_line(
        "phase=0", "sweep=optuna_heads", "name=asked", *TINY, *RANKS, "hydra.sweeper.n_trials=2",
        "~hydra.sweeper.params", "+hydra.sweeper.params={phase.lr.heads: 'interval(0.001, 0.002)'}",
    )  # fmt: skip
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    trials = pd.read_csv(sweep_of(home, "asked") / "trials.csv")
    assert trials["run"].tolist() == [0, 1]
    assert (trials["state"] == "complete").all()


def test_runs_at_once_have_one_process_each(home: Path) -> None:
    outcome = command_line(
        "-m", "phase=0", "seed=0,1", "launcher=joblib", "name=crowd", *TINY, *RANKS
    )
    assert outcome.returncode == 1
    assert all(run.state == FAILED for run in runs_of(home, "crowd"))
    assert "Set trainer.devices=1" in outcome.stdout + outcome.stderr
