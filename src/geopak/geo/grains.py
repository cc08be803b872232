"""Grains: all photos of a small square of ground at once, which the rules of geocells move."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from geopak.geo.cell_settings import CellSettings
from geopak.geo.distance import arc_km, unit_vectors_array
from geopak.geo.region import Province
from geopak.geo.urban import ground_squares

# A grain is never wider than this part of the cap: then a grain alone always fits into a cell.
_GRAINS_PER_CAP = 10


@dataclass(frozen=True, eq=False)
class Grains:
    """Photos by squares of ground, G of them.

    Attributes:
        total: (G, 3) sum of the photos' unit vectors.
        middle: (G, 3) unit vector of the mean.
        reach_km: (G,) distance from the middle to the farthest photo.
        count: (G,) photos.
        in_town: (G,) photos in town.
    """

    total: NDArray[np.float64]
    middle: NDArray[np.float64]
    reach_km: NDArray[np.float64]
    count: NDArray[np.int64]
    in_town: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.count)


def grains_of(
    latlon_deg: NDArray[np.float64],
    in_town: NDArray[np.bool_],
    province: Province,
    settings: CellSettings,
) -> tuple[NDArray[np.int64], Grains]:
    """The grain of every photo, and the grains, from south to north and west to east."""
    caps = [settings.cap_km(province, urban) for urban in (True, False)]
    side_km = min(settings.grain_km, min(caps) / _GRAINS_PER_CAP)
    band, column = ground_squares(latlon_deg, side_km)
    order = np.lexsort((column, band))
    starts = np.ones(len(order), bool)
    starts[1:] = (np.diff(band[order]) != 0) | (np.diff(column[order]) != 0)
    of_photo = np.empty(len(order), np.int64)
    of_photo[order] = np.cumsum(starts) - 1
    vectors = unit_vectors_array(latlon_deg)
    total = sums_by(of_photo, vectors)
    middle = directions(total)
    reach_km = np.zeros(len(total))
    np.maximum.at(reach_km, of_photo, away_km(vectors, middle[of_photo]))
    return of_photo, Grains(
        total=total,
        middle=middle,
        reach_km=reach_km,
        count=np.bincount(of_photo).astype(np.int64),
        in_town=np.bincount(of_photo, in_town).astype(np.int64),
    )


def sums_by(
    group: NDArray[np.int64], values: NDArray[np.float64], num: int = 0
) -> NDArray[np.float64]:
    """(K, D) sums of (N, D) values per group, added in the order of the rows."""
    columns = [np.bincount(group, values[:, k], num) for k in range(values.shape[1])]
    return np.stack(columns, axis=1)


def directions(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) unit vectors; the zero vector points where latitude and longitude are 0."""
    length = np.sqrt(np.einsum("...k,...k->...", vectors, vectors))[..., None]
    if length.all():
        return np.asarray(vectors / length)
    return np.where(length > 0, vectors / np.where(length > 0, length, 1.0), (1.0, 0.0, 0.0))


def away_km(vectors: NDArray[np.float64], center: NDArray[np.float64]) -> NDArray[np.float64]:
    """(...) kilometres between unit vectors (..., 3), broadcast."""
    apart = vectors - center
    return arc_km(np.sqrt(np.einsum("...k,...k->...", apart, apart)))
