"""geopak's trainer and a bare PyTorch loop over the same model, a few steps of each by turns."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig

from benchmarks.subjects import random_model
from geopak import build, loggers
from geopak.data.dataset import PreparedSet
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.task import GeolocationTask
from geopak.train import quieten_lightning
from geopak.trainer import build_trainer
from geopak.types import Batch

# Steps before anything is measured.
_WARMUP_TURNS = 1


@dataclass
class StepSeconds:
    """Median seconds of a step.

    Attributes:
        trainer: in geopak's trainer, loading and logging included.
        bare: forward, loss, backward and AdamW in plain PyTorch on a batch that is there.
        peak_memory_gb: of the GPU, both together; 0 on a CPU.
    """

    trainer: float
    bare: float
    peak_memory_gb: float


def measure_steps(
    cfg: DictConfig,
    region: Region,
    prepared: PreparedSet,
    serve: Callable[[Any], None],
    steps: int,
    turns: int,
) -> StepSeconds:
    """Trains by ``build``'s own trainer, task and data module, and beside it by a bare loop.

    Args:
        cfg: composed from ``conf/train.yaml``; its model gets random weights that count as
            pretrained, so that the phase freezes what it always does.
        region, prepared: the photos.
        serve: gives the data module its datasets.
        steps: of each turn.
        turns: of each of the two.
    """
    quieten_lightning()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    cfg.phase.epochs = 1
    phase = build.build_phase(cfg)
    with tempfile.TemporaryDirectory() as home:
        cfg.data.batches_per_epoch = steps * (turns + _WARMUP_TURNS)
        cfg.data.reference_batch = cfg.data.batch_size
        trainer = build_trainer(cfg, phase, Path(home))
        datamodule = build.build_datamodule(cfg, prepared, region, cfg.model.image_size)
        model = random_model(cfg, region, prepared.cells)
        outlines = Outlines.of_region(region)

        def make_task(model: Any) -> GeolocationTask:
            return build.build_task(
                cfg, model, phase, region, prepared.cells, outlines, True, datamodule.num_batches
            )

        other = make_task(copy.deepcopy(model))
        task = make_task(model)
        serve(datamodule)
        turn = _Turns(other, str(trainer.precision), steps)
        # Nothing is validated here, so nothing can be the best.
        keepers = L.pytorch.callbacks.ModelCheckpoint
        kept = [c for c in trainer.callbacks if not isinstance(c, keepers)]  # type: ignore[attr-defined]
        trainer.callbacks = [*kept, turn]  # type: ignore[attr-defined]
        trainer.loggers = loggers.build_loggers(cfg, Path(home), None, is_first=True)
        trainer.limit_val_batches = 0
        trainer.fit(task, datamodule=datamodule)
        loggers.close_loggers(trainer)
    peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    first = _WARMUP_TURNS
    return StepSeconds(
        statistics.median(turn.trainer_seconds[first:]) / steps,
        statistics.median(turn.bare_seconds[first:]) / steps,
        peak,
    )


class _Turns(L.Callback):
    """After so many steps of the trainer, as many of a bare loop on one of its batches."""

    def __init__(self, task: GeolocationTask, precision: str, steps: int) -> None:
        self.task = task
        self.steps = steps
        self.trainer_seconds: list[float] = []
        self.bare_seconds: list[float] = []
        self.began: float | None = None
        self.autocast: Callable[[], Any] = nullcontext
        if precision == "bf16-mixed":
            kind = "cuda" if torch.cuda.is_available() else "cpu"
            self.autocast = lambda: torch.autocast(kind, torch.bfloat16)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.task.to(pl_module.device).train()
        groups = [
            {"params": parameters, "lr": self.task.learning_rates()[name]}
            for name, parameters in self.task.trainable.items()
        ]
        self.optimizer = torch.optim.AdamW(groups, **self.task.optimizer_options)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.began is None:
            self.began = _now()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if (batch_idx + 1) % self.steps or self.began is None:
            return
        self.trainer_seconds.append(_now() - self.began)
        began = _now()
        for _ in range(self.steps):
            self._bare_step(batch)
        self.bare_seconds.append(_now() - began)
        self.began = _now()

    def _bare_step(self, batch: Batch) -> None:
        task = self.task
        with self.autocast():
            if "features" in batch:
                output = task.model.heads(batch["features"])
            else:
                output = task.model(batch["image"])
            value = task.loss(output, batch, task.locate_true_cell(output, batch), 1.0)
        value.total.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
