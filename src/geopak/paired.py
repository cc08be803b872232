"""Are two models different on the same photos? Paired tests that know of photos' likeness.

Photos of one place succeed and fail together. A test that takes them for independent finds
differences that are not there; here whole groups are exchanged, as the bootstrap of
:func:`geopak.metrics.bootstrap_intervals` draws them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

# Of the permutation test; with up to 13 groups that differ all sign patterns are fewer.
NUM_PERMUTATIONS = 9999


def sign_flip_p_value(
    difference: ArrayLike,
    group: ArrayLike | None = None,
    *,
    num_permutations: int = NUM_PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Two-sided p-value of a paired permutation test on the sum of differences.

    If neither model is better, their results on a group of photos could as well be exchanged, which
    turns the sign of all the group's differences. The p-value is the share of sign patterns whose
    sum is at least as far from zero as the one observed; with one photo per group and differences
    of -1, 0 and 1 that is McNemar's exact test.

    Args:
        difference: (N,) one model's result minus the other's, photo by photo.
        group: (N,) labels of photos that are exchanged together; ``None``: one by one.
        num_permutations: sign patterns drawn at random (the one observed counts as one more), where
            there are more patterns than that in all; otherwise each is taken once.
        seed: of the draw.

    Returns:
        In (0, 1]; 1 without any difference.
    """
    d = np.asarray(difference, float)
    labels = np.arange(len(d)) if group is None else np.unique(group, return_inverse=True)[1]
    sums = np.bincount(labels, d)
    sums = sums[sums != 0]
    # Sums of the same numbers in another order differ in their last digits.
    bar = abs(sums.sum()) - 1e-9 * np.abs(sums).sum()
    if len(sums) < 63 and 2 ** len(sums) <= num_permutations + 1:
        patterns = np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums)) & 1
        return float((np.abs((1.0 - 2.0 * patterns) @ sums) >= bar).mean())
    rng = np.random.default_rng(seed)
    block = max(1, 4_000_000 // len(sums))
    reached = 0
    for start in range(0, num_permutations, block):
        size = min(block, num_permutations - start)
        signs = rng.integers(0, 2, size=(size, len(sums)), dtype=np.int8) * 2.0 - 1.0
        reached += int((np.abs(signs @ sums) >= bar).sum())
    return (1 + reached) / (1 + num_permutations)


@dataclass(frozen=True)
class McNemar:
    """McNemar's exact test of two models' correctness (McNemar, 1947).

    Attributes:
        only_first: photos that the first model alone gets right.
        only_second: photos that the second model alone gets right.
        p_value: two-sided, of both counts being equally likely; it takes photos for independent.
    """

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first_correct: ArrayLike, second_correct: ArrayLike) -> McNemar:
    """Counts the photos that one of two models alone gets right, and tests their balance.

    Args:
        first_correct, second_correct: (N,) bool, of the same photos.
    """
    first, second = np.asarray(first_correct, bool), np.asarray(second_correct, bool)
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = only_first + only_second
    p_value = stats.binomtest(only_first, discordant).pvalue if discordant else 1.0
    return McNemar(only_first, only_second, float(p_value))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, so that one false alarm among all stays rare.

    Holm's step-down method (1979): it holds whatever the dependence between the tests.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped: NDArray[np.float64] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted.tolist()


@dataclass(frozen=True)
class SeedSummary:
    """A metric over trainings that differ in their seed only.

    Attributes:
        num_seeds: trainings.
        mean: over them.
        std: sample standard deviation, NaN for a single training.
        low, high: 95% (or ``confidence``) t interval of the mean, NaN for a single training. It
            covers other seeds, not other photos.
    """

    num_seeds: int
    mean: float
    std: float
    low: float
    high: float


def seed_summary(values: ArrayLike, confidence: float = 0.95) -> SeedSummary:
    """Mean, spread and interval of (S,) values of a metric, one per seed."""
    v = np.asarray(values, float)
    if len(v) < 2:
        return SeedSummary(len(v), float(v.mean()), np.nan, np.nan, np.nan)
    std = float(v.std(ddof=1))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(v) - 1)) * std / np.sqrt(len(v))
    return SeedSummary(len(v), float(v.mean()), std, float(v.mean() - half), float(v.mean() + half))


def seed_difference(
    values: ArrayLike, baseline: ArrayLike, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of the difference of two variants' means over seeds (Welch's t, 1947).

    Args:
        values: (S,) a metric of one variant, one per seed.
        baseline: (T,) the same of the other.
        confidence: probability mass between the two ends.

    Returns:
        Ends of the interval of ``mean(values) - mean(baseline)``; NaN where a variant has fewer
        than two seeds.
    """
    a, b = np.asarray(values, float), np.asarray(baseline, float)
    if len(a) < 2 or len(b) < 2:
        return np.nan, np.nan
    gap = float(a.mean() - b.mean())
    parts = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    if not sum(parts):
        return gap, gap
    freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom) * np.sqrt(sum(parts)))
    return gap - half, gap + half
