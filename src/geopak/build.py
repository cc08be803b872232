"""From configuration to objects: the only place that instantiates."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from geopak import __version__
from geopak import runs as run_folders
from geopak.calibration import FORMAT as CALIBRATION_FORMAT
from geopak.calibration import KEY as CALIBRATION
from geopak.calibration import Calibration, weights_fingerprint
from geopak.checkpoint import (
    BEST_NAME,
    CHECKPOINT_FOLDER,
    FORMAT,
    LAST_NAME,
    WithoutInitialisation,
    check_continuation,
    find_parent,
    load_state,
    model_description,
    model_state,
    newest_finished,
    read_checkpoint,
    read_matching,
    run_record,
    shared_overrides,
    with_choices,
)
from geopak.errors import CheckpointError, ConfigError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.activations import checkpoint_activations
from geopak.models.compiling import check_compiler, compile_encoder
from geopak.models.encoders import (
    SceneEncoder,
    SemanticEncoder,
    clip_visual_weights,
    download_clip,
    scene_weights,
)
from geopak.models.fusion import GatedFusion
from geopak.models.geolocator import Geolocator
from geopak.options import options, plain
from geopak.phases import learning_rate_scale, with_scaled_rates
from geopak.provenance import git_diff, hardware, provenance
from geopak.rerun import COMPOSED
from geopak.runs import AUTO, Start
from geopak.schema.loading import LoadingOptions
from geopak.schema.model import HeadSizes
from geopak.schema.monitoring import HealthOptions, WandbOptions
from geopak.schema.training import DecodingOptions, LossOptions, Phase
from geopak.sweeps.trials import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    SWEEP_VARIABLE,
    TRIAL_VARIABLE,
    Trial,
    newest_trial,
)

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers.logger import Logger
    from omegaconf import DictConfig

    from geopak.data.datamodule import GeopakDataModule
    from geopak.data.dataset import PreparedSet
    from geopak.task import GeolocationTask

log = logging.getLogger(__name__)


def build_region(cfg: DictConfig) -> Region:
    """The region of ``cfg.region``."""
    return Region.from_config(plain(cfg.region))


def build_phase(cfg: DictConfig) -> Phase:
    """The phase of ``cfg.phase``, of ``trainer.max_epochs`` at the most."""
    phase = options(Phase, plain(cfg.phase), "phase")
    most = cfg.trainer.max_epochs
    return phase if most is None else dataclasses.replace(phase, epochs=min(most, phase.epochs))


def build_prepared(cfg: DictConfig, region: Region) -> PreparedSet:
    """The prepared set of ``cfg.data``."""
    from geopak.data.dataset import PreparedSet

    return PreparedSet.read(cfg.data.prepared, cfg.data.root, region)


def build_model(config: Mapping[str, Any], region: Region, cells: CellTable) -> Geolocator:
    """The network with random weights.

    Args:
        config: plain ``model`` section.
        region, cells: give the classes and the cell geometry.

    Raises:
        ConfigError: a choice that there is not.
    """
    config = with_choices(config)
    image_size = config["image_size"]
    semantic = config["semantic"]
    scene = config["scene"]
    return Geolocator(
        SemanticEncoder(image_size=image_size, **semantic["shape"]),
        SceneEncoder(**scene["shape"]),
        region,
        cells,
        options(HeadSizes, config["sizes"], "model.sizes"),
        gate_bias=config["fusion"]["gate_bias"],
        image_size=image_size,
        framing=config["framing"],
        fusion=config["fusion"]["kind"],
        cell_heads=config["cell_heads"],
        offset_bound=config["offset"]["bound"],
        offset_bounded=config["offset"]["bounded"],
        auxiliary_output=config["auxiliary"]["output"],
    )


def load_pretrained(model: Geolocator, config: Mapping[str, Any]) -> None:
    """Loads both encoders' pretrained weights.

    Raises:
        CheckpointError: a file that is missing or holds other weights.
    """
    semantic = config["semantic"]["checkpoint"]
    if semantic is None:
        source = config["semantic"]["source"]
        if source is None:
            raise CheckpointError("Set model.semantic.checkpoint=FILE, or model.pretrained=null.")
        semantic = download_clip(source["architecture"], source["tag"])
    scene = config["scene"]["checkpoint"]
    if scene is None:
        raise CheckpointError(
            "The scene encoder's weights are not downloaded for you: get "
            "resnet50_places365.pth.tar from the Places365 project and pass "
            "model.scene.checkpoint=FILE, or train from scratch with model.pretrained=null."
        )
    model.semantic.load_pretrained(clip_visual_weights(semantic), str(semantic))
    model.scene.load_pretrained(scene_weights(scene), str(scene))


def resolve_parent(cfg: DictConfig, phase: Phase, overrides: Sequence[str]) -> Path | None:
    """The checkpoint that a phase starts from: ``init_from``, or its parent's best, or none.

    Without ``require_parent`` a parent is one that shares all overrides, and may be missing.
    """
    if cfg.init_from:
        return Path(cfg.init_from).expanduser()
    if phase.parent is None:
        return None
    run_root, shared = Path(cfg.run_root), shared_overrides(overrides)
    newest = newest_trial(run_root, phase.parent, lambda theirs: shared_overrides(theirs) == shared)
    if newest is not None and _gave_nothing(*newest, run_root, phase.parent, overrides):
        trial = newest[0]
        fate = {RUNNING: "was lost", PRUNED: "was pruned"}.get(trial.state, "failed")
        raise CheckpointError(
            f"This run starts from phase {phase.parent} with the same overrides, and that {fate} "
            f"in {trial.folder}: {trial.error or 'it has no result.'} No other run takes its "
            "place; mend it, or pass init_from=CHECKPOINT."
        )
    if not cfg.require_parent:
        return newest_finished(run_root, phase.parent, overrides, same_only=True)
    return find_parent(run_root, phase.parent, overrides)


def _gave_nothing(
    trial: Trial, written_unix: float, run_root: Path, phase: int, overrides: Sequence[str]
) -> bool:
    """Whether the run that should be the parent has ended without a checkpoint to start from."""
    own = trial.sweep == os.environ.get(SWEEP_VARIABLE)
    if trial.state == COMPLETE or (trial.state != FAILED and not own):
        return False
    # It may have been done again since, by itself.
    finished = newest_finished(run_root, phase, overrides, same_only=True)
    # A checkpoint that has been calibrated since is written anew, the record of its run is not.
    return finished is None or run_record(finished).stat().st_mtime < written_unix


def choose_start(cfg: DictConfig, phase: Phase, folder: Path, overrides: Sequence[str]) -> Start:
    """Where the training begins by ``cfg.resume_from``: see :func:`geopak.runs.choose_start`."""
    runs = Path(cfg.run_root) / f"phase-{phase.index}"
    parent = None
    if cfg.resume_from == AUTO:
        # A run that goes on needs its parent no longer.
        with contextlib.suppress(CheckpointError):
            parent = resolve_parent(cfg, phase, overrides)
    return run_folders.choose_start(cfg.resume_from, folder, runs, overrides, parent)


def start_weights(
    model: Geolocator,
    config: Mapping[str, Any],
    parent: Path | None,
    phase: Phase,
    region: Region,
    cells: CellTable,
    cfg: DictConfig,
    resume_from: Path | None,
) -> bool:
    """Puts the weights into the model that its phase starts from.

    Returns:
        Whether the encoders hold anything learned.
    """
    if resume_from:
        # The trainer restores all weights once more; a feature cache needs the encoders before.
        checkpoint = read_matching(resume_from, region, cells, config, phase.index)
        check_continuation(checkpoint, portable_config(cfg), phase.epochs, resume_from)
        load_state(model, checkpoint, resume_from)
        return phase.parent is not None or bool(config["pretrained"])
    if parent is not None:
        checkpoint = read_matching(parent, region, cells, config, phase.parent)
        load_state(model, checkpoint, parent)
        theirs = checkpoint["geopak"]["model"]["fusion"]["gate_bias"]
        ours = config["fusion"]["gate_bias"]
        if theirs != ours and isinstance(model.fusion, GatedFusion):
            log.warning(
                "warning: model.fusion.gate_bias=%g has no effect in phase %d: the gate comes from "
                "%s, and began there at %g. Sweep it with -m phase=0,%d.",
                ours, phase.index, parent, theirs, phase.index,
            )  # fmt: skip
        return True
    if config["pretrained"]:
        load_pretrained(model, config)
        return True
    return False


def model_identity(
    model_config: Mapping[str, Any],
    region: Region,
    cells: CellTable,
    outlines: Outlines,
    phase: Phase,
    decoding: DecodingOptions,
    config: dict[str, Any],
) -> dict[str, Any]:
    """What a checkpoint carries beside weights: enough to predict from it alone."""
    description = model_description(model_config) | {
        "name": model_config["name"],
        "fusion": with_choices(model_config)["fusion"],
    }
    return {
        "format": FORMAT,
        "version": __version__,
        "region": region.to_dict() | {"boundaries": None},
        "cells": cells.to_dict(),
        "outlines": outlines.to_dict(),
        "phase": {"index": phase.index, "title": phase.title},
        "province_temperature": phase.province_temperature,
        "model": description,
        "decoding": dataclasses.asdict(decoding),
        "config": config,
    }


def portable_config(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as composed, without what is true on one machine only."""
    from omegaconf import OmegaConf

    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=False)  # type: ignore[assignment]
    for key in ("paths", "init_from", "resume_from", "rerun"):
        config.pop(key, None)
    for section, keys in (
        ("data", ("root", "prepared", "shards")),
        ("region", ("boundaries", "towns")),
    ):
        for key in keys:
            config[section].pop(key, None)
    for encoder in ("semantic", "scene"):
        config["model"][encoder].pop("checkpoint", None)
    return config


def start_record(
    cfg: DictConfig, cells: CellTable, overrides: Sequence[str], parent: str | None
) -> dict[str, Any]:
    """What a run records of itself when it starts: see docs/resume.md.

    Args:
        cfg: the configuration.
        cells: of the prepared set.
        overrides: as typed.
        parent: checkpoint that the run started from.
    """
    return provenance(cfg.data.prepared) | {
        "cells": cells.fingerprint(),
        "hardware": hardware(),
        "name": cfg.name,
        "phase": cfg.phase.index,
        "parent": parent,
        "overrides": list(overrides),
    }


def write_start(cfg: DictConfig, folder: Path, record: Mapping[str, Any]) -> None:
    """Writes into a run's folder what it is made with, and of a new one the configuration.

    Args:
        cfg: kept as composed, for ``--rerun``, and with all values resolved, to read.
        folder: of the run.
        record: see :func:`start_record`.
    """
    from omegaconf import OmegaConf

    if not (folder / run_folders.START_RECORD).is_file():
        for name, resolve in (("config.yaml", True), (COMPOSED, False)):
            (folder / name).write_text(OmegaConf.to_yaml(cfg, resolve=resolve), encoding="utf-8")
        if patch := git_diff():
            path = folder / "git.patch"
            path.write_text(patch, encoding="utf-8", errors="surrogateescape")
    run_folders.write_start(folder, record)


@dataclass
class Trained:
    """A model from a checkpoint, ready to predict.

    Attributes:
        model: in eval mode.
        region, cells, outlines: what its classes mean.
        decoding: the options that it was validated with.
        phase: index and title of the phase that made it.
        path: the checkpoint.
        config: of its training.
        calibration: of ``geopak.calibrate``, where the checkpoint has one.
        identity: all that the checkpoint carries beside weights, as it was read.
    """

    model: Geolocator
    region: Region
    cells: CellTable
    outlines: Outlines
    decoding: DecodingOptions
    phase: dict[str, Any]
    path: Path
    config: dict[str, Any]
    calibration: Calibration | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


def load_trained(
    path: str | Path, device: str | torch.device = "cpu", calibration: bool = True
) -> Trained:
    """Rebuilds a model from its checkpoint alone.

    Args:
        path: the checkpoint.
        device: for the model.
        calibration: load what ``geopak.calibrate`` has found, too.

    Raises:
        CheckpointError: not a checkpoint of geopak, a broken one, or one whose calibration is of
            other weights.
    """
    checkpoint = read_checkpoint(path)
    identity = checkpoint["geopak"]
    region = Region.from_dict(identity["region"])
    cells = CellTable.from_dict(identity["cells"])
    with WithoutInitialisation():
        model = build_model(identity["model"], region, cells)
    load_state(model, checkpoint, path)
    model.province_head.temperature = identity["province_temperature"]
    return Trained(
        model=model.to(device).eval(),
        region=region,
        cells=cells,
        outlines=Outlines.from_dict(identity["outlines"]),
        decoding=options(DecodingOptions, identity["decoding"], "decoding"),
        phase=identity["phase"],
        path=Path(path),
        config=identity["config"],
        calibration=_calibration(checkpoint, path, device) if calibration else None,
        identity=identity,
    )


def _calibration(
    checkpoint: Mapping[str, Any], path: str | Path, device: str | torch.device
) -> Calibration | None:
    """What ``geopak.calibrate`` has left in a checkpoint.

    Raises:
        CheckpointError: it was made of other weights, or by a later version.
    """
    stored = checkpoint["geopak"].get(CALIBRATION)
    if stored is None:
        return None
    again = f"Make it anew: python -m geopak.calibrate ckpt={path}"
    if stored.get("format") != CALIBRATION_FORMAT:
        raise CheckpointError(
            f"{path} has a calibration of format {stored.get('format')}, this version of geopak "
            f"reads {CALIBRATION_FORMAT}. {again}"
        )
    calibration = Calibration.from_dict(stored)
    if calibration.fitted_on["weights"] != weights_fingerprint(model_state(checkpoint)):
        raise CheckpointError(
            f"{path} has a calibration of other weights than it holds: it says nothing of this "
            f"model. {again}"
        )
    return dataclasses.replace(calibration, familiarity=calibration.familiarity.to(device))


def build_datamodule(
    cfg: DictConfig,
    prepared: PreparedSet,
    region: Region,
    image_size: int,
    world_size: int = 1,
) -> GeopakDataModule:
    """The data module of ``cfg.data``, for one of ``world_size`` processes."""
    from geopak.data.datamodule import GeopakDataModule

    section = plain(cfg.data)
    for key in ("root", "prepared"):
        section.pop(key)
    loading = options(LoadingOptions, section, "data")
    return GeopakDataModule(
        prepared,
        region,
        loading,
        image_size,
        world_size,
        cfg.trainer.limit_train_batches,
        framing=cfg.model.framing,
    )


def scale_learning_rates(cfg: DictConfig, phase: Phase, world_size: int) -> tuple[Phase, float]:
    """The phase with the rates that suit the photos of a step, and the factor between.

    Args:
        cfg: ``optimizer.lr_scaling`` and ``optimizer.reference_batch`` say how.
        phase: its rates are those for the reference batch.
        world_size: number of processes.
    """
    photos = cfg.data.batch_size * world_size * cfg.trainer.accumulate_grad_batches
    factor = learning_rate_scale(cfg.optimizer.lr_scaling, photos, cfg.optimizer.reference_batch)
    return with_scaled_rates(phase, factor), factor


def step_summary(cfg: DictConfig, world_size: int, factor: float) -> str:
    """What a step sees, on how many devices, and what that does to the learning rates."""
    parts = [f"{cfg.data.batch_size} photos a batch"]
    if world_size > 1:
        parts.append(f"{world_size} devices")
    if cfg.trainer.accumulate_grad_batches > 1:
        parts.append(f"{cfg.trainer.accumulate_grad_batches} batches accumulated")
    photos = cfg.data.batch_size * world_size * cfg.trainer.accumulate_grad_batches
    rule, reference = cfg.optimizer.lr_scaling, cfg.optimizer.reference_batch
    rates = f"lr_scaling={rule} of {photos}/{reference}: learning rates × {factor:.3g}"
    return f"{' × '.join(parts)} = {photos} photos a step; {rates}"


def connect_features(datamodule: GeopakDataModule, model: Geolocator, phase: Phase) -> None:
    """Lets the data module serve features where a phase trains no encoder.

    Raises:
        ConfigError: features are insisted on in a phase that trains an encoder.
    """
    if model.encoders_frozen:
        datamodule.use_features_of(model)
    elif datamodule.options.feature_cache == "true":
        raise ConfigError(
            f"data.feature_cache=true: phase {phase.index} trains an encoder here, so that its "
            "features change with every step. Use data.feature_cache=auto."
        )


def optimizer_options(cfg: DictConfig) -> dict[str, Any]:
    """Arguments of AdamW but for the learning rates.

    With a loss scaler (16-mixed) a fused AdamW unscales gradients by itself, after they should
    have been clipped; Lightning refuses the pair, so the plain one takes its place. bf16-mixed has
    no scaler: see :meth:`geopak.task.GeolocationTask.configure_gradient_clipping`.
    """
    chosen: dict[str, Any] = plain(cfg.optimizer)
    for key in ("lr_scaling", "reference_batch"):
        chosen.pop(key)
    if str(cfg.trainer.precision) == "16-mixed" and cfg.trainer.gradient_clip_val:
        chosen["fused"] = False
    return chosen


def build_task(
    cfg: DictConfig,
    model: Geolocator,
    phase: Phase,
    region: Region,
    cells: CellTable,
    outlines: Outlines,
    encoders_pretrained: bool,
    num_batches: int,
) -> GeolocationTask:
    """The LightningModule of the phase, for epochs of ``num_batches`` batches."""
    from geopak.task import TASKS

    decoding = options(DecodingOptions, plain(cfg.decoding), "decoding")
    identity = model_identity(
        plain(cfg.model), region, cells, outlines, phase, decoding, portable_config(cfg)
    )
    task = TASKS[phase.index](
        model=model,
        phase=phase,
        region=region,
        cells=cells,
        loss_options=options(LossOptions, plain(cfg.loss), "loss"),
        decoding=decoding,
        optimizer=optimizer_options(cfg),
        encoders_pretrained=encoders_pretrained,
        identity=identity,
        num_steps=phase.epochs * math.ceil(num_batches / cfg.trainer.accumulate_grad_batches),
    )
    # By now it is known what trains.
    for encoder in (model.semantic, model.scene):
        if cfg.trainer.activation_checkpointing:
            checkpoint_activations(encoder)
        if cfg.trainer.compile:
            compile_encoder(encoder)
    return task


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
