"""The photo table: its columns, their schema, and which rows of raw tables can be used.

:mod:`geopak.data.ingest` reads rows as they were written. Validation parts them into photos (typed
columns) and rejections. Nothing is dropped silently: photos and rejections together are always all
the rows that were read.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from geopak.data import coordinates
from geopak.data.photo_paths import ResolvedPaths
from geopak.errors import PreparedSetError, nearest_name
from geopak.geo.region import Region
from geopak.schema.preparation import ValidationSettings

log = logging.getLogger(__name__)

REQUIRED_COLUMNS = ("id", "path", "latitude", "longitude")
OPTIONAL_COLUMNS = (
    "province", "source", "license", "author", "captured_at", "url", "width", "height", "album",
    "accuracy_km",
)  # fmt: skip
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
ORIGIN_COLUMNS = ("file", "line")
REJECTION_COLUMNS = ("reason", "detail")
# Names that a table may not have for columns of its own.
RESERVED_COLUMNS = (*ORIGIN_COLUMNS, "malformed", *REJECTION_COLUMNS)
SPLIT_TABLE_COLUMNS = ("id", "latitude", "longitude", "split")

_PIXELS = ("width", "height")
_MOST_PIXELS = 1_000_000
# Half the way around the globe.
_MOST_ACCURACY_KM = 20_100
# A table whose every label is unknown needs no more examples than this.
_MOST_HINTS = 10


def rejections(
    rows: pd.Index, reason: str | pd.Series, detail: str | pd.Series | Sequence[str]
) -> pd.DataFrame:
    """A table of rejected rows: the row numbers as index, ``reason`` and ``detail`` as columns."""
    frame = pd.DataFrame(index=rows, columns=list(REJECTION_COLUMNS), dtype="string")
    frame["reason"] = reason
    frame["detail"] = detail
    return frame


def natural_order(ids: pd.Series) -> pd.Series:
    """Sort keys that put ``p2`` before ``p10``; used wherever the first of several is kept."""
    return ids.astype(str).str.replace(r"\d+", lambda m: m.group().zfill(20), regex=True)


def validate(
    raw: pd.DataFrame,
    root: str | Path,
    region: Region,
    settings: ValidationSettings | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts the rows of photo tables into photos that can be used and rejections.

    A row gets the first reason that applies, in this order: ``malformed_row``, ``missing_id``,
    ``missing_path``, ``coordinate_missing``, ``coordinate_not_a_number``,
    ``coordinates_swapped``, ``coordinate_out_of_range``, ``coordinates_zero``,
    ``too_few_decimals``, ``inaccurate``, ``path_outside_root``, ``file_missing``,
    ``duplicate_id``, ``coordinate_shared``.

    Args:
        raw: rows as :func:`geopak.data.ingest.read_sources` gives them.
        root: folder that holds all photos; paths are relative to it and may not leave it.
        region: whose province names are known labels.
        settings: which coordinates are believed; ``None``: the defaults.

    Returns:
        The photos: ``id, path`` text (path normalised, forward slashes), ``latitude, longitude``
        float64 degrees, ``label_province`` the display name or missing, the other optional
        columns (``width, height`` missing where the table has no whole number of pixels; the
        files are measured later; ``accuracy_km`` Float64, missing where it is no number) and
        ``coordinate_decimals`` (Int8), the decimals of the more exact of both coordinates;
        and the rejections: ``reason, detail``. Both are indexed by the row of ``raw``.
    """
    settings = settings or ValidationSettings()
    raw_schema().validate(raw)
    nothing = pd.array(pa.nulls(len(raw), pa.large_string()), dtype="string")
    raw = raw.assign(**{c: nothing for c in (*COLUMNS, "malformed") if c not in raw})
    reasons = _Reasons(raw)

    reasons.add(
        raw["malformed"].notna(), "malformed_row", lambda rows: "the row " + rows["malformed"]
    )
    reasons.add(raw["id"].isna(), "missing_id", "the id is empty; give every photo its own")
    reasons.add(raw["path"].isna(), "missing_path", "the path is empty")
    lat, lon = _check_coordinates(raw, reasons)
    decimals = np.maximum(
        coordinates.num_decimals(raw["latitude"]), coordinates.num_decimals(raw["longitude"])
    )
    reasons.add(
        decimals < settings.min_decimals,
        "too_few_decimals",
        lambda rows: (
            _place(rows) + f": fewer than {settings.min_decimals} decimals, no place of a photo "
            "(validation.min_decimals)"
        ),
    )
    accuracy_km = coordinates.degrees(raw["accuracy_km"])
    accuracy_km[~((accuracy_km >= 0) & (accuracy_km <= _MOST_ACCURACY_KM))] = np.nan
    if settings.max_accuracy_km is not None:
        reasons.add(
            accuracy_km > settings.max_accuracy_km,
            "inaccurate",
            lambda rows: (
                "the coordinate is exact to " + rows["accuracy_km"] + " km, at most "
                f"{settings.max_accuracy_km:g} are believed (validation.max_accuracy_km)"
            ),
        )
    labels = _named_labels(raw, region)
    path = _check_paths(raw, root, reasons)

    open_rows = reasons.open
    ids = raw.loc[open_rows, "id"]
    again = np.zeros(len(raw), bool)
    again[open_rows] = ids.duplicated().to_numpy()

    def first_of(rows: pd.DataFrame) -> pd.Series:
        first = raw[open_rows & raw["id"].isin(rows["id"]).to_numpy()].drop_duplicates("id")
        where = first["file"].astype("string") + " line " + first["line"].astype("string")
        return "the id is also that of " + rows["id"].map(where.set_axis(first["id"]))

    reasons.add(again, "duplicate_id", first_of)

    kept = reasons.open
    place = pd.DataFrame({"latitude": lat[kept], "longitude": lon[kept]}, index=raw.index[kept])
    limit = settings.max_photos_per_coordinate
    if limit is not None:
        for column in ("author", "captured_at", "album"):
            place[column] = raw.loc[kept, column]
        sharing = coordinates.shared_by_unrelated(place, limit)
        reasons.add(
            raw.index.isin(sharing.index),
            "coordinate_shared",
            lambda rows: (
                _place(rows)
                + ": "
                + sharing.loc[rows.index].astype("string")
                + " photos of different authors or days have this very coordinate, that of a "
                f"place name rather than of a camera (at most {limit}: "
                "validation.max_photos_per_coordinate)"
            ),
        )
    kept = reasons.open
    photos = raw.loc[kept, ["id"]].copy()
    photos["path"] = path[kept]
    photos["latitude"], photos["longitude"] = lat[kept], lon[kept]
    photos["label_province"] = labels[kept]
    for column in OPTIONAL_COLUMNS:
        if column in _PIXELS:
            photos[column] = _pixels(raw.loc[kept, column])
        elif column == "accuracy_km":
            known = np.isfinite(accuracy_km[kept])
            photos[column] = pd.array(np.where(known, accuracy_km[kept], 0.0), "Float64")
            photos.loc[~known, column] = pd.NA
        elif column != "province":
            photos[column] = raw.loc[kept, column]
    photos["coordinate_decimals"] = pd.array(decimals[kept], "Int8")
    rejected = reasons.table()
    assert len(raw) == len(photos) + len(rejected), "a row was lost or counted twice"
    photo_schema().validate(photos)
    return photos, rejected


class _Reasons:
    """The first reason against every row, and its detail."""

    def __init__(self, raw: pd.DataFrame) -> None:
        self._raw = raw
        self.open: NDArray[np.bool_] = np.ones(len(raw), bool)
        self._parts: list[pd.DataFrame] = []

    def add(self, rows: Any, reason: str, detail: str | Any) -> None:
        """Rejects rows that are still open.

        Args:
            rows: (N,) booleans.
            reason: short name.
            detail: text, or a function that makes a series of texts of the rejected rows.
        """
        bad = self.open & np.asarray(rows, dtype=bool)
        if not bad.any():
            return
        self.open = self.open & ~bad
        told = detail if isinstance(detail, str) else detail(self._raw[bad])
        self._parts.append(rejections(self._raw.index[bad], reason, told))

    def table(self) -> pd.DataFrame:
        """All rejections in the order of the rows."""
        if not self._parts:
            return rejections(self._raw.index[:0], "", "")
        parted = pd.concat(self._parts)
        return parted.loc[self._raw.index[~self.open]]


def _place(rows: pd.DataFrame) -> pd.Series:
    return "latitude " + rows["latitude"] + ", longitude " + rows["longitude"]


def _check_coordinates(
    raw: pd.DataFrame, reasons: _Reasons
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    value = {}
    for axis in ("latitude", "longitude"):
        reasons.add(coordinates.absent(raw[axis]), "coordinate_missing", f"the {axis} is empty")
        value[axis] = coordinates.degrees(raw[axis])

        def explain(rows: pd.DataFrame, axis: str = axis) -> pd.Series:
            written = rows[axis].unique()
            told = {text: coordinates.explain(axis, text) for text in written}
            return rows[axis].map(told)

        reasons.add(np.isnan(value[axis]), "coordinate_not_a_number", explain)
    lat, lon = value["latitude"], value["longitude"]
    reasons.add(
        (np.abs(lat) > 90) & (np.abs(lat) <= 180) & (np.abs(lon) <= 90),
        "coordinates_swapped",
        lambda rows: _place(rows) + ": only the other way round is on the globe",
    )
    reasons.add(
        (np.abs(lat) > 90) | (np.abs(lon) > 180),
        "coordinate_out_of_range",
        lambda rows: _place(rows) + ": latitude is -90..90, longitude -180..180",
    )
    reasons.add(
        (lat == 0) & (lon == 0),
        "coordinates_zero",
        "0, 0 stands for a missing position in many exports",
    )
    return lat, lon


def _named_labels(raw: pd.DataFrame, region: Region) -> pd.Series:
    """Display names of the labels, missing where there is none.

    A label that names no province stays as written: the coordinates say where a photo is, and the
    label is listed among those that disagree.
    """
    label_id, labels = pd.factorize(raw["province"])
    province_id = [region.find(label) for label in labels]
    unknown = [k for k, index in enumerate(province_id) if index is None]
    if unknown:
        counts = np.bincount(label_id[label_id >= 0], minlength=len(labels))
        told = "; ".join(
            f"{labels[k]!r} ({counts[k]:,} rows){nearest_name(labels[k], region.names)}"
            for k in sorted(unknown, key=lambda k: -counts[k])[:_MOST_HINTS]
        )
        log.warning(
            "%s labels name no province of %s: %s. Their coordinates are used. Other spellings "
            "belong into region.provinces.<key>.aliases.", f"{len(unknown):,}", region.title, told,
        )  # fmt: skip
    names = pa.array(
        [
            *(
                label if i is None else region.names[i]
                for label, i in zip(labels, province_id, strict=True)
            ),
            None,
        ],
        pa.large_string(),
    )
    named = names.take(pa.array(np.where(label_id < 0, len(labels), label_id)))
    return pd.Series(pd.array(named, dtype="string"), raw.index)


def _pixels(text: pd.Series) -> pd.Series:
    value = coordinates.degrees(text).round()
    usable = (value >= 1) & (value <= _MOST_PIXELS)
    whole = pd.array(np.where(usable, value, 1).astype(np.int64), "Int64")
    whole[~usable] = pd.NA
    return pd.Series(whole, text.index)


def _check_paths(raw: pd.DataFrame, root: str | Path, reasons: _Reasons) -> pd.Series:
    """Normalised paths of the rows that are still open; rejects those that cannot be used."""
    open_rows = reasons.open
    resolved = ResolvedPaths(raw.loc[open_rows, "path"], root)
    for reason, rows, told in resolved.problems():
        everywhere = np.zeros(len(raw), bool)
        everywhere[np.flatnonzero(open_rows)[rows]] = True
        reasons.add(everywhere, reason, lambda _, told=told: told)
    return resolved.normal.reindex(raw.index)


@functools.cache
def raw_schema() -> Any:
    """The pandera schema of rows as they were read: text, and where each stood."""
    # Takes a second to import, which no command should pay that reads no table.
    import pandera.pandas as pa_schema

    text = {
        name: pa_schema.Column("string", nullable=True, required=name in REQUIRED_COLUMNS)
        for name in (*COLUMNS, "malformed")
    }
    origin = {
        "file": pa_schema.Column("string", coerce=True, nullable=False),
        "line": pa_schema.Column("int64", pa_schema.Check.ge(1), nullable=False),
    }
    return pa_schema.DataFrameSchema(
        text | origin, index=pa_schema.Index("int64"), name="rows of photo tables"
    )


@functools.cache
def photo_schema() -> Any:
    """The pandera schema of photos that passed validation."""
    import pandera.pandas as pa_schema

    column, check = pa_schema.Column, pa_schema.Check
    text = {
        name: column("string", nullable=True)
        for name in ("label_province", *OPTIONAL_COLUMNS)
        if name not in (*_PIXELS, "province", "accuracy_km")
    }
    pixels = {
        name: column("Int64", check.in_range(1, _MOST_PIXELS), nullable=True) for name in _PIXELS
    }
    return pa_schema.DataFrameSchema(
        {
            "id": column("string", unique=True),
            "path": column("string"),
            **_degrees_columns(),
            **text,
            **pixels,
            "accuracy_km": column("Float64", check.in_range(0, _MOST_ACCURACY_KM), nullable=True),
            "coordinate_decimals": column("Int8", check.in_range(0, 99)),
        },
        index=pa_schema.Index("int64", unique=True),
        strict=True,
        name="photos",
    )


@functools.cache
def split_table_schema() -> Any:
    """The pandera schema of photos with a split, made here or elsewhere."""
    import pandera.pandas as pa_schema

    column, check = pa_schema.Column, pa_schema.Check
    text = {
        name: column("string", nullable=True, required=False, coerce=True)
        for name in ("author", "captured_at", "album")
    }
    return pa_schema.DataFrameSchema(
        {
            "id": column("string", unique=True, coerce=True),
            **_degrees_columns(coerce=True),
            "split": column("string", check.str_length(min_value=1), coerce=True),
            **text,
        },
        name="photos with a split",
    )


def _degrees_columns(coerce: bool = False) -> dict[str, Any]:
    import pandera.pandas as pa_schema

    return {
        axis: pa_schema.Column("float64", pa_schema.Check.in_range(-most, most), coerce=coerce)
        for axis, most in (("latitude", 90), ("longitude", 180))
    }


_REMEDIES = {
    "id": "Give every photo an id of its own",
    "latitude": "It must be decimal degrees, -90 to 90",
    "longitude": "It must be decimal degrees, -180 to 180",
    "split": "It must be the name of a split",
}


def check_split_table(frame: pd.DataFrame, where: str | Path) -> pd.DataFrame:
    """Checks a table of photos that were split elsewhere, or read from a prepared set.

    Args:
        frame: with at least ``id, latitude, longitude, split``; other columns stay as they are.
        where: the file, for messages.

    Returns:
        The table with ``id, split`` and, where present, ``author, captured_at, album`` as text,
        and ``latitude, longitude`` as float64 degrees.

    Raises:
        PreparedSetError: a column is missing, or a value cannot be used; names the column, how
            many rows it concerns, one of them, and the remedy.
    """
    import pandera.errors

    for column in SPLIT_TABLE_COLUMNS:
        given = [str(c) for c in frame.columns].count(column)
        if given != 1:
            others = [c for c in frame.columns if c not in SPLIT_TABLE_COLUMNS]
            fault = "has the column {!r} twice." if given else "has no column {!r}."
            raise PreparedSetError(
                f"{where} {fault.format(column)}{nearest_name(column, others) if not given else ''}"
                f" A table of photos with a split needs {', '.join(SPLIT_TABLE_COLUMNS)}."
            )
    if frame.empty:
        raise PreparedSetError(f"{where} has no rows.")
    given_frame = frame = frame.reset_index(drop=True)
    for axis in ("latitude", "longitude"):
        if not pd.api.types.is_numeric_dtype(frame[axis].dtype):
            text = frame[axis].astype("string").str.strip()
            frame = frame.assign(**{axis: coordinates.degrees(text)})
    try:
        checked: pd.DataFrame = split_table_schema().validate(frame, lazy=True)
    except pandera.errors.SchemaErrors as errors:
        raise PreparedSetError(_first_failure(given_frame, where, errors.failure_cases)) from None
    return checked


def _first_failure(frame: pd.DataFrame, where: str | Path, failures: pd.DataFrame) -> str:
    column = str(failures["column"].iloc[0])
    same = failures[(failures["column"] == column) & failures["index"].notna()]
    remedy = _REMEDIES.get(column, f"It must be {split_table_schema().columns[column].dtype}")
    if same.empty:
        return (
            f"{where}: the column {column!r} cannot be used: {failures['check'].iloc[0]}. {remedy}."
        )
    row = int(same["index"].iloc[0])
    value = frame[column].iloc[row]
    if pd.isna(value):
        fault = "has no value"
    elif "unique" in str(same["check"].iloc[0]):
        fault = f"{str(value)!r} is there twice"
    else:
        fault = f"{str(value)!r} cannot be used"
    whose = "" if column == "id" else f" (id {str(frame['id'].iloc[row])!r})"
    return (
        f"{where} row {row + 1}{whose}: {column} {fault}; {same['index'].nunique():,} of "
        f"{len(frame):,} rows have such. {remedy}."
    )
