"""Geocells: photo locations of each province clustered into cells of bounded radius.

Density first (HDBSCAN in metres), then the rules: noise goes to the nearest cell, cells beyond
the radius cap are split, sparse neighbours are merged where the cap allows, and the number of
cells is moved towards the province's target. The radius cap is hard, the minimum count is soft.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hdbscan
import numpy as np
import pyproj
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from geopak.errors import ConfigError, PreparedSetError
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.distance import EARTH_RADIUS_KM, haversine_km_array
from geopak.geo.region import Province, Region

# Radii are compared with the cap before the center is rounded to degrees.
_CAP_MARGIN = 1 - 1e-9


@dataclass(frozen=True)
class CellSettings:
    """How geocells are made; what differs between provinces is in the region.

    Attributes:
        urban_radius_cap_km: largest radius of an urban cell.
        rural_radius_cap_km: largest radius of any other cell.
        urban_places: a photo is in town when at least so many places with photos lie within
            ``urban_within_km``; a cell is urban when at least half of its photos are.
        urban_within_km: see ``urban_places``.
        place_km: side of the squares of ground that count as one place.
        merge_candidates: nearest cells that a cell may be merged into.
        settle_rounds: rounds of moving photos to the cell with the nearest center.
    """

    urban_radius_cap_km: float = 5.0
    rural_radius_cap_km: float = 50.0
    urban_places: int = 12
    urban_within_km: float = 5.0
    place_km: float = 0.5
    merge_candidates: int = 8
    settle_rounds: int = 3

    def __post_init__(self) -> None:
        for name in ("urban_radius_cap_km", "rural_radius_cap_km", "urban_within_km", "place_km"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"cells.{name} must be positive.")
        for name in ("urban_places", "merge_candidates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"cells.{name} must be at least 1.")

    def cap_km(self, urban: bool) -> float:
        """The radius cap of a cell."""
        return self.urban_radius_cap_km if urban else self.rural_radius_cap_km


def build_cells(
    latlon_deg: ArrayLike, province_id: ArrayLike, region: Region, settings: CellSettings
) -> tuple[CellTable, NDArray[np.int64]]:
    """Clusters train photos into geocells.

    Args:
        latlon_deg: (N, 2) train photos, degrees, latitude first.
        province_id: (N,) class index of each photo's province.
        region: provinces with their minimum counts and target numbers of cells.
        settings: radius caps and the urban rule.

    Returns:
        The cells, grouped by province in index order and from south to north within one; and the
        (N,) global cell id of every photo. Photos at one coordinate share a cell. Neither depends
        on the order of the photos.

    Raises:
        PreparedSetError: a province has no train photo.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    wanted = np.asarray(province_id, np.int64)
    empty = [
        region.names[p]
        for p in np.flatnonzero(np.bincount(wanted, minlength=region.num_provinces) == 0)
    ]
    if empty:
        raise PreparedSetError(
            f"No train photo in {', '.join(empty)}. Every province of the region needs at least "
            "one: add photos there, lower split.val_fraction and split.test_fraction, or take the "
            "province out of the region."
        )
    in_town = urban_points(points, settings)
    assignment = np.full(len(points), -1, np.int64)
    cells: list[_Cell] = []
    owners: list[int] = []
    for index, province in enumerate(region.provinces):
        rows = np.flatnonzero(wanted == index)
        # Sorted distinct coordinates: neither order nor repetition can change the outcome.
        spots, first, inverse, counts = np.unique(
            points[rows], axis=0, return_index=True, return_inverse=True, return_counts=True
        )
        clustering = _ProvinceCells(spots, counts, in_town[rows[first]], province, settings)
        made = sorted(clustering.run(), key=lambda cell: (*cell.center_deg.tolist(), cell.spots[0]))
        of_spot = np.empty(len(spots), np.int64)
        for cell in made:
            of_spot[cell.spots] = len(cells)
            cells.append(cell)
            owners.append(index)
        assignment[rows] = of_spot[inverse.reshape(-1)]
    return _table(cells, np.array(owners, np.int64), region), assignment


def urban_points(latlon_deg: ArrayLike, settings: CellSettings) -> NDArray[np.bool_]:
    """(N,) whether at least ``urban_places`` places with photos lie around each coordinate.

    Places are squares of ground with at least one photo, not photos: a thousand pictures of one
    monument in the desert do not make a town.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    height_deg = math.degrees(settings.place_km / EARTH_RADIUS_KM)
    band = np.floor(points[:, 0] / height_deg)
    middle_deg = (band + 0.5) * height_deg
    width_deg = height_deg / np.maximum(np.cos(np.radians(middle_deg)), 1e-3)
    column = np.floor(points[:, 1] / width_deg)
    squares = np.stack((middle_deg, (column + 0.5) * width_deg), axis=1)
    places, inverse = np.unique(squares, axis=0, return_inverse=True)
    vectors = _unit_vectors(places)
    reach = 2 * math.sin(settings.urban_within_km / EARTH_RADIUS_KM / 2)
    around = cKDTree(vectors).query_ball_point(vectors, reach, return_length=True)
    return (around >= settings.urban_places)[inverse.reshape(-1)]


@dataclass(eq=False)
class _Cell:
    """Spots (sorted row numbers), and what follows from them."""

    spots: NDArray[np.int64]
    center_deg: NDArray[np.float64]
    count: int
    radius_km: float
    urban: bool
    sparse: bool = False


class _ProvinceCells:
    """The clustering of one province, over distinct coordinates ('spots') with photo counts."""

    def __init__(
        self,
        spots_deg: NDArray[np.float64],
        counts: NDArray[np.int64],
        in_town: NDArray[np.bool_],
        province: Province,
        settings: CellSettings,
    ) -> None:
        self.spots_deg = spots_deg
        self.counts = counts
        self.in_town = in_town
        self.province = province
        self.settings = settings
        self.vectors = _unit_vectors(spots_deg)
        self.xy_m = _project_m(spots_deg, self._center_deg(np.arange(len(spots_deg))))

    def run(self) -> list[_Cell]:
        cells = [part for seed in self._dense_clusters() for part in self._within_cap(seed)]
        minimum = self.province.min_cluster_size
        target = max(1, min(self.province.target_cells, int(self.counts.sum()) // minimum))
        cells = self._merge(cells, lambda cell, _: cell.count < minimum)
        cells = self._merge(cells, lambda _, num_cells: num_cells > target)
        cells = self._split_largest(cells, target)
        cells = self._settle(cells)
        for cell in cells:
            cell.sparse = cell.count < minimum
        return cells

    def _center_deg(self, spots: NDArray[np.int64]) -> NDArray[np.float64]:
        mean = (self.vectors[spots] * self.counts[spots, None]).sum(0)
        return np.degrees(
            [math.atan2(mean[2], math.hypot(*mean[:2])), math.atan2(mean[1], mean[0])]
        )

    def _cell(self, spots: NDArray[np.int64]) -> _Cell:
        center_deg = self._center_deg(spots)
        count = int(self.counts[spots].sum())
        urban = 2 * int(self.counts[spots[self.in_town[spots]]].sum()) >= count
        radius_km = float(haversine_km_array(self.spots_deg[spots], center_deg).max())
        return _Cell(spots, center_deg, count, radius_km, urban)

    def _fits(self, cell: _Cell) -> bool:
        return cell.radius_km <= self.settings.cap_km(cell.urban) * _CAP_MARGIN

    def _dense_clusters(self) -> list[NDArray[np.int64]]:
        """HDBSCAN's clusters, noise given to the cluster of the nearest clustered spot."""
        everything = np.arange(len(self.spots_deg))
        num_photos = int(self.counts.sum())
        size = self.province.min_cluster_size
        if num_photos < 2 * size or len(everything) < 2 or size < 2:
            return [everything]
        photos = np.repeat(everything, self.counts)
        labels = hdbscan.HDBSCAN(
            min_cluster_size=size,
            min_samples=min(self.province.min_samples, num_photos - 1),
            core_dist_n_jobs=1,
        ).fit_predict(self.xy_m[photos])
        # Photos of one spot are equal, yet ties may label them apart: the first one decides.
        first = np.concatenate(([0], np.cumsum(self.counts)[:-1]))
        of_spot = labels[first]
        noise = of_spot < 0
        if noise.all():
            return [everything]
        if noise.any():
            _, nearest = cKDTree(self.xy_m[~noise]).query(self.xy_m[noise], k=1)
            of_spot[noise] = of_spot[~noise][nearest]
        return [np.flatnonzero(of_spot == label) for label in np.unique(of_spot)]

    def _within_cap(self, spots: NDArray[np.int64]) -> Iterator[_Cell]:
        """Halves a set of spots until every part is within its radius cap."""
        waiting = [spots]
        while waiting:
            cell = self._cell(waiting.pop())
            if self._fits(cell):
                yield cell
            else:
                waiting += self._halves(cell.spots)

    def _halves(self, spots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Two parts by 2-means, started from two far-apart spots; neither is empty."""
        xy, weight = self.xy_m[spots], self.counts[spots, None]
        middle = (xy * weight).sum(0) / weight.sum()
        one = xy[np.square(xy - middle).sum(1).argmax()]
        other = xy[np.square(xy - one).sum(1).argmax()]
        nearer_one = np.zeros(len(spots), bool)
        for _ in range(20):
            side = np.square(xy - one).sum(1) < np.square(xy - other).sum(1)
            if side.all() or not side.any() or (side == nearer_one).all():
                break
            nearer_one = side
            one = (xy[side] * weight[side]).sum(0) / weight[side].sum()
            other = (xy[~side] * weight[~side]).sum(0) / weight[~side].sum()
        if nearer_one.all() or not nearer_one.any():
            nearer_one = np.arange(len(spots)) < len(spots) // 2
        return spots[nearer_one], spots[~nearer_one]

    def _merge(self, cells: list[_Cell], wanted: Callable[[_Cell, int], bool]) -> list[_Cell]:
        """Merges cells, fewest photos first, into the nearest one that stays within the cap.

        ``wanted(cell, number of cells)`` says whether the smallest cell should go. A cell that
        fits nowhere stays.
        """
        known = list(cells)
        alive = np.zeros(2 * len(cells), bool)
        alive[: len(cells)] = True
        centers = np.zeros((2 * len(cells), 3))
        centers[: len(cells)] = _unit_vectors(np.stack([cell.center_deg for cell in cells]))
        smallest = [(cell.count, number) for number, cell in enumerate(cells)]
        heapq.heapify(smallest)
        while smallest:
            _, number = heapq.heappop(smallest)
            if not alive[number]:
                continue
            if not wanted(known[number], int(alive.sum())):
                break
            others = np.flatnonzero(alive)
            others = others[others != number]
            away = np.square(centers[others] - centers[number]).sum(1)
            for other in others[np.argsort(away, kind="stable")[: self.settings.merge_candidates]]:
                spots = np.sort(np.concatenate((known[number].spots, known[other].spots)))
                merged = self._cell(spots)
                if self._fits(merged):
                    alive[[number, other]] = False
                    alive[len(known)] = True
                    centers[len(known)] = _unit_vectors(merged.center_deg[None])[0]
                    heapq.heappush(smallest, (merged.count, len(known)))
                    known.append(merged)
                    break
        return [known[number] for number in np.flatnonzero(alive)]

    def _split_largest(self, cells: list[_Cell], target: int) -> list[_Cell]:
        """Splits cells, most photos first, while both parts keep the minimum and their cap."""
        minimum = self.province.min_cluster_size
        largest = [(-cell.count, number, cell) for number, cell in enumerate(cells)]
        heapq.heapify(largest)
        done: list[_Cell] = []
        made = len(cells)
        while largest and len(largest) + len(done) < target:
            _, _, cell = heapq.heappop(largest)
            for cut in (self._halves, self._even_halves):
                parts = [self._cell(np.sort(part)) for part in cut(cell.spots) if len(part)]
                if len(parts) == 2 and all(p.count >= minimum and self._fits(p) for p in parts):
                    for part in parts:
                        heapq.heappush(largest, (-part.count, made, part))
                        made += 1
                    break
            else:
                done.append(cell)
        return done + [cell for _, _, cell in largest]

    def _settle(self, cells: list[_Cell]) -> list[_Cell]:
        """Moves spots to the cell with the nearest center, as val and test photos will be.

        Moves that would empty a cell, break its cap or make it sparse are left out, so that a few
        spots keep a cell that is not their nearest.
        """
        minimum = self.province.min_cluster_size
        for _ in range(self.settings.settle_rounds):
            owner = np.empty(len(self.spots_deg), np.int64)
            for number, cell in enumerate(cells):
                owner[cell.spots] = number
            centers = _unit_vectors(np.stack([cell.center_deg for cell in cells]))
            _, nearest = cKDTree(centers).query(self.vectors, k=1)
            fixed = np.zeros(len(cells), bool)
            while True:
                free = (nearest != owner) & ~fixed[owner] & ~fixed[nearest]
                settled = np.where(free, nearest, owner)
                order = np.argsort(settled, kind="stable")
                bounds = np.searchsorted(settled[order], np.arange(len(cells) + 1))
                changed = np.unique(np.concatenate((owner[free], nearest[free])))
                renewed = {}
                for number in changed.tolist():
                    spots = order[bounds[number] : bounds[number + 1]]
                    least = min(minimum, cells[number].count)
                    moved = self._cell(spots) if len(spots) else None
                    if moved is None or not self._fits(moved) or moved.count < least:
                        fixed[number] = True
                    else:
                        renewed[number] = moved
                if len(renewed) == len(changed):
                    break
            if not renewed:
                break
            cells = [renewed.get(number, cell) for number, cell in enumerate(cells)]
        return cells

    def _even_halves(self, spots: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
        """Two parts of about equal photo counts, cut across the longer axis."""
        xy, weight = self.xy_m[spots], self.counts[spots]
        centred = xy - np.average(xy, axis=0, weights=weight)
        _, axes = np.linalg.eigh((centred * weight[:, None]).T @ centred)
        order = np.argsort(centred @ axes[:, -1], kind="stable")
        before = np.cumsum(weight[order])
        cut = 1 + int(np.abs(before - before[-1] / 2).argmin())
        return spots[order[:cut]], spots[order[cut:]]


def _project_m(latlon_deg: NDArray[np.float64], center_deg: ArrayLike) -> NDArray[np.float64]:
    """(K, 2) metres east and north of a center, azimuthal-equidistant."""
    lat, lon = np.asarray(center_deg, float)
    sphere = f"+R={EARTH_RADIUS_KM * 1000}"
    project = pyproj.Transformer.from_crs(
        f"+proj=longlat {sphere}", f"+proj=aeqd +lat_0={lat} +lon_0={lon} {sphere}"
    )
    east, north = project.transform(latlon_deg[:, 1], latlon_deg[:, 0])
    return np.stack((east, north), axis=1)


def _unit_vectors(latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    lat, lon = np.radians(latlon_deg).T
    return np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), axis=1)


def _table(cells: list[_Cell], province_id: NDArray[np.int64], region: Region) -> CellTable:
    centers = np.stack([cell.center_deg for cell in cells])
    vectors = _unit_vectors(centers)
    neighbours = np.full((len(cells), NUM_NEIGHBOURS), -1, np.int64)
    for province in range(region.num_provinces):
        own = np.flatnonzero(province_id == province)
        for cell in own:
            others = own[own != cell]
            away = np.square(vectors[others] - vectors[cell]).sum(1)
            nearest = others[np.argsort(away, kind="stable")[:NUM_NEIGHBOURS]]
            neighbours[cell, : len(nearest)] = nearest
    return CellTable(
        province_id=province_id,
        center_latlon_deg=centers,
        radius_km=np.array([cell.radius_km for cell in cells]),
        count=np.array([cell.count for cell in cells], np.int64),
        urban=np.array([cell.urban for cell in cells]),
        sparse=np.array([cell.sparse for cell in cells]),
        neighbours=neighbours,
    )
