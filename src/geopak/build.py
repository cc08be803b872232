"""From configuration to objects: region, phase, photos, model, task."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geopak.checkpoint import with_choices
from geopak.errors import CheckpointError, ConfigError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.identity import model_identity, portable_config
from geopak.models.activations import checkpoint_activations
from geopak.models.compiling import compile_encoder
from geopak.models.encoders import (
    SceneEncoder,
    SemanticEncoder,
    clip_visual_weights,
    download_clip,
    scene_weights,
)
from geopak.models.geolocator import Geolocator
from geopak.options import options, plain
from geopak.phases import learning_rate_scale, with_scaled_rates
from geopak.schema.loading import LoadingOptions
from geopak.schema.model import HeadSizes
from geopak.schema.training import DecodingOptions, LossOptions, Phase

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from geopak.data.datamodule import GeopakDataModule
    from geopak.data.dataset import PreparedSet
    from geopak.task import GeolocationTask


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
