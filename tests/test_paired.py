"""Paired tests and seed statistics against enumeration, other implementations and the null."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from geopak.paired import holm, mcnemar, seed_difference, seed_summary, sign_flip_p_value


def enumerated(difference: np.ndarray, group: np.ndarray) -> float:
    """Every way to exchange the two models group by group, counted one by one."""
    labels = sorted(set(group.tolist()))
    observed = abs(difference.sum())
    reached = []
    for signs in itertools.product((-1, 1), repeat=len(labels)):
        total = sum(s * difference[group == g].sum() for s, g in zip(signs, labels, strict=True))
        reached.append(abs(total) >= observed - 1e-9)
    return float(np.mean(reached))


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 6)), min_size=1, max_size=15))
def test_few_groups_are_enumerated(rows: list[tuple[int, int]]) -> None:
    difference, group = np.array(rows, float).T
    assert sign_flip_p_value(difference * 0.1, group) == pytest.approx(
        enumerated(difference * 0.1, group)
    )


def test_many_groups_agree_with_scipy() -> None:
    rng = np.random.default_rng(3)
    difference = rng.normal(0.25, 1, 40)
    theirs = stats.permutation_test(
        (difference, np.zeros(40)),
        lambda x, y, axis: (x - y).sum(axis),
        permutation_type="samples",
        n_resamples=9999,
        vectorized=True,
    )
    assert sign_flip_p_value(difference) == pytest.approx(theirs.pvalue, abs=0.015)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=13))
def test_of_single_photos_the_sign_flip_test_of_correctness_is_mcnemars(
    rows: list[tuple[bool, bool]],
) -> None:
    first, second = np.array(rows).T
    result = mcnemar(first, second)
    assert result.only_first == sum(a and not b for a, b in rows)
    assert result.only_second == sum(b and not a for a, b in rows)
    flipped = sign_flip_p_value(second.astype(float) - first.astype(float))
    assert result.p_value == pytest.approx(flipped)


def test_equal_models_have_p_one() -> None:
    assert sign_flip_p_value(np.zeros(50), np.arange(50) // 5) == 1
    assert mcnemar(np.ones(50, bool), np.ones(50, bool)).p_value == 1


def test_without_a_difference_p_is_uniform_and_only_if_groups_are_kept_together() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(25), 8)
    grouped, alone = [], []
    for _ in range(300):
        # Photos of a group share most of their luck.
        difference = rng.normal(size=25)[group] + 0.3 * rng.normal(size=200)
        grouped.append(sign_flip_p_value(difference, group, num_permutations=399))
        alone.append(sign_flip_p_value(difference, num_permutations=399))
    assert stats.kstest(grouped, "uniform").pvalue > 0.01
    assert np.mean(np.array(grouped) <= 0.05) < 0.09
    assert np.mean(np.array(alone) <= 0.05) > 0.3


def test_a_clear_difference_is_found() -> None:
    rng = np.random.default_rng(1)
    assert sign_flip_p_value(rng.normal(0.5, 1, 300)) == 1 / 10_000


def test_holm_steps_down() -> None:
    # The example by hand: 0.01 * 4, 0.02 * 3, max(0.03 * 2, 0.06), max(0.04, 0.06).
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1, 1]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_seed_statistics_are_students_and_welchs() -> None:
    a, b = [10.0, 12.0, 11.5], [14.0, 15.0, 13.0, 18.0]
    found = seed_summary(a)
    theirs = stats.ttest_1samp(a, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert (found.num_seeds, found.mean) == (3, pytest.approx(np.mean(a)))
    assert found.std == pytest.approx(np.std(a, ddof=1))
    welch = stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    assert seed_difference(a, b) == pytest.approx((welch.low, welch.high))
    assert seed_difference([2.0, 2.0], [1.0, 1.0]) == (1, 1)
    assert np.isnan(seed_difference([2.0], b)).all()
    assert np.isnan(seed_summary([3.0]).std)
