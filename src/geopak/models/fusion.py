"""Projection of both embeddings to one width and their fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from geopak.errors import ConfigError, nearest_name

GATE_WEIGHT_STD = 0.01


class Projection(nn.Sequential):
    """Linear(in → dim), LayerNorm, GELU: (B, in) -> (B, dim)."""

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(nn.Linear(in_dim, dim), nn.LayerNorm(dim), nn.GELU())


class GatedFusion(nn.Module):
    """α = sigmoid(w·[e_semantic, e_scene] + b); fused = α·e_scene + (1 − α)·e_semantic.

    Args:
        dim: width of both embeddings.
        gate_bias: start of b; negative trusts the semantic encoder first.
    """

    def __init__(self, dim: int, gate_bias: float) -> None:
        super().__init__()
        self.gate = nn.Linear(2 * dim, 1)
        nn.init.normal_(self.gate.weight, std=GATE_WEIGHT_STD)
        nn.init.constant_(self.gate.bias, gate_bias)

    def forward(self, semantic: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, dim) -> fused (B, dim) and the scene encoder's weight α (B,)."""
        alpha = torch.sigmoid(self.gate(torch.cat((semantic, scene), dim=-1)))
        return alpha * scene + (1 - alpha) * semantic, alpha.squeeze(-1)


class MeanFusion(nn.Module):
    """fused = (e_semantic + e_scene) / 2, whatever the photo."""

    def forward(self, semantic: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, dim) -> fused (B, dim) and α = 0.5 (B,)."""
        return (semantic + scene) / 2, _constant(0.5, semantic)


class ConcatFusion(nn.Module):
    """fused = GELU(LayerNorm(W·[e_semantic, e_scene] + b)): a :class:`Projection` of 2·dim to dim.

    Args:
        dim: width of both embeddings and of the result.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.projection = Projection(2 * dim, dim)

    def forward(self, semantic: Tensor, scene: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, dim) -> fused (B, dim) and 0.5 (B,): no number says which encoder it trusts."""
        fused = self.projection(torch.cat((semantic, scene), dim=-1))
        return fused, _constant(0.5, semantic)


class SingleFusion(nn.Module):
    """One encoder's embedding as it is; the other encoder is not run.

    Args:
        alpha: 0 for the semantic encoder, 1 for the scene encoder.
    """

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.alpha = alpha

    def forward(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """(B, dim) -> the same and α (B,)."""
        return embedding, _constant(self.alpha, embedding)


def _constant(alpha: float, embedding: Tensor) -> Tensor:
    return embedding.new_full((len(embedding),), alpha)


# The encoders whose embeddings each kind of fusion takes.
FUSED_ENCODERS: dict[str, tuple[str, ...]] = {
    "gated": ("semantic", "scene"),
    "mean": ("semantic", "scene"),
    "concat": ("semantic", "scene"),
    "semantic": ("semantic",),
    "scene": ("scene",),
}


def make_fusion(kind: str, dim: int, gate_bias: float) -> nn.Module:
    """The fusion of a kind of :data:`FUSED_ENCODERS`.

    Args:
        kind: ``gated`` (published), ``mean``, ``concat``, or one encoder alone.
        dim: width of the embeddings.
        gate_bias: of the gated one.

    Raises:
        ConfigError: unknown kind.
    """
    if kind not in FUSED_ENCODERS:
        raise ConfigError(
            f"model.fusion.kind={kind!r} is unknown.{nearest_name(kind, FUSED_ENCODERS)} "
            f"Known: {', '.join(FUSED_ENCODERS)}."
        )
    if kind == "gated":
        return GatedFusion(dim, gate_bias)
    if kind == "mean":
        return MeanFusion()
    if kind == "concat":
        return ConcatFusion(dim)
    return SingleFusion(alpha=float(kind == "scene"))
