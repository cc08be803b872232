"""The urban rule: which photos lie in town, told from the places with photos around them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from geopak.geo.distance import EARTH_RADIUS_KM, unit_vectors_array
from geopak.geo.region import UrbanRule


def ground_squares(
    latlon_deg: ArrayLike, side_km: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The square of ground that each coordinate lies in, as a band of latitude and a column.

    Args:
        latlon_deg: (N, 2) degrees, latitude first.
        side_km: side of the squares; they narrow towards the poles, where meridians meet.

    Returns:
        (N,) number of the band and (N,) number of the column within it.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    height_deg, band = _bands(points[:, 0], side_km)
    column = np.floor(points[:, 1] / _width_deg(band, height_deg))
    return band.astype(np.int64), column.astype(np.int64)


def urban_points(latlon_deg: ArrayLike, rule: UrbanRule) -> NDArray[np.bool_]:
    """(N,) whether at least ``rule.places`` places with photos lie around each coordinate.

    Places are squares of ground with at least one photo, not photos: a thousand pictures of one
    monument in the desert do not make a town. A photo's own place is one of them.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    if not len(points):
        return np.zeros(0, bool)
    band, column = ground_squares(points, rule.place_km)
    # One number per square: bands and columns of squares a metre wide still fit into 63 bits.
    span = int(column.max()) - int(column.min()) + 1
    key = (band - band.min()) * span + (column - column.min())
    _, first, inverse = np.unique(key, return_index=True, return_inverse=True)
    height_deg = math.degrees(rule.place_km / EARTH_RADIUS_KM)
    place_band, place_column = band[first].astype(float), column[first].astype(float)
    middles = np.stack(
        (
            np.clip((place_band + 0.5) * height_deg, -90.0, 90.0),
            (place_column + 0.5) * _width_deg(place_band, height_deg),
        ),
        axis=1,
    )
    vectors = unit_vectors_array(middles)
    reach = 2 * math.sin(min(rule.within_km / EARTH_RADIUS_KM, math.pi) / 2)
    around = cKDTree(vectors).query_ball_point(vectors, reach, return_length=True, workers=-1)
    in_town: NDArray[np.bool_] = (around >= rule.places)[inverse.reshape(-1)]
    return in_town


def _bands(latitude: NDArray[np.float64], side_km: float) -> tuple[float, NDArray[np.float64]]:
    height_deg = math.degrees(side_km / EARTH_RADIUS_KM)
    return height_deg, np.floor(latitude / height_deg)


def _width_deg(band: NDArray[np.float64], height_deg: float) -> NDArray[np.float64]:
    """Degrees of longitude that are as long as ``height_deg`` in the middle of a band."""
    middle = np.radians((band + 0.5) * height_deg)
    width: NDArray[np.float64] = height_deg / np.maximum(np.cos(middle), 1e-3)
    return width
