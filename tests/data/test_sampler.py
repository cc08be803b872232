"""Batches: exact quotas, independent streams, reproducible, and each row once in evaluation."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geopak.data.sampler import (
    BalancedBatchSampler,
    RandomBatchSampler,
    SequentialBatchSampler,
    batches_per_rank,
    check_quotas,
)
from geopak.errors import ConfigError
from geopak.geo.region import Region
from geopak.schema.loading import scaled_quotas

QUOTAS = np.array([3, 0, 5])
# Row numbers that are no positions: the rows of a split lie anywhere in the table.
ROWS = np.arange(100, 1100, 7)
PROVINCE = np.random.default_rng(0).choice(3, len(ROWS), p=[0.7, 0.2, 0.1])


def batches(epoch: int = 0, rank: int = 0, seed: int = 0, num: int = 20) -> list[list[int]]:
    sampler = BalancedBatchSampler(ROWS, PROVINCE, QUOTAS, num, seed, rank)
    sampler.set_epoch(epoch)
    return list(sampler)


@given(
    quotas=st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 1000),
    rank=st.integers(0, 64),
)
def test_every_batch_has_exactly_the_quota_of_every_province(
    quotas: list[int], seed: int, epoch: int, rank: int
) -> None:
    province_of = dict(zip(ROWS.tolist(), PROVINCE.tolist(), strict=True))
    sampler = BalancedBatchSampler(ROWS, PROVINCE, np.array(quotas), 5, seed, rank)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 5
    for batch in drawn:
        count = Counter(province_of[row] for row in batch)
        assert [count[p] for p in range(3)] == quotas


def test_provinces_are_mixed_within_a_batch() -> None:
    province_of = dict(zip(ROWS.tolist(), PROVINCE.tolist(), strict=True))
    orders = {tuple(province_of[row] for row in batch) for batch in batches()}
    assert len(orders) > 10


def test_every_photo_of_a_province_is_drawn_about_equally_often() -> None:
    pool = ROWS[PROVINCE == 0]
    drawn = Counter(row for batch in batches(num=3000) for row in batch if row in set(pool))
    expected = 3000 * 3 / len(pool)
    assert set(drawn) == set(pool.tolist())
    assert all(abs(n - expected) < 6 * expected**0.5 for n in drawn.values())


def test_epochs_ranks_and_seeds_have_streams_of_their_own() -> None:
    streams = [
        batches(epoch, rank, seed) for epoch in range(3) for rank in range(3) for seed in range(3)
    ]
    seen = Counter(tuple(batch) for stream in streams for batch in stream)
    assert max(seen.values()) == 1
    assert len(seen) == 27 * 20


def test_the_same_seed_epoch_and_rank_give_the_same_batches_whatever_happened_between() -> None:
    first = batches(epoch=4, rank=1)
    torch.rand(3)
    np.random.default_rng().random(5)
    batches(epoch=5)
    assert batches(epoch=4, rank=1) == first
    sampler = BalancedBatchSampler(ROWS, PROVINCE, QUOTAS, 20, 0, 1)
    list(sampler)
    sampler.set_epoch(4)
    assert list(sampler) == first


@pytest.mark.parametrize("kind", ["balanced", "random"])
@pytest.mark.parametrize("done", [0, 1, 7, 19, 20, 33])
def test_a_resumed_sampler_goes_on_within_its_epoch(kind: str, done: int) -> None:
    def sampler() -> BalancedBatchSampler:
        if kind == "random":
            return RandomBatchSampler(ROWS, 8, 20, 4)
        return BalancedBatchSampler(ROWS, PROVINCE, QUOTAS, 20, 4)

    def stream(of: BalancedBatchSampler, first: int) -> list[list[int]]:
        drawn = list(of)
        for epoch in range(first + 1, 3):
            of.set_epoch(epoch)
            drawn += list(of)
        return drawn

    resumed = sampler()
    resumed.resume(done)
    assert stream(resumed, done // 20) == stream(sampler(), 0)[done:]


def test_sampling_leaves_global_randomness_alone() -> None:
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    batches()
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002


def test_random_sampling_takes_provinces_as_they_come() -> None:
    sampler = RandomBatchSampler(ROWS, batch_size=16, num_batches=500, seed=0)
    drawn = list(sampler)
    assert {len(batch) for batch in drawn} == {16}
    share = np.mean([row in set(ROWS[PROVINCE == 0]) for batch in drawn for row in batch])
    assert share == pytest.approx((PROVINCE == 0).mean(), abs=0.03)
    sampler.set_epoch(1)
    assert list(sampler) != drawn


@given(num=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 5))
def test_evaluation_covers_each_row_exactly_once_over_all_ranks(
    num: int, batch_size: int, world_size: int
) -> None:
    rows = ROWS[:num].tolist()
    drawn = []
    for rank in range(world_size):
        sampler = SequentialBatchSampler(rows, batch_size, rank, world_size)
        own = list(sampler)
        assert len(own) == len(sampler)
        assert all(0 < len(batch) <= batch_size for batch in own)
        drawn += [row for batch in own for row in batch]
    assert sorted(drawn) == rows
    if world_size == 1:
        assert drawn == rows


def test_quotas_are_those_of_the_region(region: Region) -> None:
    assert check_quotas(region, 8, np.array([0, 1, 2, 2])).tolist() == [2, 2, 4]


@pytest.mark.parametrize("batch_size", [4, 12, 64])
def test_quotas_keep_their_shares_in_a_batch_of_another_size(
    region: Region, batch_size: int
) -> None:
    quotas = check_quotas(region, batch_size, np.array([0, 1, 2]))
    assert (quotas * 8 == np.array([2, 2, 4]) * batch_size).all()


@pytest.mark.parametrize(("batch_size", "nearest"), [(3, "4"), (66, "64 and 68")])
def test_quotas_that_would_cut_photos_are_refused_with_the_nearest_sizes(
    region: Region, batch_size: int, nearest: str
) -> None:
    message = rf"sum to 8, not to data\.batch_size={batch_size} \(capital 2, .*work: {nearest}\. "
    with pytest.raises(ConfigError, match=message):
        check_quotas(region, batch_size, np.array([0, 1, 2]))
    for size in map(int, nearest.split(" and ")):
        assert check_quotas(region, size, np.array([0, 1, 2])).sum() == size


@given(
    quotas=st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any),
    size=st.integers(1, 300),
)
def test_scaled_quotas_are_exact_or_refused(quotas: list[int], size: int) -> None:
    exact = [Fraction(q * size, sum(quotas)) for q in quotas]
    scaled = scaled_quotas(quotas, size)
    if all(share.denominator == 1 for share in exact):
        assert scaled is not None
        assert scaled == exact
    else:
        assert scaled is None


@given(
    batches=st.integers(1, 2000),
    batch_size=st.integers(1, 256),
    world_size=st.integers(1, 64),
)
def test_an_epoch_sees_as_many_photos_on_any_hardware(
    batches: int, batch_size: int, world_size: int
) -> None:
    each = batches_per_rank(batches, 64, batch_size, world_size)
    photos = each * batch_size * world_size
    assert batches * 64 <= photos < batches * 64 + batch_size * world_size
    assert batches_per_rank(batches, 64, 64, 1) == batches


@given(num=st.integers(1, 60), batch_size=st.integers(1, 20), world_size=st.integers(1, 5))
def test_ranks_of_a_sharded_model_evaluate_as_many_batches(
    num: int, batch_size: int, world_size: int
) -> None:
    if num < world_size:
        return
    rows = ROWS[:num].tolist()
    samplers = [
        SequentialBatchSampler(rows, batch_size, rank, world_size, same_number=True)
        for rank in range(world_size)
    ]
    assert len({len(list(sampler)) for sampler in samplers}) == 1
    drawn = Counter(row for sampler in samplers for batch in sampler for row in batch)
    assert sorted(drawn) == rows
    # Each once, but for the repeated row of a rank that would have had a batch less.
    assert sum(drawn.values()) - num < world_size


def test_a_quota_for_a_province_without_photos_is_refused_by_name(
    region: Region, region_config: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"provinces\.desert\.batch_quota=2, but Great Desert"):
        check_quotas(region, 8, np.array([0, 2]))
    region_config["provinces"]["desert"]["batch_quota"] = 0
    without = Region.from_config(region_config)
    assert check_quotas(without, 6, np.array([0, 2])).tolist() == [2, 0, 4]
