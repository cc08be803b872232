"""Commands in a restart loop: killed, signalled, finished, with broken checkpoints; and reruns."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from geopak import checkpoint
from geopak.checkpoint import check_resumable, resumable
from geopak.errors import CheckpointError
from geopak.task import GeolocationTask
from geopak.types import Batch

from .conftest import TINY, Outcome, run_command
from .test_resume import PowerCutError, assert_same, cut_after

BATCHES, EPOCHS = 3, 2
AUTO = "resume_from=auto"
EVERY = "callbacks.checkpoint_every_n_batches=1"
REPOSITORY = Path(__file__).parents[2]


def command_of(name: str, *more: str, phase: int = 0) -> list[str]:
    """A training under a name of its own, in memory."""
    size = [f"data.batches_per_epoch={BATCHES}", f"phase.epochs={EPOCHS}"]
    own = [f"phase={phase}", "data.memory_cache=true", f"name={name}"]
    return ["train", *TINY, *size, *own, AUTO, EVERY, *more]


def runs_of(name: str, phase: int = 0) -> list[Path]:
    folder = Path(os.environ["GEOPAK_HOME"]) / "outputs" / name / f"phase-{phase}"
    return sorted(folder.iterdir()) if folder.is_dir() else []


def same_checkpoints(one: Path, other: Path, names: tuple[str, ...] = ("last", "best")) -> None:
    """All of two runs' checkpoints but the names of folders is equal, bit for bit."""
    for name in names:
        pair = [run / f"checkpoints/{name}.ckpt" for run in (one, other)]
        assert_same(*(torch.load(path, weights_only=True) for path in pair), name)


@pytest.fixture(scope="module")
def whole(home: Path) -> Path:
    """The run that nothing interrupted."""
    outcome = run_command(*command_of("whole"))
    assert outcome.status == 0, outcome.text
    assert "resume_from=auto: starts anew in" in outcome.text
    (run,) = runs_of("whole")
    return run


@pytest.mark.slow
def test_other_settings_of_a_phase_are_another_run(home: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        cut_after(1, patch)
        assert run_command(*command_of("settings")).status != 0
        (run,) = runs_of("settings")
        other = run_command(*command_of("settings", "phase.lr.heads=3e-4"))
    assert f"no run of these overrides below {run.parent} (1 of others)" in other.text
    assert "PowerCutError" in other.text
    assert runs_of("settings")[0] == run
    assert len(runs_of("settings")) == 2


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGINT, signal.SIGUSR1)),
    ],
)
def test_a_signal_ends_a_run_after_its_batch(
    whole: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = number.name.lower()
    command = [*command_of(name), "callbacks.checkpoint_every_n_batches=null"]
    original = GeolocationTask.on_train_batch_start
    handlers = signal.getsignal(number)

    def send(self: GeolocationTask, batch: Batch, batch_idx: int) -> Any:
        if self.trainer.fit_loop.total_batch_idx == 1:
            os.kill(os.getpid(), number)
        return original(self, batch, batch_idx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeolocationTask, "on_train_batch_start", send)
        stopped = run_command(*command)
    assert stopped.status == 128 + number, stopped.text
    assert f"{number.name} ended the run after step 2. Continue it with the same" in stopped.text
    assert signal.getsignal(number) == handlers
    (run,) = runs_of(name)
    assert not (run / "run.json").exists()
    assert torch.load(run / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert run_command(*command).status == 0
    same_checkpoints(whole, run)


def test_the_same_command_goes_on_past_a_broken_checkpoint_and_then_has_nothing_left_to_do(
    whole: Path,
) -> None:
    command = command_of("broken")
    with pytest.MonkeyPatch.context() as patch:
        cut_after(BATCHES - 1, patch)
        assert run_command(*command).status != 0
    (run,) = runs_of("broken")
    last = run / "checkpoints/last.ckpt"
    previous = last.with_name("last-previous.ckpt")
    steps = [torch.load(p, weights_only=True)["global_step"] for p in (previous, last)]
    assert steps == [1, 2]

    content = last.read_bytes()
    assert resumable(last) == last
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        last.write_bytes(content[:length])
        assert resumable(last) == previous
        with pytest.raises(CheckpointError, match=r"last\.ckpt is not a whole checkpoint"):
            check_resumable(last)
    # A byte of a tensor: torch would load it.
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    last.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="checksum"):
        check_resumable(last)

    resumed = run_command(*command)
    assert resumed.status == 0, resumed.text
    assert "warning: " in resumed.text
    assert f"{last} has been altered" in resumed.text
    assert f"Going on from the one before it, {previous}" in resumed.text
    assert f"resume_from=auto: continues {run}" in resumed.text
    assert runs_of("broken") == [run]
    same_checkpoints(whole, run)
    start = json.loads((run / "provenance.json").read_text())
    assert start["overrides"] == command[1:]
    assert len(start["continued"]) == 1

    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    again = run_command(*command)
    assert again.status == 0
    assert "is finished already" in again.text
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    assert runs_of("broken") == [run]

    last.write_bytes(b"")
    previous.write_bytes(b"PK")
    for choice in (AUTO, f"resume_from={last}"):
        (run / "run.json").unlink(missing_ok=True)
        refused = run_command(*command, choice)
        assert refused.status == 2
        assert "Nor is the one before it of use" in refused.text
    assert runs_of("broken") == [run]


@pytest.mark.slow
def test_a_run_killed_after_it_stopped_early_trains_no_more(home: Path) -> None:
    """Its last epoch is done, and its record is not written."""
    early = ["callbacks.early_stopping_patience=2", "phase.lr.heads=1e-30", "phase.lr.scene=1e-30",
             "phase.lr.semantic=1e-30", "phase.epochs=9"]  # fmt: skip
    assert run_command(*command_of("early-whole", *early)).status == 0
    (whole,) = runs_of("early-whole")
    assert json.loads((whole / "run.json").read_text())["epochs"] < 9

    def fail(*arguments: Any) -> None:
        raise PowerCutError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_run_record", fail)
        assert run_command(*command_of("early", *early)).status != 0
    assert run_command(*command_of("early", *early)).status == 0
    (run,) = runs_of("early")
    one, other = (json.loads((r / "run.json").read_text()) for r in (whole, run))
    assert (one["epochs"], one["score"]) == (other["epochs"], other["score"])
    same_checkpoints(whole, run)


def killed(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A training in a process of its own, which kills itself where the environment says."""
    return subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.killed_training", *command[1:]],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=REPOSITORY, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_kill_9_while_a_checkpoint_is_written(whole: Path) -> None:
    command = command_of("kill9")
    # After the first batch of the second epoch: the fifth write.
    dead = killed(command, KILL_IN_WRITE="5")
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    (run,) = runs_of("kill9")
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["best.ckpt", "last-previous.ckpt", "last.ckpt", "last.ckpt.partial"]
    assert run_command(*command).status == 0
    same_checkpoints(whole, run)
    assert not (run / "checkpoints/last.ckpt.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "death",
    [*({"KILL_AT_BATCH": str(n)} for n in range(1, 7)),
     *({"KILL_IN_WRITE": str(n)} for n in range(1, 9))],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("source", ["memory", "workers", "features"])
def test_kill_9_anywhere(phases: dict[int, Path], death: dict[str, str], source: str) -> None:
    """Every step, every write; the first, uninterrupted run of a source is made once."""
    phase, *more = {
        "memory": (0,),
        "workers": (0, "data.memory_cache=false", "data.num_workers=2"),
        "features": (1, f"init_from={phases[0]}", "data.feature_cache=true"),
    }[source]

    def command(name: str) -> list[str]:
        return command_of(name, *more, phase=phase)

    reference = f"reference-{source}"
    assert killed(command(reference)).returncode == 0
    (whole,) = runs_of(reference, phase)
    (kind, number), *_ = death.items()
    name = f"{source}-{kind}-{number}"
    dead = killed(command(name), **death)
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    ended = killed(command(name))
    assert ended.returncode == 0, ended.stderr
    (run,) = (run for run in runs_of(name, phase) if (run / "run.json").exists())
    same_checkpoints(whole, run)


@pytest.mark.slow
def test_ranks_stop_together_and_go_on(phases: dict[int, Path]) -> None:
    """Two processes of DDP, of which one gets the signal; dropout of both is drawn on."""
    two = ["trainer.devices=2", "trainer.strategy=ddp", "data.batch_size=16"]
    two += [f"init_from={phases[0]}", "data.feature_cache=true"]
    assert killed(command_of("ranks-whole", *two, phase=1)).returncode == 0
    (whole,) = runs_of("ranks-whole", 1)
    command = command_of("ranks", *two, phase=1)
    stopped = killed(command, SIGNAL_AT_BATCH="2", SIGNAL=str(int(signal.SIGTERM)))
    assert stopped.returncode == 143, stopped.stderr
    assert "SIGTERM ended the run after step 2" in stopped.stderr
    assert "ends the run" not in stopped.stderr
    (run,) = runs_of("ranks", 1)
    ended = killed(command)
    assert ended.returncode == 0, ended.stderr
    assert runs_of("ranks", 1) == [run]
    same_checkpoints(whole, run)


@pytest.mark.slow
def test_a_job_that_is_signalled_goes_back_into_the_queue_and_on(home: Path) -> None:
    """By submitit, as on a cluster: its controller starts the task again."""
    epochs = ["phase.epochs=12", "callbacks.checkpoint_every_n_batches=null"]
    assert run_command(*command_of("queue-whole", *epochs)).status == 0
    (whole,) = runs_of("queue-whole")
    logs = home / "submitit"
    job = subprocess.Popen(
        [sys.executable, "-m", "geopak.train", "-m", *command_of("queue", *epochs)[1:],
         "hydra/launcher=submitit_local", f"hydra.launcher.submitit_folder={logs}/%j",
         "hydra.launcher.timeout_min=60"],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not any((run / "checkpoints/last.ckpt").exists() for run in runs_of("queue")):
        assert time.monotonic() < deadline
        assert job.poll() is None, job.communicate()[0]
        time.sleep(0.05)
    (controller,) = (path.name for path in logs.iterdir() if path.name.isdigit())
    children = Path(f"/proc/{controller}/task/{controller}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGUSR2)
    text, _ = job.communicate(timeout=200)
    said = "".join(path.read_text() for path in logs.glob("*/*_log.*"))
    assert job.returncode == 0, text + said
    assert "SIGUSR2 ended the run after step" in said
    assert f"Requeued job {controller}" in said
    (run,) = (run for run in runs_of("queue") if (run / "run.json").exists())
    assert f"resume_from=auto: continues {run}" in said
    # The second start has a record in a folder of its own, of where it went on.
    assert [r for r in runs_of("queue") if (r / "checkpoints").is_dir()] == [run]
    same_checkpoints(whole, run)


def metrics_of(run: Path) -> list[dict[str, str]]:
    with open(run / "csv/metrics.csv", encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if "time" not in k} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "source",
    [["phase=1", "data.feature_cache=true"],
     ["phase=2", "data.memory_cache=false", "data.num_workers=2"]],
    ids=["features", "workers"],
)  # fmt: skip
def test_a_seed_gives_the_same_metrics_twice(
    phases: dict[int, Path], source: list[str], request: pytest.FixtureRequest
) -> None:
    phase = int(source[0][-1])
    name = f"seed-{request.node.callspec.id}"
    runs = []
    for _ in range(2):
        command = ["train", *TINY, *source, f"init_from={phases[phase - 1]}", "seed=7"]
        outcome = run_command(*command, f"name={name}", f"hydra.run.dir={name_of(name, len(runs))}")
        assert outcome.status == 0, outcome.text
        runs.append(Path(name_of(name, len(runs))))
        if phase == 1 and len(runs) == 1:
            # The second encodes once more.
            shutil.rmtree(Path(os.environ["GEOPAK_HOME"]) / "outputs/features")
    rows, again = map(metrics_of, runs)
    assert len(rows) > 4
    assert rows == again


def name_of(name: str, number: int) -> str:
    return f"{os.environ['GEOPAK_HOME']}/outputs/{name}/run-{number}"


@pytest.fixture
def repeated(phases: dict[int, Path]) -> Path:
    """A run of phase 1 to be repeated."""
    return phases[1].parents[1]


def test_a_rerun_scores_the_same(repeated: Path) -> None:
    before = set(repeated.parent.iterdir())
    outcome = run_command("train", "--rerun", str(repeated))
    assert outcome.status == 0, outcome.text
    recorded = json.loads((repeated / "run.json").read_text())
    assert f"equal to that of {repeated}" in outcome.text
    (run,) = set(repeated.parent.iterdir()) - before
    again = json.loads((run / "run.json").read_text())
    for key in ("phase", "score", "epochs", "parent", "overrides"):
        assert again[key] == recorded[key], key
    start = json.loads((run / "provenance.json").read_text())
    assert start["dataset"]["manifest_sha256"]
    same_checkpoints(repeated, run)
    shutil.rmtree(run)


@pytest.mark.slow
def test_a_rerun_takes_overrides_and_says_that_it_differs(repeated: Path) -> None:
    before = set(repeated.parent.iterdir())
    outcome = run_command("train", f"--rerun={repeated}", "phase.epochs=1", "seed=3")
    assert outcome.status == 0, outcome.text
    assert "differs from" in outcome.text
    (run,) = set(repeated.parent.iterdir()) - before
    assert json.loads((run / "run.json").read_text())["epochs"] == 1
    shutil.rmtree(run)


def test_a_rerun_on_another_prepared_set_is_refused(repeated: Path, home: Path) -> None:
    before = set(repeated.parent.iterdir())
    manifest = home / "data/synthetic/prepared/manifest.json"
    content = manifest.read_bytes()
    manifest.write_bytes(content + b"\n")
    try:
        refused: Outcome = run_command("train", "--rerun", str(repeated))
    finally:
        manifest.write_bytes(content)
    assert refused.status == 2
    assert "was trained on another prepared set" in refused.text
    assert set(repeated.parent.iterdir()) == before

    missing = run_command("train", "--rerun", str(home))
    assert missing.status == 2
    assert "not the folder of a run" in missing.text


def test_a_command_that_fails_leaves_no_folder(home: Path) -> None:
    refused = run_command(*command_of("empty", "data.batch_size=0"))
    assert refused.status == 2
    assert runs_of("empty") == []
