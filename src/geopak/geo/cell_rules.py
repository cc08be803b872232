"""The rules that make cells of clusters, over the grains of one province.

The radius cap is hard: whatever a rule does, no cell exceeds it. The minimum count is soft.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from geopak.geo.cell_settings import CellSettings
from geopak.geo.distance import arc_km
from geopak.geo.grains import Grains, away_km, directions, sums_by
from geopak.geo.region import Province

# The rules keep this far below the cap, so that no rounding of a center takes a cell above it.
_CAP_MARGIN = 1 - 1e-6
_HALVING_ROUNDS = 20


@dataclass(eq=False)
class _Cell:
    """Grains (ascending), and what follows from them; the radius is an upper bound."""

    grains: NDArray[np.int64]
    total: NDArray[np.float64]
    center: NDArray[np.float64]
    count: int
    in_town: int
    radius_km: float
    cap_km: float

    @property
    def fits(self) -> bool:
        return self.radius_km <= self.cap_km


class ProvinceCells:
    """The rules, over the grains of one province."""

    def __init__(self, grains: Grains, province: Province, settings: CellSettings) -> None:
        self.grains = grains
        self.minimum = province.min_cluster_size
        self.candidates = settings.merge_candidates
        self.settle_rounds = settings.settle_rounds
        num_photos = int(grains.count.sum())
        self.target = max(1, min(province.target_cells, num_photos // self.minimum))
        self._rural_km, self._urban_km = (
            settings.cap_km(province, urban) * _CAP_MARGIN for urban in (False, True)
        )

    def run(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """(G,) number of the cell of each grain, from its cluster."""
        cells = []
        for seed in _members(np.unique(labels, return_inverse=True)[1].reshape(-1)):
            cells += self._within_cap(self._cell(seed))
        cells = self._merge(cells, lambda cell, _: cell.count < self.minimum)
        cells = self._fill_up(self._share_out(cells))
        cells = self._merge(cells, lambda _, num_cells: num_cells > self.target)
        cells = self._split_largest(cells)
        owner = np.empty(len(self.grains), np.int64)
        for number, cell in enumerate(cells):
            owner[cell.grains] = number
        return self._settle(owner)

    def _cap_km(self, in_town: int, count: int) -> float:
        return self._urban_km if 2 * in_town >= count else self._rural_km

    def _cell(self, grains: NDArray[np.int64]) -> _Cell:
        own = self.grains
        total = own.total[grains].sum(0)
        center = directions(total)
        count, in_town = int(own.count[grains].sum()), int(own.in_town[grains].sum())
        radius_km = self._radius_km(grains, center)
        return _Cell(grains, total, center, count, in_town, radius_km, self._cap_km(in_town, count))

    def _radius_km(self, grains: NDArray[np.int64], center: NDArray[np.float64]) -> float:
        reach_km = self.grains.reach_km[grains]
        return float((away_km(self.grains.middle[grains], center) + reach_km).max())

    def _joined(self, one: _Cell, other: _Cell) -> _Cell:
        grains = np.sort(np.concatenate((one.grains, other.grains)))
        total = one.total + other.total
        center = directions(total)
        count, in_town = one.count + other.count, one.in_town + other.in_town
        radius_km = self._radius_km(grains, center)
        return _Cell(grains, total, center, count, in_town, radius_km, self._cap_km(in_town, count))

    def _may_join(
        self, cell: _Cell, pool: _CellPool, others: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """(K,) whether a cell may fit together with each of the others, told without grains.

        Of points around a mean some lie on its far side, so the farthest is at least as far from
        the new center as the old center is.
        """
        center = directions(cell.total + pool.total[others])
        count, in_town = cell.count + pool.count[others], cell.in_town + pool.in_town[others]
        cap_km = np.where(2 * in_town >= count, self._urban_km, self._rural_km)
        moved_km = np.maximum(away_km(center, cell.center), away_km(center, pool.center[others]))
        may: NDArray[np.bool_] = moved_km <= cap_km
        return may

    def _within_cap(self, cell: _Cell) -> list[_Cell]:
        """Halves a cell until every part fits."""
        waiting, done = [cell], []
        while waiting:
            cell = waiting.pop()
            if cell.fits:
                done.append(cell)
            else:
                waiting += [self._cell(half) for half in self._halves(cell.grains)]
        return done

    def _halves(self, grains: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two parts by 2-means, started from two far-apart grains; neither is empty."""
        place, total = self.grains.middle[grains], self.grains.total[grains]
        one = place[np.square(place - directions(total.sum(0))).sum(1).argmax()]
        other = place[np.square(place - one).sum(1).argmax()]
        nearer_one = np.zeros(len(grains), bool)
        for _ in range(_HALVING_ROUNDS):
            # Of unit vectors, the nearer has the larger inner product.
            side = place @ (one - other) > 0
            if side.all() or not side.any() or (side == nearer_one).all():
                break
            nearer_one = side
            one, other = directions(np.stack((total[side].sum(0), total[~side].sum(0))))
        if nearer_one.all() or not nearer_one.any():
            nearer_one = np.arange(len(grains)) < len(grains) // 2
        return grains[nearer_one], grains[~nearer_one]

    def _even_halves(
        self, grains: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two parts of about equal photo counts, cut across the longer axis."""
        place, weight = self.grains.middle[grains], self.grains.count[grains]
        centred = place - np.average(place, axis=0, weights=weight)
        _, axes = np.linalg.eigh((centred * weight[:, None]).T @ centred)
        order = np.argsort(centred @ axes[:, -1], kind="stable")
        before = np.cumsum(weight[order])
        cut = 1 + int(np.abs(before - before[-1] / 2).argmin())
        return np.sort(grains[order[:cut]]), np.sort(grains[order[cut:]])

    def _merge(self, cells: list[_Cell], wanted: Callable[[_Cell, int], bool]) -> list[_Cell]:
        """Merges cells, fewest photos first, into the nearest one that stays within the cap.

        ``wanted(cell, number of cells)`` says whether the smallest cell should go. A cell that
        fits nowhere stays.
        """
        pool = _CellPool(cells)
        smallest = [(cell.count, number) for number, cell in enumerate(cells)]
        heapq.heapify(smallest)
        while smallest:
            _, number = heapq.heappop(smallest)
            if not pool.has(number):
                continue
            if not wanted(pool[number], len(pool)):
                break
            others = pool.nearest(number, self.candidates)
            for other in others[self._may_join(pool[number], pool, others)].tolist():
                joined = self._joined(pool[number], pool[other])
                if joined.fits:
                    (made,) = pool.exchange([number, other], [joined])
                    heapq.heappush(smallest, (joined.count, made))
                    break
        return pool.cells()

    def _share_out(self, cells: list[_Cell]) -> list[_Cell]:
        """Gives the grains of sparse cells that fit nowhere whole to several cells around.

        Fewest photos first; each grain goes to the nearest cell that it fits into. A cell with a
        grain that fits nowhere stays whole.
        """
        pool = _CellPool(cells)
        smallest = [(c.count, number) for number, c in enumerate(cells) if c.count < self.minimum]
        heapq.heapify(smallest)
        while smallest:
            _, number = heapq.heappop(smallest)
            if not pool.has(number):
                continue
            given = pool[number].grains
            others = pool.nearest(number, self.candidates)
            away = away_km(self.grains.middle[given, None], pool.center[others])
            reaches = away + self.grains.reach_km[given, None] <= pool.cap_km[others]
            away[~reaches] = np.inf
            while len(others) and np.isfinite(away.min(1)).all():
                receiver = away.argmin(1)
                chosen = np.unique(receiver)
                grown = [
                    self._cell(np.sort(np.append(pool[others[k]].grains, given[receiver == k])))
                    for k in chosen
                ]
                full = [k for k, cell in zip(chosen, grown, strict=True) if not cell.fits]
                if full:
                    away[:, full] = np.inf
                    continue
                made = pool.exchange([number, *others[chosen].tolist()], grown)
                for cell, new in zip(grown, made, strict=True):
                    if cell.count < self.minimum:
                        heapq.heappush(smallest, (cell.count, new))
                break
        return pool.cells()

    def _fill_up(self, cells: list[_Cell]) -> list[_Cell]:
        """Moves grains to sparse cells from cells around that have photos to spare.

        Most photos first; the grains nearest to changing cells anyway. A cell that cannot be
        filled up to the minimum takes nothing.
        """
        pool = _CellPool(cells)
        order = sorted(
            (-cell.count, number) for number, cell in enumerate(cells) if cell.count < self.minimum
        )
        for _, number in order:
            cell = pool[number]
            others = pool.nearest(number, self.candidates)
            others = others[pool.count[others] > self.minimum]
            if not len(others):
                continue
            grains = np.concatenate([pool[k].grains for k in others])
            donor = np.repeat(others, [len(pool[k].grains) for k in others])
            place = self.grains.middle[grains]
            away = away_km(place, cell.center)
            home = away_km(place, pool.center[donor])
            near = away + self.grains.reach_km[grains] <= cell.cap_km
            turn = np.lexsort((grains, away - home))
            spare = {k: int(pool.count[k]) - self.minimum for k in others.tolist()}
            lacking = self.minimum - cell.count
            taken: list[int] = []
            for at in turn[near[turn]].tolist():
                photos = int(self.grains.count[grains[at]])
                if photos <= spare[donor[at]]:
                    spare[donor[at]] -= photos
                    taken.append(at)
                    lacking -= photos
                    if lacking <= 0:
                        break
            if lacking > 0:
                continue
            changed = np.unique(donor[taken]).tolist()
            renewed = [self._cell(np.sort(np.append(cell.grains, grains[taken])))]
            for k in changed:
                gone = grains[[at for at in taken if donor[at] == k]]
                renewed.append(self._cell(np.setdiff1d(pool[k].grains, gone)))
            if all(c.fits and c.count >= self.minimum for c in renewed):
                pool.exchange([number, *changed], renewed)
        return pool.cells()

    def _split_largest(self, cells: list[_Cell]) -> list[_Cell]:
        """Splits cells, most photos first, while both parts keep the minimum and their cap."""
        largest = [(-cell.count, number, cell) for number, cell in enumerate(cells)]
        heapq.heapify(largest)
        done: list[_Cell] = []
        made = len(cells)
        while largest and len(largest) + len(done) < self.target:
            _, _, cell = heapq.heappop(largest)
            if cell.count < 2 * self.minimum or len(cell.grains) < 2:
                done.append(cell)
                continue
            for cut in (self._halves, self._even_halves):
                parts = [self._cell(part) for part in cut(cell.grains) if len(part)]
                if len(parts) == 2 and all(p.count >= self.minimum and p.fits for p in parts):
                    for part in parts:
                        heapq.heappush(largest, (-part.count, made, part))
                        made += 1
                    break
            else:
                done.append(cell)
        return done + [cell for _, _, cell in largest]

    def _settle(self, owner: NDArray[np.int64]) -> NDArray[np.int64]:
        """Moves grains to the cell with the nearest center, as val and test photos will be.

        Moves that would empty a cell, break its cap or make it sparse are left out, so that a few
        grains keep a cell that is not their nearest.
        """
        num = int(owner.max()) + 1
        for _ in range(self.settle_rounds):
            center, count, _, cap_km = self._measure(owner, num)
            chord, nearest = cKDTree(center).query(self.grains.middle, k=1)
            # Some slack, as centers move too.
            reaches = arc_km(chord) + self.grains.reach_km <= cap_km[nearest]
            wishes = (nearest != owner) & reaches
            least = np.minimum(self.minimum, count)
            closed, kept = np.zeros(num, bool), np.zeros(num, bool)
            while True:
                free = wishes & ~kept[owner] & ~closed[nearest]
                settled = np.where(free, nearest, owner)
                _, new_count, radius_km, new_cap_km = self._measure(settled, num)
                wide, few = radius_km > new_cap_km, new_count < least
                if not (wide | few).any():
                    break
                # Nobody moves in where that made the cell too wide; if it still is, nobody leaves.
                kept |= few | (wide & closed)
                closed |= wide
            if not free.any():
                break
            owner = settled
        return owner

    def _measure(
        self, owner: NDArray[np.int64], num: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
        """Center, photos, radius and cap of every cell, from the grains' cells."""
        own = self.grains
        center = directions(sums_by(owner, own.total, num))
        count = np.bincount(owner, own.count, num).astype(np.int64)
        in_town = np.bincount(owner, own.in_town, num)
        away = away_km(own.middle, center[owner]) + own.reach_km
        radius_km = np.zeros(num)
        np.maximum.at(radius_km, owner, away)
        cap_km = np.where(2 * in_town >= count, self._urban_km, self._rural_km)
        return center, count, radius_km, cap_km


class _CellPool:
    """Cells that come and go, to be asked for the nearest ones.

    Attributes:
        total, center, count, in_town, cap_km: of every cell that there ever was, as rows of arrays.
    """

    # So many new cells are looked through one by one before the trees are made again.
    _LOOSE = 64

    def __init__(self, cells: list[_Cell]) -> None:
        self._cells: list[_Cell] = []
        self._num = 0
        most = 2 * len(cells)
        self.total, self.center = np.zeros((most, 3)), np.zeros((most, 3))
        self.count, self.in_town = np.zeros(most, np.int64), np.zeros(most, np.int64)
        self.cap_km, self._alive = np.zeros(most), np.zeros(most, bool)
        for cell in cells:
            self._add(cell)
        self._plant()

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, number: int) -> _Cell:
        return self._cells[number]

    def has(self, number: int) -> bool:
        """Whether the cell is still there."""
        return bool(self._alive[number])

    def cells(self) -> list[_Cell]:
        """Those that are left, oldest first."""
        return [self._cells[k] for k in np.flatnonzero(self._alive)]

    def exchange(self, gone: list[int], come: list[_Cell]) -> list[int]:
        """Puts some cells in the place of others; returns their numbers."""
        self._alive[gone] = False
        self._num -= len(gone)
        for cell in come:
            self._add(cell)
        last = len(self._cells)
        if last - self._num_planted > self._LOOSE:
            self._plant()
        return list(range(last - len(come), last))

    def nearest(self, number: int, num: int) -> NDArray[np.int64]:
        """The nearest urban and the nearest other cells, at least ``num`` of each where there are.

        Nearest first, and of equally near ones the oldest.
        """
        center = self.center[number]
        found = [np.arange(self._num_planted, len(self._cells))]
        for planted, tree in self._trees:
            reach = 2 * num
            while True:
                # Where there are fewer, the tree's answers end in numbers that it does not have.
                _, at = tree.query(center, k=reach)
                near = planted[at[: len(planted)]]
                if reach >= len(planted) or np.count_nonzero(self._alive[near]) > num:
                    break
                reach *= 2
            found.append(near)
        others = np.concatenate(found)
        others = others[self._alive[others] & (others != number)]
        apart = np.square(self.center[others] - center).sum(1)
        ranked: NDArray[np.int64] = others[np.lexsort((others, apart))]
        return ranked

    def _add(self, cell: _Cell) -> None:
        number = len(self._cells)
        if number == len(self._alive):
            for name in ("total", "center", "count", "in_town", "cap_km", "_alive"):
                values = getattr(self, name)
                setattr(self, name, np.concatenate((values, np.zeros_like(values))))
        self._cells.append(cell)
        self._num += 1
        self.total[number], self.center[number] = cell.total, cell.center
        self.count[number], self.in_town[number] = cell.count, cell.in_town
        self.cap_km[number], self._alive[number] = cell.cap_km, True

    def _plant(self) -> None:
        self._num_planted = len(self._cells)
        alive = np.flatnonzero(self._alive)
        urban = 2 * self.in_town[alive] >= self.count[alive]
        self._trees = [
            (planted, cKDTree(self.center[planted]))
            for planted in (alive[urban], alive[~urban])
            if len(planted)
        ]


def _members(group: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Ascending row numbers per group; groups are numbered from 0 without gaps."""
    order = np.argsort(group, kind="stable")
    return np.split(order, np.cumsum(np.bincount(group))[:-1])
