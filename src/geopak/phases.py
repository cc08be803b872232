"""What each phase trains, at which rate, and from which parent it starts."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from geopak.errors import ConfigError
from geopak.models.freezing import set_frozen, unfreeze_top
from geopak.models.geolocator import Geolocator
from geopak.schema.training import ENCODERS, Phase


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
    model: Geolocator, phase: Phase, encoders_pretrained: bool
) -> dict[str, list[nn.Parameter]]:
    """Freezes what the phase does not train and partitions the rest for the optimizer.

    An encoder without pretrained weights is of no use frozen, so a phase without a parent trains
    it whole.

    Args:
        model: all its parameters are set trainable or frozen.
        phase: what trains.
        encoders_pretrained: whether the encoders hold anything learned.

    Returns:
        Trainable parameters of ``heads`` and of each encoder; every one in exactly one group,
        groups without any left out.

    Raises:
        ConfigError: the phase trains nothing.
    """
    groups = model.groups()
    for name, modules in groups.items():
        if name not in ENCODERS:
            set_frozen(modules, name not in phase.train)
    whole = not encoders_pretrained and phase.parent is None
    for name, encoder in (("semantic", model.semantic), ("scene", model.scene)):
        unfreeze_top(encoder, 1.0 if whole else phase.unfreeze.get(name, 0.0))
    model.province_head.temperature = phase.province_temperature
    result = trainable_parameters(model)
    if not result:
        raise ConfigError("This phase trains nothing: see phase.train and phase.unfreeze.")
    return result


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
