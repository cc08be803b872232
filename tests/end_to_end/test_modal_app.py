"""What runs on Modal, called here: a run goes on from where it was, and is done once."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import modal
import pytest

from geopak import modal_app
from geopak.errors import ConfigError

from .conftest import TINY

ARGUMENTS = [*TINY, "phase=0"]
# A function called where it was defined has no Volume.
pytestmark = pytest.mark.filterwarnings("ignore:The train_remotely function is executing locally")


def epochs_logged(folder: Path) -> list[int]:
    """Epochs with a validation score in any part of a run's log."""
    lines = [
        dict(zip(header.split(","), line.split(","), strict=True))
        for log in sorted(folder.glob("csv*/metrics.csv"))
        for header, *rest in [log.read_text().splitlines()]
        for line in rest
    ]
    return [int(line["epoch"]) for line in lines if line.get("val/province_macro_acc")]


@pytest.fixture(scope="module")
def first(home: Path) -> dict[str, Any]:
    """The outcome of a first call."""
    outcome = modal_app.train_remotely.local([*ARGUMENTS, "name=cloud"], "one", 0)
    assert "error" not in outcome, outcome
    return outcome


def test_a_first_call_trains_below_the_home(home: Path, first: dict[str, Any]) -> None:
    [run] = first["runs"]
    folder = Path(run["folder"])
    assert folder == home / "outputs/cloud/phase-0/one-0"
    assert (folder / "checkpoints" / run["best"]).is_file()
    assert (run["phase"], run["epochs"]) == (0, 2)
    assert epochs_logged(folder) == [0, 1]


def test_a_second_call_returns_the_result_without_training(
    first: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(command: object) -> None:
        raise AssertionError(f"ran {command}")

    monkeypatch.setattr(modal_app, "_run", refuse)
    assert modal_app.train_remotely.local([*ARGUMENTS, "name=cloud"], "one", 0) == first


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_and_finishes(home: Path) -> None:
    arguments = [*ARGUMENTS, "name=lost", "phase.epochs=8"]
    code = f"from geopak.modal_app import train_all; train_all({arguments!r}, 'r', 0)"
    folder = home / "outputs/lost/phase-0/r-0"
    with (home / "killed.log").open("wb") as log:
        attempt = subprocess.Popen(
            [sys.executable, "-c", code], stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 300
            while not (folder / "checkpoints/last.ckpt").is_file():
                assert attempt.poll() is None, (home / "killed.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.killpg(attempt.pid, signal.SIGKILL)
            attempt.wait()
    assert not (folder / "run.json").exists()
    before = epochs_logged(folder)
    # Written epoch by epoch, so the last one may be missing from the log; never is it the end.
    assert len(before) < 8

    [run] = modal_app.train_all(arguments, "r", 0)
    assert run["folder"] == str(folder)
    assert run["epochs"] == 8
    after = epochs_logged(folder)
    assert max(after) == 7
    resumed = after[len(before) :]
    assert resumed == list(range(resumed[0], 8))
    assert resumed[0] >= 1, "it began anew"


@pytest.mark.slow
def test_a_run_that_lacks_its_record_alone_gets_it(home: Path, first: dict[str, Any]) -> None:
    [run] = first["runs"]
    record = Path(run["folder"], "run.json")
    kept = record.read_text()
    record.unlink()
    try:
        [again] = modal_app.train_all([*ARGUMENTS, "name=cloud"], "one", 0)
    finally:
        record.write_text(kept)
    ends = ("finished_unix", "overrides")
    assert {k: v for k, v in again.items() if k not in ends} == {
        k: v for k, v in run.items() if k not in ends
    }


def test_a_checkpoint_that_was_cut_off_gives_way_to_the_best(tmp_path: Path) -> None:
    assert modal_app._newest_checkpoint(tmp_path) is None
    for name in ("last.ckpt", "best.ckpt"):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("data.pkl", b"0" * 1000)
    assert modal_app._newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    assert modal_app._newest_checkpoint(tmp_path) == tmp_path / "best.ckpt"


def test_a_sweep_is_trained_run_by_run_in_folders_of_their_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def pretend(command: list[str]) -> None:
        commands.append(command)
        [folder] = [c.partition("=")[2] for c in command if c.startswith("hydra.run.dir=")]
        Path(folder).mkdir(parents=True)
        Path(folder, "run.json").write_text(json.dumps({"number": len(commands)}))

    monkeypatch.setattr(modal_app, "_run", pretend)
    arguments = ["-m", "phase=0,1", "seed=1,2", "name=swept"]
    runs = modal_app.train_all(arguments, "s", 4)
    assert [run["number"] for run in runs] == [1, 2, 3, 4]
    root = home / "outputs/swept"
    assert [Path(run["folder"]).relative_to(root).as_posix() for run in runs] == [
        "phase-0/s-0", "phase-0/s-1", "phase-1/s-2", "phase-1/s-3"
    ]  # fmt: skip
    assert commands[2][3:7] == ["trainer=a100_multi", "phase=1", "seed=1", "name=swept"]
    assert modal_app.train_all(arguments, "s", 4) == runs
    assert len(commands) == 4


@pytest.mark.parametrize(
    ("gpus", "typed", "trainer"),
    [(0, [], "cpu"), (1, [], "a100"), (8, [], "a100_multi"), (8, ["trainer=gpu"], "gpu")],
)
def test_the_trainer_follows_from_the_gpus_unless_it_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, typed: list[str], trainer: str
) -> None:
    asked: list[list[str]] = []

    def note(job: list[str], name: str) -> dict[str, Any]:
        asked.append(job)
        return {}

    monkeypatch.setattr(modal_app, "_finish", note)
    modal_app.train_all(["phase=0", *typed], "t", gpus)
    assert [o for o in asked[0] if o.startswith("trainer=")] == [f"trainer={trainer}"]


def test_a_mistake_is_returned_so_that_it_is_not_tried_again(home: Path) -> None:
    error = modal_app.train_remotely.local(["phase.epohcs=1"], "m", 0)["error"]
    assert "Did you mean 'phase.epochs'" in error
    error = modal_app.train_remotely.local(["phase=1", "name=orphan"], "m", 0)["error"]
    assert "there is no finished run below" in error
    assert "Traceback" not in error


def test_a_failure_hands_on_the_exit_status_and_the_last_lines(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code = "for i in range(100): print('line', i)\nraise SystemExit({})"
    with pytest.raises(RuntimeError, match=r"(?s)status 7.*line 60.*line 99") as caught:
        modal_app._run([sys.executable, "-c", code.format(7)])
    assert "line 59" not in str(caught.value)
    assert "line 0\n" in capfd.readouterr().out
    with pytest.raises(ConfigError, match=r"^No photos\.$"):
        modal_app._run([sys.executable, "-c", "print('error: No photos.'); raise SystemExit(2)"])


def test_the_entry_point_asks_for_the_gpus_and_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}

    class Remote:
        def with_options(self, **options: Any) -> Remote:
            asked.update(options)
            return self

        def remote(self, *arguments: Any) -> dict[str, Any]:
            asked["arguments"] = arguments
            if arguments[0] == ["wrong"]:
                return {"error": "no such thing"}
            run = {"folder": "/geopak/outputs/n/phase-1/x-0", "best": "best.ckpt"}
            return {"runs": [{**run, "phase": 1, "monitor": "val/median_km", "score": 3.25}]}

    monkeypatch.setattr(modal_app, "train_remotely", Remote())
    main = modal_app.main.info.raw_f
    main(overrides="phase=1 'name=my runs'", gpus=4, gpu="A100-80GB", run_id="x")
    assert asked["gpu"] == "A100-80GB:4"
    assert asked["secrets"] is None
    assert asked["arguments"] == (["phase=1", "name=my runs"], "x", 4)
    said = capsys.readouterr().out
    assert "--run-id x" in said
    assert "modal volume get geopak-outputs n/phase-1/x-0/checkpoints/best.ckpt" in said
    main(overrides="")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}", asked["arguments"][1])
    with pytest.raises(SystemExit) as caught:
        main(overrides="wrong")
    assert caught.value.code == 2
    assert "no such thing" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="at least 1"):
        main(gpus=0)


def test_the_image_gets_the_libraries_of_the_project_at_the_versions_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned: list[str] = []
    original = modal.Image.uv_pip_install

    def note(image: modal.Image, *packages: str, **options: Any) -> modal.Image:
        pinned.extend(packages)
        return original(image, *packages, **options)

    monkeypatch.setattr(modal.Image, "uv_pip_install", note)
    assert isinstance(modal_app.make_image(), modal.Image)
    project = Path(__file__).parents[2] / "pyproject.toml"
    wanted = tomllib.loads(project.read_text())["project"]["dependencies"]
    names = [re.split(r"[\[<>=]", line)[0].replace("_", "-") for line in wanted]
    assert sorted(p.partition("==")[0] for p in pinned) == sorted([*names, "webdataset"])
    assert all(re.fullmatch(r"[\w.-]+==\d[\w.]*", p) for p in pinned)


@pytest.mark.parametrize("how", [["src/geopak/modal_app.py"], ["-m", "geopak.modal_app"]])
def test_modal_run_knows_the_entry_point(how: list[str]) -> None:
    checkout = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "modal", "run", *how, "--help"],
        capture_output=True, text=True, cwd=checkout, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout + run.stderr
    for option in ("--overrides", "--gpus", "--gpu", "--run-id", "--wandb-secret"):
        assert option in run.stdout
