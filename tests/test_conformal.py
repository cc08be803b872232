"""Regions with a promise: against naive sets, against exact coverage, over many draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopak.conformal import (
    ConformalScores,
    cells_within,
    conformal_threshold,
    effective_photos,
    fewest_photos,
    mass_before,
    promised_range,
)

DRAWS = 4000


def naive_set(prob: list[float], threshold: float) -> set[int]:
    """Takes cells, the most probable first, until their probability exceeds the threshold."""
    left = sorted(range(len(prob)), key=lambda k: (-prob[k], k))
    taken: set[int] = set()
    mass = 0.0
    while left and mass <= threshold:
        cell = left.pop(0)
        taken.add(cell)
        mass += prob[cell]
    return taken


weights = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 8]), min_size=1, max_size=7).filter(any)
# Thresholds that no sum of the probabilities equals: there rounding may fall on either side.
thresholds = st.sampled_from([0.0, 0.0712, 0.2347, 0.4993, 0.6381, 0.9017, 0.9999])


@given(weights, thresholds)
def test_a_set_is_the_smallest_whose_probability_exceeds_the_threshold(
    weight: list[int], threshold: float
) -> None:
    prob = [w / sum(weight) for w in weight]
    score = mass_before(torch.tensor([prob], dtype=torch.float64))
    (inside,) = cells_within(score, threshold).tolist()
    found = {k for k, taken in enumerate(inside) if taken}
    assert found == naive_set(prob, threshold)
    assert sum(prob[k] for k in found) > threshold
    smaller = itertools.combinations(range(len(prob)), len(found) - 1)
    assert not any(sum(prob[k] for k in subset) > threshold + 1e-9 for subset in smaller)


def test_every_threshold_leaves_the_first_cell_and_infinity_takes_all() -> None:
    prob = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3]])
    score = mass_before(prob)
    assert cells_within(score, 0.0).tolist() == [[True, False, False], [False, True, False]]
    assert cells_within(score, math.inf).all()


@given(st.integers(1, 60), st.sampled_from([0.5, 0.55, 0.8, 0.9, 0.95, 0.99]))
def test_the_threshold_is_the_least_that_enough_photos_stay_below(
    num: int, coverage: float
) -> None:
    score = np.random.default_rng(num).permutation(num) / num
    threshold = conformal_threshold(score, coverage)
    enough = [s for s in score if round((score <= s).sum() / (num + 1), 12) >= coverage]
    assert threshold == (min(enough) if enough else math.inf)
    assert (num >= fewest_photos(coverage)) == math.isfinite(threshold)


def simulated(
    num: int, num_cells: int, rng: np.random.Generator
) -> tuple[torch.Tensor, NDArray[np.int64]]:
    """Cells drawn from true probabilities, and what a model that is far too sure says of them."""
    logits = rng.normal(0, 1, (num, num_cells))
    true = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    cell = (true.cumsum(1) > rng.random((num, 1))).argmax(1)
    return torch.from_numpy(2.5 * logits + rng.normal(0, 1, logits.shape)).softmax(-1), cell


@pytest.mark.parametrize(("num", "coverage"), [(10, 0.8), (9, 0.9), (30, 0.5), (39, 0.95)])
def test_coverage_is_the_promise_whatever_the_model_says(num: int, coverage: float) -> None:
    """Many times: calibrate on ``num`` photos, ask one more. Exact is ⌈(n+1)c⌉/(n+1)."""
    prob, cell = simulated(DRAWS * (num + 1), 30, np.random.default_rng(num))
    score = mass_before(prob)[torch.arange(len(cell)), torch.from_numpy(cell)].numpy()
    score = score.reshape(DRAWS, num + 1)
    calibration = np.sort(score[:, :-1], axis=1)
    threshold = [conformal_threshold(row, coverage) for row in calibration]
    covered = []
    for draw, limit in enumerate(threshold):
        photo = draw * (num + 1) + num
        if draw < 200:
            hit = cell[photo] in naive_set(prob[photo].tolist(), limit)
            assert hit == (score[draw, -1] <= limit)
        covered.append(score[draw, -1] <= limit)
    exact = math.ceil(round((num + 1) * coverage, 9)) / (num + 1)
    error = 4 * math.sqrt(exact * (1 - exact) / DRAWS)
    assert np.mean(covered) == pytest.approx(exact, abs=error)
    assert np.mean(covered) >= coverage - error
    # The tie of all first cells, at 0, stays out of the way here.
    assert (score == 0).mean() < 0.3


def test_a_first_cell_that_is_right_too_often_is_the_whole_region() -> None:
    prob = torch.full((400, 5), 0.05).scatter_(1, torch.zeros(400, 1, dtype=torch.long), 0.8)
    cell = np.where(np.arange(400) % 10 < 7, 0, 2)
    score = mass_before(prob)[torch.arange(400), torch.from_numpy(cell)].numpy()
    threshold = conformal_threshold(score, 0.5)
    assert threshold == 0
    assert cells_within(mass_before(prob), threshold).sum(-1).unique().tolist() == [1]


def test_every_province_gets_its_own_promise() -> None:
    """One threshold serves the hard province badly, a threshold per province serves both."""
    rng = np.random.default_rng(3)
    num = 6000
    province = (rng.random(num) < 0.25).astype(np.int64)
    sharp = np.where(province == 0, 3.0, 0.3)[:, None]
    logits = rng.normal(0, 1, (num, 10)) * sharp
    # Cells 0-4 lie in province 0, 5-9 in province 1; the truth is in its own.
    own = np.repeat([0, 1], 5)[None] == province[:, None]
    true = np.where(own, np.exp(logits), 0)
    true /= true.sum(1, keepdims=True)
    cell = (true.cumsum(1) > rng.random((num, 1))).argmax(1)
    score = mass_before(torch.from_numpy(logits).softmax(-1))
    of_truth = score[torch.arange(num), torch.from_numpy(cell)].numpy()
    half = num // 2
    scores = ConformalScores(of_truth[:half], province[:half], np.arange(half))
    thresholds = scores.threshold_per_province(0.9, 2)
    inside = cells_within(score[half:], torch.from_numpy(thresholds.repeat(5)))
    covered = inside[torch.arange(half), torch.from_numpy(cell[half:])].numpy()
    plain = of_truth[half:] <= scores.threshold(0.9)
    for p in (0, 1):
        mine = province[half:] == p
        low, high = promised_range(
            0.9, int((province[:half] == p).sum()), int(mine.sum()), confidence=0.999
        )
        assert low <= covered[mine].mean() <= high
    apart = [plain[province[half:] == p].mean() for p in (0, 1)]
    assert min(apart) < 0.88 < 0.94 < max(apart)
    assert abs(plain.mean() - 0.9) < 0.02


def test_a_province_without_enough_photos_has_all_its_cells_in() -> None:
    scores = ConformalScores(
        np.array([0.1, 0.2, 0.3, 0.4, 0.9]), np.array([0, 0, 0, 0, 1]), np.arange(5)
    )
    found = scores.threshold_per_province(0.8, 3)
    assert found.tolist() == [0.4, math.inf, math.inf]


@pytest.mark.parametrize(
    ("num", "new", "coverage"), [(50, 200, 0.9), (400, 60, 0.8), (19, 20, 0.95)]
)
def test_the_promised_range_holds_what_many_draws_show(num: int, new: int, coverage: float) -> None:
    rng = np.random.default_rng(0)
    calibration = np.sort(rng.random((DRAWS, num)), axis=1)
    rank = math.ceil(round((num + 1) * coverage, 9))
    share = rng.binomial(new, calibration[:, rank - 1]) / new
    low, high = promised_range(coverage, num, new)
    assert ((share >= low) & (share <= high)).mean() >= 0.94
    # No wider than it must be.
    assert (share < low).mean() > 0.005 or low == 0
    assert np.quantile(share, 0.02) >= low - 2 / new
    wide = promised_range(coverage, num, new, effective_calibration=num / 4, effective_new=new / 4)
    assert wide[1] - wide[0] > 1.5 * (high - low)


def test_effective_photos_count_groups_where_photos_are_copies() -> None:
    rng = np.random.default_rng(1)
    alone = rng.random(3000) < 0.8
    assert effective_photos(alone, np.arange(3000)) == pytest.approx(3000, rel=0.01)
    copied = np.repeat(alone[:300], 10)
    assert effective_photos(copied, np.repeat(np.arange(300), 10)) == pytest.approx(300, rel=0.01)
    independent = effective_photos(alone, np.repeat(np.arange(300), 10))
    assert 2300 < independent <= 3000
    assert effective_photos(np.ones(30), np.repeat(np.arange(3), 10)) == pytest.approx(3)
    # The variance of the share over many draws of groups is that of so many photos.
    sizes = rng.integers(1, 12, 200)
    shares, worth = [], []
    for _ in range(500):
        rate = rng.beta(4, 1, 200)
        hit = rng.random(sizes.sum()) < np.repeat(rate, sizes)
        shares.append(hit.mean())
        worth.append(effective_photos(hit, np.repeat(np.arange(200), sizes)))
    assert np.mean(worth) == pytest.approx(0.8 * 0.2 / np.var(shares), rel=0.15)
