"""Freezing: no gradient, eval mode, and therefore fixed normalisation statistics. Reversible."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from geopak.errors import ConfigError
from geopak.models.encoders import Encoder
from geopak.schema.training import LAST_STAGE


def set_frozen(parts: Iterable[nn.Module | nn.Parameter], frozen: bool) -> None:
    """Freezes or unfreezes modules and bare parameters.

    A frozen module is marked, so that :func:`keep_frozen_in_eval` holds it in eval mode after
    every ``train()``; ``requires_grad=False`` alone would let BatchNorm statistics move.
    """
    for part in parts:
        if isinstance(part, nn.Parameter):
            part.requires_grad_(not frozen)
            continue
        for module in part.modules():
            module.frozen = frozen  # type: ignore[assignment]
            module.train(not frozen)
        for parameter in part.parameters():
            parameter.requires_grad_(not frozen)


def keep_frozen_in_eval(root: nn.Module) -> None:
    """Puts every module marked frozen below ``root`` back into eval mode."""
    for module in root.modules():
        if getattr(module, "frozen", False):
            module.training = False


def num_unfrozen_blocks(encoder: Encoder, unfreeze: float | str) -> int:
    """How many blocks, counted from the top, an unfreezing rule names.

    Args:
        encoder: the actual encoder whose blocks are counted.
        unfreeze: a fraction of all blocks in [0, 1] (rounded; 0.3 of 12 is 4), or ``last_stage``.

    Raises:
        ConfigError: neither of these.
    """
    stages = encoder.stages()
    if unfreeze == LAST_STAGE:
        return len(stages[-1])
    if isinstance(unfreeze, (int, float)) and 0 <= unfreeze <= 1:
        return round(float(unfreeze) * sum(len(stage) for stage in stages))
    raise ConfigError(
        f"phase.unfreeze must be a fraction between 0 and 1 or {LAST_STAGE!r}, got {unfreeze!r}."
    )


def unfreeze_top(encoder: Encoder, unfreeze: float | str) -> int:
    """Freezes an encoder but for its top blocks and what lies above them.

    A fraction of 1 trains the stem as well, that is, the whole encoder.

    Returns:
        Number of blocks that train.
    """
    count = num_unfrozen_blocks(encoder, unfreeze)
    blocks = [block for stage in encoder.stages() for block in stage]
    set_frozen([encoder], True)
    if count == len(blocks):
        set_frozen([encoder], False)
    elif count:
        set_frozen(blocks[-count:], False)
        set_frozen(encoder.top(), False)
    return count
