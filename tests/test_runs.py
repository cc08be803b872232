"""Which run a command continues, and what becomes of folders where nothing was done."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from geopak.checkpoint import CheckpointError, check_continuation, config_differences
from geopak.errors import ConfigError
from geopak.interruption import requeue
from geopak.runs import (
    choose_start,
    distinguishing_overrides,
    held,
    removed_if_unused,
    write_start,
)


def test_only_overrides_that_change_no_result_are_left_out() -> None:
    kept = ["phase=1", "phase.lr.heads=1e-3", "name=a", "trainer.gradient_clip_val=2",
            "callbacks.early_stopping_patience=3", "trainer=cpu", "+data.x=1"]  # fmt: skip
    left_out = ["resume_from=auto", "hydra.job.name=x", "hydra/launcher=slurm", "logger=wandb",
                "logger.offline=false", "~logger", "callbacks.progress_bar=false",
                "trainer.devices=4"]  # fmt: skip
    assert distinguishing_overrides([*kept, *left_out]) == sorted(kept)


def make_run(runs: Path, name: str, started: float, finished: bool = False, **record: Any) -> Path:
    run = runs / name
    write_start(run, {"overrides": ["phase=1"], "parent": None, "started_unix": started, **record})
    if finished:
        (run / "checkpoints").mkdir()
        (run / "checkpoints/best.ckpt").touch()
        (run / "run.json").write_text(json.dumps({"score": 1.5, "best": "best.ckpt"}))
    return run


def choose(tmp_path: Path, parent: str | None = None) -> Any:
    overrides = ["resume_from=auto", "phase=1"]
    return choose_start(
        "auto", tmp_path / "new", tmp_path, overrides, Path(parent) if parent else None
    )


def test_the_newest_run_of_the_same_overrides_decides(tmp_path: Path) -> None:
    assert choose(tmp_path).folder == tmp_path / "new"
    done = make_run(tmp_path, "b", started=1, finished=True)
    make_run(tmp_path, "a", started=2, overrides=["phase=1", "seed=2"])
    assert choose(tmp_path).finished == {"score": 1.5, "best": "best.ckpt"}
    assert choose(tmp_path).folder == done
    # Begun once more, on purpose, and killed at once.
    make_run(tmp_path, "c", started=3)
    start = choose(tmp_path)
    assert (start.folder, start.finished, start.checkpoint) == (tmp_path / "new", None, None)


def test_a_run_of_another_parent_is_not_the_same_wherever_outputs_lie(tmp_path: Path) -> None:
    parent = "/here/phase-0/run/checkpoints/best.ckpt"
    run = make_run(tmp_path, "a", started=1, finished=True, parent=parent)
    assert choose(tmp_path, "/moved/phase-0/run/checkpoints/best.ckpt").folder == run
    assert choose(tmp_path, "/here/phase-0/run-2/checkpoints/best.ckpt").finished is None


def test_a_folder_where_another_process_trains_is_refused(tmp_path: Path) -> None:
    # The lock of another process, which needs no more than the file's name.
    code = f"""
import sys
from filelock import FileLock
with FileLock({str(tmp_path / ".lock")!r}):
    print("held", flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="Another process is training in"), held(tmp_path):
            pass
        other.kill()
    with held(tmp_path):
        pass


@pytest.mark.parametrize("used", [True, False])
def test_a_folder_where_nothing_was_done_is_removed(tmp_path: Path, used: bool) -> None:
    run = tmp_path / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".lock").touch()
    if used:
        (run / "provenance.json").touch()
    with pytest.raises(ConfigError), removed_if_unused(run):
        raise ConfigError("wrong")
    assert run.exists() is used


def test_a_continued_run_keeps_the_record_of_its_start(tmp_path: Path) -> None:
    for number in range(3):
        write_start(tmp_path, {"command": f"number {number}"})
    record = json.loads((tmp_path / "provenance.json").read_text())
    assert record["command"] == "number 0"
    assert [part["command"] for part in record["continued"]] == ["number 1", "number 2"]


CONFIG: dict[str, Any] = {
    "phase": {"train": ["gate"], "unfreeze": {"scene": 0.0}, "epochs": 5},
    "data": {"batch_size": 64, "num_workers": 2},
    "logger": {"kind": "csv"},
    "loss": {"auxiliary": 0.1},
}


def test_differences_that_change_a_result_are_named_by_their_key() -> None:
    other = {**CONFIG, "data": {"batch_size": 32, "num_workers": 9}, "logger": None, "seed": 1}
    differences = config_differences(CONFIG, other)
    assert differences == {"data.batch_size": (64, 32), "seed": (None, 1)}


def test_a_continuation_with_another_configuration_is_warned_about_or_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    checkpoint = {"geopak": {"config": CONFIG}, "epoch": 3}
    check_continuation(checkpoint, CONFIG, 5, "last.ckpt")
    assert not caplog.records
    other = {**CONFIG, "data": {"batch_size": 32}}
    check_continuation(checkpoint, other, 5, "last.ckpt")
    assert "data.batch_size: 64 -> 32" in caplog.text
    with pytest.raises(CheckpointError, match=r"of epoch 4, but phase\.epochs is now 3"):
        check_continuation(checkpoint, CONFIG, 3, "last.ckpt")
    unfrozen = {**CONFIG, "phase": {**CONFIG["phase"], "unfreeze": {"scene": 0.5}}}
    with pytest.raises(CheckpointError, match=r"phase\.unfreeze\.scene=0\.0, now it is 0\.5"):
        check_continuation(checkpoint, unfrozen, 5, "last.ckpt")
    # A term of weight 0 leaves what it alone would train out of the optimizer.
    check_continuation(checkpoint, {**CONFIG, "loss": {"auxiliary": 0.2}}, 5, "last.ckpt")
    with pytest.raises(CheckpointError, match=r"loss\.auxiliary=0\.1, now it is 0"):
        check_continuation(checkpoint, {**CONFIG, "loss": {"auxiliary": 0.0}}, 5, "last.ckpt")


def test_a_job_of_slurm_is_put_back_into_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requeue({})
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("PATH", str(tmp_path))
    requeue({"SLURM_JOB_ID": "12"})
    assert "job 12 could not be put back into the queue" in capsys.readouterr().err
    # Slurm's own program, but for the cluster behind it.
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{tmp_path}/asked'\n")
    program.chmod(0o755)
    requeue({"SLURM_JOB_ID": "12"})
    requeue({"SLURM_JOB_ID": "13", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "1"})
    assert (tmp_path / "asked").read_text() == "requeue 12\nrequeue 12_1\n"
    assert capsys.readouterr().err == "job 12 is in the queue\njob 12_1 is in the queue\n"
