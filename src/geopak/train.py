"""Trains one phase: ``python -m geopak.train phase=2``; all in order: ``-m phase=0,1,2``."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from geopak.cli import as_geopak_error, entry_point
from geopak.errors import TrainingError, TrialPrunedError

if TYPE_CHECKING:
    import lightning as L

    from geopak.data.datamodule import GeopakDataModule
    from geopak.finders import Suggestion
    from geopak.geo.boundaries import Outlines
    from geopak.geo.region import Region
    from geopak.runs import Start
    from geopak.schema.training import Phase
    from geopak.task import GeolocationTask

log = logging.getLogger(__name__)


@dataclass
class TrainingResult:
    """What a training made.

    Attributes:
        checkpoint: best by the phase's metric.
        score: that metric's validation value.
        folder: of the run.
        task: the trained LightningModule; ``None``: the run was finished before, see
            ``resume_from=auto``.
    """

    checkpoint: Path
    score: float
    folder: Path
    task: GeolocationTask | None


@dataclass
class Training:
    """A training that is ready to begin.

    Attributes:
        phase: at the rates that suit the photos of a step.
        folder: of the run.
        resumed: the checkpoint that it goes on from; ``None``: it is new.
        parent: the checkpoint that it starts, or has started, from.
        region, outlines: that it learns.
        trainer: still without loggers.
        task, datamodule: what it fits.
        rate_factor: by which ``optimizer.lr_scaling`` has multiplied the rates.
    """

    phase: Phase
    folder: Path
    resumed: Path | None
    parent: str | None
    region: Region
    outlines: Outlines
    trainer: L.Trainer
    task: GeolocationTask
    datamodule: GeopakDataModule
    rate_factor: float


def set_up(cfg: DictConfig, phase: Phase, start: Start, overrides: Sequence[str]) -> Training:
    """Builds everything from the configuration and says what will train.

    Args:
        cfg: composed from ``conf/train.yaml``.
        phase: of ``cfg``.
        start: where it begins.
        overrides: those that ``cfg`` was composed with.

    Raises:
        GeopakError: anything that the user can mend, before work is lost.
    """
    from geopak import build, rerun, run_start, warm_start
    from geopak.geo.boundaries import Outlines
    from geopak.options import plain
    from geopak.phases import parameter_counts
    from geopak.runs import is_first_rank
    from geopak.trainer import build_trainer

    # Cheap checks first: a missing parent must not cost a model's loading.
    folder, resumed = start.folder, start.checkpoint
    region = build.build_region(cfg)
    parent = None if resumed else warm_start.resolve_parent(cfg, phase, overrides)
    prepared = build.build_prepared(cfg, region)
    recorded_parent = str(parent) if parent else start.parent
    record = run_start.start_record(cfg, prepared.cells, overrides, recorded_parent)
    if cfg.rerun.of and is_first_rank():
        rerun.check(cfg.rerun.of, record, cfg.rerun.other_data)
    model_config = plain(cfg.model)
    quieten_lightning()
    trainer = build_trainer(cfg, phase, folder, resumed)
    datamodule = build.build_datamodule(
        cfg, prepared, region, model_config["image_size"], trainer.world_size
    )
    phase, rate_factor = build.scale_learning_rates(cfg, phase, trainer.world_size)
    outlines = Outlines.of_region(region)

    import lightning as L

    L.seed_everything(cfg.seed, workers=True, verbose=False)
    model = build.build_model(model_config, region, prepared.cells)
    pretrained = warm_start.start_weights(
        model, model_config, parent, phase, region, prepared.cells, cfg, resumed
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
    if resumed:
        source = f"where it was interrupted: {resumed}"
    elif phase.parent is not None and parent is None:
        encoders = "pretrained encoders" if pretrained else "random encoders"
        source = f"{encoders} and random heads: there is no finished phase {phase.parent}"
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
        run_start.write_start(cfg, folder, record)
    return Training(
        phase, folder, resumed, recorded_parent, region, outlines, trainer, task, datamodule,
        rate_factor,
    )  # fmt: skip


def find(cfg: DictConfig, folder: Path, overrides: Sequence[str] = ()) -> Suggestion:
    """Searches for what ``cfg.finder`` says instead of training, and prints what it found.

    Leaves no run record: nothing takes the folder for a finished run.

    Args:
        cfg, folder, overrides: as of :func:`train`.

    Raises:
        GeopakError: anything that the user can mend.
    """
    from geopak import build, finders
    from geopak.options import plain
    from geopak.ranks import watch_parent
    from geopak.runs import Start

    watch_parent()
    training = set_up(cfg, build.build_phase(cfg), Start(folder), overrides)
    suggestion = finders.search(
        plain(cfg.finder),
        training.trainer,
        training.task,
        training.datamodule,
        training.rate_factor,
        folder,
    )
    typed = [o for o in overrides if not o.startswith("finder")]
    command = " ".join(["python -m geopak.train", *typed, *suggestion.overrides])
    print(f"\n{command}\n\n{suggestion.note}; {folder}")
    return suggestion


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
    from geopak import build, warm_start
    from geopak.checkpoint import CHECKPOINT_FOLDER
    from geopak.ranks import leaving_nothing_behind, starts_other_ranks, watch_parent
    from geopak.runs import held, is_first_rank

    watch_parent()
    phase = build.build_phase(cfg)
    start = warm_start.choose_start(cfg, phase, folder, overrides)
    if start.finished:
        best = start.folder / CHECKPOINT_FOLDER / start.finished["best"]
        if is_first_rank():
            print(
                f"phase {phase.index} of {cfg.name} is finished already: {best}. To train it once "
                "more leave resume_from out."
            )
        return TrainingResult(best, float(start.finished["score"]), start.folder, None)
    several = starts_other_ranks(os.environ)
    with held(start.folder), leaving_nothing_behind() if several else contextlib.nullcontext():
        return fit(cfg, set_up(cfg, phase, start, overrides), overrides)


def fit(cfg: DictConfig, training: Training, overrides: Sequence[str]) -> TrainingResult:
    """Fits what is set up, keeps the best checkpoint and marks the run as finished."""
    from geopak import loggers, rerun
    from geopak.checkpoint import shared_overrides, write_run_record
    from geopak.ranks import RankWatch
    from geopak.sweeps.trials import TRIAL_VARIABLE
    from geopak.trainer import was_pruned

    phase, trainer, task = training.phase, training.trainer, training.task
    # Last, so that a mistake above leaves no run open.
    trainer.loggers = loggers.build_loggers(
        cfg,
        training.folder,
        Path(training.parent) if training.parent else None,
        trainer.is_global_zero,
    )
    trainer.callbacks += loggers.build_dashboard(  # type: ignore[attr-defined]
        cfg, training.region, training.outlines, training.folder
    )
    watch = next(c for c in trainer.callbacks if isinstance(c, RankWatch))  # type: ignore[attr-defined]
    watch.start(trainer)
    try:
        with as_single_run(training.folder):
            trainer.fit(
                task, datamodule=training.datamodule, ckpt_path=training.resumed, weights_only=True
            )
    finally:
        watch.stop()
        loggers.close_loggers(trainer)

    keeper = trainer.checkpoint_callback
    if keeper.best_model_score is None:  # type: ignore[union-attr]
        raise TrainingError(
            "The training ended before an epoch was validated, so that none is the best: give it "
            "more of trainer.max_steps or trainer.max_time."
        )
    best, score = Path(keeper.best_model_path), float(keeper.best_model_score)  # type: ignore[union-attr]
    if was_pruned(trainer):
        raise TrialPrunedError(score, str(best), trainer.current_epoch)
    if trainer.is_global_zero:
        write_run_record(
            training.folder,
            {
                "phase": phase.index,
                "monitor": phase.monitor,
                "score": score,
                "parent": training.parent,
                "best": best.name,
                "epochs": trainer.current_epoch,
                "overrides": shared_overrides(overrides),
                "of_study": TRIAL_VARIABLE in os.environ,
            },
        )
    # Other ranks may look for this record as the parent of the next phase.
    trainer.strategy.barrier()
    if trainer.is_global_zero:
        log.info("best %s = %.4g: %s", phase.monitor, score, best)
        if cfg.rerun.of:
            print(rerun.compare_scores(cfg.rerun.of, phase.monitor, score))
    return TrainingResult(best, score, training.folder, task)


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


@contextlib.contextmanager
def as_single_run(folder: Path) -> Iterator[None]:
    """In a multirun, has Lightning start other ranks of this run alone, in its folder.

    It starts them with the command line of this process, which is that of all runs.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import flag_override

    from geopak.ranks import started_with

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        yield
        return
    config: Any = HydraConfig.get()
    with flag_override(config, "readonly", False):
        config.run.dir = str(folder)
    # A study makes a multirun of what is not called one.
    with started_with([*config.overrides.task, "hydra.mode=RUN"]):
        yield


@entry_point("train")
def main(cfg: DictConfig) -> Any:
    from hydra.core.hydra_config import HydraConfig

    from geopak import rerun
    from geopak.runs import is_first_rank, removed_if_unused
    from geopak.sweeps.trials import Outcome, recorded, sweep_trial

    folder = Path(HydraConfig.get().runtime.output_dir)
    overrides = list(HydraConfig.get().overrides.task)
    if cfg.rerun.of:
        overrides = rerun.all_overrides(cfg.rerun.of, overrides)

    def run() -> Outcome:
        if cfg.finder is not None:
            return Outcome(find(cfg, folder, overrides).value, None)
        result = train(cfg, folder, overrides)
        epochs = result.task.trainer.current_epoch if result.task else None
        return Outcome(result.score, result.checkpoint, epochs)

    with removed_if_unused(folder):
        # What a finder proposes is no score, and other ranks have no record of their own.
        has_record = cfg.finder is None and is_first_rank()
        start = sweep_trial(cfg, HydraConfig.get(), folder) if has_record else None
        # A run of a sweep leaves a record whatever comes of it, and ends no other.
        return run().score if start is None else recorded(start, run, as_geopak_error)


if __name__ == "__main__":
    main()
