"""What happens beside the steps of a training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from geopak.checkpoint import LAST_NAME


class MidEpochCheckpoint(Checkpoint):
    """Writes ``last.ckpt`` within an epoch too, so that a killed run loses a few batches alone.

    Not after the last batch of an epoch: a run that goes on from there would skip the validation.
    The checkpoint at the end of the epoch, which has been validated, follows at once.

    It keeps no state of its own, so that a run may go on with it or without.

    Args:
        folder: of the checkpoints.
        every_n_batches: of an epoch; whole steps, for gradients of half a step are in no
            checkpoint.
    """

    def __init__(self, folder: Path, every_n_batches: int) -> None:
        self.path = folder / f"{LAST_NAME}.ckpt"
        self.every_n_batches = every_n_batches

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        done = batch_idx + 1
        if done % self.every_n_batches or done >= trainer.num_training_batches:
            return
        # Renamed when it is complete, whatever lies between the folder for temporary files and
        # this one: a run may be killed while it writes.
        partial = self.path.with_suffix(".partial")
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            os.replace(partial, self.path)
