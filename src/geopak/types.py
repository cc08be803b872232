"""The values that pass between data, model, losses and prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NotRequired, TypedDict

from torch import Tensor


class Batch(TypedDict):
    """One batch of photos.

    Keys:
        image: (B, 3, H, W); uint8 as loaded, float in [0, 1] once it is ready for the model.
        features: (B, semantic + scene) what the frozen encoders say of the photo, in place of the
            image.
        latlon_deg: (B, 2) float32 degrees, latitude first.
        province_id: (B,) int64 class index.
        cell_id: (B,) int64 global cell id.
        row: (B,) int64 row number in the photo table.
    """

    image: NotRequired[Tensor]
    features: NotRequired[Tensor]
    latlon_deg: Tensor
    province_id: Tensor
    cell_id: Tensor
    row: Tensor


@dataclass
class ModelOutput:
    """What the model says of a batch; the offset is asked for separately, per cell.

    Attributes:
        province_logits: (B, P), already divided by the temperature.
        cell_log_prob: (B, N) log P(cell | province), normalised within every province.
        fused: (B, 512) fused embedding.
        gate: (B,) weight of the scene encoder in the fusion, in (0, 1); without a gate a constant:
            0.5 where both encoders are fused, 0 or 1 where one is left out.
        aux_latlon_deg: (B, 2) coordinate of the auxiliary head, degrees.
        features: (B, D) of the encoders that all else was made of, side by side.
    """

    province_logits: Tensor
    cell_log_prob: Tensor
    fused: Tensor
    gate: Tensor
    aux_latlon_deg: Tensor
    features: Tensor


@dataclass
class Decoded:
    """Hypotheses of a batch and the coordinate that one decoding rule makes of them.

    Attributes:
        latlon_deg: (B, 2) predicted coordinate by the rule.
        cell_id: (B, K) global ids of the hypotheses, most probable first.
        hypothesis_latlon_deg: (B, K, 2) cell center + bounded offset.
        probability: (B, K) joint probability, renormalised to sum to 1 over the hypotheses.
        confidence: (B,) probability mass of all cells whose refined position lies within
            ``confidence_km`` of the predicted coordinate.
    """

    latlon_deg: Tensor
    cell_id: Tensor
    hypothesis_latlon_deg: Tensor
    probability: Tensor
    confidence: Tensor
