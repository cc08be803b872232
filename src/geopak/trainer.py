"""The Lightning trainer of a training and its callbacks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from geopak import runs as run_folders
from geopak.build import build_region
from geopak.checkpoint import BEST_NAME, CHECKPOINT_FOLDER, LAST_NAME
from geopak.errors import ConfigError
from geopak.models.compiling import check_compiler
from geopak.options import options, plain
from geopak.schema.monitoring import HealthOptions
from geopak.schema.training import Phase
from geopak.sweeps.trials import TRIAL_VARIABLE

if TYPE_CHECKING:
    import lightning as L
    from omegaconf import DictConfig


def build_callbacks(cfg: DictConfig, phase: Phase, folder: Path) -> list[L.Callback]:
    """Checkpointing by the phase's metric, health, progress bar, learning rates, early stopping."""
    from lightning.pytorch import callbacks

    from geopak.callbacks import FeatureRecord, LastingEarlyStopping, MidEpochCheckpoint
    from geopak.finite import FiniteWatch
    from geopak.health import HealthWarnings
    from geopak.interruption import StopAtSignal
    from geopak.random_states import RandomStates

    section = cfg.callbacks
    health = options(HealthOptions, plain(section.health), "callbacks.health")
    built: list[L.Callback] = [
        HealthWarnings(health, build_region(cfg).names),
        callbacks.ModelCheckpoint(
            dirpath=folder / CHECKPOINT_FOLDER,
            filename=BEST_NAME,
            monitor=phase.monitor,
            mode=phase.monitor_mode,
            enable_version_counter=False,
        ),
        # save_last of the one above would write only when there is a new best.
        callbacks.ModelCheckpoint(
            dirpath=folder / CHECKPOINT_FOLDER,
            filename=LAST_NAME,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        ),
        RandomStates(cfg.seed),
        FeatureRecord(folder),
    ]
    if health.check_every_n_steps is not None:
        built.append(FiniteWatch(health.check_every_n_steps))
    if section.checkpoint_every_n_batches is not None:
        built.append(
            MidEpochCheckpoint(
                folder / CHECKPOINT_FOLDER,
                section.checkpoint_every_n_batches,
            )
        )
    # Behind those that write the checkpoint it ends with.
    built.append(StopAtSignal(folder / CHECKPOINT_FOLDER))
    if cfg.logger is not None:
        built.append(callbacks.LearningRateMonitor(logging_interval="step"))
    if section.progress_bar:
        built.append(callbacks.RichProgressBar(leave=False))
    built += study_callbacks(phase.monitor)
    if section.early_stopping_patience:
        built.append(
            LastingEarlyStopping(
                monitor=phase.monitor,
                mode=phase.monitor_mode,
                patience=section.early_stopping_patience,
            )
        )
    return built


def study_callbacks(monitor: str) -> list[L.Callback]:
    """The callback that prunes, in a run of a study of Optuna."""
    if TRIAL_VARIABLE not in os.environ:
        return []
    from hydra.core.hydra_config import HydraConfig

    from geopak.sweeps.pruning import PruneTrial
    from geopak.sweeps.study import current_trial

    trial = current_trial(HydraConfig.get().sweeper) if run_folders.is_first_rank() else None
    return [PruneTrial(trial, monitor)]


def was_pruned(trainer: L.Trainer) -> bool:
    """Whether a study has stopped the training."""
    return any(getattr(callback, "pruned", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def _is_among_others() -> bool:
    """Whether joblib does this run beside others: Lightning cannot start ranks from there."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return False
    return str(HydraConfig.get().launcher._target_).endswith(".JoblibLauncher")


def build_trainer(
    cfg: DictConfig, phase: Phase, folder: Path, resumed: Path | None = None
) -> L.Trainer:
    """The Lightning trainer of ``cfg.trainer``, still without a logger.

    Args:
        cfg: the configuration.
        phase: gives the number of epochs and the metric that the best checkpoint is chosen by.
        folder: of the run.
        resumed: checkpoint that the run goes on from.

    Raises:
        ConfigError: options that do not go together, or processes that nothing started.
    """
    import lightning as L

    from geopak import ranks
    from geopak.checkpoint_io import AtomicCheckpointIO

    section = plain(cfg.trainer)
    threads = section.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    if section.pop("tf32"):
        torch.set_float32_matmul_precision("high")
    section.pop("activation_checkpointing")
    section.pop("max_epochs")
    # The data module's: Lightning would cut a share of what is cut already.
    section.pop("limit_train_batches")
    if not section["limit_val_batches"]:
        raise ConfigError("trainer.limit_val_batches=0: without validation no epoch is the best.")
    compiles = section.pop("compile")
    strategy, timeout_s = section.pop("strategy"), section.pop("timeout_s")
    callbacks = build_callbacks(cfg, phase, folder)
    callbacks += [ranks.AgreeOnStatistics(), ranks.RankWatch(section.pop("heartbeat_s"))]
    if ranks.LAUNCHER in (section["devices"], section["num_nodes"]):
        nodes, per_node = ranks.launched_processes(os.environ)
        for key, number in (("num_nodes", nodes), ("devices", per_node)):
            if section[key] == ranks.LAUNCHER:
                section[key] = number

    def make(strategy: str) -> L.Trainer:
        return L.Trainer(
            max_epochs=phase.epochs,
            default_root_dir=folder,
            # Given by whoever fits.
            logger=False,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO(resumed)],
            strategy=ranks.build_strategy(strategy, timeout_s),
            enable_progress_bar=bool(cfg.callbacks.progress_bar),
            enable_model_summary=False,
            # Ranks draw their own batches, see geopak.data.sampler.
            use_distributed_sampler=False,
            **section,
        )

    try:
        trainer = make(strategy)
        # Only Lightning knows how many devices there are.
        if strategy == "auto" and trainer.world_size > 1:
            trainer = make("ddp")
    except (ValueError, TypeError) as error:
        raise ConfigError(f"Lightning refuses the trainer.* options: {error}") from error
    if trainer.num_devices > 1 and _is_among_others():
        raise ConfigError(
            "launcher=joblib does runs at once on this machine, each in one process, but each is "
            f"to train in {trainer.num_devices} (trainer.devices). Set trainer.devices=1, or leave "
            "launcher out: runs then train one after the other."
        )
    if compiles:
        check_compiler(trainer.strategy.root_device)
    return trainer
