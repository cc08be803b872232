"""Stops a run of a study early, where others were better at the same epoch."""

from __future__ import annotations

from typing import Any

import lightning as L


class PruneTrial(L.Callback):
    """Reports the phase's metric to the study after each validation, and stops if it says so.

    Args:
        trial: of Optuna; ``None`` in all ranks but the first.
        monitor: validation metric.
    """

    def __init__(self, trial: Any, monitor: str) -> None:
        self.trial = trial
        self.monitor = monitor
        self.pruned = False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        stop = False
        if trainer.is_global_zero:
            value = float(trainer.callback_metrics[self.monitor])
            # A run that goes on after an interruption may say an epoch again.
            self.trial.report(value, trainer.current_epoch)
            stop = self.trial.should_prune()
        self.pruned = trainer.strategy.broadcast(stop)
        trainer.should_stop = trainer.should_stop or self.pruned
