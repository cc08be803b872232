"""Projection of both embeddings to one width and their gated fusion."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
