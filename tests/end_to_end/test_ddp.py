"""Training in several processes, for real: two ranks on the CPU, connected by gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from geopak import build
from geopak.checkpoint import load_state, read_checkpoint
from geopak.cli import compose
from geopak.data.datamodule import GeopakDataModule
from geopak.data.sampler import BalancedBatchSampler
from geopak.geo.boundaries import Outlines
from geopak.options import plain
from geopak.task import GeolocationTask
from geopak.trained import load_trained

from .conftest import TINY

ROOT = Path(__file__).resolve().parents[2]
TWO_RANKS = ["trainer.devices=2", "trainer.strategy=ddp", "data.feature_cache=false"]
# Of 33 photos in batches of 16 rank 0 has 16 and 1, rank 1 has 16.
NUM_VAL = 33
UNEVEN = ["data.batch_size=16"]


@dataclass
class Observed:
    """What a run of :mod:`tests.end_to_end.observed_training` left.

    Attributes:
        status, text: exit status, and all that was printed.
        folder: what was observed.
        run: run folder.
    """

    status: int
    text: str
    folder: Path
    run: Path

    def rows(self, rank: int, stage: str) -> list[list[int]]:
        seen = json.loads((self.folder / f"rows-{rank}.json").read_text())
        return [rows for name, rows in seen if name == stage]

    def metrics(self) -> pd.DataFrame:
        return pd.read_csv(self.run / "csv/metrics.csv")

    def last(self) -> dict[str, torch.Tensor]:
        return read_checkpoint(self.run / "checkpoints/last.ckpt")["state_dict"]


def start(
    folder: Path, *arguments: str, torchrun: bool = False, **observe: str
) -> subprocess.Popen[str]:
    """Starts a training in a session of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    launcher = [sys.executable]
    if torchrun:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK")}
    environment |= {"OBSERVE": str(folder), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    environment |= {f"OBSERVE_{name.upper()}": value for name, value in observe.items()}
    return subprocess.Popen(
        [*launcher, "-m", "tests.end_to_end.observed_training", *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def observe(home: Path, folder: Path, *arguments: str, **options: Any) -> Observed:
    """Trains to the end in two processes."""
    process = start(folder, *arguments, **options)
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    phase = next(a.removeprefix("phase=") for a in arguments if a.startswith("phase="))
    name = next(a.removeprefix("name=") for a in arguments if a.startswith("name="))
    (run,) = (home / f"outputs/{name}/phase-{phase}").glob("*/run.json")
    return Observed(process.returncode, text, folder, run.parent)


def builders(overrides: list[str]) -> tuple[GeopakDataModule, GeolocationTask]:
    """Data and task as ``geopak.train`` builds them, for this process alone."""
    cfg = compose("train", overrides)
    region, phase = build.build_region(cfg), build.build_phase(cfg)
    prepared = build.build_prepared(cfg, region)
    config = plain(cfg.model)
    datamodule = build.build_datamodule(cfg, prepared, region, config["image_size"])
    model = build.build_model(config, region, prepared.cells)
    task = build.build_task(
        cfg, model, phase, region, prepared.cells, Outlines.of_region(region),
        phase.parent is not None, datamodule.num_batches,
    )  # fmt: skip
    return datamodule, task


CLUSTER = [
    *(a for a in TINY if a != "trainer=cpu"),
    *["trainer=a100_cluster", "trainer.accelerator=cpu", "trainer.precision=32-true"],
    *UNEVEN,
]


@pytest.fixture(scope="module")
def cluster(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """Phase 0, which trains both encoders whole, by torchrun with a cluster's configuration."""
    return observe(
        home, tmp_path_factory.mktemp("cluster"), "phase=0", "name=cluster", *CLUSTER,
        torchrun=True, val_photos=str(NUM_VAL),
    )  # fmt: skip


@pytest.mark.slow
def test_each_rank_draws_its_own_stream_as_designed(cluster: Observed) -> None:
    datamodule, _ = builders(["phase=0", *TINY, *UNEVEN])
    streams = []
    for rank in (0, 1):
        # 3 batches of 64 photos an epoch are 6 of 16 on each of two ranks.
        sampler = BalancedBatchSampler(
            datamodule.train_rows, datamodule.train_province_id, datamodule.quotas, 6, 0, rank
        )
        expected = []
        for epoch in (0, 1):
            sampler.set_epoch(epoch)
            expected += list(sampler)
        assert cluster.rows(rank, "train") == expected
        streams += expected
    assert len({tuple(batch) for batch in streams}) == 24
    assert datamodule.quotas.tolist() == [4, 2, 2, 2, 2, 2, 2]


def test_the_summary_says_what_a_step_sees_and_the_rates(cluster: Observed) -> None:
    line = next(x for x in cluster.text.splitlines() if "photos a step" in x)
    assert "16 photos a batch × 2 devices = 32 photos a step" in line
    assert "lr_scaling=sqrt of 32/64: learning rates × 0.707" in line
    # phase.lr.heads of phase 0 is 1e-3.
    assert "7.1e-04" in cluster.text
    assert cluster.text.count("best val/") == 1


def test_ranks_validate_every_photo_once_and_measure_what_one_process_does(
    cluster: Observed, home: Path
) -> None:
    import lightning as L

    datamodule, task = builders(["phase=0", *TINY, *UNEVEN])
    datamodule.val_rows = datamodule.val_rows[:NUM_VAL]
    half = [
        [row for batch in cluster.rows(r, "val")[-n:] for row in batch] for r, n in ((0, 2), (1, 1))
    ]
    assert [len(rows) for rows in half] == [17, 16]
    assert Counter(half[0] + half[1]) == Counter(datamodule.val_rows.tolist())

    checkpoint = cluster.run / "checkpoints/last.ckpt"
    load_state(task.model, read_checkpoint(checkpoint), checkpoint)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    (alone,) = trainer.validate(task, datamodule=datamodule, verbose=False)
    logged = cluster.metrics().dropna(subset="val/median_km").iloc[-1]
    assert {c for c in logged.index if c.startswith("val/")} == alone.keys()
    assert len(alone) > 15
    for name, value in alone.items():
        assert logged[name] == pytest.approx(value, rel=1e-6, abs=1e-6), name


PHASE_2 = [
    *["phase=2", *TINY, "phase.unfreeze.scene=0.0", "model.lr.semantic=1e-4"],
    *["data.batch_size=32", "phase.epochs=1"],
]


def both_kinds(
    home: Path, phases: dict[int, Path], folder: Path, strategy: str, *arguments: str
) -> Observed:
    return observe(
        home, folder, *PHASE_2, f"name={strategy}", f"init_from={phases[1]}", *TWO_RANKS,
        f"trainer.strategy={strategy}", *arguments, first_step="1", val_photos=str(NUM_VAL),
    )  # fmt: skip


@pytest.fixture(scope="module")
def replicated(
    home: Path, phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    """Phase 2 with a partially frozen encoder, a copy on every rank."""
    return both_kinds(home, phases, tmp_path_factory.mktemp("ddp"), "ddp")


@pytest.fixture(scope="module")
def sharded(
    home: Path, phases: dict[int, Path], tmp_path_factory: pytest.TempPathFactory
) -> Observed:
    """The same, the model shared out over the ranks."""
    return both_kinds(home, phases, tmp_path_factory.mktemp("fsdp"), "fsdp")


def gradients_alone(replicated: Observed, phases: dict[int, Path]) -> dict[str, torch.Tensor]:
    """Gradients of one process on the photos that both ranks saw in their first step."""
    _, task = builders([*PHASE_2, "data.batch_size=64"])
    load_state(task.model, read_checkpoint(phases[1]), phases[1])
    task.train()
    for module in task.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    parts = [torch.load(replicated.folder / f"step-{rank}.pt") for rank in (0, 1)]
    batch: Any = {
        key: torch.cat([part["batch"][key] for part in parts]) for key in parts[0]["batch"]
    }
    assert len(batch["row"]) == 64
    task._trainer = type("Stub", (), {"current_epoch": 0})()
    value, _ = task.compute_loss(batch)
    value.total.backward()
    return {n: p.grad for n, p in task.model.named_parameters() if p.grad is not None}


def test_two_ranks_of_32_have_the_gradient_of_one_of_64(
    replicated: Observed, phases: dict[int, Path]
) -> None:
    """Class weights normalise each rank's own batch: with quotas all ranks' sums are the same."""
    alone = gradients_alone(replicated, phases)
    together = torch.load(replicated.folder / "step-0.pt")["gradients"]
    assert together.keys() == alone.keys()
    assert len(together) > 50
    for name, gradient in alone.items():
        torch.testing.assert_close(together[name], gradient, rtol=2e-4, atol=2e-6, msg=name)


@pytest.mark.slow
def test_a_sharded_model_takes_the_steps_of_a_replicated_one(
    replicated: Observed, sharded: Observed
) -> None:
    for rank in (0, 1):
        assert sharded.rows(rank, "train") == replicated.rows(rank, "train")
    gradients = [torch.load(r.folder / "step-0.pt")["gradients"] for r in (sharded, replicated)]
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[1]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], rtol=1e-4, atol=1e-6)
    one, other = sharded.last(), replicated.last()
    assert one.keys() == other.keys()
    for name in other:
        # Adam divides by the gradient's size: where that is nought, rounding decides the sign.
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=2e-4, msg=name)
    ours, theirs = sharded.metrics(), replicated.metrics()
    assert ours["train/loss"].dropna().tolist() == pytest.approx(
        theirs["train/loss"].dropna().tolist(), rel=1e-4
    )


@pytest.mark.slow
def test_a_sharded_checkpoint_predicts_and_goes_on(
    sharded: Observed, phases: dict[int, Path]
) -> None:
    best = sharded.run / "checkpoints/best.ckpt"
    trained = load_trained(best)
    frozen = read_checkpoint(phases[1])["state_dict"]
    state = trained.model.state_dict()
    for name, value in state.items():
        if name.startswith("scene.") or ".resblocks.0." in name:
            torch.testing.assert_close(value, frozen[f"model.{name}"], rtol=0, atol=0)
    groups = torch.load(best, weights_only=True)["optimizer_states"][0]["param_groups"]
    rates = {group["name"]: group["initial_lr"] for group in groups}
    assert rates["heads"] == pytest.approx(5e-4)
    assert rates["semantic"] == pytest.approx(1e-4)


@pytest.mark.slow
def test_a_sharded_run_is_resumed_by_either_strategy(
    home: Path, phases: dict[int, Path], sharded: Observed, tmp_path: Path
) -> None:
    last = sharded.run / "checkpoints/last.ckpt"
    for strategy, epochs in (("fsdp", 2), ("ddp", 3)):
        process = start(
            tmp_path, *PHASE_2, "name=fsdp", *TWO_RANKS, f"trainer.strategy={strategy}",
            f"phase.epochs={epochs}", f"resume_from={last}",
        )  # fmt: skip
        text, _ = process.communicate(timeout=240)
        assert process.returncode == 0, text
        assert torch.load(last, weights_only=True)["global_step"] == 3 * epochs


def living(session: int) -> list[int]:
    """Processes of a session, zombies left out."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.fixture
def stage_of_death(tmp_path: Path, home: Path) -> Iterator[Any]:
    """Starts a training, waits until ranks sleep, sends one a signal, and sees what happens."""
    started: list[subprocess.Popen[str]] = []

    def die(
        victim: int, *arguments: str, asleep: tuple[int, ...] = (0, 1),
        sent: signal.Signals = signal.SIGKILL, **options: Any,
    ) -> tuple[int, str, float]:  # fmt: skip
        process = start(tmp_path, *arguments, **options)
        started.append(process)
        marks = [tmp_path / f"paused-{rank}" for rank in asleep]
        deadline = time.monotonic() + 120
        while not all(mark.is_file() and mark.read_text() for mark in marks):
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        # Long enough for the others to be waiting.
        time.sleep(1.0)
        began = time.monotonic()
        os.kill(int((tmp_path / f"paused-{victim}").read_text()), sent)
        text, _ = process.communicate(timeout=60)
        while living(process.pid) and time.monotonic() - began < 60:
            time.sleep(0.1)
        return process.returncode, text, time.monotonic() - began

    yield die
    for process in started:
        for pid in living(process.pid):
            os.kill(pid, signal.SIGKILL)


SHORT = ["phase=0", *TINY, *TWO_RANKS, "phase.epochs=1", "data.batches_per_epoch=2"]


@pytest.mark.parametrize("victim", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_killed_while_another_does_not_wait_for_it_ends_the_run(
    stage_of_death: Any, victim: int
) -> None:
    """Both sleep in validation, so that no connection tells the survivor."""
    status, text, seconds = stage_of_death(victim, *SHORT, f"name=killed-{victim}", pause="val")
    assert status != 0
    assert seconds < 60
    if victim == 0:
        assert "which started this rank, has ended" in text
    else:
        assert "error: rank 0 ends the run: local rank 1 (process" in text
        assert "was killed by signal 9 (SIGKILL)" in text
        assert status == 1
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
@pytest.mark.parametrize("pause", ["train", "val"])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_killed_while_the_other_waits_for_it_ends_the_run(
    stage_of_death: Any, victim: int, pause: str, torchrun: bool
) -> None:
    devices = ["trainer.num_nodes=1"]
    status, text, seconds = stage_of_death(
        victim, *SHORT, *devices, "name=waiting", asleep=(victim,), pause=pause,
        paused_rank=str(victim), torchrun=torchrun,
    )  # fmt: skip
    assert status != 0
    assert seconds < 60
    assert "rror" in text


@pytest.mark.slow
def test_a_rank_that_stands_still_ends_the_run(stage_of_death: Any) -> None:
    """No parent or child has ended: only its heartbeat is missing, as of one on a lost node."""
    status, text, seconds = stage_of_death(
        1, *SHORT, "name=still", "trainer.heartbeat_s=5", pause="val", sent=signal.SIGSTOP,
    )  # fmt: skip
    assert "has shown no sign of life" in text
    assert status != 0
    assert seconds < 60


@pytest.mark.slow
def test_loss_curves_of_one_and_two_ranks_agree(home: Path, tmp_path: Path) -> None:
    """Equal batches of a step, other draws: means of the last third within 3 standard errors.

    The standard error is that of the difference between the means over the seeds, from their
    spread: were the curves drawn alike, a difference beyond 3 would come once in some fifty tests
    (Student's t, 6 degrees of freedom); seeds are fixed, so that the outcome is too.
    """
    arguments = ["phase=0", *TINY, "phase.epochs=1", "data.batches_per_epoch=30"]
    ends: dict[str, list[float]] = {"one": [], "two": []}
    for seed in range(4):
        for name, more in (
            ("one", ["data.feature_cache=false"]),
            ("two", [*TWO_RANKS, "data.batch_size=32"]),
        ):
            run = observe(
                home, tmp_path / f"{name}-{seed}", *arguments, f"name={name}-{seed}",
                f"seed={seed}", *more,
            )  # fmt: skip
            losses = run.metrics()["train/loss"].dropna().to_numpy()
            assert len(losses) == 30
            assert losses[-10:].mean() < losses[:3].mean()
            ends[name].append(float(losses[-10:].mean()))
    one, two = np.array(ends["one"]), np.array(ends["two"])
    error = np.sqrt((one.var(ddof=1) + two.var(ddof=1)) / len(one))
    assert abs(one.mean() - two.mean()) < 3 * error


@pytest.mark.gpu
def test_two_gpus_train_sharded(home: Path, phases: dict[int, Path], tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    process = start(
        tmp_path, *(a for a in PHASE_2 if a != "trainer=cpu"), "trainer=fsdp", "name=gpus",
        "trainer.devices=2", f"init_from={phases[1]}",
    )  # fmt: skip
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
