"""Photos of a prepared set as a stream of tar shards, from a folder or from a bucket.

For sets that are larger than a disk. A shard is a WebDataset tar file whose members are named by
the row of the photo table, ``1234.jpg``, and hold the photo's own bytes. Truth never leaves the
table: new cells need no new shards. Train photos lie in shards of their province, each a random
sample of it, so that every batch can have its quota of every province; those of val and test lie in
the order of the table. ``index.json`` says what there is.

Where a stream stands is arithmetic over the numbers of photos in the index. A stream that starts in
the middle opens only what it needs from there.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler, get_worker_info

from geopak.data.dataset import PreparedSet, Truth
from geopak.data.images import load_image, stack_images
from geopak.data.manifest import table_sha256
from geopak.data.sampler import EpochSampler
from geopak.errors import ConfigError, PhotoError, PreparedSetError
from geopak.geo.region import Region
from geopak.schema.model import CROP
from geopak.types import Batch

INDEX_NAME = "index.json"
FORMAT = 1
HELD_OUT = ("val", "test")
COMMAND = "python -m geopak.prepare shards"
# Names become parts of paths and of shell commands: nothing else may be in them.
SHARD_NAME = re.compile(r"(train/[\w-]+|val|test)-\d{6,}\.tar")
# What ties a photo to its shard; cells and coordinates may change without new shards.
_IDENTITY = ("id", "path", "province_id", "split")
# A transfer that breaks is tried again, so often and after so many seconds each time.
_TRIES, _PAUSE_S = 3, 2.0


@dataclass(frozen=True)
class Shard:
    """One tar file: its name relative to the index, its photos, its size in bytes."""

    name: str
    photos: int
    bytes: int


class Sample(NamedTuple):
    """One photo of a shard: its row in the photo table, its file's bytes, the shard's name."""

    row: int
    data: bytes
    shard: str


def photos_sha256(photos: pd.DataFrame) -> str:
    """Hexadecimal SHA-256 of which photo is in which row, split and province.

    The contents of the files count where the table knows them.
    """
    columns = [*_IDENTITY, *(["sha256"] if "sha256" in photos else [])]
    return table_sha256(photos, columns)


def require_webdataset() -> None:
    """Raises a ConfigError, with the remedy, where WebDataset is not installed."""
    try:
        import webdataset  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "Shards need WebDataset, which is not installed: pip install 'geopak[shards]'."
        ) from error


# --- where shards are -----------------------------------------------------------------------------


def _is_remote(place: str) -> bool:
    return "://" in place or place.startswith("pipe:")


def shard_url(place: str, name: str) -> str:
    """Where a file of the shards is.

    Args:
        place: a folder or URL that holds the index, or a pattern with ``{name}`` in it, such as
            ``pipe:ssh host cat /shards/{name}``.
        name: relative to the index.
    """
    if "{name}" in place:
        return place.replace("{name}", name)
    if _is_remote(place):
        return f"{place.rstrip('/')}/{name}"
    return str(Path(place).expanduser() / name)


def _read_url(url: str) -> bytes:
    """All bytes of a file.

    Raises:
        OSError, ValueError: cannot be opened or breaks off.
        subprocess.SubprocessError: the program that transfers it does not end.
    """
    if not _is_remote(url):
        return Path(url).read_bytes()
    from webdataset.gopen import gopen, gopen_schemes

    if url.startswith("s3://") and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    with gopen(url) as stream:
        content: bytes = stream.read()
    return content


def _read_patiently(url: str, size: int | None = None) -> bytes:
    """All bytes of a file; a broken transfer over the network is tried again.

    Raises:
        OSError, ValueError, subprocess.SubprocessError: it cannot be read, or has another size.
    """
    for trial in range(1, _TRIES + 1):
        try:
            content = _read_url(url)
            if size is not None and len(content) != size:
                raise OSError(f"it has {len(content):,} bytes, not {size:,}")
            return content
        except (OSError, subprocess.SubprocessError):
            if trial == _TRIES or not _is_remote(url):
                raise
            time.sleep(_PAUSE_S * trial)
    raise AssertionError("unreachable")


class ShardIndex:
    """What shards there are, and where.

    Attributes:
        place: folder, URL or pattern, see :func:`shard_url`.
        provinces: keys of the region's provinces, in order.
        train: shards of every province.
        held_out: shards of val and test, whose photos are in the order of the table.
        photos_sha256: of the photo table, see :func:`photos_sha256`.
    """

    def __init__(self, place: str, content: Mapping[str, Any]) -> None:
        self.place = place
        self.provinces: list[str] = list(content["region"]["provinces"])
        splits = content["splits"]
        self.train = [_shards(splits["train"][key]) for key in self.provinces]
        self.held_out = {split: _shards(splits[split]) for split in HELD_OUT}
        self.photos_sha256: str = content["prepared"]["photos_sha256"]

    @classmethod
    def read(cls, place: str) -> ShardIndex:
        """Reads the index of a folder or URL.

        Raises:
            PreparedSetError: there is none, or it is broken.
            ConfigError: WebDataset is not installed.
        """
        require_webdataset()
        url = shard_url(place, INDEX_NAME)
        try:
            content = json.loads(_read_patiently(url))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise PreparedSetError(
                f"No shards at {place}: {url} cannot be read ({error}). Make them with {COMMAND} "
                "root=FOLDER, or name the folder or URL that holds index.json."
            ) from error
        try:
            if content["format"] != FORMAT:
                raise PreparedSetError(
                    f"{url} is of format {content['format']}, this version of geopak reads "
                    f"{FORMAT}. Make the shards again: {COMMAND} root=FOLDER."
                )
            return cls(place, content)
        except (KeyError, TypeError) as error:
            raise PreparedSetError(
                f"{url} is no index of shards ({error!r}). Make them: {COMMAND} root=FOLDER."
            ) from error

    def check(self, prepared: PreparedSet, region: Region) -> None:
        """Raises a PreparedSetError unless the shards hold the photos of this set and region."""
        keys = [province.key for province in region.provinces]
        same_region = keys == self.provinces
        if not same_region or photos_sha256(prepared.photos) != self.photos_sha256:
            what = "another prepared set" if same_region else "another region"
            raise PreparedSetError(
                f"The shards at {self.place} were made from {what}: their photos are not those of "
                "the photo table, row by row. Name the prepared set that they were made from, or "
                f"make new ones: {COMMAND} root={prepared.root} prepared=FOLDER out=FOLDER."
            )

    def samples(self, shard: Shard) -> list[Sample]:
        """All photos of a shard, undecoded.

        Raises:
            PreparedSetError: it cannot be read, or holds something else than the index says.
        """
        from webdataset.tariterators import tar_file_iterator

        url = shard_url(self.place, shard.name)
        try:
            content = io.BytesIO(_read_patiently(url, shard.bytes))
            members = [(m["fname"], m["data"]) for m in tar_file_iterator(content)]
            found = [Sample(int(name.split(".")[0]), data, shard.name) for name, data in members]
            if len(found) != shard.photos:
                raise ValueError(f"{len(found):,} photos can be read in it, not {shard.photos:,}")
            return found
        except (OSError, ValueError, tarfile.TarError, subprocess.SubprocessError) as error:
            raise PreparedSetError(
                f"Cannot read the shard {url}: {error}. Copy it again from where it was made, or "
                f"make the shards again: {COMMAND} root=FOLDER."
            ) from error


def _shards(entries: Sequence[Mapping[str, Any]]) -> list[Shard]:
    shards = [Shard(str(e["name"]), int(e["photos"]), int(e["bytes"])) for e in entries]
    for shard in shards:
        if not SHARD_NAME.fullmatch(shard.name):
            raise PreparedSetError(
                f"{shard.name!r} is no name of a shard: {INDEX_NAME} was altered. Make the shards "
                f"again: {COMMAND} root=FOLDER."
            )
    return shards


# --- training: balanced batches -------------------------------------------------------------------


class _Visit(NamedTuple):
    """A group of shards, and which of its photos are taken in which order."""

    shards: list[Shard]
    order: NDArray[np.int64]


class ProvinceStream:
    """Photos of one province, pass after pass over its shards.

    In every pass the shards come in a new order, in groups of ``group``. A group is held in memory
    as undecoded bytes, and its photos come mixed. All photos come once before any comes again.

    Args:
        index: says where the shards are.
        shards: of the province, with at least one photo.
        group: shards held at a time.
        key: of the stream's randomness; streams of other keys of the same length are independent.
        ahead: reads the following group while this one is used; ``None``: when it is needed.
    """

    def __init__(
        self,
        index: ShardIndex,
        shards: Sequence[Shard],
        group: int,
        key: Sequence[int],
        ahead: ThreadPoolExecutor | None = None,
    ) -> None:
        self._index = index
        self._shards = shards
        self._group = group
        self._key = tuple(key)
        self._ahead = ahead

    def samples(self, start: int = 0) -> Iterator[Sample]:
        """Endless photos, from the one of number ``start`` on."""
        visits = self._visits(start)
        visit = next(visits)
        load = self._later(visit, {})
        while True:
            held = load()
            photos = [sample for shard in visit.shards for sample in held[shard]]
            following = next(visits)
            half = len(visit.order) // 2
            for count, number in enumerate(visit.order):
                if count == half:
                    load = self._later(following, held)
                    del held
                yield photos[number]
            visit = following
            del photos

    def _visits(self, start: int) -> Iterator[_Visit]:
        number, skipped = divmod(start, sum(shard.photos for shard in self._shards))
        while True:
            order = self._rng(number, 0).permutation(len(self._shards))
            for first in range(0, len(order), self._group):
                shards = [self._shards[i] for i in order[first : first + self._group]]
                size = sum(shard.photos for shard in shards)
                if skipped < size:
                    mixed = self._rng(number, 1 + first).permutation(size)
                    yield _Visit(shards, mixed[skipped:])
                skipped = max(0, skipped - size)
            number += 1

    def _rng(self, number: int, part: int) -> np.random.Generator:
        return np.random.default_rng([*self._key, number, part])

    def _later(
        self, visit: _Visit, held: Mapping[Shard, list[Sample]]
    ) -> Callable[[], dict[Shard, list[Sample]]]:
        """A function that gives the photos of a group; what is held already is not read again."""
        known = {shard: held[shard] for shard in visit.shards if shard in held}
        missing = [shard for shard in visit.shards if shard not in held]
        if self._ahead is None:
            return lambda: known | {shard: self._index.samples(shard) for shard in missing}
        reads = {shard: self._ahead.submit(self._index.samples, shard) for shard in missing}
        return lambda: known | {shard: read.result() for shard, read in reads.items()}


class ShardBatches(Dataset[Batch]):
    """Province-balanced training batches from shards.

    ``dataset[epoch, number]`` is a batch with exactly the quota of every province. It depends on
    seed, rank, epoch, number and the number of loader processes alone; asked for in order, as
    :class:`ShardBatchSampler` does, batches come as a stream. Every process has a lane of its own,
    batches ``number % num_workers``, and on it a stream per province whose photos all come once
    before any comes again.

    Args:
        prepared: gives the truth of every row.
        index: the shards.
        quotas: (P,) photos per batch and province.
        size: side of the square images, pixels.
        seed, rank: of the stream.
        group: shards of a province that are held in memory at a time, as undecoded bytes.
        framing: how photos become squares, see :func:`geopak.data.images.load_image`.
    """

    def __init__(
        self,
        prepared: PreparedSet,
        index: ShardIndex,
        quotas: NDArray[np.int64],
        size: int,
        seed: int,
        rank: int = 0,
        group: int = 2,
        framing: str = CROP,
    ) -> None:
        self.truth = Truth(prepared.photos)
        self.index = index
        self.quotas = [int(quota) for quota in quotas]
        self.size = size
        self.framing = framing
        self.seed = seed
        self.rank = rank
        self.group = group
        self._describe = _Describer(prepared, index)
        # Where the open streams stand: epoch, number of processes, next batch.
        self._at: tuple[int, int, int] | None = None
        self._streams: list[Iterator[Sample]] = []
        self._ahead: ThreadPoolExecutor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_at": None, "_streams": [], "_ahead": None}

    def __getitem__(self, epoch_and_number: tuple[int, int]) -> Batch:
        epoch, number = epoch_and_number
        worker = get_worker_info()
        workers = 1 if worker is None else worker.num_workers
        lane, turn = number % workers, number // workers
        if self._at != (epoch, workers, number):
            self._open(epoch, lane, turn)
        # Set again when the batch is complete: after an error nothing stands where it should.
        self._at = None
        quotas = [quota for quota in self.quotas if quota]
        taken = [
            next(stream)
            for stream, quota in zip(self._streams, quotas, strict=True)
            for _ in range(quota)
        ]
        rng = np.random.default_rng([self.seed, epoch, self.rank, lane, len(self.quotas), turn, 0])
        taken = [taken[i] for i in rng.permutation(len(taken))]
        batch = _decoded(taken, self.truth, self.size, self.framing, self._describe)
        self._at = (epoch, workers, number + workers)
        return batch

    def _open(self, epoch: int, lane: int, turn: int) -> None:
        """Puts every province's stream to where the lane's batch number ``turn`` begins."""
        if _is_remote(self.index.place) and self._ahead is None:
            self._ahead = ThreadPoolExecutor(2, "shards")
        self._streams = [
            ProvinceStream(
                self.index, shards, self.group, (self.seed, epoch, self.rank, lane, province),
                self._ahead,
            ).samples(turn * quota)
            for province, (shards, quota) in enumerate(
                zip(self.index.train, self.quotas, strict=True)
            )
            if quota
        ]  # fmt: skip


class ShardBatchSampler(EpochSampler[tuple[int, int]]):
    """Asks :class:`ShardBatches` for the batches of an epoch, ``(epoch, number)``, in order.

    Args:
        num_batches: batches an epoch.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for number in range(self.first, self.num_batches):
            yield self.epoch, number


# --- validation and test: every photo once --------------------------------------------------------


class ShardPhotos(Dataset[Batch]):
    """Photos of val or test from shards: ``dataset[rows]`` is a batch, as of ``PhotoDataset``.

    The last shard is kept, so rows are best asked for in the order of the table, as
    :class:`ShardRowSampler` does.

    Args:
        prepared: gives the truth of every row.
        index: the shards.
        split: ``val`` or ``test``.
        size: side of the square images, pixels.
        framing: how photos become squares, see :func:`geopak.data.images.load_image`.

    Raises:
        PreparedSetError: the index has another number of photos in the split than the table.
    """

    def __init__(
        self, prepared: PreparedSet, index: ShardIndex, split: str, size: int, framing: str = CROP
    ) -> None:
        if split not in HELD_OUT:
            raise PreparedSetError(
                f"split={split}: shards have the photos of {' and '.join(HELD_OUT)} in order, but "
                "those of train as a balanced stream alone. Measure train on the photo files."
            )
        self.truth = Truth(prepared.photos)
        self.index = index
        self.shards = index.held_out[split]
        self.rows = prepared.rows(split)
        self.size = size
        self.framing = framing
        # (number of shards,) position in ``rows`` where each one ends.
        self._ends = np.cumsum([shard.photos for shard in self.shards])
        if not len(self.shards) or self._ends[-1] != len(self.rows):
            raise PreparedSetError(
                f"The shards at {index.place} have not all {len(self.rows):,} {split} photos. Make "
                f"them again: {COMMAND} root=FOLDER."
            )
        self._describe = _Describer(prepared, index)
        self._held: tuple[int, dict[int, Sample]] = (-1, {})

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": (-1, {})}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Sequence[int]) -> Batch:
        asked = np.asarray(rows, np.int64)
        position = np.searchsorted(self.rows, asked)
        if (self.rows[np.minimum(position, len(self.rows) - 1)] != asked).any():
            raise IndexError("Rows of another split.")
        numbers = np.searchsorted(self._ends, position, side="right")
        found: dict[int, Sample] = {}
        for number in dict.fromkeys(numbers.tolist()):
            held = self._shard(number)
            for row in asked[numbers == number].tolist():
                if row not in held:
                    raise PreparedSetError(
                        f"The shard {shard_url(self.index.place, self.shards[number].name)} lacks "
                        f"row {row}. Make the shards again: {COMMAND} root=FOLDER."
                    )
                found[row] = held[row]
        taken = [found[row] for row in asked.tolist()]
        return _decoded(taken, self.truth, self.size, self.framing, self._describe)

    def _shard(self, number: int) -> dict[int, Sample]:
        if self._held[0] != number:
            self._held = (-1, {})
            samples = self.index.samples(self.shards[number])
            self._held = (number, {sample.row: sample for sample in samples})
        return self._held[1]


class ShardRowSampler(Sampler[list[int]]):
    """All rows, each exactly once over all ranks, so that a loader process reads adjacent ones.

    Every rank has a stretch of the rows, every process of its loader a stretch of the rank's
    batches: a shard is opened by those few whose stretch it touches. Batches therefore come in
    another order than the rows, unless one process or none loads them.

    Args:
        rows: row numbers, in the order of the shards.
        batch_size: rows per batch; the last one of the rank may be smaller.
        rank, world_size: of this process.
        num_workers: processes of the loader.
        same_number: give every rank as many batches; one with fewer repeats a row of its own.
    """

    def __init__(
        self,
        rows: NDArray[np.int64],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        same_number: bool = False,
    ) -> None:
        stretches = np.array_split(rows, world_size)
        own = stretches[rank].tolist()
        if same_number and own and -(-len(own) // batch_size) < -(-len(stretches[0]) // batch_size):
            # Rows differ by one between ranks, hence batches too.
            own.append(own[-1])
        batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
        # The loader deals batches out by turns. The longer stretches come first, so that the last
        # round, where some have none left, deals them out right too.
        stretches = np.array_split(np.arange(len(batches)), max(1, num_workers))
        self.batches = [
            batches[stretch[turn]]
            for turn in range(len(stretches[0]))
            for stretch in stretches
            if turn < len(stretch)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        yield from self.batches


# --- decoding -------------------------------------------------------------------------------------


class _Describer:
    """Says of a sample which photo it is and where it was read."""

    def __init__(self, prepared: PreparedSet, index: ShardIndex) -> None:
        self._id = prepared.photos["id"]
        self._path = prepared.photos["path"]
        self._place = index.place

    def __call__(self, sample: Sample) -> str:
        return (
            f"photo {self._id.iloc[sample.row]} (row {sample.row}, {self._path.iloc[sample.row]}) "
            f"in the shard {shard_url(self._place, sample.shard)}"
        )


def _decoded(
    samples: Sequence[Sample],
    truth: Truth,
    size: int,
    framing: str,
    describe: Callable[[Sample], str],
) -> Batch:
    """Photos with their truth.

    Raises:
        PhotoError: one that cannot be decoded.
        PreparedSetError: one of a row that the table does not have.
    """
    images = []
    for sample in samples:
        if sample.row >= len(truth):
            raise PreparedSetError(
                f"{sample.shard} has a photo of row {sample.row}, the photo table has "
                f"{len(truth):,} rows. Make the shards again: {COMMAND} root=FOLDER."
            )
        try:
            images.append(load_image(sample.data, size, framing))
        except PhotoError as error:
            raise PhotoError(
                f"Cannot read {describe(sample)}: {error} Copy the shard again from where it was "
                f"made, or make the shards again: {COMMAND} root=FOLDER."
            ) from error
    batch = truth.batch(torch.tensor([sample.row for sample in samples], dtype=torch.long))
    batch["image"] = stack_images(images, len(images), size)
    return batch
