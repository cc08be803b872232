"""Photos that look alike: a perceptual hash, and all pairs of near hashes at scale.

The hash is 256 bits: the signs of a photo's lowest cosine frequencies about their median (pHash).
As half of them are always set, distances are even.

Share of altered copies within 16 / 24 bits, measured on 20 real photos, 50 pictures with the
spectrum of natural scenes, and 199 rendered ones of 150 pixels:

| copy | real | generated | rendered |
|---|---|---|---|
| half, quarter size; JPEG at 50 or 25; blurred; grey | 1.00 / 1.00 | 1.00 / 1.00 | 0.99 / 1.00 |
| sharpened; brighter by 15%; more contrast by 25% | 1.00 / 1.00 | 1.00 / 1.00 | 0.96 / 0.99 |
| a line of text in a corner | 0.70 / 0.85 | 0.98 / 1.00 | 0.66 / 0.91 |
| 1% cropped around | 0.95 / 1.00 | 0.98 / 1.00 | 1.00 / 1.00 |
| 2% cropped around | 0.50 / 0.90 | 0.56 / 0.98 | 0.79 / 0.99 |
| 2% cropped at a corner | 0.00 / 0.15 | 0.00 / 0.00 | 0.02 / 0.26 |
| turned by 1 degree | 0.15 / 0.25 | 0.02 / 0.22 | 0.06 / 0.49 |
| a border of 2%; 5% cropped around | 0.00 / 0.05 | 0.00 / 0.02 | 0.01 / 0.05 |

Different pictures differ by 128 in the median and by no less than 72, but for plain ones that are
nearly one picture: white walls with a door came as near as 20, facades with one grid of windows 28.
So 16 drops copies and nothing else; 24 finds more of them, and some photos that are merely alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_SIDE = 16
HASH_BITS = _SIDE * _SIDE
HASH_BYTES = HASH_BITS // 8
_WORDS = HASH_BITS // 64

# A bucket with more hashes than this is not compared in full, but each hash with so many beside it
# when sorted, and with the first of all. Small sets can afford larger buckets: the limit is raised
# to what keeps all comparisons below the effort.
_CROWD = 128
_WINDOW = 16
_EFFORT = 1_000_000_000
# Pairs beyond so many are thinned out to the earliest ones of each later row.
_PAIRS_PER_HASH = 16
_PAIRS_ALWAYS = 10_000_000
_LINKS = 8
_CHUNK = 1 << 21
_SAMPLE = 1 << 16
_MOST_TABLES = 250
# Rough costs, to choose the number of tables by.
_NS_PER_KEY = 60.0
_NS_PER_COMPARISON = 80.0


@lru_cache(maxsize=1024)
def _cosines(num: int) -> NDArray[np.float32]:
    """(16, num): the lowest waves of the cosine transform (DCT-II, orthonormal)."""
    wave = np.arange(_SIDE)[:, None]
    rows = np.cos(np.pi * wave * (2 * np.arange(num) + 1) / (2 * num)) * math.sqrt(2 / num)
    rows[0] /= math.sqrt(2)
    rows[wave[:, 0] >= num] = 0  # a picture of fewer pixels has fewer waves
    return np.asarray(rows, np.float32)


def low_frequencies(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """The lowest 16 by 16 coefficients of the cosine transform of a picture of any size.

    Taken from the picture itself rather than from a reduced one: the same waves over the whole
    width and height, whatever the number of pixels.

    Args:
        pixels: (H, W) grey values.

    Returns:
        (256,), vertical frequency first.
    """
    height, width = pixels.shape
    return np.ravel(_cosines(height) @ pixels @ _cosines(width).T)


def hashes_of_frequencies(coefficients: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Perceptual hashes: which coefficients are above their median.

    Args:
        coefficients: (N, 256) as :func:`low_frequencies` gives them.

    Returns:
        (N, 32) bytes.
    """
    return np.packbits(coefficients > np.median(coefficients, axis=1, keepdims=True), axis=1)


def perceptual_hash(pixels: NDArray[np.float32]) -> bytes:
    """The 32 bytes of one picture, (H, W) grey values."""
    return hashes_of_frequencies(low_frequencies(pixels)[None]).tobytes()


def stack_hashes(hashes: Sequence[bytes]) -> NDArray[np.uint64]:
    """Hashes of 32 bytes each as rows, (N, 4).

    Raises:
        ValueError: a hash of another length.
    """
    content = b"".join(hashes)
    if len(content) != HASH_BYTES * len(hashes) or any(len(h) != HASH_BYTES for h in hashes):
        raise ValueError(f"Every perceptual hash must have {HASH_BYTES} bytes.")
    return np.frombuffer(content, np.uint64).reshape(-1, _WORDS)


@dataclass(frozen=True)
class LookAlikes:
    """Which of N photos look alike: equal hashes by reference, others as pairs.

    Equal hashes stand for one another, so that a million copies need a million numbers and not
    their pairs.

    Attributes:
        representative: (N,) the first row with the same hash.
        first, later: (M,) pairs of near, unequal hashes, as rows that represent themselves; first
            is below later; every pair once, sorted by later, then first.
        num_crowded: photos that share so much with so many others that they were not compared with
            all candidates; pairs of theirs may be missing. 0: the pairs are exact.
        num_thinned: pairs left out because there were too many to hold. 0: none.
    """

    representative: NDArray[np.int64]
    first: NDArray[np.int64]
    later: NDArray[np.int64]
    num_crowded: int = 0
    num_thinned: int = 0

    @property
    def exact(self) -> bool:
        """Whether no pair can be missing."""
        return not self.num_crowded and not self.num_thinned

    def components(self) -> NDArray[np.int64]:
        """(N,) the first row of each row's group; groups are linked through pairs of any number."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        num = len(self.representative)
        links = coo_array((np.ones(len(self.first), bool), (self.first, self.later)), (num, num))
        label = connected_components(links, directed=False)[1][self.representative]
        start = np.full(num, num, np.int64)
        np.minimum.at(start, label, np.arange(num))
        return start[label]

    def originals(self) -> NDArray[np.int64]:
        """(N,) the kept row that each row is a copy of; itself where it is kept.

        Rows are taken in order: one is kept unless it looks like an earlier kept one, and is
        referred to the earliest such. So no two kept rows look alike, and none is dropped for the
        sake of a row that was dropped itself.
        """
        original = np.arange(len(self.representative))
        dropped: dict[int, int] = {}
        for start in range(0, len(self.first), _CHUNK):
            part = slice(start, start + _CHUNK)
            for first, later in zip(
                self.first[part].tolist(), self.later[part].tolist(), strict=True
            ):
                # Pairs come by their later row, so that it is known by now whether first was kept.
                if later not in dropped and first not in dropped:
                    dropped[later] = first
        rows = np.fromiter(dropped, np.int64, len(dropped))
        original[rows] = np.fromiter(dropped.values(), np.int64, len(dropped))
        return original[self.representative]

    def near_any(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Which rows look like a chosen row other than themselves.

        Args:
            chosen: (N,).

        Returns:
            (N,).
        """
        num = len(self.representative)
        count = np.bincount(self.representative[chosen], minlength=num)
        around = np.zeros(num, np.int64)
        np.add.at(around, self.first, count[self.later])
        np.add.at(around, self.later, count[self.first])
        return (around + count)[self.representative] > chosen

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """All pairs of rows (M,) and (M,), the first below the second, sorted by them.

        Of n equal hashes there are n² / 2: for small sets only.
        """
        own, inverse = np.unique(self.representative, return_inverse=True)
        by_hash = np.argsort(inverse, kind="stable")
        members = np.split(by_hash, np.cumsum(np.bincount(inverse, minlength=len(own)))[:-1])
        of_row = dict(zip(own.tolist(), members, strict=False))
        found = [np.zeros((0, 2), np.int64)]
        for group in of_row.values():
            found.append(np.stack(np.triu_indices(len(group), 1), 1))
            found[-1] = group[found[-1]]
        for a, b in zip(self.first.tolist(), self.later.tolist(), strict=True):
            found.append(np.stack(np.meshgrid(of_row[a], of_row[b]), -1).reshape(-1, 2))
        table = np.unique(np.sort(np.concatenate(found), 1), axis=0)
        return table[:, 0], table[:, 1]


def find_look_alikes(hashes: NDArray[np.uint64], max_bits: int) -> LookAlikes:
    """Finds all pairs of hashes that differ in at most ``max_bits`` bits, without trying them all.

    Multi-index hashing (Norouzi et al. 2012) with the pigeonhole principle used twice: of s parts
    of the bits, one has at most e = max_bits // s of the differences; of e + k bands of that part,
    k hold none. So a pair agrees exactly in some k bands of some part, and each such choice is a
    table that is sorted once. More bands per key make more tables, but fewer false candidates;
    their number follows that of the hashes, so that time stays near n log n.

    Args:
        hashes: (N, 4), in the order in which photos should be kept.
        max_bits: 0 to 32.

    Returns:
        The pairs; see :class:`LookAlikes` for what is left out in degenerate sets, and counted.

    Raises:
        ValueError: max_bits is out of range.
    """
    if not 0 <= max_bits <= 32:
        raise ValueError(f"max_bits is {max_bits}; it must be 0 to 32.")
    num = len(hashes)
    representative = _first_equal(hashes)
    rows = np.flatnonzero(representative == np.arange(num))
    if max_bits == 0 or len(rows) < 2:
        nothing = np.zeros(0, np.int64)
        return LookAlikes(representative, nothing, nothing)
    words = hashes[rows]
    order, tables = _plan(_information(words), len(rows), max_bits)
    words = _reordered(words, order)
    crowd = max(_CROWD, _EFFORT // (len(rows) * len(tables)))
    row_bits = np.uint64(len(rows).bit_length())
    crowded = np.zeros(len(rows), bool)
    store = _PairStore(max(_PAIRS_ALWAYS, _PAIRS_PER_HASH * len(rows)))
    for bands in tables:
        key = np.zeros(len(rows), np.uint64)
        # Bands may be wider than the key has room for, where few bits differ: a part will do.
        most = (64 - len(rows).bit_length()) // len(bands)
        for start, end in bands:
            stop = min(end, start + most)
            key = (key << np.uint64(stop - start)) | _bit_range(words, start, stop)
        keyed = (key << row_bits) | np.arange(len(rows), dtype=np.uint64)
        keyed.sort()
        for a, b in _candidates(keyed, row_bits, crowd, words, bands[0][0] // 64, crowded):
            near = np.zeros(len(a), np.int64)
            for word in range(_WORDS):
                near += np.bitwise_count(words[a, word] ^ words[b, word])
            hit = near <= max_bits
            store.add(a[hit], b[hit])
    first, later = store.pairs()
    num_crowded = int(crowded[np.searchsorted(rows, representative)].sum())
    return LookAlikes(representative, rows[first], rows[later], num_crowded, store.num_thinned)


def _first_equal(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,) the first row with the same hash."""
    num = len(hashes)
    order = np.lexsort(hashes.T)  # stable: of equal ones the first row comes first
    new = np.ones(num, bool)
    new[1:] = (hashes[order[1:]] != hashes[order[:-1]]).any(1)
    representative = np.empty(num, np.int64)
    representative[order] = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    return representative


def _bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """(N, 256) bits of (N, 4) numbers, from the lowest bit of the first number on."""
    content = words.astype("<u8").view(np.uint8)
    return np.unpackbits(content, axis=1, bitorder="little")


def _information(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """(256,) how well each bit tells hashes apart: 1 where half of them have it, 0 where all do."""
    share = _bits(words[:: max(1, len(words) // _SAMPLE)]).mean(0)
    return np.asarray(-np.log2(share**2 + (1 - share) ** 2))


def _reordered(words: NDArray[np.uint64], order: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The same bits in another order, the same for all hashes; distances stay what they are."""
    out = np.empty_like(words)
    for start in range(0, len(words), _CHUNK // 8):
        bits = np.take(_bits(words[start : start + _CHUNK // 8]), order, axis=1)
        packed = np.packbits(bits, axis=1, bitorder="little")
        out[start : start + len(bits)] = packed.view("<u8")
    return out


def _bit_range(words: NDArray[np.uint64], start: int, stop: int) -> NDArray[np.uint64]:
    """Bits start to stop, fewer than 64, of each row as a number."""
    word, shift = divmod(start, 64)
    value = words[:, word] >> np.uint64(shift)
    if shift and stop > 64 * (word + 1):
        value = value | (words[:, word + 1] << np.uint64(64 - shift))
    return value & np.uint64((1 << (stop - start)) - 1)


_Bands = tuple[tuple[int, int], ...]


def _plan(
    information: NDArray[np.float64], num: int, max_bits: int
) -> tuple[NDArray[np.int64], list[_Bands]]:
    """The cheapest set of tables that misses no pair.

    Args:
        information: (256,) of every bit.
        num: hashes.
        max_bits: by which pairs may differ.

    Returns:
        The order to put the bits in, (256,); and per table the ranges of bits that make its key.
    """
    cheapest, choice = math.inf, (max_bits + 1, 0, 1)
    for parts in range(1, max_bits + 2):
        errors = max_bits // parts
        for agreeing in range(1, 13):
            bands = errors + agreeing
            tables = parts * math.comb(bands, agreeing)
            widest = -(-HASH_BITS // (parts * bands))
            # The key must leave room for the row number.
            room = 64 - num.bit_length()
            if parts * bands > HASH_BITS or agreeing * widest > room or tables > _MOST_TABLES:
                continue
            told = agreeing * float(information.sum()) / (parts * bands)
            comparisons = min(num / 2.0**told, _CROWD) * num / 2
            cost = tables * (num * _NS_PER_KEY + comparisons * _NS_PER_COMPARISON)
            if cost < cheapest:
                cheapest, choice = cost, (parts, errors, agreeing)
    parts, errors, agreeing = choice
    bands = errors + agreeing
    # Dealt like cards, from the most telling bit on, so that all bands tell equally much.
    dealt = np.argsort(-information, kind="stable")
    ranges, order, start = [], [], 0
    for band in range(parts * bands):
        hand = dealt[band :: parts * bands]
        order.append(hand)
        ranges.append((start, start + len(hand)))
        start += len(hand)
    tables_ = [
        chosen
        for part in range(parts)
        for chosen in itertools.combinations(ranges[part * bands : (part + 1) * bands], agreeing)
    ]
    return np.concatenate(order), tables_


def _candidates(
    keyed: NDArray[np.uint64],
    row_bits: np.uint64,
    crowd: int,
    words: NDArray[np.uint64],
    turn: int,
    crowded: NDArray[np.bool_],
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows with equal keys, in chunks; marks rows of buckets too large to try all.

    Args:
        keyed: (U,) sorted, the key above a row number.
        row_bits: bits of the row number.
        crowd: most rows of a bucket in which all pairs are tried.
        words: (U, 4) the hashes.
        turn: word by which crowded buckets are sorted first.
        crowded: (U,) is set where not all pairs are given.
    """
    row = (keyed & np.uint64((1 << int(row_bits)) - 1)).astype(np.int64)
    key = keyed >> row_bits
    same = key[1:] == key[:-1]
    if not same.any():
        return
    edge = np.flatnonzero(np.concatenate(([True], ~same, [True])))
    length = np.diff(edge)
    del key, same
    several = (length > 1) & (length <= crowd)
    yield from _within_runs(row, edge[:-1][several], length[several], crowd)
    large = length > crowd
    if not large.any():
        return
    size = length[large]
    run = np.repeat(np.arange(len(size)), size)
    start = np.cumsum(size) - size
    members = row[
        np.repeat(edge[:-1][large], size) + np.arange(size.sum()) - np.repeat(start, size)
    ]
    crowded[members] = True
    leader = np.repeat(members[start], size)
    for begin in range(0, len(members), _CHUNK):
        a, b = leader[begin : begin + _CHUNK], members[begin : begin + _CHUNK]
        yield a[a != b], b[a != b]
    # Hashes that agree in many leading bits stand beside each other.
    keys = [words[members, (turn + k) % _WORDS] for k in reversed(range(_WORDS))]
    order = np.lexsort((*keys, run))
    yield from _within_runs(members[order], start, size, _WINDOW)


def _within_runs(
    row: NDArray[np.int64], start: NDArray[np.int64], length: NDArray[np.int64], reach: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows at most ``reach`` apart within runs, in chunks."""
    at = (
        np.repeat(start, length)
        + np.arange(length.sum())
        - np.repeat(np.cumsum(length) - length, length)
    )
    stop = np.repeat(start + length, length)
    for step in range(1, reach + 1):
        inside = at + step < stop
        at, stop = at[inside], stop[inside]
        if not len(at):
            return
        for begin in range(0, len(at), _CHUNK):
            part = at[begin : begin + _CHUNK]
            yield row[part], row[part + step]


class _PairStore:
    """Distinct pairs in bounded memory, each as later << 32 | first."""

    def __init__(self, limit: int) -> None:
        self.num_thinned = 0
        self._limit = limit
        self._merged = np.zeros(0, np.uint64)
        self._new: list[NDArray[np.uint64]] = []
        self._num_new = 0

    def add(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        if len(a):
            first, later = np.minimum(a, b), np.maximum(a, b)
            self._new.append((later.astype(np.uint64) << np.uint64(32)) | first.astype(np.uint64))
            self._num_new += len(a)
            if self._num_new > max(_CHUNK, len(self._merged)):
                self._merge()

    def _merge(self) -> None:
        every = np.concatenate([self._merged, *self._new])
        self._new, self._num_new = [], 0
        every.sort()  # faster than np.unique
        self._merged = every[np.concatenate(([True], every[1:] != every[:-1]))[: len(every)]]
        if len(self._merged) > self._limit:
            later = self._merged >> np.uint64(32)
            edge = np.flatnonzero(np.concatenate(([True], later[1:] != later[:-1], [True])))
            size = np.diff(edge)
            keep = np.arange(len(later)) - np.repeat(edge[:-1], size) < _LINKS
            self.num_thinned += int((~keep).sum())
            self._merged = self._merged[keep]

    def pairs(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        self._merge()
        first = (self._merged & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return first, (self._merged >> np.uint64(32)).astype(np.int64)
