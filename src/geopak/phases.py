"""What each phase trains, at which rate, and from which parent it starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from geopak.errors import ConfigError
from geopak.models.freezing import set_frozen, unfreeze_top
from geopak.models.geolocator import NO_OFFSET, Geolocator
from geopak.schema.training import ENCODERS, LossOptions, Phase

# The groups that a loss term reaches, of those that not every term does.
_REACHED = {
    "province": ("province_head",),
    "cell": ("cell_heads",),
    "offset": ("embeddings", "offset_head"),
    "auxiliary": ("auxiliary_head",),
}


def learning_rate_scale(rule: str, photos_per_step: int, reference_batch: int) -> float:
    """How much larger the learning rates are for a step that sees more photos.

    Args:
        rule: ``none``: 1; ``linear``: the ratio of the batches, as for SGD (Goyal et al., Accurate,
            Large Minibatch SGD, 2017); ``sqrt``: its square root, as for Adam, whose steps do not
            grow with the gradient (Malladi et al., On the SDEs and Scaling Rules for Adaptive
            Gradient Algorithms, 2022).
        photos_per_step: over all processes and accumulated batches.
        reference_batch: photos of the step that the rates were chosen for.
    """
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
        ConfigError: the phase trains nothing, or no term has a weight.
    """
    groups = model.groups()
    unreached = _unreached(model, loss, loss.used(phase.losses))
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
