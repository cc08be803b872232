"""Coordinates as text: which are degrees, how exact they are, and which no camera measured.

All checks are of whole columns. Nothing is guessed: a coordinate in another notation is refused
with what it would be in decimal degrees, so that a table is converted once and on purpose.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from geopak.data.ties import capture_day

# What exports write for a value that is not there.
_ABSENT = ("nan", "none", "null", "na", "n/a", "<na>", "\\n", "-")
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_COMMA = re.compile(r"([+-]?\d{1,3}),(\d+)")
_SEXAGESIMAL = re.compile(
    r"\s*([NSEW])?\s*"
    r"([+-]?\d+(?:[.,]\d+)?)\s*(?:[°º˚d:\s]\s*"
    r"(?:(\d+(?:[.,]\d+)?)\s*(?:['′’´m:\s]\s*(?:(\d+(?:[.,]\d+)?)\s*(?:\"|″|”|''|s)?)?)?)?)?"
    r"\s*([NSEW])?\s*",
    re.IGNORECASE,
)
_HEMISPHERES = {"latitude": "NS", "longitude": "EW"}


def _arrow(text: pd.Series) -> pa.Array:
    array = pa.array(text.astype("string"), pa.large_string())
    return array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    filled: NDArray[np.bool_] = pc.fill_null(array, False).to_numpy(zero_copy_only=False)
    return filled


def absent(text: pd.Series) -> NDArray[np.bool_]:
    """(N,) where there is no value: missing, empty, or a word that stands for nothing."""
    array = _arrow(text)
    words = pc.is_in(pc.utf8_lower(array), value_set=pa.array(["", *_ABSENT], pa.large_string()))
    return _mask(pc.or_kleene(pc.is_null(array), words))


def degrees(text: pd.Series) -> NDArray[np.float64]:
    """(N,) float64 values of decimal numbers; NaN for every other text, infinity included."""
    array = _arrow(text)
    plain = pc.if_else(pc.match_substring_regex(array, _NUMBER), array, None)
    value = pc.cast(plain, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
    return np.where(np.isfinite(value), value, np.nan)


def num_decimals(text: pd.Series) -> NDArray[np.int8]:
    """(N,) decimals that decimal numbers are written with (``24.10`` has two); else 0.

    An exponent moves the point: ``2.4105e1`` has three.
    """
    array = _arrow(text)
    point = pc.find_substring(array, ".")
    behind = pc.subtract(
        pc.subtract(pc.utf8_length(array).cast(pa.int64()), point.cast(pa.int64())), 1
    )
    decimals = pc.fill_null(pc.if_else(pc.greater_equal(point, 0), behind, 0), 0)
    count = np.array(decimals.to_numpy(zero_copy_only=False), np.int64)
    for k in np.flatnonzero(_mask(pc.match_substring_regex(array, "[eE]"))):
        written = re.fullmatch(r"[+-]?\d*\.?(\d*)[eE]([+-]?\d+)", array[k].as_py())
        count[k] = len(written[1]) - int(written[2]) if written else 0
    return np.clip(count, 0, 99).astype(np.int8)


def explain(axis: str, text: str) -> str:
    """Why a text is no coordinate, and what it would be in decimal degrees if that is plain.

    Args:
        axis: ``latitude`` or ``longitude``.
        text: as written.
    """
    said = f"the {axis} is {text!r}, not decimal degrees"
    comma = _COMMA.fullmatch(text.strip())
    if comma:
        return f"{said}; write {comma[1]}.{comma[2]} with a point"
    parts = _SEXAGESIMAL.fullmatch(text)
    letter = ((parts[1] or parts[5] or "") if parts else "").upper()
    if not parts or (parts[1] and parts[5]):
        return said
    if letter and letter not in _HEMISPHERES[axis]:
        return f"{said}, and {letter} belongs to a {'longitude' if letter in 'EW' else 'latitude'}"
    whole, minutes, seconds = (float((p or "0").replace(",", ".")) for p in parts.group(2, 3, 4))
    if minutes >= 60 or seconds >= 60:
        return said
    value = abs(whole) + minutes / 60 + seconds / 3600
    south = parts[2].startswith("-") or letter in ("S", "W")
    written = f"{-value if south else value:.6f}".rstrip("0").rstrip(".")
    return f"{said}; convert degrees, minutes and seconds, which makes {written}"


def shared_by_unrelated(photos: pd.DataFrame, limit: int) -> pd.Series:
    """Photos whose very coordinate more than ``limit`` unrelated photos have.

    Satellites put no two photos at the same place to the last digit, but geocoding a place name
    does. Photos of one author and day are related and count as one; where author or day is
    unknown, so are photos of one album; all others are unrelated.

    Args:
        photos: ``latitude, longitude`` (degrees) and, where known, ``author, captured_at, album``.
        limit: most unrelated photos that may share a coordinate.

    Returns:
        How many unrelated photos share the coordinate, for the photos above the limit only,
        indexed as they are.
    """
    place = photos.groupby(["latitude", "longitude"], sort=False)
    crowded = photos[(place["latitude"].transform("size") > limit).to_numpy()]
    if crowded.empty:
        return pd.Series(dtype="int64", index=crowded.index)
    known = {
        column: crowded[column].astype("string")
        if column in crowded
        else pd.Series(pd.NA, crowded.index, "string")
        for column in ("author", "captured_at", "album")
    }
    day = capture_day(known["captured_at"]).astype("string")
    occasion = "d\0" + known["author"] + "\0" + day
    occasion = occasion.fillna("a\0" + known["album"])
    alone = pd.Series(np.arange(len(crowded)).astype(str), crowded.index, dtype="string")
    crowded = crowded.assign(occasion=occasion.fillna(alone))
    count = crowded.groupby(["latitude", "longitude"], sort=False)["occasion"].transform("nunique")
    return count[count > limit].astype("int64")
