"""Activation checkpointing: blocks that train keep their input alone and compute the rest again.

Chen et al., Training Deep Nets with Sublinear Memory Cost (2016). Memory for time: the forward pass
of a block runs twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from geopak.models.encoders import Encoder


def checkpoint_activations(encoder: Encoder) -> int:
    """Lets the blocks of an encoder that train compute their activations again for the gradient.

    Done in place, as a class of the block's own: names and weights stay as they are. Frozen blocks
    store nothing in any case.

    Returns:
        Number of blocks.
    """
    blocks = [
        block
        for stage in encoder.stages()
        for block in stage
        if any(p.requires_grad for p in block.parameters())
    ]
    for block in blocks:
        cls = type(block)
        if not issubclass(cls, _Checkpointed):
            block.__class__ = type(f"Checkpointed{cls.__name__}", (_Checkpointed, cls), {})
    return len(blocks)


class _Checkpointed(nn.Module):
    """Put before the class of a block."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        forward = super().forward
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        if torch.compiler.is_compiling():
            # The compiler updates statistics outside what it computes again.
            return checkpoint(forward, *args, use_reentrant=False, **kwargs)

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), statistics_untouched(self)

        return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


@contextmanager
def statistics_untouched(module: nn.Module) -> Iterator[None]:
    """Within it, BatchNorms that train move copies of their running statistics.

    The same batch seen twice would otherwise count twice.
    """
    kept: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None]]] = []
    try:
        for part in module.modules():
            if isinstance(part, _BatchNorm) and part.training and part.track_running_stats:
                buffers = part._buffers
                kept.append((buffers, dict(buffers)))
                for name, value in buffers.items():
                    buffers[name] = None if value is None else value.clone()
        yield
    finally:
        for buffers, originals in kept:
            buffers.update(originals)
