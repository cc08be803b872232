"""Risk curves against naive ones, and what is familiar against what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from geopak.selective import Familiarity, risk_curve

photos = st.lists(
    st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.integers(0, 20)),
    min_size=1,
    max_size=12,
)


@settings(max_examples=40)
@given(photos)
def test_a_curve_is_the_mean_over_orders_of_ties(photo: list[tuple[float, int]]) -> None:
    score, loss = np.array(photo, float).T
    rng = np.random.default_rng(0)
    naive = np.zeros(len(loss))
    orders = 200 if len(set(score)) < len(score) else 1
    for _ in range(orders):
        mixed = rng.permutation(len(score))
        order = mixed[np.argsort(-score[mixed], kind="stable")]
        for k in range(len(order)):
            naive[k] += np.mean([loss[row] for row in order[: k + 1]]) / orders
    curve = risk_curve(score, loss)
    spread = 0 if orders == 1 else 5 * loss.std() / math.sqrt(orders) + 1e-9
    assert np.abs(curve.risk - naive).max() <= spread + 1e-9
    assert curve.risk[-1] == pytest.approx(loss.mean())
    assert curve.oracle == pytest.approx([np.sort(loss)[: k + 1].mean() for k in range(len(loss))])
    assert (curve.oracle <= curve.risk + 1e-9).all()
    assert curve.areas["oracle"] <= curve.areas["score"] + 1e-9


def test_areas_of_the_best_the_worst_and_no_score() -> None:
    loss = np.arange(1.0, 101)
    best, worst = risk_curve(-loss, loss).areas, risk_curve(loss, loss).areas
    assert best["gained"] == pytest.approx(1)
    assert best["score"] == pytest.approx(np.mean([np.mean(loss[: k + 1]) for k in range(100)]))
    assert worst["gained"] < 0
    assert risk_curve(np.zeros(100), loss).areas["gained"] == pytest.approx(0)
    assert risk_curve(loss, np.ones(100)).areas["gained"] == 0


@pytest.mark.parametrize(("num", "dim"), [(400, 20), (60, 200)])
def test_like_photos_are_evenly_familiar_and_others_hardly(num: int, dim: int) -> None:
    torch.manual_seed(0)
    mixing = torch.randn(dim, dim) * (3 * 0.6 ** torch.arange(dim)).clamp_min(0.02)
    shift = torch.randn(dim)
    train, unseen, like = (torch.randn(n, dim) @ mixing.T + shift for n in (num, 300, 1000))
    familiarity = Familiarity.fit(train, unseen, 16)
    p_value = familiarity(like)
    assert p_value.min() >= 1 / 301
    assert p_value.max() <= 1
    for share in (0.05, 0.2, 0.5, 0.8):
        assert (p_value <= share).float().mean() == pytest.approx(share, abs=0.08)
    # As long as the others, but in directions in which these hardly vary.
    other = torch.randn(200, dim)
    other = shift + other / other.norm(dim=-1, keepdim=True) * (like[:200] - shift).norm(
        dim=-1, keepdim=True
    )
    assert familiarity(other).median() < 0.02


def test_distance_is_that_of_the_gaussian() -> None:
    """Two strong directions among six numbers: compared with the inverse covariance."""
    rng = np.random.default_rng(0)
    angle = np.arange(6)
    mixing = 5 * np.stack((np.cos(angle), np.sin(angle)))

    def draw(num: int) -> NDArray[np.float64]:
        return rng.normal(size=(num, 2)) @ mixing + rng.normal(size=(num, 6)) + 7

    train, new = draw(20_000), draw(50)
    found = Familiarity.fit(torch.from_numpy(train), torch.from_numpy(train[:5]), 6)
    assert found.directions.shape == (3, 6)
    off = new - train.mean(0)
    naive = np.einsum("bi,ij,bj->b", off, np.linalg.inv(np.cov(train.T)), off)
    assert found.distance_of(torch.from_numpy(new)).numpy() == pytest.approx(naive, rel=0.1)


def test_numbers_that_never_vary_do_no_harm() -> None:
    torch.manual_seed(0)
    train = torch.randn(50, 8)
    train[:, 3] = 2.5
    familiarity = Familiarity.fit(train, train[:20], 4)
    assert torch.isfinite(familiarity.distance).all()
    again = Familiarity.from_dict(familiarity.to_dict())
    assert torch.equal(again(train), familiarity(train))
