"""What happens beside the steps of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping

from geopak.checkpoint import LAST_NAME
from geopak.runs import add_to_start


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
        trainer.save_checkpoint(self.path)


class LastingEarlyStopping(EarlyStopping):
    """Early stopping that holds in a run which was killed after it had stopped."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= self.patience:
            trainer.should_stop = True


class FeatureRecord(L.Callback):
    """Adds the keys of the feature caches that a run trains from to what it recorded at its start.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero and datamodule.feature_keys:
            add_to_start(self.folder, {"feature_cache": datamodule.feature_keys})
