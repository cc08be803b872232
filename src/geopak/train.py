"""Trains one phase: ``python -m geopak.train phase=2``; all in order: ``-m phase=0,1,2``."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import as_geopak_error, entry_point
from geopak.errors import TrialPrunedError

if TYPE_CHECKING:
    from geopak.task import GeolocationTask

log = logging.getLogger(__name__)


@dataclass
class TrainingResult:
    """What a training made.

    Attributes:
        checkpoint: best by the phase's metric.
        score: that metric's validation value.
        task: the trained LightningModule.
        folder: of the run.
    """

    checkpoint: Path
    score: float
    task: GeolocationTask
    folder: Path


def train(cfg: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> TrainingResult:
    """Builds everything from the configuration, fits, and keeps the best checkpoint.

    Args:
        cfg: composed from ``conf/train.yaml``.
        folder: where checkpoints and logs go.
        overrides: those that ``cfg`` was composed with; a phase looks for a parent run that shares
            them.

    Raises:
        GeopakError: anything that the user can mend, before work is lost.
    """
    from geopak import build
    from geopak.geo.boundaries import Outlines
    from geopak.options import plain
    from geopak.phases import parameter_counts
    from geopak.ranks import RankWatch, watch_parent

    watch_parent()
    # Cheap checks first: a missing parent must not cost a model's loading.
    phase = build.build_phase(cfg)
    region = build.build_region(cfg)
    parent = build.resolve_parent(cfg, phase, overrides)
    prepared = build.build_prepared(cfg, region)
    model_config = plain(cfg.model)
    quieten_lightning()
    trainer = build.build_trainer(cfg, phase, folder)
    datamodule = build.build_datamodule(
        cfg, prepared, region, model_config["image_size"], trainer.world_size
    )
    phase, rate_factor = build.scale_learning_rates(cfg, phase, trainer.world_size)
    outlines = Outlines.of_region(region)

    import lightning as L

    from geopak.checkpoint import shared_overrides, write_run_record

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    model = build.build_model(model_config, region, prepared.cells)
    pretrained = build.start_weights(
        model, model_config, parent, phase, region, prepared.cells, cfg.resume_from
    )
    task = build.build_task(
        cfg,
        model,
        phase,
        region,
        prepared.cells,
        outlines,
        pretrained,
        datamodule.num_batches,
    )
    build.connect_features(datamodule, model, phase)

    source = f"phase {phase.parent}: {parent}" if parent else "pretrained encoders"
    if cfg.resume_from:
        source = f"where it was interrupted: {cfg.resume_from}"
    elif not pretrained:
        source = "random weights: this phase trains the encoders too"
    if trainer.is_global_zero:
        print_summary(
            f"phase {phase.index} ({phase.title}), from {source}",
            parameter_counts(model),
            task.learning_rates(),
            len(datamodule.train_rows),
            len(datamodule.val_rows),
            datamodule.num_batches,
            phase.epochs,
        )
        print(build.step_summary(cfg, trainer.world_size, rate_factor))
    # Last, so that a mistake above leaves no run open.
    trainer.logger = build.build_logger(cfg, folder)
    watch = next(c for c in trainer.callbacks if isinstance(c, RankWatch))  # type: ignore[attr-defined]
    watch.start(trainer)
    try:
        trainer.fit(task, datamodule=datamodule, ckpt_path=cfg.resume_from, weights_only=True)
    finally:
        watch.stop()
        build.close_loggers(trainer)

    keeper = trainer.checkpoint_callback
    best, score = Path(keeper.best_model_path), float(keeper.best_model_score)  # type: ignore[union-attr]
    if build.was_pruned(trainer):
        raise TrialPrunedError(score, str(best))
    if trainer.is_global_zero:
        write_run_record(
            folder,
            {
                "phase": phase.index,
                "monitor": phase.monitor,
                "score": score,
                "parent": str(parent) if parent else None,
                "best": best.name,
                "epochs": trainer.current_epoch,
                "overrides": shared_overrides(overrides),
            },
        )
    # Other ranks may look for this record as the parent of the next phase.
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        log.info("best %s = %.4g: %s", phase.monitor, score, best)
    return TrainingResult(best, score, task, folder)


def quieten_lightning() -> None:
    """Leaves out what Lightning says about choices that are meant here."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Says which process it was that ended the others.
    logging.getLogger("lightning.fabric.strategies.launchers").setLevel(logging.INFO)
    for message in (
        # Frozen encoders stay in eval mode.
        ".*module\\(s\\) in eval mode at the start of training.*",
        # Photos kept in memory need no loader processes.
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        # Samplers go on at the right batch, see geopak.data.datamodule.
        ".*your dataloader is not resumable.*",
        # A resumed run goes on in its own folder.
        ".*exists and is not empty.*",
        # Metrics are gathered from all ranks before they are logged.
        ".*sync_dist=True.*",
        # FSDP: the gate is a view, which nothing changes in place.
        ".*returned a view tensor.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message)


def print_summary(
    title: str,
    counts: dict[str, tuple[int, int]],
    rates: dict[str, float],
    num_train: int,
    num_val: int,
    num_batches: int,
    epochs: int,
) -> None:
    """Prints what trains at which rate, before the first step."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("part", "trains", "of", "learning rate"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, (trainable, total) in counts.items():
        rate = f"{rates[name if name in rates else 'heads']:.1e}" if trainable else "frozen"
        table.add_row(name, f"{trainable:,}", f"{total:,}", rate)
    console = Console()
    console.print(f"\n{title}", soft_wrap=True, highlight=False)
    console.print(table)
    console.print(
        f"{num_train:,} train and {num_val:,} val photos; {epochs} epochs of {num_batches} batches"
    )


@entry_point("train")
def main(cfg: DictConfig) -> Any:
    from hydra.core.hydra_config import HydraConfig

    from geopak.checkpoint import run_folder
    from geopak.sweeps.trials import Outcome, recorded, sweep_trial

    folder = Path(HydraConfig.get().runtime.output_dir)
    if cfg.resume_from:
        # The interrupted run's own folder: its best checkpoint so far is still in the running.
        folder = run_folder(cfg.resume_from)
    overrides = list(HydraConfig.get().overrides.task)

    def run() -> Outcome:
        result = train(cfg, folder, overrides)
        return Outcome(result.score, result.checkpoint)

    start = sweep_trial(cfg, HydraConfig.get(), folder)
    # A run of a sweep leaves a record whatever comes of it, and ends no other.
    return run().score if start is None else recorded(start, run, as_geopak_error)


if __name__ == "__main__":
    main()
