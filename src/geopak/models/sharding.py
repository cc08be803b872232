"""Sharing out a model over processes: parameters, gradients and optimizer state (FSDP2).

Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (VLDB 2023), in the
form of ``torch.distributed.fsdp.fully_shard``, which shards every parameter by itself: frozen ones
may stand beside trained ones, and optimizer groups stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from geopak.models.geolocator import Geolocator

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def shard(model: Geolocator, mesh: DeviceMesh) -> None:
    """Shards a model in place; its parameters are new objects afterwards.

    Each block of an encoder is gathered when it is computed and given back after; all that is left
    (stems, projections, heads) is one more group, which stays gathered from forward to backward,
    as :meth:`Geolocator.locate` uses it after the forward pass.

    Only the model's forward pass gathers: heads alone, from cached features, do not work.

    Args:
        model: with its phase's parameters frozen already.
        mesh: one dimension, of all processes that share it.
    """
    if isinstance(model, FSDPModule):
        return
    for parameter in model.parameters():
        # Convolutions lie channels-last in memory, which cannot be sharded.
        parameter.data = parameter.data.contiguous()
    for encoder in (model.semantic, model.scene):
        for stage in encoder.stages():
            for block in stage:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def is_sharded(model: nn.Module) -> bool:
    """Whether :func:`shard` was applied."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """A tensor as every rank would have it alone; all ranks have to call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
