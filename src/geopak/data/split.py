"""Train, val and test by place and author, with the photos in between set aside.

Linking photos by distance and cutting between the groups does not work: in a city the links
percolate into one group. Here every photo belongs to one unit of ground that is drawn as a whole:
where photos tied to each other are few, they all belong to the unit of one of them, so that nothing
is lost between them; where the ties percolate, the unit is the photo's own block. What is left but
still too close to a held-out photo, or of its author and day, album or look, becomes the split
``buffer``, which nothing is trained or measured on.

Every unit has a fixed place on a line, its salted hash. Test takes a province's units from one end
of the line until its share is reached, val from the other: photos that are added later move the two
ends a little, and nothing else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopak.data.ties import Ties, block_codes, components, hashed
from geopak.errors import PreparedSetError
from geopak.geo.distance import EARTH_RADIUS_KM
from geopak.schema.preparation import SplitSettings

SPLITS = ("train", "val", "test", "buffer")
_TRAIN, _VAL, _TEST, _BUFFER = range(4)
# How close to the asked share a draw must come, or else units are passed over for it.
_TOLERANCE = 0.008
# From here on a size is said to be off.
_OFF = 0.01
# Groups of so few photos are held out whole in any province.
_SMALL_GROUP = 10
# A group for each of train, val and test.
_FEWEST_GROUPS = 3
# Side of the squares that stand for the photos in them, as a share of the distance that is near.
_SPOT_SIDE = 0.5
# Two squares' photos are compared one by one up to so many pairs, for so many squares at a time.
_MOST_COMPARED = 64
_PAIRS_AT_A_TIME = 1_000_000


@dataclass(frozen=True)
class ProvinceSplit:
    """What became of one province.

    Attributes:
        province_id: which.
        counts: photos of every one of ``SPLITS``.
        num_groups: units that could be drawn, before anything was.
        largest_group: photos of the largest of them.
        notes: what differs from the asked and why, in words; empty when all is well.
    """

    province_id: int
    counts: dict[str, int]
    num_groups: int
    largest_group: int
    notes: tuple[str, ...] = ()

    @property
    def shares(self) -> dict[str, float]:
        """Share of the province's photos of every one of ``SPLITS``."""
        total = max(1, sum(self.counts.values()))
        return {name: count / total for name, count in self.counts.items()}


@dataclass(frozen=True, eq=False)
class SplitResult:
    """A split and what is to be said about it.

    Attributes:
        split: of every photo, on the index of the photos.
        provinces: per province with photos, by ``province_id``.
        notes: about the whole.
    """

    split: pd.Series
    provinces: tuple[ProvinceSplit, ...]
    notes: tuple[str, ...] = ()


def split_photos(
    photos: pd.DataFrame,
    settings: SplitSettings,
    seed: int,
    previous: pd.Series | None = None,
) -> pd.Series:
    """Assigns every photo to ``train``, ``val``, ``test`` or ``buffer``.

    As :func:`split_with_report`, without the report.
    """
    return split_with_report(photos, settings, seed, previous).split


def split_with_report(
    photos: pd.DataFrame,
    settings: SplitSettings,
    seed: int,
    previous: pd.Series | None = None,
) -> SplitResult:
    """Assigns every photo to ``train``, ``val``, ``test`` or ``buffer`` and says what it cost.

    Depends on the photos' content and the seed only, not on their order.

    Args:
        photos: with ``id, latitude, longitude, province_id``; ``author`` with ``captured_at``,
            ``album`` and ``look`` (equal numbers look alike) tie photos together where present.
        settings: method and sizes. ``settings.previous`` is not read here.
        seed: another seed draws other places.
        previous: split of earlier photos by ``id``, as :func:`read_previous` gives it. Their test
            photos stay test and their val photos stay val, unless a val photo turns out to be tied
            to a test photo and becomes ``buffer``; their train photos stay train or become
            ``buffer``. New photos join the unit they lie in; units without earlier photos are drawn
            as far as the asked share is not yet reached.

    Returns:
        The split of every photo. But with ``random``: no two photos of different splits other than
        ``buffer`` lie within the distance, share author and day, share an album or look alike.

    Raises:
        PreparedSetError: ``previous`` names a photo twice or a split there is not.
    """
    province = photos["province_id"].to_numpy(np.int64)
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    before = _codes_before(photos, previous)
    ties = None
    if settings.method == "random":
        ids = photos["id"].astype(str).to_numpy(object)
        units = _Units.of(pd.util.hash_array(ids, categorize=False), province, seed)
    else:
        ties = Ties.of(photos)
        block = block_codes(latlon_deg, settings.block_km)
        if settings.method == "places":
            block = _homes(latlon_deg, block, province, ties, settings)
        units = _Units.of(block, province, seed, whole=settings.method == "spatial_blocks")
    linked = _linker(ties, settings)

    split = np.where(before == _BUFFER, _TRAIN, before)
    split[before < 0] = _TRAIN
    num_groups, largest_group = units.sizes(np.ones(len(photos), bool))
    free = before < 0
    kept = (before == _TRAIN) & ~linked((before == _VAL) | (before == _TEST))
    free &= ~linked(kept)
    if ties is not None:
        free &= ~_unmovable(ties, units, settings)
    settled = units.any_of(before >= 0)[units.of_photo]
    for name, fraction in ((_TEST, settings.test_fraction), (_VAL, settings.val_fraction)):
        other = before == (_VAL if name == _TEST else _TEST)
        free &= split == _TRAIN
        mine = units.any_of(before == name) & ~units.any_of(other | (before == _TRAIN))
        open_to = free & ~linked(other & (split != _BUFFER))
        joins = mine[units.of_photo]
        if settings.method == "places":
            joins = joins | linked(before == name)
        split[open_to & joins] = name
        spare = int(name == _TEST and settings.val_fraction > 0) + 1
        drawable = open_to & ~settled & (split == _TRAIN)
        drawn = units.draw(drawable, split == name, fraction, num_groups, spare, name == _VAL)
        split[drawable & drawn[units.of_photo]] = name
        near = linked(split == name)
        if settings.method == "spatial_blocks":
            near |= units.any_of(split == name)[units.of_photo]
        split[near & (split < name)] = _BUFFER
    names = pd.Series(np.array(SPLITS, object)[split], index=photos.index, name="split")
    provinces = _describe(split, province, num_groups, largest_group, settings)
    return SplitResult(names.astype("string"), provinces, _notes(ties, previous, before, split))


def read_previous(path: str | Path) -> pd.Series:
    """Reads which split the photos of an earlier set were in.

    Args:
        path: folder of a prepared set, or a Parquet or CSV table with ``id`` and ``split``.

    Returns:
        Split by ``id``.

    Raises:
        PreparedSetError: there is no such table, or it lacks a column.
    """
    file = Path(path) / "photos.parquet" if Path(path).is_dir() else Path(path)
    remedy = "split.previous takes the folder of a prepared set or a table with id and split."
    if not file.is_file():
        raise PreparedSetError(f"{file} is not there. {remedy}")
    try:
        if file.suffix == ".parquet":
            table = pd.read_parquet(file, columns=["id", "split"])
        else:
            separator = "\t" if file.suffix == ".tsv" else ","
            table = pd.read_csv(file, sep=separator, usecols=["id", "split"], dtype="string")
    except (ValueError, KeyError, OSError) as error:
        raise PreparedSetError(f"{file} cannot be used: {error}. {remedy}") from error
    return table.set_index(table["id"].astype("string"))["split"].astype("string")


def _codes_before(photos: pd.DataFrame, previous: pd.Series | None) -> NDArray[np.int64]:
    """(N,) number of the split each photo had, -1 for new photos."""
    if previous is None:
        return np.full(len(photos), -1, np.int64)
    previous = previous.set_axis(previous.index.astype("string"))
    twice = previous.index[previous.index.duplicated()]
    if len(twice):
        raise PreparedSetError(
            f"split.previous: photo {twice[0]!r} is there {len(previous.loc[[twice[0]]])} times. "
            "Every id must be there once."
        )
    unknown = previous[~previous.isin(SPLITS)]
    if len(unknown):
        raise PreparedSetError(
            f"split.previous: photo {unknown.index[0]!r} has split {unknown.iloc[0]!r}; it must be "
            f"one of {', '.join(SPLITS)}."
        )
    row = previous.index.get_indexer(pd.Index(photos["id"].astype("string")))
    codes = np.append(previous.map(SPLITS.index).to_numpy(np.int64), -1)
    return codes[row]


def _linker(
    ties: Ties | None, settings: SplitSettings
) -> Callable[[NDArray[np.bool_]], NDArray[np.bool_]]:
    def linked(chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if ties is None:
            return np.zeros(len(chosen), bool)
        return ties.linked(chosen, settings.min_distance_km)

    return linked


def _caps(province: NDArray[np.int64], settings: SplitSettings) -> NDArray[np.float64]:
    """(N,) photos of the largest group that is held out whole, by each photo's province."""
    _, code = np.unique(province, return_inverse=True)
    return np.maximum(settings.max_group_share * np.bincount(code), _SMALL_GROUP)[code]


def _homes(
    latlon_deg: NDArray[np.float64],
    block: NDArray[np.uint64],
    province: NDArray[np.int64],
    ties: Ties,
    settings: SplitSettings,
) -> NDArray[np.uint64]:
    """(N,) code of the block that each photo belongs to.

    All photos of a small group belong to one of its blocks. Groups are chains of ties and, where
    these are too long, chains of short distances; photos of still larger groups keep their blocks.
    """
    cap = _caps(province, settings)
    spot, near = _spots(ties.vectors, latlon_deg, settings.min_distance_km)
    edges, num_nodes = [near], int(spot.max(initial=-1)) + 1
    for code in ties.codes.values():
        shared = (code >= 0) & (np.bincount(code + 1)[code + 1] > 1)
        edges.append((spot[shared], num_nodes + code[shared]))
        num_nodes += int(code.max(initial=-1)) + 1
    num_spots = int(spot.max(initial=-1)) + 1
    group = components(num_spots, edges, num_nodes)[spot]
    large = np.bincount(group, minlength=1)[group] > cap
    by_distance = components(num_spots, [near])[spot]
    group = np.where(large, group.max(initial=0) + 1 + by_distance, group)
    group[np.bincount(group, minlength=1)[group] > cap] = -1

    home = block.copy()
    small = np.flatnonzero(group >= 0)
    # The block with most of them, so that a few that join move few.
    part = pd.factorize(group[small] * (province.max(initial=0) + 1) + province[small])[0]
    block_id, blocks = pd.factorize(block[small])
    cell, cells = pd.factorize(part * max(1, len(blocks)) + block_id)
    part_of_cell, block_of_cell = np.divmod(np.asarray(cells), max(1, len(blocks)))
    name = np.asarray(blocks, np.uint64)[block_of_cell]
    order = np.lexsort((hashed(name), -np.bincount(cell), part_of_cell))
    _, first = np.unique(part_of_cell[order], return_index=True)
    home[small] = name[order][first][part]
    return home


def _spots(
    vectors: NDArray[np.float64], latlon_deg: NDArray[np.float64], min_distance_km: float
) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Small squares of ground that hold the photos, and the pairs of squares that are near.

    The diagonal of a square is shorter than the distance, so that its photos are near each other,
    and no two near photos lie in squares that are not paired. The pairs of near photos would grow
    with the square of their density; those of squares are bounded by the ground they cover.
    """
    none = np.zeros(0, np.int64)
    if min_distance_km == 0 or not len(vectors):
        return np.arange(len(vectors)), (none, none)
    code = block_codes(latlon_deg, min_distance_km * _SPOT_SIDE)
    spot = pd.factorize(code)[0].astype(np.int64)
    size = np.bincount(spot)
    middle = np.stack([np.bincount(spot, vectors[:, k]) for k in range(3)], 1) / size[:, None]
    order = np.argsort(spot, kind="stable")
    start = np.cumsum(size) - size
    reach = min_distance_km / EARTH_RADIUS_KM * (1 + 1e-6)
    extent = np.sqrt(((vectors - middle[spot]) ** 2).sum(1))
    extent = np.maximum.reduceat(extent[order], start) + 1e-9 * reach
    # A photo lies at most a diagonal from the middle of those of its square.
    found = cKDTree(middle).query_pairs(reach * (1 + 3 * _SPOT_SIDE), output_type="ndarray")
    near = np.zeros(len(found), bool)
    for begin in range(0, len(found), _PAIRS_AT_A_TIME):
        a, b = found[begin : begin + _PAIRS_AT_A_TIME].T
        apart = np.sqrt(((middle[a] - middle[b]) ** 2).sum(1))
        possible = apart <= reach + extent[a] + extent[b]
        unsure = possible & (apart + extent[a] + extent[b] > reach)
        # Where photos are many, some of two squares so close are near each other.
        compared = np.flatnonzero(unsure & (size[a] * size[b] <= _MOST_COMPARED))
        a, b = a[compared], b[compared]
        num_pairs = size[a] * size[b]
        pair = np.repeat(np.arange(len(compared)), num_pairs)
        step = np.arange(len(pair)) - np.repeat(np.cumsum(num_pairs) - num_pairs, num_pairs)
        one = order[start[a][pair] + step // size[b][pair]]
        other = order[start[b][pair] + step % size[b][pair]]
        close = ((vectors[one] - vectors[other]) ** 2).sum(1) <= reach**2
        possible[compared] = np.bincount(pair, close, minlength=len(compared)) > 0
        near[begin : begin + len(possible)] = possible
    return spot, (found[near, 0], found[near, 1])


def _unmovable(ties: Ties, units: _Units, settings: SplitSettings) -> NDArray[np.bool_]:
    """(N,) photos of a tie too large to be held out, most of which lies outside their unit.

    To hold one out would set aside all others: they are trained on, or set aside themselves.
    """
    cap = _caps(units.owner[units.of_photo], settings)
    out = np.zeros(len(cap), bool)
    for code in ties.codes.values():
        size = np.bincount(code + 1)[code + 1]
        rows = np.flatnonzero((code >= 0) & (size > cap))
        if len(rows):
            pair = pd.MultiIndex.from_arrays([units.of_photo[rows], code[rows]]).factorize()[0]
            out[rows] |= 2 * np.bincount(pair)[pair] < size[rows]
    return out


@dataclass(frozen=True, eq=False)
class _Units:
    """What is drawn as a whole.

    Attributes:
        of_photo: (N,) number of each photo's unit.
        owner: (U,) the province whose share it counts to.
        place: (U,) where on the line it lies.
    """

    of_photo: NDArray[np.int64]
    owner: NDArray[np.int64]
    place: NDArray[np.uint64]

    @classmethod
    def of(
        cls,
        code: NDArray[np.uint64],
        province: NDArray[np.int64],
        seed: int,
        whole: bool = False,
    ) -> _Units:
        """Units of equal code within a province.

        Args:
            code: (N,) what photos of one unit share.
            province: (N,) numbers.
            seed: of the line.
            whole: units reach across provinces; the one with most of a unit's photos owns it.
        """
        block, values = pd.factorize(code)
        named, names = pd.factorize(province)
        cell = block * max(1, len(names)) + named
        part, parts = pd.factorize(cell)
        owner = np.asarray(names, np.int64)[parts % max(1, len(names))]
        # The same in every province, so that both sides of a border tend to fall alike.
        place = hashed(np.asarray(values, np.uint64), seed)
        if not whole:
            return cls(part.astype(np.int64), owner, place[parts // max(1, len(names))])
        size = np.bincount(part)
        order = np.lexsort((owner, -size, parts // max(1, len(names))))
        unit, first = np.unique(parts[order] // max(1, len(names)), return_index=True)
        owners = np.empty(len(values), np.int64)
        owners[unit] = owner[order][first]
        return cls(block.astype(np.int64), owners, place)

    def any_of(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """(U,) which units hold any of the photos (N,)."""
        held = np.zeros(len(self.owner), bool)
        held[self.of_photo[rows]] = True
        return held

    def sizes(self, rows: NDArray[np.bool_]) -> tuple[dict[int, int], dict[int, int]]:
        """Per province: the number of units with any of the photos, and photos of the largest."""
        counts = np.bincount(self.of_photo[rows], minlength=len(self.owner))
        table = pd.Series(counts[counts > 0]).groupby(self.owner[counts > 0]).agg(["size", "max"])
        provinces = table.index.to_list()
        return (
            dict(zip(provinces, table["size"].to_list(), strict=True)),
            dict(zip(provinces, table["max"].to_list(), strict=True)),
        )

    def draw(
        self,
        free: NDArray[np.bool_],
        held: NDArray[np.bool_],
        fraction: float,
        num_groups: Mapping[int, int],
        spare: int,
        from_end: bool,
    ) -> NDArray[np.bool_]:
        """(U,) which units are drawn so that every province has its share.

        Args:
            free: (N,) photos that may be drawn.
            held: (N,) photos that count to the share already.
            fraction: of a province's photos.
            num_groups: units per province; with fewer than three nothing is drawn.
            spare: units that are to be left over, if there are more.
            from_end: take them from the other end of the line.
        """
        counts = np.bincount(self.of_photo[free], minlength=len(self.owner))
        photo_owner = self.owner[self.of_photo]
        drawn = np.zeros(len(self.owner), bool)
        if fraction == 0 or not len(drawn):
            return drawn
        first = int(self.owner.min())
        total = np.bincount(photo_owner - first)
        has = np.bincount(photo_owner[held] - first, minlength=len(total))
        key = ~self.place if from_end else self.place
        order = np.lexsort((key, self.owner))
        order = order[counts[order] > 0]
        bounds = np.flatnonzero(np.diff(self.owner[order])) + 1
        for part in np.split(order, bounds):
            if not len(part) or num_groups[int(self.owner[part[0]])] < _FEWEST_GROUPS:
                continue
            n = int(total[self.owner[part[0]] - first])
            already = int(has[self.owner[part[0]] - first])
            pick = _pick(counts[part], fraction * n - already, _TOLERANCE * n)
            if not pick.any() and not already and len(part) > spare:
                pick[np.argmin(counts[part])] = True
            excess = np.flatnonzero(pick)[max(0, len(part) - spare) :]
            pick[excess] = False
            drawn[part[pick]] = True
        return drawn


def _pick(counts: NDArray[np.int64], quota: float, tolerance: float) -> NDArray[np.bool_]:
    """(K,) which units, in the order of the line, come near the quota.

    The first ones, as far as that comes within the tolerance. Else the unit that would overshoot is
    passed over for small ones behind it; where they are too few, for any behind it that fit; and
    where these do not suffice, units are chosen anew. Each of these is tried only when the one
    before it fails, since each lets a change of the counts change more.

    Args:
        counts: (K,) photos of each unit, at least 1.
        quota: photos wished for.
        tolerance: photos by which the sum may differ from the quota.
    """
    drawn = np.zeros(len(counts), bool)
    if quota <= 0:
        return drawn
    total = np.cumsum(counts)
    end = int(np.searchsorted(total, quota))
    before = int(total[end - 1]) if end else 0
    drawn[:end] = True
    if end == len(counts) or quota - before <= min(tolerance, total[end] - quota):
        return drawn
    if total[end] - quota <= tolerance:
        drawn[end] = True
        return drawn
    small = counts <= tolerance
    behind = end + np.flatnonzero(small[end:])
    if counts[behind].sum() >= quota - before - tolerance:
        drawn[_nearest_prefix(behind, counts, quota - before)] = True
        return drawn
    left = quota - before
    for k in range(end, len(counts)):
        if counts[k] <= left + tolerance:
            drawn[k] = True
            left -= counts[k]
            if left <= tolerance:
                return drawn
    large = np.flatnonzero(~small)
    chosen, missing = _subset(counts[large], quota, tolerance, int(counts[small].sum()))
    drawn[:] = False
    drawn[large[chosen]] = True
    drawn[_nearest_prefix(np.flatnonzero(small), counts, missing)] = True
    return drawn


def _nearest_prefix(
    rows: NDArray[np.int64], counts: NDArray[np.int64], quota: float
) -> NDArray[np.int64]:
    """The first of the rows, as many as come nearest to the quota."""
    total = np.concatenate(([0], np.cumsum(counts[rows])))
    return rows[: int(np.argmin(np.abs(total - quota)))]


def _subset(
    counts: NDArray[np.int64], quota: float, tolerance: float, filler: int
) -> tuple[list[int], float]:
    """Large units whose sum, with small ones that fill up, meets the quota, or comes nearest.

    Args:
        counts: (K,) of the large units; more than the tolerance each, so that they are few.
        quota, tolerance: as for :func:`_pick`.
        filler: photos of all small units together.

    Returns:
        The chosen units, as near the beginning as possible, and what is left to fill up.
    """
    # Bit s of reachable[k] tells whether some of the first k units have s photos together.
    limit = int(2 * quota) + 1
    mask = (1 << (limit + 1)) - 1
    reachable = [1]
    for count in counts.tolist():
        reachable.append((reachable[-1] | (reachable[-1] << count)) & mask)
    low, high = max(0, math.ceil(quota - filler - tolerance)), math.floor(quota + tolerance)
    wanted = ((1 << (high + 1)) - 1) >> low << low if high >= low else 0
    last = next((k for k, sums in enumerate(reachable) if sums & wanted), len(counts))
    meets = reachable[last] & wanted
    if meets:
        # The fewest small units: they are easier to find for val and for the next photos.
        target = meets.bit_length() - 1
    else:
        middle = math.floor(quota) + 1
        below = (reachable[-1] & ((1 << middle) - 1)).bit_length() - 1
        above = reachable[-1] >> middle
        over = middle + (above & -above).bit_length() - 1 if above else None
        short = max(0.0, quota - below - filler)
        target = below if over is None or short <= over - quota else over
    chosen = []
    left = target
    for k in range(last, 0, -1):
        if not (reachable[k - 1] >> left) & 1:
            chosen.append(k - 1)
            left -= int(counts[k - 1])
    return chosen, quota - target


def _describe(
    split: NDArray[np.int64],
    province: NDArray[np.int64],
    num_groups: Mapping[int, int],
    largest_group: Mapping[int, int],
    settings: SplitSettings,
) -> tuple[ProvinceSplit, ...]:
    described = []
    names, code = np.unique(province, return_inverse=True)
    counts = np.bincount(code * len(SPLITS) + split, minlength=len(names) * len(SPLITS))
    for name, row in zip(names.tolist(), counts.reshape(-1, len(SPLITS)).tolist(), strict=True):
        groups, largest = num_groups.get(name, 0), largest_group.get(name, 0)
        out = ProvinceSplit(name, dict(zip(SPLITS, row, strict=True)), groups, largest)
        notes = []
        total = sum(out.counts.values())
        wanted = {"val": settings.val_fraction, "test": settings.test_fraction}
        lacking = [s for s, fraction in wanted.items() if fraction > 0 and not out.counts[s]]
        units = {"places": "groups", "spatial_blocks": "blocks", "random": "photos"}[
            settings.method
        ]
        if lacking and groups < _FEWEST_GROUPS:
            notes.append(
                f"nothing can be held out: its photos make {groups} of the {units} that are not to "
                "be cut, and train, val and test need one each"
            )
        elif lacking:
            notes.append(
                f"no photo for {' and '.join(lacking)}: what is left of its {groups:,} {units} is "
                "tied to what is held out already"
            )
        for held, fraction in wanted.items():
            share = out.shares[held]
            if held not in lacking and abs(share - fraction) > _OFF:
                notes.append(
                    f"{held} is {share:.1%} instead of {fraction:.1%} of its photos: the largest "
                    f"of its {groups:,} {units} holds {largest / max(1, total):.1%}"
                )
        if not out.counts["train"]:
            notes.append("nothing is left to train on")
        described.append(dataclasses.replace(out, notes=tuple(notes)))
    return tuple(described)


def _notes(
    ties: Ties | None,
    previous: pd.Series | None,
    before: NDArray[np.int64],
    split: NDArray[np.int64],
) -> tuple[str, ...]:
    if ties is None:
        notes = ["a random split puts photos of one scene into train and test: for comparison only"]
    else:
        notes = list(ties.gaps.values())
    if previous is not None:
        missing = len(previous) - int((before >= 0).sum())
        if missing:
            notes.append(f"{missing:,} of the {len(previous):,} earlier photos are not there now")
        for name in ("test", "val"):
            lost = int(((before == SPLITS.index(name)) & (split != SPLITS.index(name))).sum())
            if lost:
                notes.append(
                    f"{lost:,} earlier {name} photos are set aside: they are tied to test photos"
                )
    return tuple(notes)
