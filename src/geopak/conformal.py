"""Sets of cells that hold the true one with a promised probability: split-conformal prediction.

Cells are taken in order of their probability until enough of them are in. How many are enough is
read off photos that the model did not learn from: if the true cell of nine in ten of these is
reached before the model has given away a probability mass of q, sets that stop at q hold the true
cell of nine in ten photos, whether or not the model's probabilities are right (Vovk, Gammerman and
Shafer, Algorithmic learning in a random world, 2005; Romano, Sesia and Candès, Classification with
valid and adaptive coverage, 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor


def mass_before(prob: Tensor) -> Tensor:
    """The score of every cell: how much probability lies on cells that come before it.

    Cells come in order of their probability, of equal ones the lower id first. The first cell has
    the score 0, so that no set is ever empty.

    Args:
        prob: (B, N) probabilities, each row summing to 1.

    Returns:
        (B, N) float64.
    """
    ordered, cell_id = prob.double().sort(dim=-1, descending=True, stable=True)
    # The sum before, not the sum up to a cell minus its own part: that may round below zero.
    before = torch.cat((torch.zeros_like(ordered[:, :1]), ordered.cumsum(-1)[:, :-1]), dim=-1)
    return torch.empty_like(before).scatter_(1, cell_id, before)


def conformal_threshold(score: ArrayLike, coverage: float) -> float:
    """The score up to which cells are in the set.

    It is the ⌈(n + 1)·coverage⌉-th smallest of n scores. If these and the score of a new photo are
    exchangeable, the new one is at most the threshold with a probability of at least ``coverage``,
    and, where no two scores are equal, of less than ``coverage`` + 1/(n + 1).

    Args:
        score: (n,) of the true cells of calibration photos.
        coverage: in (0, 1).

    Returns:
        The threshold; infinite where n is too small to promise so much: then every cell is in.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must lie between 0 and 1, not {coverage}.")
    scores = np.asarray(score, float)
    # 0.55 · 100 is a little more than 55 in binary.
    rank = math.ceil(round((len(scores) + 1) * coverage, 9))
    return math.inf if rank > len(scores) else float(np.partition(scores, rank - 1)[rank - 1])


def fewest_photos(coverage: float) -> int:
    """The number of calibration photos from which on a coverage can be promised at all."""
    return math.ceil(round(coverage / (1 - coverage), 9))


@dataclass(frozen=True, eq=False)
class ConformalScores:
    """What calibration leaves behind: the scores of the true cells of n photos.

    Attributes:
        score: (n,) see :func:`mass_before`.
        province_id: (n,) true province.
        group: (n,) labels of photos that resemble each other, see
            :func:`geopak.report.groups.group_photos`.
    """

    score: NDArray[np.float64]
    province_id: NDArray[np.int64]
    group: NDArray[np.int64]

    def threshold(self, coverage: float) -> float:
        """One threshold for all cells: the promise holds for photos of the region as a whole."""
        return conformal_threshold(self.score, coverage)

    def threshold_per_province(self, coverage: float, num_provinces: int) -> NDArray[np.float64]:
        """(P,) a threshold for the cells of each province.

        The promise then holds for the photos of every province apart (Mondrian, or
        label-conditional conformal prediction: Vovk, Conditional validity of inductive conformal
        predictors, 2012), and it needs no guess of the province: each cell is held against its own
        province's threshold. Of a province with too few calibration photos every cell is in every
        set.
        """
        return np.array(
            [
                conformal_threshold(self.score[self.province_id == p], coverage)
                for p in range(num_provinces)
            ]
        )


def cells_within(score: Tensor, threshold: float | Tensor) -> Tensor:
    """The sets.

    Args:
        score: (B, N) of :func:`mass_before`.
        threshold: one number, or (N,) of each cell.

    Returns:
        (B, N) bool; the first cell is always in. With one number a set is the smallest whose
        probability exceeds it.
    """
    return score <= threshold


def effective_photos(hit: ArrayLike, group: ArrayLike) -> float:
    """How many independent photos would tell as much of a share as these do.

    Photos of one group succeed and fail together, so that their share spreads more than a binomial
    one: by the design effect (Kish, Survey sampling, 1965), taken from how the groups differ.

    Args:
        hit: (N,) bool; N at least 1.
        group: (N,) labels.

    Returns:
        At most N. Where all or none hit, which tells nothing of the spread, groups count as if
        their photos were all alike.
    """
    hits, (_, label) = np.asarray(hit, float), np.unique(group, return_inverse=True)
    num, sizes = len(hits), np.bincount(label)
    share = hits.mean()
    if len(sizes) < 2 or not 0 < share < 1:
        return float(num**2 / (sizes**2).sum())
    off = np.bincount(label, hits - share)
    variance = (off**2).sum() / num**2 * len(sizes) / (len(sizes) - 1)
    return float(min(num, share * (1 - share) / variance)) if variance > 0 else float(num)


def promised_range(
    coverage: float,
    num_calibration: int,
    num_new: int,
    *,
    effective_calibration: float | None = None,
    effective_new: float | None = None,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """Where the measured coverage lies if the promise is kept, by the sampling error of both sides.

    Of new photos exchangeable with n calibration photos the number covered is beta-binomial: the
    coverage itself is Beta(k, n + 1 − k), k = ⌈(n + 1)·coverage⌉ (Angelopoulos and Bates, A gentle
    introduction to conformal prediction, 2023, section 3.2).

    Args:
        coverage: promised.
        num_calibration, num_new: photos of either side, the former enough for a promise.
        effective_calibration, effective_new: how many independent photos they are worth, see
            :func:`effective_photos`, which widens the range; ``None``: all.
        confidence: probability mass between the two ends.

    Returns:
        Lower and upper end, shares.
    """
    from scipy.stats import betabinom

    rank = math.ceil(round((num_calibration + 1) * coverage, 9))
    if rank > num_calibration:
        return 1.0, 1.0
    worth = (effective_calibration or num_calibration) / num_calibration
    new = max(1, round(effective_new or num_new))
    tail = (1 - confidence) / 2
    hits = betabinom.ppf((tail, 1 - tail), new, worth * rank, worth * (num_calibration + 1 - rank))
    low, high = hits / new
    return float(low), float(high)
