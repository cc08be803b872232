"""What must hold for every set of geocells, checked anew from the photos."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geopak.geo.cell_settings import CellSettings
from geopak.geo.cells import NUM_NEIGHBOURS, CellTable
from geopak.geo.distance import (
    haversine_km_array,
    latlon_of_vectors_array,
    unit_vectors_array,
)
from geopak.geo.region import Region
from geopak.geo.urban import urban_points

# Rounding of coordinates and sums, in kilometres: a tenth of a millimetre.
_ROUNDING_KM = 1e-7
_CHUNK = 1_000_000

# Takes which rows are wrong, and what about them.
_Say = Callable[[NDArray[np.bool_], str], None]


def check_invariants(
    cells: CellTable,
    cell_id: ArrayLike,
    latlon_deg: ArrayLike,
    province_id: ArrayLike,
    region: Region,
    settings: CellSettings,
) -> list[str]:
    """Everything that is wrong with geocells, in words; empty when all invariants hold.

    Every photo is in one cell, of its own province; every province has cells, numbered without
    gaps, in province order; counts, centers (spherical means), radii (farthest photo), urban and
    sparse flags are those of the photos; no radius is above its cap; photos of one coordinate
    share a cell; neighbours are the nearest cells of the province, nearest first, so that of two
    cells that are near enough to each other both list the other.

    Args:
        cells: the geocells.
        cell_id: (N,) global cell id of every train photo.
        latlon_deg: (N, 2) train photos, degrees, latitude first.
        province_id: (N,) class index of each photo's province.
        region: with the minimum counts, own caps and the urban rule.
        settings: with the general caps.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    cell, province = np.asarray(cell_id, np.int64), np.asarray(province_id, np.int64)
    num = cells.num_cells
    astray = (cell < 0) | (cell >= num)
    if len(cell) != len(points) or astray.any():
        return [f"{int(astray.sum())} of {len(points)} photos are in no cell."]
    wrong: list[str] = []

    def say(bad: NDArray[np.bool_], what: str) -> None:
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            wrong.append(f"{int(bad.sum())} {what}, the first of number {first}.")

    say(cells.province_id[cell] != province, "photos are in a cell of another province")
    say(cells.province_id[1:] < cells.province_id[:-1], "cells are out of province order")
    missing = np.bincount(cells.province_id, minlength=region.num_provinces) == 0
    say(missing, "provinces have no cell")
    say(cells.count != np.bincount(cell, minlength=num), "cells have a wrong count")
    say(cells.count <= 0, "cells are empty")
    _check_places(cells, cell, points, say)

    provinces = [region.provinces[p] for p in cells.province_id.tolist()]
    caps = np.array(
        [settings.cap_km(p, bool(urban)) for p, urban in zip(provinces, cells.urban, strict=True)]
    )
    say(cells.radius_km > caps, "cells are larger than their radius cap")
    minimum = np.array([p.min_cluster_size for p in provinces])
    say(cells.sparse != (cells.count < minimum), "cells have a wrong sparse flag")
    in_town = np.bincount(cell, urban_points(points, region.urban), num)
    say(cells.urban != (2 * in_town >= cells.count), "cells have a wrong urban flag")
    _check_neighbours(cells, say)
    return wrong


def _check_places(
    cells: CellTable, cell: NDArray[np.int64], points: NDArray[np.float64], say: _Say
) -> None:
    num = cells.num_cells
    total, radius_km = np.zeros((num, 3)), np.zeros(num)
    for rows in np.array_split(np.arange(len(points)), len(points) // _CHUNK + 1):
        vectors = unit_vectors_array(points[rows])
        for axis in range(3):
            total[:, axis] += np.bincount(cell[rows], vectors[:, axis], num)
        away = haversine_km_array(points[rows], cells.center_latlon_deg[cell[rows]])
        np.maximum.at(radius_km, cell[rows], away)
    say(
        np.abs(cells.radius_km - radius_km) > _ROUNDING_KM + 1e-9 * radius_km,
        "cells have a radius that is not the distance of their farthest photo",
    )
    mean = latlon_of_vectors_array(total)
    # Where photos lie around the whole globe their mean has no direction that rounding spares.
    steady = np.sqrt(np.square(total).sum(1)) > 1e-6 * cells.count
    off = haversine_km_array(mean, cells.center_latlon_deg) > _ROUNDING_KM
    say(steady & off, "cells have a center that is not the mean of their photos")
    order = np.lexsort((cell, points[:, 1], points[:, 0]))
    place, owner = points[order], cell[order]
    of_province = cells.province_id[owner]
    same = (place[1:] == place[:-1]).all(1) & (of_province[1:] == of_province[:-1])
    apart = np.zeros(len(points), bool)
    apart[order[1:]] = same & (owner[1:] != owner[:-1])
    say(apart, "photos are in another cell than photos at the same coordinate")


def _check_neighbours(cells: CellTable, say: _Say) -> None:
    num = cells.num_cells
    listed = cells.neighbours
    real = listed >= 0
    inside = np.where(real, listed, 0)
    broken = _any(listed >= num) | _any(real[:, 1:] & ~real[:, :-1])
    broken |= _any(real & (cells.province_id[inside % num] != cells.province_id[:, None]))
    broken |= _any(listed == np.arange(num)[:, None])
    ranked = np.sort(listed, axis=1)
    broken |= _any((ranked[:, 1:] == ranked[:, :-1]) & (ranked[:, 1:] >= 0))
    others = np.bincount(cells.province_id)[cells.province_id] - 1
    broken |= real.sum(1) != np.minimum(others, NUM_NEIGHBOURS)
    say(broken, "cells list neighbours that are none, twice, or too few")
    if broken.any():
        return
    centers = cells.center_latlon_deg
    away = haversine_km_array(centers[:, None], centers[inside])
    away[~real] = np.inf
    following = real[:, 1:]
    say(
        _any(following & (away[:, 1:] < away[:, :-1])),
        "cells list a farther neighbour before a nearer one",
    )
    tied = following & (away[:, 1:] == away[:, :-1])
    say(
        _any(tied & (listed[:, 1:] < listed[:, :-1])),
        "cells list equally near neighbours in descending order",
    )
    farther, one_sided = np.zeros(num, bool), np.zeros(num, bool)
    last_km = np.where(real, away, 0.0).max(1)
    full = real[:, -1]
    for province in np.unique(cells.province_id):
        own = np.flatnonzero(cells.province_id == province)
        for rows in np.array_split(own, len(own) ** 2 // _CHUNK + 1):
            all_km = haversine_km_array(centers[rows, None], centers[own][None])
            is_listed = _any(listed[rows][:, :, None] == own)
            is_self = rows[:, None] == own
            nearer = all_km < last_km[rows, None] - _ROUNDING_KM
            farther[rows] = _any(full[rows, None] & nearer & ~is_listed & ~is_self)
            lists_me = _any(listed[own][None] == rows[:, None, None], 2)
            mutual = nearer & (all_km < last_km[own][None] - _ROUNDING_KM) & ~is_self
            one_sided[rows] = _any(mutual & (is_listed != lists_me))
    say(farther, "cells do not list a cell that is nearer than one they list")
    say(one_sided, "cells list a near neighbour that does not list them")


def _any(values: NDArray[np.bool_], axis: int = 1) -> NDArray[np.bool_]:
    return np.asarray(values.any(axis))
