"""The experiment loggers of a training, and what fills a run of W&B."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from geopak.checkpoint import CHECKPOINT_FOLDER, LAST_NAME
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.options import options, plain
from geopak.provenance import provenance
from geopak.schema.monitoring import WandbOptions

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers.logger import Logger
    from omegaconf import DictConfig


def build_loggers(
    cfg: DictConfig, folder: Path, parent: Path | None, is_first: bool
) -> list[Logger]:
    """The experiment loggers: CSV files always, Weights & Biases beside them; or none at all.

    Args:
        cfg: its ``logger`` section says which.
        folder: of the run.
        parent: checkpoint that the run starts from.
        is_first: whether this is the first process of the training, which logs.
    """
    if cfg.logger is None:
        return []
    from geopak.tracking.logger import CurveLogger

    # A resumed run keeps the log of its first part.
    part = 1 + len(list(folder.glob("csv*")))
    version = "csv" if part == 1 else f"csv-{part}"
    built: list[Logger] = [CurveLogger(save_dir=folder, name="", version=version)]
    if cfg.logger.kind == "wandb":
        built += _build_run_logger(cfg, folder, parent, is_first)
    return built


def _build_run_logger(
    cfg: DictConfig, folder: Path, parent: Path | None, is_first: bool
) -> list[Logger]:
    """Weights & Biases' logger, its run begun in the first process; none where it is disabled."""
    from geopak.tracking.logger import RunLogger
    from geopak.tracking.run import ParentRun, RunPlan, choose_mode

    section = plain(cfg.logger)
    chosen = options(WandbOptions, section, "logger")
    mode = choose_mode(chosen.mode) if is_first else "offline"
    if mode == "disabled":
        return []
    job_type = f"phase-{cfg.phase.index}"
    plan = RunPlan(
        options=chosen,
        folder=folder,
        job_type=job_type,
        tags=(cfg.model.name, cfg.region.name, job_type, *chosen.tags),
        config={**plain(cfg), "provenance": provenance(cfg.data.prepared)} if is_first else {},
        parent=ParentRun.of_checkpoint(parent) if parent else None,
    )
    logger = RunLogger(plan, mode)
    logger.open()
    return [logger]


def close_loggers(trainer: L.Trainer) -> None:
    """Ends W&B runs, so that the next phase of a multirun gets a run of its own."""
    if trainer.loggers:
        from geopak.tracking.logger import RunLogger

        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.close()


def build_dashboard(
    cfg: DictConfig, region: Region, outlines: Outlines, folder: Path
) -> list[L.Callback]:
    """What fills a W&B run beyond numbers; nothing for other loggers."""
    if cfg.logger is None or cfg.logger.kind != "wandb":
        return []
    from geopak.tracking.dashboard import Dashboard

    last = folder / CHECKPOINT_FOLDER / f"{LAST_NAME}.ckpt"
    return [Dashboard(region, outlines, cfg.seed, last)]
