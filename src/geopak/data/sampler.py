"""Which photos make a batch: province-balanced for training, in order for evaluation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from geopak.errors import ConfigError
from geopak.geo.region import Region
from geopak.schema.loading import batch_quotas

T = TypeVar("T")


def batches_per_rank(
    batches_per_epoch: int, reference_batch: int, batch_size: int, world_size: int
) -> int:
    """Batches that each process draws, so that an epoch sees as many photos on any hardware.

    An epoch is ``batches_per_epoch`` × ``reference_batch`` photos. However many processes share
    them, in batches of whatever size, it stays so many; where that does not come out even, it is
    the few more that fill everyone's last batch.

    Args:
        batches_per_epoch: counted in batches of ``reference_batch`` photos, over all processes.
        reference_batch: photos.
        batch_size: photos a batch and process.
        world_size: number of processes.
    """
    return math.ceil(batches_per_epoch * reference_batch / (batch_size * world_size))


def check_quotas(
    region: Region, batch_size: int, province_id: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The photos per batch of every province, validated.

    Args:
        region: gives ``batch_quota`` per province.
        batch_size: that the quotas are scaled to.
        province_id: (N,) of the train photos.

    Raises:
        ConfigError: quotas that cannot be scaled (:func:`geopak.schema.loading.batch_quotas`), or
            one for an empty province.
    """
    quotas = np.array(batch_quotas(region, batch_size), np.int64)
    count = np.bincount(province_id, minlength=region.num_provinces)
    for province, n in zip(region.provinces, count, strict=True):
        if province.batch_quota and not n:
            raise ConfigError(
                f"region.provinces.{province.key}.batch_quota={province.batch_quota}, but "
                f"{province.name} has no train photos. Set the quota to 0 and give it to another "
                "province."
            )
    return quotas


class EpochSampler(Sampler[T]):
    """Names the batches of one epoch after the other, and can go on within an epoch.

    Args:
        num_batches: batches an epoch.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.epoch = 0
        self._done = (0, 0)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch whose batches the next iteration names."""
        self.epoch = epoch

    def resume(self, batches_done: int) -> None:
        """Goes on after so many batches of the whole training: at their epoch, and within it."""
        self._done = divmod(batches_done, self.num_batches)
        self.epoch = self._done[0]

    @property
    def first(self) -> int:
        """Number of the first batch that is still to come in this epoch."""
        epoch, done = self._done
        return done if self.epoch == epoch else 0

    def __len__(self) -> int:
        return self.num_batches


class BalancedBatchSampler(EpochSampler[list[int]]):
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
        super().__init__(num_batches)
        self.quotas = quotas
        self.pools = [rows[province_id == p] for p in range(len(quotas))]
        self.seed = seed
        self.rank = rank

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng([self.seed, self.epoch, self.rank])
        first = self.first
        for number in range(self.num_batches):
            drawn = [
                rng.choice(pool, quota)
                for pool, quota in zip(self.pools, self.quotas, strict=True)
                if quota
            ]
            # Drawn for the batches left out too: each draw depends on those before it.
            batch = rng.permutation(np.concatenate(drawn))
            if number >= first:
                yield batch.tolist()


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
        same_number: give every rank as many batches; one with fewer repeats a row of its own.
    """

    def __init__(
        self,
        rows: Sequence[int],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        same_number: bool = False,
    ) -> None:
        self.rows = list(map(int, rows))[rank::world_size]
        self.batch_size = batch_size
        most = -(-len(rows) // world_size)
        if same_number and self.rows and len(self) < -(-most // batch_size):
            # Rows differ by one between ranks, hence batches too.
            self.rows.append(self.rows[-1])

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield self.rows[start : start + self.batch_size]
