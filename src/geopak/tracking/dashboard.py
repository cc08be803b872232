"""The callback that fills the dashboard of a W&B run from what validation computes anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.tracking import panels
from geopak.tracking.logger import RunLogger
from geopak.tracking.record import ValidationRecord, columns_of_batch, record_of


class Dashboard(Callback):
    """Logs distributions after every validation, figures now and then, checkpoints at the end.

    It does nothing in a training without a :class:`RunLogger`.

    Args:
        region: names the provinces.
        outlines: its map.
        seed: of the photos that are drawn at random.
        last_checkpoint: file.
    """

    def __init__(
        self, region: Region, outlines: Outlines, seed: int, last_checkpoint: Path
    ) -> None:
        self.region = region
        self.outlines = outlines
        self.seed = seed
        self.last_checkpoint = last_checkpoint
        self._batches: list[dict[str, Tensor]] = []
        self._record: ValidationRecord | None = None
        # Whether figures of the latest record are logged.
        self._drawn = True

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if _logger(trainer) is not None and not trainer.sanity_checking:
            columns = columns_of_batch(batch, outputs["output"], outputs["decoded"])
            self._batches.append(columns)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = _logger(trainer)
        if logger is None or trainer.sanity_checking:
            return
        # All processes take part, also where the first one's W&B has failed.
        record = record_of(self._batches)
        self._batches = []
        if not trainer.is_global_zero or logger.guard.failed:
            return
        self._record, self._drawn = record, False
        num_cells = trainer.datamodule.prepared.cells.num_cells  # type: ignore[attr-defined]
        logger.log_panels(
            "distributions", lambda: panels.distributions(record, self.region, num_cells)
        )
        if (trainer.current_epoch + 1) % logger.plan.options.figures_every_n_epochs == 0:
            self._draw(trainer, logger)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        logger = _logger(trainer)
        if logger is None or not trainer.is_global_zero:
            return
        if not self._drawn:
            self._draw(trainer, logger)
        keeper = trainer.checkpoint_callback
        if not isinstance(keeper, ModelCheckpoint) or keeper.best_model_score is None:
            return
        about = {
            "monitor": keeper.monitor,
            "score": float(keeper.best_model_score),
            "phase": pl_module.phase.index,
            "epochs": trainer.current_epoch,
        }
        logger.summarize({"best": about})
        if logger.plan.options.log_checkpoints:
            logger.log_checkpoints(Path(keeper.best_model_path), self.last_checkpoint, about)

    def _draw(self, trainer: L.Trainer, logger: RunLogger) -> None:
        record = self._record
        assert record is not None
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        per_kind = logger.plan.options.table_photos
        logger.log_panels("figures", lambda: panels.figures(record, self.region, self.outlines))
        logger.log_panels(
            "the table of photos",
            lambda: {
                panels.PHOTOS: panels.photo_table(
                    record, datamodule, self.region, per_kind, self.seed
                )
            },
        )
        self._drawn = True


def _logger(trainer: L.Trainer) -> RunLogger | None:
    return next((logger for logger in trainer.loggers if isinstance(logger, RunLogger)), None)
