"""Finds a learning rate or a batch size before a training, through Lightning's tuner."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner.tuning import Tuner
from matplotlib.figure import Figure
from torch.optim import Optimizer

from geopak.data.datamodule import GeopakDataModule
from geopak.errors import ConfigError
from geopak.options import options
from geopak.schema.monitoring import BatchSizeSearch, LearningRateSearch
from geopak.task import GeolocationTask


@dataclass(frozen=True)
class Suggestion:
    """What a search proposes.

    Attributes:
        overrides: as one would type them.
        value: learning rate of the heads, or photos a batch.
        note: what to know about it.
    """

    overrides: list[str]
    value: float
    note: str


def search(
    section: Mapping[str, Any],
    trainer: L.Trainer,
    task: GeolocationTask,
    datamodule: GeopakDataModule,
    rate_factor: float,
    folder: Path,
) -> Suggestion:
    """Runs the search of a ``finder`` section; weights end as they began.

    Args:
        section: plain ``finder`` section.
        trainer: without a logger.
        task, datamodule: of the training to come.
        rate_factor: by which ``optimizer.lr_scaling`` has multiplied the phase's rates.
        folder: for the results.

    Raises:
        ConfigError: unknown options, several processes, or no result.
    """
    kind = section["kind"]
    if trainer.world_size > 1:
        raise ConfigError(
            f"finder={kind} works in one process: set trainer.devices=1 and trainer.num_nodes=1. "
            "What it finds holds for each device."
        )
    folder.mkdir(parents=True, exist_ok=True)
    # Validation would take longer than the search.
    trainer.check_val_every_n_epoch = 1_000_000
    if kind == "lr":
        found = _find_rate(
            options(LearningRateSearch, section, "finder"),
            trainer, task, datamodule, rate_factor, folder,
        )  # fmt: skip
    else:
        found = _find_batch_size(
            options(BatchSizeSearch, section, "finder"), trainer, task, datamodule
        )
        record = {"batch_size": found.value, "overrides": found.overrides, "note": found.note}
        (folder / "batch_size_finder.json").write_text(json.dumps(record, indent=2))
    return found


class RatioKeepingFinder(LearningRateFinder):
    """Lightning's finder, which gives every optimizer group the same rate, with their ratios kept.

    Args:
        search: range and steps.
    """

    def __init__(self, search: LearningRateSearch) -> None:
        super().__init__(
            search.min_lr, search.max_lr, num_training_steps=search.num_steps, update_attr=False
        )
        # Ends the fit after the search, as Lightning's Tuner has it.
        self._early_exit = True
        self.ratios: list[float] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (optimizer,) = trainer.optimizers
        rates = [group["initial_lr"] for group in optimizer.param_groups]
        if not rates[0]:
            name = optimizer.param_groups[0]["name"]
            raise ConfigError(f"phase.lr.{name}=0: the other rates have no ratio to it.")
        self.ratios = [rate / rates[0] for rate in rates]

        def scale(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            # The scheduler sets them anew after every step.
            for group, ratio in zip(optimizer.param_groups, self.ratios, strict=True):
                group["lr"] *= ratio

        handle = optimizer.register_step_pre_hook(scale)
        try:
            super().on_fit_start(trainer, pl_module)
        finally:
            handle.remove()


def _find_rate(
    search: LearningRateSearch,
    trainer: L.Trainer,
    task: GeolocationTask,
    datamodule: GeopakDataModule,
    rate_factor: float,
    folder: Path,
) -> Suggestion:
    # As many epochs as the steps need.
    per_epoch = math.ceil(datamodule.num_batches / trainer.accumulate_grad_batches)
    epochs = max(int(trainer.max_epochs or 1), math.ceil(search.num_steps / per_epoch) + 1)
    trainer.fit_loop.max_epochs = epochs
    finder = RatioKeepingFinder(search)
    trainer.callbacks.insert(0, finder)  # type: ignore[attr-defined]
    trainer.fit(task, datamodule=datamodule, weights_only=True)
    trainer.callbacks.remove(finder)  # type: ignore[attr-defined]
    result = finder.optimal_lr
    rate = result.suggestion() if result is not None else None
    if result is None or rate is None:
        raise ConfigError(
            "The loss gave no learning rate to propose: too few steps were taken before it "
            "diverged. Lower finder.min_lr and finder.max_lr, or raise finder.num_steps."
        )
    rates = {
        name: float(rate * ratio / rate_factor)
        for name, ratio in zip(task.trainable, finder.ratios, strict=True)
    }
    overrides = [f"phase.lr.{name}={value:.2g}" for name, value in rates.items()]
    # Without pyplot: no window, and nothing left open.
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    result.plot(suggest=True, ax=axes)
    axes.set_xlabel(f"learning rate of {next(iter(rates))}")
    axes.set_ylabel("smoothed loss")
    figure.savefig(folder / "lr_finder.png", dpi=120, bbox_inches="tight")
    steps = min(len(result.results["lr"]), len(result.results["loss"]))
    losses = [x if np.isfinite(x) else None for x in result.results["loss"][:steps]]
    record = {
        "suggestion": rates,
        "overrides": overrides,
        "lr": result.results["lr"][:steps],
        "loss": losses,
    }
    (folder / "lr_finder.json").write_text(json.dumps(record, indent=2))
    return Suggestion(overrides, rates[next(iter(rates))], f"{steps} steps; see lr_finder.png")


def _find_batch_size(
    search: BatchSizeSearch,
    trainer: L.Trainer,
    task: GeolocationTask,
    datamodule: GeopakDataModule,
) -> Suggestion:
    smallest = datamodule.smallest_batch_size
    largest = smallest * 2 ** int(math.log2(max(1, search.max_batch_size // smallest)))
    # Lightning ends at the limit without trying it: so one further.
    size = Tuner(trainer).scale_batch_size(
        task,
        datamodule=datamodule,
        mode="power",
        steps_per_trial=search.steps_per_trial,
        init_val=smallest,
        max_val=2 * largest,
    )
    if size is None:
        raise ConfigError("Lightning found no batch size.")
    size = min(size, largest)
    on_gpu = trainer.strategy.root_device.type == "cuda"
    notes = []
    if size == largest:
        notes.append("the largest that was tried: memory may hold more (finder.max_batch_size)")
    if not on_gpu:
        notes.append("on a CPU, where memory sets no limit that could be noticed")
    if datamodule.serves_features:
        notes.append(
            "with cached features, of the heads alone; phases that train an encoder hold less, "
            "and data.feature_cache=false tests with the encoders"
        )
    notes.append("see optimizer.lr_scaling for the learning rates of another batch")
    return Suggestion([f"data.batch_size={size}"], size, "; ".join(notes))
