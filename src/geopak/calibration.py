"""What makes a model's probabilities honest: temperatures, regions with a promise, a say of 'no'.

Fitted by ``python -m geopak.calibrate`` on val, kept in the checkpoint, used by whoever predicts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geopak.checkpoint import read_checkpoint, sync_folder, write_whole
from geopak.conformal import ConformalScores, cells_within, mass_before
from geopak.errors import CheckpointError
from geopak.selective import Familiarity
from geopak.types import ModelOutput

KEY = "calibration"
# What regions are reported for; others can be asked for.
COVERAGES = (0.5, 0.8, 0.9, 0.95)
FORMAT = 1
# Temperatures beyond these say that a distribution holds nothing, or is always right.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0
# Answers for photos that are less familiar than this share of those of the region count for less.
UNFAMILIAR_SHARE = 0.2
SUREST = 0.03
# Directions in which what is familiar may vary freely.
NUM_DIRECTIONS = 128


@dataclass(frozen=True, eq=False)
class Calibration:
    """All that calibration found out about one model.

    Attributes:
        province_temperature: divides the province logits.
        cell_temperature: divides the logits of the cells within each province.
        confidence_maps: decoding rule -> slope and offset of the log-odds of its confidence.
        confidence_km: the distance that these hold for.
        cells_per_province: (P,) numbers of cells, in index order.
        cell_area_km2: (N,) ground of each cell, see :func:`geopak.geo.extents.cell_extents`.
        scores: of the true cells of the photos that regions are promised by.
        familiarity: what the photos that the model knows are like.
        fitted_on: of which photos it was made: ``split``; ``ids``, the fingerprint of their ids;
            ``num_photos`` and ``num_groups``, each of the half for ``temperatures`` and of that
            for ``regions``; ``weights``, the fingerprint of the model; ``seed``.
    """

    province_temperature: float
    cell_temperature: float
    confidence_maps: Mapping[str, tuple[float, float]]
    confidence_km: float
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
            "confidence_maps": {k: list(v) for k, v in self.confidence_maps.items()},
            "confidence_km": self.confidence_km,
            "cells_per_province": list(self.cells_per_province),
            "cell_area_km2": torch.from_numpy(self.cell_area_km2),
            "score": torch.from_numpy(self.scores.score),
            "score_province_id": torch.from_numpy(self.scores.province_id),
            "score_group": torch.from_numpy(self.scores.group),
            "familiarity": self.familiarity.to_dict(),
            "fitted_on": dict(self.fitted_on),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Calibration:
        """Inverse of :meth:`to_dict`."""
        return cls(
            province_temperature=data["province_temperature"],
            cell_temperature=data["cell_temperature"],
            confidence_maps={k: (v[0], v[1]) for k, v in data["confidence_maps"].items()},
            confidence_km=data["confidence_km"],
            cells_per_province=tuple(data["cells_per_province"]),
            cell_area_km2=data["cell_area_km2"].numpy(),
            scores=ConformalScores(
                *(data[key].numpy() for key in ("score", "score_province_id", "score_group"))
            ),
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


def calibrated_confidence(
    confidence: Tensor, calibration: Calibration, rule: str, confidence_km: float
) -> Tensor:
    """The confidence of an answer as an honest probability.

    The probability of the cells around an answer is not that of the answer being near the truth,
    even where the cells' probabilities are honest: cells reach across the distance, and the answer
    is better placed than their centers. Val tells how the two relate (Platt, Probabilistic outputs
    for support vector machines, 1999).

    Args:
        confidence: (B,) of :class:`geopak.types.Decoded`, of the calibrated output.
        calibration: of the model.
        rule: that the answer was decoded by.
        confidence_km: that the confidence is of.

    Returns:
        (B,); as it came for another distance than the one that was calibrated.
    """
    if not confidence_is_calibrated(calibration, rule, confidence_km):
        return confidence
    slope, offset = calibration.confidence_maps[rule]
    return torch.sigmoid(slope * log_odds(confidence) + offset).to(confidence.dtype)


def confidence_is_calibrated(calibration: Calibration, rule: str, confidence_km: float) -> bool:
    """Whether the confidence of a rule, for a distance, has been fitted to be true."""
    return rule in calibration.confidence_maps and confidence_km == calibration.confidence_km


def log_odds(confidence: Tensor) -> Tensor:
    """(B,) probabilities -> (B,) float64, finite for 0 and 1 too.

    Claims nearer to 0 or 1 than :data:`SUREST` count as that: what few photos say there would
    otherwise bend the line for all.
    """
    return torch.logit(confidence.double(), eps=SUREST)


def fit_confidence(confidence: Tensor, within: Tensor) -> tuple[float, float]:
    """Slope and offset of the log-odds that make a confidence honest.

    Args:
        confidence: (B,) claimed.
        within: (B,) bool, whether it held.

    Returns:
        Of the least negative log-likelihood, with Platt's targets, which stay within (0, 1) by one
        photo of each kind: finite where all or none held. The slope is positive, so that the order
        of the photos stays.
    """
    from scipy.optimize import minimize

    odds, hit = log_odds(confidence).cpu().numpy(), within.cpu().numpy()
    right = int(hit.sum())
    target = np.where(hit, (right + 1) / (right + 2), 1 / (len(hit) - right + 2))

    def nll(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = parameters[0] * odds + parameters[1]
        gap = 1 / (1 + np.exp(-z)) - target
        value = np.logaddexp(0, z) - target * z
        return float(value.mean()), np.array([(gap * odds).mean(), gap.mean()])

    found = minimize(
        nll, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B",
        bounds=[(1e-2, 100), (-20, 20)],
    )  # fmt: skip
    return float(found.x[0]), float(found.x[1])


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
        confidence: (B,) of :func:`calibrated_confidence`.
        calibration: of the model; ``None``: its confidence is all that there is.

    Returns:
        (B,) between 0 and 1; answer where it is at least ``abstain_below``.
    """
    if calibration is None:
        return confidence
    familiar = calibration.familiarity(seen(output)) / UNFAMILIAR_SHARE
    return confidence * familiar.clamp(max=1)


def seen(output: ModelOutput) -> Tensor:
    """(B, D) what the model sees in photos: its encoders' features and their fused embedding.

    The features tell photos of no place apart, the embedding those of another country.
    """
    return torch.cat((output.features.float(), output.fused.float()), dim=-1)


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


def halves(
    group: NDArray[np.int64], province_id: NDArray[np.int64], seed: int
) -> NDArray[np.bool_]:
    """Halves photos so that no group is on both sides and every province is on both.

    Groups come in a drawn order, large ones first, and each goes where its province has fewer
    photos yet. Nothing but groups and provinces decides, so that the scores of both halves are
    exchangeable, group for group.

    Args:
        group: (N,) labels of photos that resemble each other.
        province_id: (N,) true province; a group across several counts for that of most photos.
        seed: of the drawn order.

    Returns:
        (N,) bool, true for the first half; all of one side if there is but one group.
    """
    labels, of_photo = np.unique(group, return_inverse=True)
    num_provinces = int(province_id.max(initial=0)) + 1
    counts = np.zeros((len(labels), num_provinces), np.int64)
    np.add.at(counts, (of_photo, province_id), 1)
    rng = np.random.default_rng(seed)
    drawn = rng.permutation(len(labels))
    order = drawn[np.argsort(-counts.sum(1)[drawn], kind="stable")]
    held = np.zeros((2, num_provinces), np.int64)
    side = np.zeros(len(labels), np.int64)
    for place in order.tolist():
        province = int(counts[place].argmax())
        first, second = held[:, province].tolist()
        side[place] = rng.integers(2) if first == second else int(first > second)
        held[side[place]] += counts[place]
    if len(labels) > 1 and len(np.unique(side)) == 1:
        # Provinces of one group each, all drawn to one side.
        side[order[0]] = 1 - side[order[0]]
    first_half: NDArray[np.bool_] = side[of_photo] == 0
    return first_half


def ids_fingerprint(ids: Iterable[Any]) -> str:
    """Tells one set of photos from another by their ids, whatever their order."""
    text = "\0".join(sorted(str(i) for i in ids))
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def store(
    calibration: Calibration, checkpoint: Path, out: Path, state: os.stat_result | None = None
) -> None:
    """Writes a checkpoint with the calibration in it, whole or not at all.

    Args:
        calibration: of the model in the checkpoint; takes the place of an earlier one.
        checkpoint: to add it to; all else stays as it is.
        out: file to write, may be the same.
        state: of the checkpoint's file when it was calibrated.

    Raises:
        CheckpointError: the checkpoint has changed since, or the file cannot be written.
    """
    content = read_checkpoint(checkpoint)
    content["geopak"] = {**content["geopak"], KEY: calibration.to_dict()}
    partial = out.with_name(f"{out.name}.partial")
    try:
        write_whole(content, out)
        if state is not None and _identity(checkpoint.stat()) != _identity(state):
            raise CheckpointError(
                f"{checkpoint} has been written anew while it was calibrated: is its training "
                "still at work? Calibrate it again when that has ended."
            )
        os.replace(partial, out)
        sync_folder(out.parent)
    # torch reports a full disk as a RuntimeError of its zip writer.
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"Cannot write the checkpoint {out}: {str(error).partition(chr(10))[0]}. Make room or "
            f"mend access, or write another file with out=FILE; {checkpoint} is as it was."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _identity(state: os.stat_result) -> tuple[int, int, int]:
    return state.st_mtime_ns, state.st_size, state.st_ino


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
