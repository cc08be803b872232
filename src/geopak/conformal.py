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
    """

    score: NDArray[np.float64]
    province_id: NDArray[np.int64]

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
