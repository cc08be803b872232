"""What makes a model's probabilities honest: temperatures, regions with a promise, a say of 'no'.

Fitted by ``python -m geopak.calibrate`` on val, kept in the checkpoint, used by whoever predicts.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopak.conformal import ConformalScores, cells_within, mass_before
from geopak.selective import Familiarity
from geopak.types import ModelOutput

KEY = "calibration"
FORMAT = 1
# Temperatures beyond these say that a distribution holds nothing, or is always right.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
# Of photos like those the model knows so many are the least familiar, and their answers count less.
UNFAMILIAR_SHARE = 0.05


@dataclass(frozen=True, eq=False)
class Calibration:
    """All that calibration found out about one model.

    Attributes:
        province_temperature: divides the province logits.
        cell_temperature: divides the logits of the cells within each province.
        cells_per_province: (P,) numbers of cells, in index order.
        cell_area_km2: (N,) ground of each cell, see :func:`geopak.geo.extents.cell_extents`.
        scores: of the true cells of the photos that regions are promised by.
        familiarity: what the embeddings of known photos are like.
        fitted_on: of which photos it was made: ``split``, ``ids`` (hash of their ids),
            ``num_photos``, ``num_groups``, and of each half ``temperatures`` and ``regions``
            how many photos; ``weights``, the fingerprint of the model; ``seed``.
    """

    province_temperature: float
    cell_temperature: float
    cells_per_province: tuple[int, ...]
    cell_area_km2: NDArray[np.float64]
    scores: ConformalScores
    familiarity: Familiarity
    fitted_on: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Tensors and plain containers, so that a checkpoint with it loads safely."""
        return {
            "format": FORMAT,
            "province_temperature": self.province_temperature,
            "cell_temperature": self.cell_temperature,
            "cells_per_province": list(self.cells_per_province),
            "cell_area_km2": torch.from_numpy(self.cell_area_km2),
            "score": torch.from_numpy(self.scores.score),
            "score_province_id": torch.from_numpy(self.scores.province_id),
            "familiarity": self.familiarity.to_dict(),
            "fitted_on": dict(self.fitted_on),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`."""
        return cls(
            province_temperature=data["province_temperature"],
            cell_temperature=data["cell_temperature"],
            cells_per_province=tuple(data["cells_per_province"]),
            cell_area_km2=data["cell_area_km2"].numpy(),
            scores=ConformalScores(data["score"].numpy(), data["score_province_id"].numpy()),
            familiarity=Familiarity.from_dict(data["familiarity"]),
            fitted_on=data["fitted_on"],
        )


def calibrated(output: ModelOutput, calibration: Calibration) -> ModelOutput:
    """The model's output with honest probabilities.

    Args:
        output: as the model gives it.
        calibration: of that model.

    Returns:
        The same with the province logits and the cells' log-probabilities divided by their
        temperatures, the latter normalised within every province again.
    """
    return dataclasses.replace(
        output,
        province_logits=output.province_logits / calibration.province_temperature,
        cell_log_prob=tempered_cells(
            output.cell_log_prob, calibration.cells_per_province, calibration.cell_temperature
        ),
    )


def tempered_cells(
    log_prob: Tensor, cells_per_province: Sequence[int], temperature: float
) -> Tensor:
    """(B, N) log P(cell | province) at another temperature, normalised within every province."""
    parts = (log_prob / temperature).split(list(cells_per_province), dim=-1)
    return torch.cat([part.log_softmax(-1) for part in parts], dim=-1)


@dataclass(frozen=True, eq=False)
class Regions:
    """Sets of cells that hold the true one with a promised probability.

    Attributes:
        cell_ids: of each of B photos, most probable first; at least one.
        area_km2: (B,) float64, their ground together.
    """

    cell_ids: list[list[int]]
    area_km2: Tensor


def conformal_region(
    joint_prob: Tensor, calibration: Calibration, coverage: float, per_province: bool = False
) -> Regions:
    """The region of each photo.

    Args:
        joint_prob: (B, N) P(province) · P(cell | province) of the calibrated output, see
            :func:`geopak.models.decode.joint_log_prob`.
        calibration: of that model.
        coverage: the promised probability, in (0, 1). A true place counts as in the region if the
            cell of its province whose center is nearest is.
        per_province: promise it to the photos of every province apart, not to all together.

    Returns:
        A region per photo.
    """
    score = mass_before(joint_prob)
    inside = region_mask(score, calibration, coverage, per_province)
    order = score.argsort(dim=-1, stable=True).cpu()
    taken = inside.cpu().gather(1, order)
    areas = inside.double() @ torch.from_numpy(calibration.cell_area_km2).to(inside.device)
    return Regions([ids[keep].tolist() for ids, keep in zip(order, taken, strict=True)], areas)


def region_mask(
    score: Tensor, calibration: Calibration, coverage: float, per_province: bool = False
) -> Tensor:
    """(B, N) scores of :func:`geopak.conformal.mass_before` -> (B, N) bool, cells of the region."""
    if not per_province:
        return cells_within(score, calibration.scores.threshold(coverage))
    sizes = torch.tensor(calibration.cells_per_province)
    thresholds = calibration.scores.threshold_per_province(coverage, len(sizes))
    of_cell = torch.from_numpy(thresholds).repeat_interleave(sizes)
    return cells_within(score, of_cell.to(score.device))


def answer_score(
    output: ModelOutput, confidence: Tensor, calibration: Calibration | None
) -> Tensor:
    """How far an answer may be relied on: low for a photo that tells no place, or is not from here.

    The confidence, cut down where the photo is unlike those that the model knows: in proportion
    among the :data:`UNFAMILIAR_SHARE` that are least familiar, down to nothing.

    Args:
        output: the model's for B photos.
        confidence: (B,) of :class:`geopak.types.Decoded`, of the calibrated output.
        calibration: of the model; ``None``: its confidence is all that there is.

    Returns:
        (B,) between 0 and 1; answer where it is at least ``abstain_below``.
    """
    if calibration is None:
        return confidence
    return confidence * (calibration.familiarity(output.fused) / UNFAMILIAR_SHARE).clamp(max=1)


def fit_temperature(nll: Callable[[float], float]) -> float:
    """The temperature of the least negative log-likelihood.

    In 1/temperature the mean of -log softmax is convex, so a bounded search finds the one minimum
    (Guo et al., On calibration of modern neural networks, ICML 2017).

    Args:
        nll: of a temperature.

    Returns:
        Between :data:`LOWEST_TEMPERATURE` and :data:`HIGHEST_TEMPERATURE`.
    """
    from scipy.optimize import minimize_scalar

    found = minimize_scalar(
        lambda inverse: nll(1 / inverse),
        bounds=(1 / HIGHEST_TEMPERATURE, 1 / LOWEST_TEMPERATURE),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(1 / found.x)


def province_nll(province_logits: Tensor, province_id: Tensor, temperature: float) -> float:
    """Mean -log P(true province) of (B, P) logits at a temperature, nats."""
    log_prob = (province_logits.double() / temperature).log_softmax(-1)
    return float(-log_prob.gather(1, province_id.unsqueeze(1)).mean())


def cell_nll(
    cell_log_prob: Tensor, cell_id: Tensor, cells_per_province: Sequence[int], temperature: float
) -> float:
    """Mean -log P(true cell | true province) of (B, N) log-probabilities at a temperature, nats.

    With :func:`province_nll` at its own temperature it adds up to that of the cell among all, so
    that fitting each alone fits both together.
    """
    log_prob = tempered_cells(cell_log_prob.double(), cells_per_province, temperature)
    return float(-log_prob.gather(1, cell_id.unsqueeze(1)).mean())


_WHOLE_NUMBERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_fingerprint(state: Mapping[str, Tensor]) -> str:
    """Tells the weights of a model from those that another step of training makes of them.

    Args:
        state: names and tensors of the model.

    Returns:
        The same on every device; the price is that of reading all weights once.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().reshape(-1)
        # A sum of whole numbers does not depend on the order in which they are added.
        bits = tensor.view(_WHOLE_NUMBERS[tensor.element_size()]).sum(dtype=torch.int64)
        digest.update(f"{name} {tuple(state[name].shape)} {tensor.dtype} {int(bits)}\0".encode())
    return digest.hexdigest()[:16]
