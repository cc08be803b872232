"""What each phase trains, at which rate, and from which parent it starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from geopak.errors import ConfigError, nearest_name
from geopak.losses import LossOptions
from geopak.models.freezing import LAST_STAGE, set_frozen, unfreeze_top
from geopak.models.geolocator import NO_OFFSET, Geolocator

ENCODERS = ("semantic", "scene")
# The groups that a loss term reaches, of those that not every term does.
_REACHED = {
    "province": ("province_head",),
    "cell": ("cell_heads",),
    "offset": ("embeddings", "offset_head"),
    "auxiliary": ("auxiliary_head",),
}
LR_SCALINGS = ("none", "linear", "sqrt")


@dataclass(frozen=True)
class Phase:
    """One of the sequential trainings.

    Attributes:
        index: its number, as in ``phase=2``.
        title: display name.
        parent: index of the phase that it starts from; ``None``: from the pretrained encoders.
        train: parameter groups above the encoders that train.
        unfreeze: how much of each encoder trains: a fraction of its blocks, or ``last_stage``.
        lr: peak learning rate of ``heads`` (everything above the encoders) and of each encoder.
        losses: loss terms in use.
        province_temperature: divides the province logits.
        monitor: validation metric that chooses the best checkpoint.
        monitor_mode: ``min`` or ``max``.
        epochs: number of epochs.
        schedule: ``constant`` or ``cosine``.
        warmup: share of all steps in which the rate rises linearly to its peak.
    """

    index: int
    title: str
    parent: int | None
    train: tuple[str, ...]
    unfreeze: Mapping[str, float | str]
    lr: Mapping[str, float]
    losses: tuple[str, ...]
    province_temperature: float
    monitor: str
    monitor_mode: str
    epochs: int
    schedule: str
    warmup: float

    def __post_init__(self) -> None:
        if self.schedule not in ("constant", "cosine"):
            raise ConfigError(
                f"phase.schedule={self.schedule!r} is unknown. Known: constant, cosine."
            )
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"phase.warmup={self.warmup} must be at least 0 and below 1.")
        if self.monitor_mode not in ("min", "max"):
            raise ConfigError(f"phase.monitor_mode={self.monitor_mode!r}: use min or max.")
        if self.epochs < 1:
            raise ConfigError(f"phase.epochs={self.epochs} must be at least 1.")
        for group in ("heads", *ENCODERS):
            if group not in self.lr:
                raise ConfigError(f"phase.lr.{group} is missing.")
        for group, rate in self.lr.items():
            if not 0 <= rate < math.inf:
                raise ConfigError(f"phase.lr.{group}={rate} must be 0 or more.")
        for encoder, share in self.unfreeze.items():
            if encoder not in ENCODERS:
                raise ConfigError(f"phase.unfreeze.{encoder}: there is no such encoder.")
            if share != LAST_STAGE and (isinstance(share, str) or not 0 <= share <= 1):
                raise ConfigError(
                    f"phase.unfreeze.{encoder}={share} must be a fraction between 0 and 1 or "
                    f"{LAST_STAGE}."
                )


def learning_rate_scale(rule: str, photos_per_step: int, reference_batch: int) -> float:
    """How much larger the learning rates are for a step that sees more photos.

    Args:
        rule: ``none``: 1; ``linear``: the ratio of the batches, as for SGD (Goyal et al., Accurate,
            Large Minibatch SGD, 2017); ``sqrt``: its square root, as for Adam, whose steps do not
            grow with the gradient (Malladi et al., On the SDEs and Scaling Rules for Adaptive
            Gradient Algorithms, 2022).
        photos_per_step: over all processes and accumulated batches.
        reference_batch: photos of the step that the rates were chosen for.

    Raises:
        ConfigError: an unknown rule.
    """
    if rule not in LR_SCALINGS:
        raise ConfigError(
            f"optimizer.lr_scaling={rule!r} is unknown.{nearest_name(rule, LR_SCALINGS)} "
            f"Known: {', '.join(LR_SCALINGS)}."
        )
    ratio = photos_per_step / reference_batch
    return {"none": 1.0, "linear": ratio, "sqrt": math.sqrt(ratio)}[rule]


def with_scaled_rates(phase: Phase, factor: float) -> Phase:
    """The same phase with every learning rate multiplied."""
    return replace(phase, lr={group: factor * rate for group, rate in phase.lr.items()})


def set_up_training(
    model: Geolocator,
    phase: Phase,
    encoders_pretrained: bool,
    loss: LossOptions = LossOptions(),  # noqa: B008, frozen
) -> dict[str, list[nn.Parameter]]:
    """Freezes what the phase does not train and partitions the rest for the optimizer.

    An encoder without pretrained weights is of no use frozen, so a phase without a parent trains
    it whole. What no loss term reaches stays frozen: a head whose term has no weight, an encoder
    that the fusion leaves out.

    Args:
        model: all its parameters are set trainable or frozen.
        phase: what trains.
        encoders_pretrained: whether the encoders hold anything learned.
        loss: weights of the terms.

    Returns:
        Trainable parameters of ``heads`` and of each encoder; every one in exactly one group,
        groups without any left out.

    Raises:
        ConfigError: the phase names a group that the model does not have, or trains nothing; or
            no term has a weight.
    """
    groups = model.groups()
    unreached = _unreached(model, loss, loss.used(phase.losses))
    for name in phase.train:
        if name not in groups or name in ENCODERS:
            known = [g for g in groups if g not in ENCODERS]
            raise ConfigError(
                f"phase.train names {name!r}.{nearest_name(name, known)} Known: {', '.join(known)}."
            )
    for name, modules in groups.items():
        if name not in ENCODERS:
            set_frozen(modules, name not in phase.train or name in unreached)
    whole = not encoders_pretrained and phase.parent is None
    for name, encoder in (("semantic", model.semantic), ("scene", model.scene)):
        share = 1.0 if whole else phase.unfreeze.get(name, 0.0)
        unfreeze_top(encoder, share if name in model.fused_encoders else 0.0)
    model.province_head.temperature = phase.province_temperature
    result = trainable_parameters(model)
    if not result:
        raise ConfigError("This phase trains nothing: see phase.train and phase.unfreeze.")
    return result


def _unreached(model: Geolocator, loss: LossOptions, terms: Sequence[str]) -> set[str]:
    """The groups above the fusion whose parameters no term in use has a gradient for.

    Raises:
        ConfigError: a term that could train nothing.
    """
    if "offset" in terms and model.offset_bound == NO_OFFSET:
        raise ConfigError(
            f"model.offset.bound={NO_OFFSET} leaves the offset term nothing to train: set "
            "loss.offset=0 too."
        )
    reached = {group for term in terms for group in _REACHED[term]}
    tells_provinces = model.cell_heads is None or loss.cell_target == "region"
    if "cell" in terms and tells_provinces:
        reached.add("province_head")
    return {group for groups in _REACHED.values() for group in groups} - reached


def trainable_parameters(model: Geolocator) -> dict[str, list[nn.Parameter]]:
    """The parameters that are not frozen, of ``heads`` and of each encoder.

    Every one is in exactly one group; groups without any are left out.
    """
    trainable: dict[str, list[nn.Parameter]] = {"heads": [], "semantic": [], "scene": []}
    for name, modules in model.groups().items():
        target = trainable[name if name in ENCODERS else "heads"]
        target += [p for m in modules for p in m.parameters() if p.requires_grad]
    return {name: parameters for name, parameters in trainable.items() if parameters}


def parameter_counts(model: Geolocator) -> dict[str, tuple[int, int]]:
    """(trainable, all) parameters per group of :meth:`Geolocator.groups`."""
    counts = {}
    for name, modules in model.groups().items():
        parameters = [p for m in modules for p in m.parameters()]
        counts[name] = (
            sum(p.numel() for p in parameters if p.requires_grad),
            sum(p.numel() for p in parameters),
        )
    return counts
