"""Which photos make a batch: province-balanced for training, in order for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from geopak.errors import ConfigError
from geopak.geo.region import Region


def check_quotas(
    region: Region, batch_size: int, province_id: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The photos per batch of every province, validated.

    Args:
        region: gives ``batch_quota`` per province.
        batch_size: that the quotas must add up to.
        province_id: (N,) of the train photos.

    Raises:
        ConfigError: quotas that do not sum to the batch size, or one for an empty province.
    """
    quotas = np.array([p.batch_quota for p in region.provinces])
    if quotas.sum() != batch_size:
        listed = ", ".join(f"{p.key} {p.batch_quota}" for p in region.provinces)
        raise ConfigError(
            f"The batch quotas sum to {quotas.sum()}, not to data.batch_size={batch_size} "
            f"({listed}). Change region.provinces.<key>.batch_quota or data.batch_size."
        )
    count = np.bincount(province_id, minlength=region.num_provinces)
    for province, quota, n in zip(region.provinces, quotas, count, strict=True):
        if quota and not n:
            raise ConfigError(
                f"region.provinces.{province.key}.batch_quota={quota}, but {province.name} has no "
                "train photos. Set the quota to 0 and give it to another province."
            )
    return quotas


class BalancedBatchSampler(Sampler[list[int]]):
    """Batches with an exact number of photos of every province, drawn with replacement.

    The draws depend on (seed, epoch, rank) alone: another epoch or rank has an independent stream,
    the same triple the same batches again.

    Args:
        rows: (N,) row numbers of the train photos.
        province_id: (N,) their provinces.
        quotas: (P,) photos per batch and province.
        num_batches: batches an epoch.
        seed, rank: of the stream.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        province_id: NDArray[np.int64],
        quotas: NDArray[np.int64],
        num_batches: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        self.quotas = quotas
        self.pools = [rows[province_id == p] for p in range(len(quotas))]
        self.num_batches = num_batches
        self.seed = seed
        self.rank = rank
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches the next iteration draws."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch, self.rank])
        for _ in range(self.num_batches):
            drawn = [
                rng.choice(pool, quota)
                for pool, quota in zip(self.pools, self.quotas, strict=True)
                if quota
            ]
            yield rng.permutation(np.concatenate(drawn)).tolist()


class RandomBatchSampler(BalancedBatchSampler):
    """Batches drawn evenly over all train photos, whatever their province: for comparison."""

    def __init__(
        self,
        rows: NDArray[np.int64],
        batch_size: int,
        num_batches: int,
        seed: int,
        rank: int = 0,
    ) -> None:
        everywhere = np.zeros(len(rows), np.int64)
        super().__init__(rows, everywhere, np.array([batch_size]), num_batches, seed, rank)


class SequentialBatchSampler(Sampler[list[int]]):
    """All rows in order, each exactly once; rank r of w takes every w-th row.

    Args:
        rows: row numbers.
        batch_size: rows per batch; the last one may be smaller.
        rank, world_size: of this process.
    """

    def __init__(
        self, rows: Sequence[int], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.rows = list(map(int, rows))[rank::world_size]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self.rows[start : start + self.batch_size]
