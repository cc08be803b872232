"""A run that was killed within an epoch goes on as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from geopak import build
from geopak.cli import compose
from geopak.data.datamodule import GeopakDataModule
from geopak.task import GeolocationTask
from geopak.types import Batch

from .conftest import TINY, run_command

BATCHES, EPOCHS = 5, 3
SMALL = [
    *TINY,
    f"data.batches_per_epoch={BATCHES}",
    f"phase.epochs={EPOCHS}",
    "name=killed",
]
EVERY = "callbacks.checkpoint_every_n_batches=2"
ROOT = "data.root=${paths.home}/data/synthetic"
SOURCES = {
    "photos in memory": ["phase=2", "data.memory_cache=true"],
    "photos through workers": ["phase=2", "data.memory_cache=false", "data.num_workers=2"],
    "cached features": ["phase=1", "data.feature_cache=true", "data.feature_views=2"],
    "shards": ["phase=2", "data=shards", "data.num_workers=2", ROOT],
}


class Watched:
    """What runs do, in order: ``("train", epoch, rows)``, ``("val", epoch)``; and their steps."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.steps: list[tuple[int, list[float]]] = []

    def take(self) -> tuple[list[tuple[Any, ...]], list[tuple[int, list[float]]]]:
        """Events and steps (global step, learning rates) since the last time."""
        taken = self.events[:], self.steps[:]
        self.events.clear()
        self.steps.clear()
        return taken


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Records every batch, validation and step of the runs of a test."""
    watched = Watched()
    transfer, before = GeopakDataModule.on_after_batch_transfer, GeolocationTask.training_step
    validated = GeolocationTask.on_validation_epoch_end

    def watch_batch(self: GeopakDataModule, batch: Batch, dataloader_idx: int) -> Batch:
        if self.trainer.training:
            event = ("train", self.trainer.current_epoch, batch["row"].tolist())
            watched.events.append(event)
        return transfer(self, batch, dataloader_idx)

    def watch_step(self: GeolocationTask, batch: Batch, batch_idx: int) -> torch.Tensor:
        rates = [group["lr"] for group in self.trainer.optimizers[0].param_groups]
        watched.steps.append((self.global_step, rates))
        return before(self, batch, batch_idx)

    def watch_validation(self: GeolocationTask) -> None:
        if not self.trainer.sanity_checking:
            watched.events.append(("val", self.current_epoch))
        validated(self)

    monkeypatch.setattr(GeopakDataModule, "on_after_batch_transfer", watch_batch)
    monkeypatch.setattr(GeolocationTask, "training_step", watch_step)
    monkeypatch.setattr(GeolocationTask, "on_validation_epoch_end", watch_validation)
    return watched


class PowerCutError(Exception):
    """Ends a run where it stands."""


@pytest.fixture(scope="module")
def parents(home: Path) -> None:
    """Phases 0 and 1 that the runs of this file start from, and the shards."""
    short = ["phase.epochs=1", "data.batches_per_epoch=1"]
    assert run_command("train", "-m", "phase=0,1", *SMALL, *short).status == 0
    made = run_command("prepare", "shards", "photos_per_shard=20", "executor.workers=1")
    assert made.status == 0, made.text


def cut_after(batches: int, patch: pytest.MonkeyPatch) -> None:
    """The power fails after so many batches, when all that belongs to them is done."""
    original = GeolocationTask.on_train_batch_start

    def cut(self: GeolocationTask, batch: Batch, batch_idx: int) -> Any:
        if self.trainer.fit_loop.total_batch_idx == batches:
            raise PowerCutError
        return original(self, batch, batch_idx)

    patch.setattr(GeolocationTask, "on_train_batch_start", cut)


def checkpoint_of(command: list[str], fails_after: int | None = None) -> Path:
    """Runs a training, until the power fails if it does; its last checkpoint."""
    folders = Path(os.environ["GEOPAK_HOME"]) / "outputs/killed"
    before = set(folders.glob("*/*"))
    with pytest.MonkeyPatch.context() as patch:
        if fails_after is not None:
            cut_after(fails_after, patch)
        outcome = run_command(*command)
    assert (outcome.status == 0) is (fails_after is None), outcome.text
    assert ("PowerCutError" in outcome.text) is (fails_after is not None)
    (folder,) = set(folders.glob("*/*")) - before
    return folder / "checkpoints/last.ckpt"


@pytest.mark.parametrize(
    "source",
    [
        "photos through workers",
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("cached features", "photos in memory", "shards")
        ),
    ],
)
def test_a_killed_run_goes_on_where_it_stood(parents: None, watched: Watched, source: str) -> None:
    command = ["train", *SMALL, *SOURCES[source], "phase.schedule=cosine"]
    whole = checkpoint_of(command)
    events, steps = watched.take()
    trained = [i for i, event in enumerate(events) if event[0] == "train"]
    assert [events[i][1] for i in trained] == [0] * BATCHES + [1] * BATCHES + [2] * BATCHES
    assert [step for step, _ in steps] == list(range(BATCHES * EPOCHS))

    # In the second epoch, after its third batch: the last checkpoint is of its second.
    last = checkpoint_of([*command, EVERY], fails_after=BATCHES + 3)
    assert watched.take()[0] == events[: trained[BATCHES + 3] + 1]
    assert torch.load(last, weights_only=True)["global_step"] == BATCHES + 2
    assert sorted(path.name for path in last.parent.iterdir()) == [
        "best.ckpt", "last-previous.ckpt", "last.ckpt",
    ]  # fmt: skip

    resumed = run_command(*command, EVERY, f"resume_from={last}")
    assert resumed.status == 0, resumed.text
    assert watched.take() == (events[trained[BATCHES + 2] :], steps[BATCHES + 2 :])
    assert (last.parents[1] / "run.json").is_file()
    for name in ("last.ckpt", "best.ckpt"):
        one, other = (torch.load(path.with_name(name), weights_only=True) for path in (whole, last))
        assert_same(one, other, name)


# Names of folders, and a score that Lightning keeps for its messages and does not restore.
APART = {"config", "dirpath", "best_model_path", "kth_best_model_path", "best_k_models",
         "last_model_path", "current_score"}  # fmt: skip


def assert_same(one: Any, other: Any, place: str = "") -> None:
    """Two checkpoints are the same, bit for bit, but for names of folders."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one.keys() - APART:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}/{i}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, place
        assert torch.equal(one, other), place
    else:
        assert one == other, place


def test_the_checkpoint_within_an_epoch_lies_between_two_steps(
    parents: None, watched: Watched
) -> None:
    command = ["train", *SMALL, "phase=1", "data.feature_cache=true", "phase.epochs=1"]
    command += ["trainer.accumulate_grad_batches=2", "optimizer.lr_scaling=none"]
    whole = checkpoint_of(command)
    watched.take()
    last = checkpoint_of([*command, EVERY], fails_after=3)
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert run_command(*command, EVERY, f"resume_from={last}").status == 0
    one, other = (torch.load(path, weights_only=True) for path in (whole, last))
    assert one["global_step"] == other["global_step"] == 3
    for name, value in one["state_dict"].items():
        torch.testing.assert_close(other["state_dict"][name], value, msg=name)

    within = checkpoint_of([*command, EVERY], fails_after=3)
    refused = run_command(*command, f"resume_from={within}", "data.batches_per_epoch=9")
    assert refused.status == 2
    assert "interrupted within an epoch of 5 batches, now an epoch has 9" in refused.text


def test_a_finished_epoch_may_be_followed_by_one_of_another_length(
    parents: None, watched: Watched
) -> None:
    """As after a change of devices; loader processes fetch before the trainer names the epoch."""
    loading = ["data.memory_cache=false", "data.num_workers=1"]
    command = ["train", *SMALL, "phase=0", *loading, "phase.epochs=2"]
    last = checkpoint_of(command, fails_after=BATCHES + 1)
    watched.take()
    resumed = run_command(*command, f"resume_from={last}", "data.batches_per_epoch=4")
    assert resumed.status == 0, resumed.text
    events, _ = watched.take()
    assert [event[:2] for event in events] == [("train", 1)] * 4 + [("val", 1)]
    assert [event[2] for event in events[:4]] == batches_of(epoch=1)[:4]


def batches_of(epoch: int) -> list[list[int]]:
    """The rows that the sampler of these runs draws in an epoch."""
    cfg = compose("train", SMALL)
    region = build.build_region(cfg)
    datamodule = build.build_datamodule(cfg, build.build_prepared(cfg, region), region, 64)
    sampler = datamodule.train_sampler(rank=0)
    sampler.set_epoch(epoch)
    return list(sampler)  # type: ignore[arg-type]
