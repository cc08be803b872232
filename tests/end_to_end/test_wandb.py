"""Runs of W&B: what arrives in their files, and that no trouble with W&B ends a training."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from geopak.cli import compose
from geopak.errors import ConfigError
from geopak.geo.region import Region
from geopak.options import plain
from geopak.schema.monitoring import WandbOptions
from geopak.tracking import panels
from geopak.tracking.logger import RunLogger
from geopak.tracking.run import ParentRun, RunPlan
from geopak.workspace import build_workspace

from .conftest import TINY, Outcome, run_command
from .offline_runs import OfflineRun

Command = Callable[..., Outcome]
PHOTOS_PER_KIND = 3


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is logged in, whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("WANDB_") and name != "WANDB_SERVICE":
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")


@pytest.fixture(scope="module")
def watched(home: Path) -> dict[int, OfflineRun]:
    """All three phases, watched by W&B; phase -> its run."""
    before = {k: os.environ.pop(k) for k in list(os.environ) if k.startswith("WANDB_")}
    os.environ["WANDB_SILENT"] = "true"
    try:
        outcome = run_command(
            "train", "-m", "phase=0,1,2", "name=watched", "logger=wandb", "logger.mode=offline",
            "logger.tags=[mine]", f"logger.table_photos={PHOTOS_PER_KIND}", *TINY,
        )  # fmt: skip
    finally:
        del os.environ["WANDB_SILENT"]
        os.environ.update(before)
    assert outcome.status == 0, outcome.text
    found = {}
    for phase in (0, 1, 2):
        (folder,) = (home / f"outputs/watched/phase-{phase}").iterdir()
        (found[phase],) = OfflineRun.below(folder)
    return found


@pytest.fixture(scope="module")
def region() -> Region:
    return Region.from_config(plain(compose("train").region))


def run_folder_of(run: OfflineRun) -> Path:
    return run.folder.parents[1]


def test_phases_are_runs_of_one_group_with_what_they_were_made_with(
    home: Path, watched: dict[int, OfflineRun]
) -> None:
    assert len({run.run["run_id"] for run in watched.values()}) == 3
    manifest = home / "data/synthetic/prepared/manifest.json"
    for phase, run in watched.items():
        about = run.run
        assert about["project"] == "geopak"
        assert about["run_group"] == "watched"
        assert about["display_name"] == f"watched-phase-{phase}"
        assert about["job_type"] == f"phase-{phase}"
        assert set(about["tags"]) == {"tiny", "pakistan", f"phase-{phase}", "mine"}
        assert run.config["phase"]["index"] == phase
        assert run.config["data"]["batches_per_epoch"] == 3
        made_with = run.config["provenance"]
        assert made_with["dataset"]["manifest_sha256"] == (
            hashlib.sha256(manifest.read_bytes()).hexdigest()
        )
        assert set(made_with) >= {"command", "versions", "git"}
        state = json.loads((run_folder_of(run) / "wandb_run.json").read_text())
        assert state["id"] == about["run_id"]
        assert run.of_type("exit")[0].get("exit_code", 0) == 0
        assert run.of_type("stats")


def test_a_phase_names_its_parent_and_uses_the_very_artifact_that_the_parent_made(
    watched: dict[int, OfflineRun],
) -> None:
    for phase, run in watched.items():
        made = run.models(used=False)
        assert [set(a["aliases"]) for a in made] == [{"best", "latest"}, {"last", "latest"}]
        assert {a["name"] for a in made} == {f"model-{run.run['run_id']}"}
        metadata = json.loads(made[0]["metadata"])
        assert metadata["phase"] == phase
        assert metadata["monitor"] == run.config["phase"]["monitor"]
        assert metadata["score"] == pytest.approx(run.summary["best"]["score"])
        for artifact in run.models(used=False) + run.models(used=True):
            (entry,) = artifact["manifest"]["contents"]
            waiting = Path(entry["local_path"])
            owner = run if artifact in made else watched[phase - 1]
            checkpoint = run_folder_of(owner) / "checkpoints" / entry["path"]
            # No second copy on the disk, and not the checkpoint either: W&B deletes it.
            assert waiting.samefile(checkpoint)
            assert waiting != checkpoint
    assert watched[0].models(used=True) == []
    assert watched[0].config["run"]["parent"] is None
    for phase in (1, 2):
        run, parent = watched[phase], watched[phase - 1]
        (used,) = run.models(used=True)
        made = parent.models(used=False)[0]
        # By these the server knows that they are one.
        assert (used["name"], used["digest"]) == (made["name"], made["digest"])
        for place in (run.config["run"], run.summary):
            assert place["parent"]["id"] == parent.run["run_id"]
            assert place["parent"]["folder"] == str(run_folder_of(parent))
            assert place["parent"]["checkpoint"] == (
                str(run_folder_of(parent) / "checkpoints/best.ckpt")
            )


def test_losses_rates_and_metrics_of_every_province_arrive(
    watched: dict[int, OfflineRun], region: Region
) -> None:
    expected = {"train/loss", "val/median_km", "val/within_25km", "epoch"}
    for term in ("province", "cell", "offset", "auxiliary"):
        expected |= {f"train/loss/{term}", f"train/share/{term}"}
    expected |= {f"lr-AdamW/{group}" for group in ("heads", "semantic", "scene")}
    assert expected <= watched[2].keys
    for run in watched.values():
        curves = pd.read_csv(run_folder_of(run) / "csv/metrics.csv")
        # The CSV log has the same numbers under the same names.
        for name in set(curves.columns) - {"step"}:
            logged = [row[name] for row in run.history if name in row]
            np.testing.assert_allclose(logged[-1], curves[name].dropna().iloc[-1], rtol=1e-6)
        steps = [row["_step"] for row in run.history]
        assert steps == sorted(set(steps)) == list(range(6))


def test_the_gate_and_the_cells_are_shown_as_validation_saw_them(
    home: Path, watched: dict[int, OfflineRun], region: Region
) -> None:
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    val = photos[photos["split"] == "val"]
    num_cells = len(pd.read_parquet(home / "data/synthetic/prepared/cells.parquet"))
    for run in watched.values():
        last = run.history[-1]
        assert sum(last[f"{panels.GATE}.values"]) == len(val)
        bins = np.array(last[f"{panels.GATE}.bins"])
        middle = (bins[:-1] + bins[1:]) / 2
        mean = np.average(middle, weights=last[f"{panels.GATE}.values"])
        assert mean == pytest.approx(last["val/gate_mean"], abs=np.diff(bins).max() / 2)
        for index, province in enumerate(region.provinces):
            of_province = int((val["province_id"] == index).sum())
            key = f"{gate_key(province.key)}.values"
            assert sum(last.get(key, [])) == of_province
        assert sum(last[f"{panels.CELLS_HISTOGRAM}.values"]) == num_cells
        used = last[panels.CELLS_PREDICTED]
        assert 1 <= used <= num_cells
        assert last[panels.CELLS_PREDICTED_SHARE] == pytest.approx(used / num_cells)
        assert 0 <= last[panels.CELLS_NEVER_PREDICTED] <= 1


def test_pictures_and_a_table_of_best_worst_and_random_photos(
    home: Path, watched: dict[int, OfflineRun], region: Region
) -> None:
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet").set_index("id")
    for run in watched.values():
        last = run.history[-1]
        for key in (panels.CONFUSION, panels.ERROR_MAP):
            with Image.open(run.folder / "files" / last[f"{key}.path"]) as picture:
                assert min(picture.size) > 300
        assert (run.folder / "files" / last[f"{panels.PHOTOS}.path"]).is_file()
        rows = run.table(panels.PHOTOS)
        kinds = [row["kind"] for row in rows]
        assert kinds == [k for k in ("best", "random", "worst") for _ in range(PHOTOS_PER_KIND)]
        errors = {k: [r["error km"] for r in rows if r["kind"] == k] for k in set(kinds)}
        assert max(errors["best"]) <= min(errors["random"])
        assert max(errors["random"]) <= min(errors["worst"])
        for row in rows:
            photo = photos.loc[row["id"]]
            assert photo["split"] == "val"
            assert row["true province"] == photo["province"]
            assert row["true lat"] == pytest.approx(photo["latitude"], abs=1e-4)
            first = row["hypotheses"].splitlines()[0]
            assert float(first.partition("%")[0]) > 0
            assert any(name in first for name in region.names)
            # Pictures lie beside the table in its artifact.
            assert row["photo"]["_type"] == "image-file"


def gate_key(province: str) -> str:
    return panels.GATE_OF_PROVINCE.format(key=province)


def test_every_panel_of_the_workspace_is_of_something_that_is_logged(
    home: Path, watched: dict[int, OfflineRun], region: Region
) -> None:
    workspace = build_workspace(region, "team", "geopak", "view")
    shown: set[str] = set()
    for section in workspace.sections:
        for panel in section.panels:
            shown |= set(getattr(panel, "y", None) or [])
            shown |= set(getattr(panel, "media_keys", None) or [])
            if name := getattr(panel, "table_name", None):
                shown.add(name)
    logged = set.union(*(run.keys for run in watched.values()))
    # Nothing is said of a province, or of towns, without val photos.
    present = {f"/province/{p.key}" for p in region.provinces if gate_key(p.key) in logged}
    cells = pd.read_parquet(home / "data/synthetic/prepared/cells.parquet")
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    urban = cells["urban"].to_numpy()[photos.loc[photos["split"] == "val", "cell_id"]]
    present |= {f"val/{name}/" for name, seen in (("urban", urban), ("rural", ~urban)) if any(seen)}
    special = ("/province/", "val/urban/", "val/rural/")
    without_photos = {
        key
        for key in shown
        if any(s in key for s in special) and not any(p in key for p in present)
    }
    assert len(shown) > 40
    assert shown - logged == without_photos
    # It can be written as the server takes it.
    assert json.loads(workspace._to_model().model_dump_json(by_alias=True))["entity"] == "team"


def plan_of(folder: Path, **options: Any) -> RunPlan:
    chosen = WandbOptions(project="p", group="g", name="n", call_timeout_s=5, **options)
    return RunPlan(chosen, folder, "phase-0", ("tag",), {"seed": 3}, None)


def service_processes() -> set[int]:
    """W&B's processes that this one started."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and "wandb-core" in (folder / "cmdline").read_text():
                found.add(int(folder.name))
        except OSError:
            continue
    return found


def kill_when(ready: Callable[[], bool], with_signal: int, sent: list[int]) -> threading.Thread:
    """Sends a signal to W&B's process as soon as a training is ready for it."""

    def wait() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if ready() and (pids := service_processes()):
                for pid in pids:
                    os.kill(pid, with_signal)
                    sent.append(pid)
                return
            time.sleep(0.01)

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def train_while_killed(home: Path, name: str, with_signal: int, *more: str) -> pd.DataFrame:
    """Trains, loses W&B's process after the first epoch, and gives the curves."""
    runs = home / "outputs" / name / "phase-0"

    def one_epoch_done() -> bool:
        return any("," in p.read_text() for p in runs.glob("*/csv/metrics.csv"))

    sent: list[int] = []
    thread = kill_when(one_epoch_done, with_signal, sent)
    outcome = run_command(
        "train", "phase=0", f"name={name}", "logger=wandb", "logger.mode=offline", *TINY,
        "phase.epochs=6", *more,
    )  # fmt: skip
    thread.join()
    assert len(sent) == 1
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("W&B failed at") == 1
    assert not set(sent) & service_processes()
    (folder,) = runs.iterdir()
    assert (folder / "run.json").is_file()
    return pd.read_csv(folder / "csv/metrics.csv")


def test_a_training_outlives_the_process_of_wandb(home: Path, tmp_path: Path) -> None:
    curves = train_while_killed(home, "wandb-killed", signal.SIGKILL)
    assert curves["val/median_km"].count() == 6
    # The next training of this process has W&B again.
    logger = RunLogger(plan_of(tmp_path), "offline")
    logger.open()
    logger.log_metrics({"x": 1.0}, step=0)
    logger.close()
    (run,) = OfflineRun.below(tmp_path)
    assert run.history[0]["x"] == 1


@pytest.mark.slow
def test_a_training_outlives_a_process_of_wandb_that_hangs(home: Path) -> None:
    started = time.monotonic()
    # Rows fill the pipe to the process, or its end is never answered.
    curves = train_while_killed(
        home, "hung", signal.SIGSTOP, "phase.epochs=20", "logger.call_timeout_s=2",
    )  # fmt: skip
    assert curves["val/median_km"].count() == 20
    assert time.monotonic() - started < 300


def test_a_disk_that_takes_nothing_ends_the_log_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import wandb

    logger = RunLogger(plan_of(tmp_path), "offline")
    logger.open()
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    (files / "media").write_text("no folder, so that no picture can be written")
    picture = wandb.Image(np.zeros((4, 4, 3), np.uint8))
    logger.log_panels("figures", lambda: {"picture": picture})
    assert logger.guard.failed
    assert caplog.text.count("W&B failed at logging") == 1
    logger.log_metrics({"x": 1.0}, step=1)
    logger.finalize("success")
    logger.close()
    assert caplog.text.count("W&B failed") == 1
    # A resumed training goes on with the same run.
    again = RunLogger(plan_of(tmp_path), "offline")
    again.open()
    assert again.version == logger.version
    again.close()


def test_an_artifact_that_cannot_be_made_is_left_out_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parent = ParentRun(str(tmp_path / "gone.ckpt"), str(tmp_path), "abc")
    plan = plan_of(tmp_path)
    logger = RunLogger(RunPlan(**{**vars(plan), "parent": parent}), "offline")
    logger.open()
    assert "the link to its parent's checkpoint" in caplog.text
    logger.log_panels("figures", lambda: {"figure": 1 / 0})
    assert "W&B goes without figures: ZeroDivisionError" in caplog.text
    logger.log_metrics({"x": 1.0}, step=0)
    assert not logger.guard.failed
    logger.close()
    (run,) = OfflineRun.below(tmp_path)
    assert run.history[0]["x"] == 1
    assert run.config["run"]["parent"]["id"] == "abc"


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_training_outlives_a_full_disk_of_wandb(
    home: Path, command: Command, tiny_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DIR", str(tiny_disk))
    outcome = command(
        "train", "phase=0", "name=full", "logger=wandb", "logger.figures_every_n_epochs=1", *TINY,
        "phase.epochs=30",
    )  # fmt: skip
    assert outcome.status == 0, outcome.text
    assert outcome.text.count("W&B failed at") == 1
    (folder,) = (home / "outputs/full/phase-0").iterdir()
    assert pd.read_csv(folder / "csv/metrics.csv")["val/median_km"].count() == 30


@pytest.mark.slow
def test_a_key_without_a_network_means_offline_with_a_warning(home: Path) -> None:
    trained = subprocess.run(
        [
            sys.executable, "-m", "geopak.train", "phase=0", "name=unconnected", "logger=wandb",
            "logger.init_timeout_s=2", *TINY,
        ],
        env={
            **os.environ,
            "WANDB_API_KEY": "a" * 40,
            # Nobody listens there.
            "WANDB_BASE_URL": "http://127.0.0.1:9",
            "GEOPAK_HOME": str(home),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    text = trained.stdout + trained.stderr
    assert trained.returncode == 0, text
    assert "W&B's server cannot be used" in text
    (folder,) = (home / "outputs/unconnected/phase-0").iterdir()
    (run,) = OfflineRun.below(folder)
    assert panels.PHOTOS in run.keys


@pytest.mark.slow
def test_of_two_processes_the_first_logs_the_photos_of_both(home: Path) -> None:
    trained = subprocess.run(
        [
            sys.executable, "-m", "geopak.train", "phase=0", "name=both", "logger=wandb", *TINY,
            "trainer.devices=2", "trainer.strategy=ddp", "data.feature_cache=false",
        ],
        env={**os.environ, "GEOPAK_HOME": str(home), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    folders = list((home / "outputs/both/phase-0").iterdir())
    (run,) = [run for folder in folders for run in OfflineRun.below(folder)]
    photos = pd.read_parquet(home / "data/synthetic/prepared/photos.parquet")
    num_val = int((photos["split"] == "val").sum())
    assert sum(run.history[-1][f"{panels.GATE}.values"]) == num_val


@pytest.mark.slow
def test_the_mode_follows_the_key(tmp_path: Path) -> None:
    """In a process of its own: a key that W&B has seen stays with the process."""
    code = """
import os
from geopak.errors import ConfigError
from geopak.tracking.run import choose_mode

def mode(chosen, **environment):
    os.environ.update(environment)
    try:
        return choose_mode(chosen)
    except ConfigError as error:
        return f"refused: {error}"
    finally:
        for name in environment:
            del os.environ[name]

print(mode("auto"))
print(mode("online"))
print(mode("auto", WANDB_API_KEY="short"))
print(mode("auto", WANDB_MODE="disabled"))
print(mode("auto", WANDB_MODE="nonsense"))
print(mode("auto", WANDB_API_KEY="a" * 40))
print(mode("offline", WANDB_API_KEY="a" * 40))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    lines = done.stdout.splitlines()
    assert lines[0] == "offline"
    assert "logger.mode=online needs an API key" in lines[1]
    assert lines[2] == "offline"
    assert "the API key cannot be used" in done.stderr
    assert lines[3] == "disabled"
    assert "WANDB_MODE=nonsense: use online" in lines[4]
    assert lines[5:] == ["online", "offline"]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"mode": "onlin"}, "Did you mean 'online'"),
        ({"figures_every_n_epochs": 0}, "must be more than 0"),
    ],
)
def test_impossible_options_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WandbOptions(project="p", group="g", name="n", **option)


def test_without_a_key_the_workspace_says_what_it_needs(command: Command) -> None:
    outcome = command("workspace", "entity=team")
    assert outcome.status == 2
    assert "wandb login" in outcome.text
