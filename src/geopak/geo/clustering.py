"""Geocells: photo locations of each province clustered into cells of bounded radius.

Density first (HDBSCAN in metres), then the rules: noise goes to the nearest cell, cells beyond
the radius cap are split, sparse neighbours are merged where the cap allows, and the number of
cells is moved towards the province's target. The radius cap is hard, the minimum count is soft.

The rules move *grains*, all photos of a small square of ground at once. So their work grows with
the ground that the photos cover; only sorting the photos into grains and measuring the finished
cells take every photo in hand.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopak.errors import PreparedSetError
from geopak.geo.cell_rules import ProvinceCells
from geopak.geo.cell_settings import CellSettings
from geopak.geo.cells import CellTable, nearest_neighbours
from geopak.geo.density import DenseClusters, RawClusters
from geopak.geo.distance import (
    haversine_km_array,
    latlon_of_vectors_array,
    unit_vectors_array,
)
from geopak.geo.grains import grains_of, sums_by
from geopak.geo.region import Province, Region
from geopak.geo.urban import urban_points

__all__ = ["CellBuild", "CellSettings", "RawClusters", "build_cells"]


@dataclass(frozen=True, eq=False)
class CellBuild:
    """The geocells of train photos.

    Attributes:
        cells: the finished cells.
        cell_id: (N,) int64, global cell id of every photo.
        before: HDBSCAN's clusters before the rules, for comparison.
    """

    cells: CellTable
    cell_id: NDArray[np.int64]
    before: RawClusters


def build_cells(
    latlon_deg: ArrayLike, province_id: ArrayLike, region: Region, settings: CellSettings
) -> CellBuild:
    """Clusters train photos into geocells.

    A photo is urban by ``region.urban``, and a cell is when at least half of its photos are.

    Args:
        latlon_deg: (N, 2) train photos, degrees, latitude first.
        province_id: (N,) class index of each photo's province.
        region: provinces with their minimum counts, target numbers of cells and own caps.
        settings: radius caps and how far to go in keeping them.

    Returns:
        The cells, grouped by province in index order and from south to north within one; the
        global cell id of every photo; and the clusters before the rules. Photos at one coordinate
        share a cell. Nothing depends on the order of the photos.

    Raises:
        PreparedSetError: a province has no train photo, or a coordinate is not a number.
        ConfigError: a province's radius cap is too small.
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
    astray = np.flatnonzero(~np.isfinite(points).all(1))
    if len(astray):
        raise PreparedSetError(
            f"{len(astray)} train photos have no finite coordinate, the first in row {astray[0]}."
        )
    in_town = urban_points(points, region.urban)
    assignment = np.full(len(points), -1, np.int64)
    finished: list[_Finished] = []
    before: list[RawClusters] = []
    num_cells = 0
    for index, province in enumerate(region.provinces):
        rows = np.flatnonzero(wanted == index)
        # In the order of their coordinates, equal ones side by side, all sums come out the same.
        rows = rows[np.lexsort((points[rows, 1], points[rows, 0]))]
        own = points[rows]
        dense = DenseClusters(
            own,
            province.min_cluster_size,
            province.min_samples,
            settings.max_clustered_points,
        )
        before.append(dense.raw(index))
        grain_of_photo, grains = grains_of(own, in_town[rows], province, settings)
        labels = dense.nearest_cluster(latlon_of_vectors_array(grains.middle))
        cell_of_grain = ProvinceCells(grains, province, settings).run(labels)
        done, local = _finish(own, in_town[rows], cell_of_grain[grain_of_photo], province)
        assignment[rows] = num_cells + local
        num_cells += len(done.count)
        finished.append(done)
    return CellBuild(_table(finished), assignment, RawClusters.concatenate(before))


@dataclass(frozen=True, eq=False)
class _Finished:
    """Cells of one province, from south to north, measured on their photos."""

    center_deg: NDArray[np.float64]
    radius_km: NDArray[np.float64]
    count: NDArray[np.int64]
    urban: NDArray[np.bool_]
    sparse: NDArray[np.bool_]


def _finish(
    latlon_deg: NDArray[np.float64],
    in_town: NDArray[np.bool_],
    owner: NDArray[np.int64],
    province: Province,
) -> tuple[_Finished, NDArray[np.int64]]:
    """Measures cells; the second value is each photo's cell in the order of the first."""
    center_deg = latlon_of_vectors_array(sums_by(owner, unit_vectors_array(latlon_deg)))
    first = np.full(len(center_deg), len(owner))
    np.minimum.at(first, owner, np.arange(len(owner)))
    order = np.lexsort((first, center_deg[:, 1], center_deg[:, 0]))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    local, center_deg = position[owner], center_deg[order]
    radius_km = np.zeros(len(order))
    np.maximum.at(radius_km, local, haversine_km_array(latlon_deg, center_deg[local]))
    count = np.bincount(local).astype(np.int64)
    done = _Finished(
        center_deg=center_deg,
        radius_km=radius_km,
        count=count,
        urban=2 * np.bincount(local, in_town) >= count,
        sparse=count < province.min_cluster_size,
    )
    return done, local


def _table(parts: list[_Finished]) -> CellTable:
    province_id = np.repeat(np.arange(len(parts)), [len(part.count) for part in parts])
    center_deg = np.concatenate([part.center_deg for part in parts])
    return CellTable(
        province_id=province_id,
        center_latlon_deg=center_deg,
        radius_km=np.concatenate([part.radius_km for part in parts]),
        count=np.concatenate([part.count for part in parts]),
        urban=np.concatenate([part.urban for part in parts]),
        sparse=np.concatenate([part.sparse for part in parts]),
        neighbours=nearest_neighbours(center_deg, province_id),
    )
