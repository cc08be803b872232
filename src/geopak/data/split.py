"""Train, val and test by place and author, with the photos in between set aside.

Linking photos by distance and cutting between the groups does not work: in a city the links
percolate into one group. Here places (small blocks of ground) are drawn for test and val first;
whatever is left but still too close to them, or of the same author and day, becomes the split
``buffer``, which nothing is trained or measured on.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from geopak.errors import ConfigError
from geopak.geo.distance import EARTH_RADIUS_KM

SPLITS = ("train", "val", "test", "buffer")
METHODS = ("places", "random")
_KM_PER_DEGREE = math.radians(EARTH_RADIUS_KM)


@dataclass(frozen=True)
class SplitSettings:
    """How photos are split.

    Attributes:
        method: ``places``, or ``random`` to show by comparison how much a random split flatters.
        val_fraction: share of each province's photos wished for in val.
        test_fraction: share of each province's photos wished for in test.
        block_km: side of the blocks of ground that are drawn whole.
        min_distance_km: no train photo is this close to a val or test photo, no val photo this
            close to a test photo.
    """

    method: str = "places"
    val_fraction: float = 0.08
    test_fraction: float = 0.12
    block_km: float = 2.0
    min_distance_km: float = 0.25

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(
                f"split.method is {self.method!r}; it must be one of {', '.join(METHODS)}."
            )
        if min(self.val_fraction, self.test_fraction) < 0 or (
            self.val_fraction + self.test_fraction > 0.8
        ):
            raise ConfigError(
                "split.val_fraction and split.test_fraction must not be negative and together at "
                f"most 0.8; they are {self.val_fraction} and {self.test_fraction}."
            )
        if self.block_km <= 0 or self.min_distance_km < 0:
            raise ConfigError(
                "split.block_km must be positive and split.min_distance_km not negative."
            )


def split_photos(photos: pd.DataFrame, settings: SplitSettings, seed: int) -> pd.Series:
    """Assigns every photo to ``train``, ``val``, ``test`` or ``buffer``.

    Depends on the photos' content and the seed only, not on their order.

    Args:
        photos: with ``id, latitude, longitude, province_id``; ``author`` with ``captured_at``,
            ``album`` and ``alike`` (equal numbers look alike) tie photos together where present.
        settings: method and sizes.
        seed: another seed draws other places.

    Returns:
        The split of every photo, on the index of ``photos``. With ``places``: no two photos of
        different splits other than ``buffer`` lie within the distance, share author and day,
        share an album or look alike.
    """
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    province_id = photos["province_id"].to_numpy(np.int64)
    split = np.full(len(photos), "train", dtype=object)
    if settings.method == "random":
        places = province_id.astype(str).astype(object) + ":" + photos["id"].astype(str).to_numpy()
    else:
        places = place_names(latlon_deg, province_id, settings.block_km)
    # Test first: val may only use what test leaves free, so that both keep the asked size.
    for name, fraction in (("test", settings.test_fraction), ("val", settings.val_fraction)):
        free = split == "train"
        drawn = np.zeros(len(photos), bool)
        for province in np.unique(province_id):
            here = province_id == province
            quota = fraction * here.sum()
            drawn |= free & here & _draw(places, free & here, quota, f"{seed}:{name}")
        split[drawn] = name
        if settings.method == "places" and drawn.any():
            split[(split == "train") & linked(photos, drawn, settings.min_distance_km)] = "buffer"
    return pd.Series(split, index=photos.index, name="split").astype("string")


def place_names(
    latlon_deg: ArrayLike, province_id: ArrayLike, block_km: float
) -> NDArray[np.object_]:
    """(N,) names of the blocks, about ``block_km`` wide and high, that coordinates lie in.

    A block's name depends on nothing but the coordinate and the province, so blocks stay what
    they are when photos are added.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    height_deg = block_km / _KM_PER_DEGREE
    band = np.floor(points[:, 0] / height_deg).astype(np.int64)
    middle = np.radians(np.clip((band + 0.5) * height_deg, -89.9, 89.9))
    column = np.floor(points[:, 1] * np.cos(middle) / height_deg).astype(np.int64)
    keys = np.stack((np.asarray(province_id, np.int64), band, column), axis=1)
    unique, inverse = np.unique(keys, axis=0, return_inverse=True)
    names = np.array([":".join(map(str, key)) for key in unique.tolist()], dtype=object)
    return names[inverse.reshape(-1)]


def _draw(
    places: NDArray[np.object_], rows: NDArray[np.bool_], quota: float, salt: str
) -> NDArray[np.bool_]:
    """Photos of the places drawn to fill a quota, in the order of the places' salted hashes."""
    names, counts = np.unique(places[rows], return_counts=True)
    drawn: list[str] = []
    left, total = quota, int(counts.sum())
    order = sorted(range(len(names)), key=lambda k: _hash(salt, str(names[k])))
    for k in order:
        # A place larger than what is missing may overshoot by less than leaving it out falls short.
        if counts[k] <= 2 * left and counts[k] <= total / 2:
            drawn.append(names[k])
            left -= counts[k]
    if not drawn and quota > 0 and len(names) > 2:
        # A small province still gets a place, its smallest one.
        smallest = min(order, key=lambda k: counts[k])
        if counts[smallest] <= total / 3:
            drawn.append(names[smallest])
    return np.isin(places, np.array(drawn, dtype=object)) & rows


def _hash(salt: str, name: str) -> bytes:
    return hashlib.sha256(f"{salt}:{name}".encode()).digest()


def linked(
    photos: pd.DataFrame, chosen: NDArray[np.bool_], min_distance_km: float
) -> NDArray[np.bool_]:
    """(N,) which photos are tied to a chosen one: near it, or of its author and day, album, look.

    Args:
        photos: as for :func:`split_photos`.
        chosen: (N,) bool.
        min_distance_km: nearer than or at this distance is near.
    """
    vectors = _unit_vectors(photos[["latitude", "longitude"]].to_numpy(float))
    tied = chosen.copy()
    if chosen.any() and min_distance_km > 0:
        chord = 2 * math.sin(min_distance_km / EARTH_RADIUS_KM / 2)
        # A hair wider than asked: rounding must not let a photo at exactly the distance pass.
        reach = chord * (1 + 1e-6)
        away, _ = cKDTree(vectors[chosen]).query(vectors, k=1, distance_upper_bound=reach)
        tied |= np.isfinite(away)
    for key in tie_keys(photos).values():
        tied |= key.notna().to_numpy() & key.isin(key[chosen].dropna().unique()).to_numpy()
    return tied


def tie_keys(photos: pd.DataFrame) -> dict[str, pd.Series]:
    """What ties photos together -> its value per photo; missing values tie nothing."""
    keys = {}
    if {"author", "captured_at"} <= set(photos.columns):
        day = capture_day(photos["captured_at"])
        keys["author and day"] = photos["author"].astype("string") + "\0" + day
    keys |= {name: photos[name] for name in ("album", "alike") if name in photos.columns}
    return keys


def capture_day(captured_at: pd.Series) -> pd.Series:
    """``YYYY-MM-DD`` of a capture time as its camera wrote it; missing where there is none."""
    text = captured_at.astype("string").str.strip()
    return text.str.extract(r"^(\d{4}[-:/]\d{1,2}[-:/]\d{1,2})", expand=False).str.replace(
        r"[:/]", "-", regex=True
    )


def _unit_vectors(latlon_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    lat, lon = np.radians(latlon_deg).T
    return np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), axis=1)
