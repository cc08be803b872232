"""From configuration to objects: the only place that instantiates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from omegaconf import DictConfig, OmegaConf

from geopak import __version__
from geopak.checkpoint import (
    FORMAT,
    find_parent,
    load_state,
    model_description,
    read_checkpoint,
    warm_start,
)
from geopak.errors import CheckpointError, ConfigError, nearest_name
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.losses import LossOptions
from geopak.models.decode import DecodingOptions
from geopak.models.encoders import (
    SceneEncoder,
    SemanticEncoder,
    clip_visual_weights,
    download_clip,
    scene_weights,
)
from geopak.models.geolocator import Geolocator, HeadSizes
from geopak.phases import Phase

if TYPE_CHECKING:
    import lightning as L

    from geopak.data.datamodule import GeopakDataModule
    from geopak.data.dataset import PreparedSet
    from geopak.task import GeolocationTask

T = TypeVar("T")


def plain(section: Any) -> Any:
    """A configuration section as plain containers, interpolations resolved."""
    if OmegaConf.is_config(section):
        return OmegaConf.to_container(section, resolve=True)
    return section


def options(cls: type[T], section: Mapping[str, Any], name: str) -> T:
    """A dataclass of options from a configuration section.

    Raises:
        ConfigError: a key that the dataclass does not know, or one missing.
    """
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in section:
        if key not in known:
            raise ConfigError(
                f"{name}.{key} is not an option.{nearest_name(str(key), known)} "
                f"Known: {', '.join(known)}."
            )
    missing = [
        key
        for key, f in known.items()
        if key not in section
        and f.default is dataclasses.MISSING
        and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{name} lacks {', '.join(missing)}.")
    return cls(**section)


def build_region(cfg: DictConfig) -> Region:
    """The region of ``cfg.region``."""
    return Region.from_config(plain(cfg.region))


def build_phase(cfg: DictConfig) -> Phase:
    """The phase of ``cfg.phase``."""
    section = plain(cfg.phase)
    for key in ("train", "losses"):
        section[key] = tuple(section[key])
    return options(Phase, section, "phase")


def build_prepared(cfg: DictConfig, region: Region) -> PreparedSet:
    """The prepared set of ``cfg.data``."""
    from geopak.data.dataset import PreparedSet

    return PreparedSet.read(cfg.data.prepared, cfg.data.root, region)


def build_model(config: Mapping[str, Any], region: Region, cells: CellTable) -> Geolocator:
    """The network with random weights.

    Args:
        config: plain ``model`` section.
        region, cells: give the classes and the cell geometry.
    """
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


def resolve_parent(cfg: DictConfig, phase: Phase) -> Path | None:
    """The checkpoint that a phase starts from: ``init_from``, or its parent's best, or none."""
    if cfg.init_from:
        if phase.parent is None:
            raise ConfigError(
                f"phase={phase.index} starts from the pretrained encoders and takes no init_from=."
            )
        return Path(cfg.init_from).expanduser()
    if phase.parent is None:
        return None
    overrides = "" if cfg.name == "geopak" else f" name={cfg.name}"
    return find_parent(Path(cfg.paths.outputs) / cfg.name, phase.parent, overrides)


def start_weights(
    model: Geolocator,
    config: Mapping[str, Any],
    parent: Path | None,
    phase: Phase,
    region: Region,
    cells: CellTable,
) -> bool:
    """Puts the weights into the model that its phase starts from.

    Returns:
        Whether the encoders hold anything learned.
    """
    if parent is not None:
        warm_start(model, parent, region, cells, config, phase.parent)
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
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What a checkpoint carries beside weights: enough to predict from it alone."""
    description = model_description(model_config) | {
        "name": model_config["name"],
        "fusion": model_config["fusion"],
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
        "config": dict(config),
    }


@dataclass
class Trained:
    """A model from a checkpoint, ready to predict.

    Attributes:
        model: in eval mode.
        region, cells, outlines: what its classes mean.
        decoding: the options that it was validated with.
        phase: index and title of the phase that made it.
        path: the checkpoint.
    """

    model: Geolocator
    region: Region
    cells: CellTable
    outlines: Outlines
    decoding: DecodingOptions
    phase: dict[str, Any]
    path: Path
    config: dict[str, Any]


def load_trained(path: str | Path, device: str | torch.device = "cpu") -> Trained:
    """Rebuilds a model from its checkpoint alone.

    Raises:
        CheckpointError: not a checkpoint of geopak, or a broken one.
    """
    checkpoint = read_checkpoint(path)
    identity = checkpoint["geopak"]
    region = Region.from_dict(identity["region"])
    cells = CellTable.from_dict(identity["cells"])
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
    )


def build_datamodule(
    cfg: DictConfig, prepared: PreparedSet, region: Region, image_size: int
) -> GeopakDataModule:
    """The data module of ``cfg.data``."""
    from geopak.data.datamodule import GeopakDataModule, LoadingOptions

    section = plain(cfg.data)
    for key in ("root", "prepared"):
        section.pop(key)
    section["memory_cache"] = str(section["memory_cache"]).lower()
    return GeopakDataModule(prepared, region, options(LoadingOptions, section, "data"), image_size)


def build_task(
    cfg: DictConfig,
    model: Geolocator,
    phase: Phase,
    region: Region,
    cells: CellTable,
    outlines: Outlines,
    encoders_pretrained: bool,
) -> GeolocationTask:
    """The LightningModule of the phase."""
    from geopak.task import TASKS

    if phase.index not in TASKS:
        raise ConfigError(f"phase.index={phase.index}: known phases are {sorted(TASKS)}.")
    decoding = options(DecodingOptions, plain(cfg.decoding), "decoding")
    identity = model_identity(
        plain(cfg.model), region, cells, outlines, phase, decoding, plain(cfg)
    )
    return TASKS[phase.index](
        model=model,
        phase=phase,
        region=region,
        cells=cells,
        loss_options=options(LossOptions, plain(cfg.loss), "loss"),
        decoding=decoding,
        optimizer=plain(cfg.optimizer),
        encoders_pretrained=encoders_pretrained,
        identity=identity,
    )


def build_callbacks(cfg: DictConfig, phase: Phase, folder: Path) -> list[L.Callback]:
    """Checkpointing by the phase's metric, progress bar, learning-rate log, early stopping."""
    from lightning.pytorch import callbacks

    from geopak.checkpoint import BEST_NAME, CHECKPOINT_FOLDER

    section = cfg.callbacks
    built: list[L.Callback] = [
        callbacks.ModelCheckpoint(
            dirpath=folder / CHECKPOINT_FOLDER,
            filename=BEST_NAME,
            monitor=phase.monitor,
            mode=phase.monitor_mode,
            save_last=True,
            enable_version_counter=False,
        )
    ]
    if cfg.logger is not None:
        built.append(callbacks.LearningRateMonitor(logging_interval="step"))
    if section.progress_bar:
        built.append(callbacks.RichProgressBar(leave=False))
    if section.early_stopping_patience:
        built.append(
            callbacks.EarlyStopping(
                monitor=phase.monitor,
                mode=phase.monitor_mode,
                patience=section.early_stopping_patience,
            )
        )
    return built


def build_logger(cfg: DictConfig, folder: Path) -> Any:
    """The experiment logger: Weights & Biases, CSV files, or none (``False``)."""
    if cfg.logger is None:
        return False
    from lightning.pytorch import loggers

    section = plain(cfg.logger)
    kind = section.pop("kind")
    if kind == "csv":
        # A resumed run keeps the log of its first part.
        part = 1 + len(list(folder.glob("csv*")))
        version = "csv" if part == 1 else f"csv-{part}"
        return loggers.CSVLogger(save_dir=folder, name="", version=version)
    if kind == "wandb":
        logger = loggers.WandbLogger(save_dir=folder, **section)
        logger.log_hyperparams(plain(cfg))
        return logger
    raise ConfigError(f"logger.kind={kind!r} is unknown. Known: csv, wandb.")


def build_trainer(cfg: DictConfig, phase: Phase, folder: Path) -> L.Trainer:
    """The Lightning trainer of ``cfg.trainer``."""
    import lightning as L

    section = plain(cfg.trainer)
    threads = section.pop("threads")
    if threads:
        torch.set_num_threads(threads)
    if section.pop("tf32"):
        torch.set_float32_matmul_precision("high")
    return L.Trainer(
        max_epochs=phase.epochs,
        default_root_dir=folder,
        logger=build_logger(cfg, folder),
        callbacks=build_callbacks(cfg, phase, folder),
        enable_progress_bar=bool(cfg.callbacks.progress_bar),
        enable_model_summary=False,
        # Ranks draw their own batches, see geopak.data.sampler.
        use_distributed_sampler=False,
        **section,
    )
