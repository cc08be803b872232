"""What ties photos together: the same ground, a short distance, an author's day, album or look.

Splitting, the leak report and the bootstrap of an evaluation all ask which photos are not
independent of each other; this is the one answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from geopak.geo.distance import EARTH_RADIUS_KM, KM_PER_DEGREE

# Coordinates looked up at a time, so that memory does not grow with the table.
_CHUNK = 1_000_000
# A hair wider than asked: rounding must not let a photo at exactly the distance pass.
_SLACK = 1 + 1e-6
_YEARS = (1826, 2200)
_DAY_PATTERNS = (
    # 2021-05-03, 2021:05:03 10:11:12 as EXIF has it, 2021/5/3
    r"^(?P<y>\d{4})[-:/.](?P<m>\d{1,2})[-:/.](?P<d>\d{1,2})(?:\D[\s\S]*)?$",
    # 20210503, 20210503T101112, 20210503101112
    r"^(?P<y>\d{4})(?P<m>\d{2})(?P<d>\d{2})(?:[T ]?\d{4}(?:\d{2})?)?(?:[^\d][\s\S]*)?$",
)
_EPOCH_PATTERNS = ((r"^(?P<t>\d{9,10})(?:\.\d*)?$", 1), (r"^(?P<t>\d{12,13})(?:\.\d*)?$", 1000))
_DAY_S = 86_400


@dataclass(frozen=True, eq=False)
class Ties:
    """Photos and what ties them.

    Attributes:
        vectors: (N, 3) positions on the unit sphere.
        codes: what ties two photos -> (N,) equal for tied photos, -1 where it is not known.
        gaps: what cannot tie all photos -> why, in words, as :func:`tie_gaps` gives them.
    """

    vectors: NDArray[np.float64]
    codes: Mapping[str, NDArray[np.int64]]
    gaps: Mapping[str, str]

    @classmethod
    def of(cls, photos: pd.DataFrame) -> Ties:
        """Reads ``latitude, longitude`` and, where present, the columns of :func:`tie_codes`."""
        latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
        author_day = _author_day(photos)
        codes, gaps = _tie_codes(photos, author_day), _tie_gaps(photos, author_day)
        return cls(unit_vectors(latlon_deg), codes, gaps)

    def linked(self, chosen: NDArray[np.bool_], min_distance_km: float) -> NDArray[np.bool_]:
        """(N,) which photos are chosen, as near as that to a chosen one, or tied to one.

        Args:
            chosen: (N,) bool.
            min_distance_km: nearer than or at this distance is near; 0: distance ties nothing.
        """
        tied = chosen.copy()
        if not chosen.any():
            return tied
        for code in self.codes.values():
            held = np.zeros(code.max(initial=-1) + 2, bool)
            held[code[chosen]] = True
            held[-1] = False  # where -1, not known, has led
            tied |= held[code]
        if min_distance_km > 0:
            rest = np.flatnonzero(~tied)
            away = distance_to_nearest_km(self.vectors, rest, chosen, min_distance_km)
            tied[rest[np.isfinite(away)]] = True
        return tied


def unit_vectors(latlon_deg: ArrayLike) -> NDArray[np.float64]:
    """(N, 2) degrees -> (N, 3) positions on the unit sphere."""
    lat, lon = np.radians(np.asarray(latlon_deg, float).reshape(-1, 2)).T
    return np.stack((np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)), axis=1)


def distance_to_nearest_km(
    vectors: NDArray[np.float64],
    rows: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    limit_km: float = math.inf,
) -> NDArray[np.float64]:
    """Kilometres on the sphere from photos to the nearest chosen one.

    Args:
        vectors: (N, 3) unit vectors of all photos.
        rows: (M,) the photos asked about.
        chosen: (N,) bool.
        limit_km: nothing farther is looked for.

    Returns:
        (M,) kilometres, infinite where no chosen photo lies within the limit.
    """
    away = np.full(len(rows), np.inf)
    if not chosen.any() or not len(rows):
        return away
    # Photos of one spot are many; the tree needs each position once.
    tree = cKDTree(np.unique(vectors[chosen], axis=0), balanced_tree=False)
    reach = np.inf if limit_km >= math.pi * EARTH_RADIUS_KM else _chord(limit_km) * _SLACK
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        # Threads on every core: they share the tree, and the answer does not depend on them.
        chord, _ = tree.query(vectors[part], k=1, distance_upper_bound=reach, workers=-1)
        away[start : start + len(part)] = _arc_km(chord)
    return away


def reached(away_km: NDArray[np.float64], limit_km: float) -> NDArray[np.bool_]:
    """Which distances are at most the limit, as :meth:`Ties.linked` would have it."""
    return away_km <= limit_km * (1 + (_SLACK - 1) / 2)


def _chord(distance_km: float) -> float:
    return 2 * math.sin(distance_km / EARTH_RADIUS_KM / 2)


def _arc_km(chord: NDArray[np.float64]) -> NDArray[np.float64]:
    arc = 2 * EARTH_RADIUS_KM * np.arcsin(np.minimum(chord / 2, 1.0))
    return np.where(np.isfinite(chord), arc, np.inf)


def block_codes(latlon_deg: ArrayLike, block_km: float) -> NDArray[np.uint64]:
    """(N,) codes of the blocks of ground, about ``block_km`` wide and high, of coordinates.

    Blocks are bands of latitude cut along meridians; a block's code depends on nothing but the
    coordinate, so blocks stay what they are when photos are added. No block reaches across 180°
    east, where the last of a band is narrower, or over a pole.
    """
    points = np.asarray(latlon_deg, float).reshape(-1, 2)
    height_deg = block_km / KM_PER_DEGREE
    band = np.floor(points[:, 0] / height_deg)
    middle = np.radians(np.clip((band + 0.5) * height_deg, -89.9, 89.9))
    longitude = (points[:, 1] + 180.0) % 360.0 - 180.0
    # Adding and taking away 180 rounds: what needs no turning is left as it is.
    longitude = np.where(np.abs(points[:, 1]) < 180.0, points[:, 1], longitude)
    column = np.floor(longitude * np.cos(middle) / height_deg)
    middle_code = 2**31
    high = (band.astype(np.int64) + middle_code).astype(np.uint64) << np.uint64(32)
    return high | (column.astype(np.int64) + middle_code).astype(np.uint64)


def hashed(codes: ArrayLike, salt: int = 0) -> NDArray[np.uint64]:
    """(N,) evenly distributed 64-bit numbers of 64-bit codes, the same on every machine.

    SplitMix64 (Steele, Lea and Flood 2014) of the code plus a salt that went through it too.
    """
    salted = _mix(np.array([salt & (2**64 - 1)], np.uint64))
    return _mix(np.asarray(codes).astype(np.uint64) ^ salted)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = values + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def tie_codes(photos: pd.DataFrame) -> dict[str, NDArray[np.int64]]:
    """What ties photos together -> (N,) its number per photo, -1 where it is not known.

    ``author and day`` from ``author`` and ``captured_at``, ``album``, and ``look`` (equal numbers
    look alike), as far as the columns exist. What is not known, empty text included, ties nothing.
    """
    return _tie_codes(photos, _author_day(photos))


_AuthorDay = tuple[NDArray[np.int64], NDArray[np.datetime64]]


def _author_day(photos: pd.DataFrame) -> _AuthorDay | None:
    """(N,) numbers of the authors, -1 for none, and (N,) days; ``None`` without the columns."""
    if not {"author", "captured_at"} <= set(photos.columns):
        return None
    author = _text_codes(photos["author"])
    return author, capture_day(photos["captured_at"]).to_numpy("datetime64[D]")


def _tie_codes(photos: pd.DataFrame, author_day: _AuthorDay | None) -> dict[str, NDArray[np.int64]]:
    codes = {}
    if author_day is not None:
        author, day = author_day
        known = (author >= 0) & ~np.isnat(day)
        number = np.where(known, day.astype(np.int64), 0)
        span = int(number.max(initial=0) - number.min(initial=0)) + 1
        code = np.full(len(photos), -1, np.int64)
        code[known] = pd.factorize(author[known] * span + number[known])[0]
        codes["author and day"] = code
    if "album" in photos.columns:
        codes["album"] = _text_codes(photos["album"])
    if "look" in photos.columns:
        codes["look"] = pd.factorize(photos["look"])[0].astype(np.int64)
    return codes


def tie_gaps(photos: pd.DataFrame) -> dict[str, str]:
    """What cannot tie all photos -> why, in words; empty where everything is known.

    Says ``author and day`` when authors or days are missing, and ``album`` likewise. A photo
    without an album is no gap, for it may belong to none; a table without any album is.
    """
    return _tie_gaps(photos, _author_day(photos))


def _tie_gaps(photos: pd.DataFrame, author_day: _AuthorDay | None) -> dict[str, str]:
    gaps = {}
    num = len(photos)
    if author_day is None:
        lacking = [c for c in ("author", "captured_at") if c not in photos.columns]
        gaps["author and day"] = f"author and day unknown: no column {' and '.join(lacking)}"
    elif num:
        author, day = author_day[0] >= 0, ~np.isnat(author_day[1])
        with_author = int(author.sum())
        if not with_author:
            gaps["author and day"] = "author and day unknown: no photo has an author"
        elif not (author & day).any():
            gaps["author and day"] = (
                "author and day unknown: no photo with an author has a captured_at that names a day"
            )
        elif not (author & day).all():
            parts = []
            if with_author < num:
                parts.append(f"{num - with_author:,} of {num:,} photos have no author")
            dayless = int((author & ~day).sum())
            if dayless:
                parts.append(
                    f"{dayless:,} of {with_author:,} with an author have no captured_at that names "
                    "a day"
                )
            gaps["author and day"] = "author and day known in part: " + ", ".join(parts)
    if "album" not in photos.columns:
        gaps["album"] = "album unknown: no column album"
    elif num and not _known_text(photos["album"]).notna().any():
        gaps["album"] = "album unknown: no photo has one"
    return gaps


def _text_codes(values: pd.Series) -> NDArray[np.int64]:
    return pd.factorize(_known_text(values))[0].astype(np.int64)


def _known_text(values: pd.Series) -> pd.Series:
    text = values.astype("string").str.strip()
    return text.mask(text == "")


def capture_day(captured_at: pd.Series) -> pd.Series:
    """The day of capture times, as the camera wrote it; missing where it is not clear.

    Understood are years first (``2021-05-03T10:00+05:00``, ``2021:05:03 10:00:00``, ``2021/5/3``,
    ``20210503``, ``20210503T101112``), seconds (9 or 10 digits) and milliseconds (12 or 13) since
    1970, whose day is that of UTC, and columns of dates. Days or months first (``03/05/2021``)
    could be either and are not guessed at.

    Returns:
        ``datetime64[s]`` at midnight, ``NaT`` where missing, on the index of ``captured_at``.
    """
    index = captured_at.index
    if isinstance(captured_at.dtype, pd.DatetimeTZDtype):
        captured_at = captured_at.dt.tz_localize(None)
    if pd.api.types.is_datetime64_any_dtype(captured_at.dtype):
        day = captured_at.to_numpy("datetime64[D]")
    else:
        if pd.api.types.is_float_dtype(captured_at.dtype):
            captured_at = captured_at.round().astype("Int64")
        day = _days_of_text(pa.array(captured_at.astype("string").str.strip(), pa.string()))
    return pd.Series(day.astype("datetime64[s]"), index=index, name="capture_day")


def _days_of_text(text: pa.Array) -> NDArray[np.datetime64]:
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    day = np.full(len(text), "NaT", "datetime64[D]")
    for pattern in _DAY_PATTERNS:
        rows = np.flatnonzero(np.isnat(day))
        found = pc.extract_regex(text.take(pa.array(rows)), pattern)
        y, m, d = (_integers(found, name) for name in "ymd")
        good = (_YEARS[0] <= y) & (y <= _YEARS[1]) & (m >= 1) & (m <= 12)
        month = (y[good] - 1970).astype("datetime64[Y]").astype("datetime64[M]") + (m[good] - 1)
        date = month.astype("datetime64[D]") + (d[good] - 1)
        exists = (d[good] >= 1) & (date.astype("datetime64[M]") == month)
        day[rows[good][exists]] = date[exists]
    for pattern, per_second in _EPOCH_PATTERNS:
        rows = np.flatnonzero(np.isnat(day))
        number = _integers(pc.extract_regex(text.take(pa.array(rows)), pattern), "t")
        good = number >= 0
        day[rows[good]] = (number[good] // (per_second * _DAY_S)).astype("datetime64[D]")
    return day


def _integers(found: pa.StructArray, name: str) -> NDArray[np.int64]:
    """A named group of the matches as whole numbers, -1 where the pattern does not match."""
    values = pc.fill_null(pc.struct_field(found, name), "-1")
    return pc.cast(values, pa.int64()).to_numpy(zero_copy_only=False)


def components(
    num: int, edges: list[tuple[NDArray[np.int64], NDArray[np.int64]]], num_nodes: int | None = None
) -> NDArray[np.int64]:
    """(num,) number of the connected component of every photo.

    Args:
        num: photos, which are the first nodes.
        edges: pairs of nodes.
        num_nodes: all nodes; ``None``: the photos alone.
    """
    a = np.concatenate([edge[0] for edge in edges]) if edges else np.zeros(0, np.int64)
    b = np.concatenate([edge[1] for edge in edges]) if edges else np.zeros(0, np.int64)
    size = num if num_nodes is None else num_nodes
    graph = coo_array((np.ones(len(a), bool), (a, b)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:num].astype(np.int64)
