"""``geopak.train`` as users start it, with eyes and hands for tests of several processes.

Run as ``python -m tests.end_to_end.observed_training`` with the arguments of ``geopak.train``.
Environment variables say what is done beside training; each rank does it for itself:

* ``OBSERVE``: folder for ``rows-<rank>.json``, which lists ``[stage, rows]`` of every batch.
* ``OBSERVE_FIRST_STEP``: also ``step-<rank>.pt``: the first batch as the model sees it, and the
  gradients after the ranks have agreed, before clipping. Dropout is off.
* ``OBSERVE_VAL_PHOTOS``: validate on so many photos only.
* ``OBSERVE_PAUSE``: ``train`` or ``val``: sleep for good in the first batch of that stage; the
  process number is written to ``paused-<rank>`` before.
* ``OBSERVE_PAUSED_RANK``: only this rank sleeps.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from geopak.data.datamodule import GeopakDataModule
from geopak.task import GeolocationTask
from geopak.train import main
from geopak.types import Batch

FOLDER = Path(os.environ["OBSERVE"])
FIRST_STEP = "OBSERVE_FIRST_STEP" in os.environ
NUM_VAL = int(os.environ.get("OBSERVE_VAL_PHOTOS", "0"))
PAUSE = os.environ.get("OBSERVE_PAUSE")
PAUSED_RANK = os.environ.get("OBSERVE_PAUSED_RANK")

seen: list[tuple[str, list[int]]] = []
first_step: dict[str, Any] = {}
originals = {
    "init": GeopakDataModule.__init__,
    "transfer": GeopakDataModule.on_after_batch_transfer,
    "fit_start": GeolocationTask.on_fit_start,
    "before_step": GeolocationTask.on_before_optimizer_step,
}


def init(self: GeopakDataModule, *args: Any, **kwargs: Any) -> None:
    originals["init"](self, *args, **kwargs)
    if NUM_VAL:
        self.val_rows = self.val_rows[:NUM_VAL]


def transfer(self: GeopakDataModule, batch: Batch, dataloader_idx: int) -> Batch:
    trainer = self.trainer
    assert trainer is not None
    rank = trainer.global_rank
    if not trainer.sanity_checking:
        stage = "train" if trainer.training else "val"
        seen.append((stage, batch["row"].tolist()))
        (FOLDER / f"rows-{rank}.json").write_text(json.dumps(seen))
        if stage == PAUSE and PAUSED_RANK in (None, str(rank)):
            (FOLDER / f"paused-{rank}").write_text(str(os.getpid()))
            time.sleep(600)
    batch = originals["transfer"](self, batch, dataloader_idx)
    if FIRST_STEP and trainer.training and not first_step:
        first_step["batch"] = {k: v.clone() for k, v in batch.items()}  # type: ignore[attr-defined]
    return batch


def fit_start(self: GeolocationTask) -> None:
    originals["fit_start"](self)
    for module in self.modules():
        if FIRST_STEP and isinstance(module, nn.Dropout):
            module.p = 0.0


def before_step(self: GeolocationTask, optimizer: torch.optim.Optimizer) -> None:
    originals["before_step"](self, optimizer)
    if FIRST_STEP and "gradients" not in first_step:
        first_step["gradients"] = {
            name: getattr(p.grad, "full_tensor", lambda p=p: p.grad)().clone()
            for name, p in self.model.named_parameters()
            if p.requires_grad and p.grad is not None
        }
        torch.save(first_step, FOLDER / f"step-{self.global_rank}.pt")


GeopakDataModule.__init__ = init  # type: ignore[method-assign]
GeopakDataModule.on_after_batch_transfer = transfer  # type: ignore[method-assign]
GeolocationTask.on_fit_start = fit_start  # type: ignore[method-assign]
GeolocationTask.on_before_optimizer_step = before_step  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
