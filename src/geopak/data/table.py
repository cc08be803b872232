"""The photo table: its columns, how it is read, and which of its rows can be used.

Reading keeps every row as it was written, with the file and line it came from; validation then
parts the rows into photos (typed columns) and rejections. Nothing is dropped silently: photos and
rejections together are always all the rows that were read.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import ExifTags, Image, UnidentifiedImageError

from geopak.errors import TableError, nearest_name
from geopak.geo.region import Region

REQUIRED_COLUMNS = ("id", "path", "latitude", "longitude")
OPTIONAL_COLUMNS = (
    "province", "source", "license", "author", "captured_at", "url", "width", "height", "album",
)  # fmt: skip
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
ORIGIN_COLUMNS = ("file", "line")
REJECTION_COLUMNS = ("reason", "detail")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": ","}


def read_tables(paths: Sequence[str | Path]) -> pd.DataFrame:
    """Reads photo tables into one, every value still as text.

    Args:
        paths: CSV, TSV or Parquet files with at least the required columns, in any order.

    Returns:
        All columns of all files as nullable text, and ``file`` and ``line``: where a row stood
        (CSV: line, counting records after the header line 1; Parquet: row, from 1). The index
        counts the rows of all files from 0.

    Raises:
        TableError: a file is missing, unreadable, empty or lacks a required column.
    """
    if not paths:
        raise TableError("No photo table given. Set tables=[FILE.csv] or folders=[FOLDER].")
    return pd.concat([_read_table(Path(path)) for path in paths], ignore_index=True)


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise TableError(
            f"No photo table at {path}. Set tables=[FILE] to a CSV or Parquet file, or render the "
            "synthetic set: python -m geopak.synthetic"
        )
    suffix = path.suffix.lower()
    try:
        if suffix in (".parquet", ".pq"):
            frame = pd.read_parquet(path)
            first_line = 1
        elif suffix in _SEPARATORS:
            frame = _read_text(path, _SEPARATORS[suffix])
            first_line = 2
        else:
            raise TableError(
                f"{path}: {suffix or 'no suffix'} is not a table format that is read here. Save "
                "it as .csv, .tsv or .parquet."
            )
    except pd.errors.EmptyDataError:
        raise TableError(_empty(path)) from None
    except UnicodeDecodeError as error:
        raise TableError(f"{path} is not UTF-8 text ({error}). Save it as UTF-8.") from error
    except (OSError, ValueError, pd.errors.ParserWarning) as error:
        if isinstance(error, TableError):
            raise
        raise TableError(
            f"{path} cannot be read as a table: {error}. Check that it is a complete "
            f"{suffix[1:]} file; text with separators needs quotes."
        ) from error
    frame.columns = [str(c).strip() for c in frame.columns]
    _check_columns(path, frame.columns)
    if frame.empty:
        raise TableError(_empty(path))
    frame = frame.astype("string").apply(lambda column: column.str.strip())
    frame = frame.mask(frame == "")
    return frame.assign(file=path.name, line=np.arange(len(frame)) + first_line)


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    with warnings.catch_warnings():
        # A row with more values than the header would lose some with no more than a warning.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig",
            skip_blank_lines=False, index_col=False,
        )  # fmt: skip


def _empty(path: Path) -> str:
    return (
        f"{path} has no rows. It needs a header ({', '.join(REQUIRED_COLUMNS)}, ...) and one row "
        "per photo."
    )


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    present = list(columns)
    for column in REQUIRED_COLUMNS:
        if present.count(column) > 1:
            raise TableError(f"{path} has the column {column!r} twice. Rename or remove one.")
        if column not in present:
            others = [c for c in present if c not in COLUMNS]
            folded = {c.casefold().replace(" ", "_"): c for c in others}
            short = {"latitude": ("lat", "y"), "longitude": ("lon", "lng", "long", "x")}
            alike = next((folded[s] for s in short.get(column, ()) if s in folded), None)
            hint = f" Did you mean {alike!r}?" if alike else nearest_name(column, others)
            raise TableError(
                f"{path} has no column {column!r}.{hint} It has: {', '.join(present)}. Rename "
                f"the column that holds it to {column!r}."
            )
    for origin in (*ORIGIN_COLUMNS, *REJECTION_COLUMNS):
        if origin in present:
            raise TableError(
                f"{path} has a column {origin!r}, a name that is needed to say where a row came "
                "from. Rename or remove it."
            )


def read_folder(folder: str | Path, root: str | Path) -> pd.DataFrame:
    """Makes table rows out of the photos of a folder and its subfolders, from their EXIF data.

    Args:
        folder: where to look for image files.
        root: the data root, which must hold ``folder``; ids and paths are relative to it.

    Returns:
        Rows as :func:`read_tables` gives them; coordinates are missing where a photo has no GPS.

    Raises:
        TableError: the folder is missing, outside the root or holds no image file.
    """
    folder, root = Path(folder).resolve(), Path(root).resolve()
    if not folder.is_dir() or not folder.is_relative_to(root):
        raise TableError(
            f"{folder} is not a folder inside the data root {root}. Set root to a folder that "
            "holds all photos."
        )
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise TableError(f"{folder} holds no image file ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    rows = []
    for line, file in enumerate(files, start=1):
        relative = file.relative_to(root).as_posix()
        rows.append({"id": relative, "path": relative, **_exif_fields(file), "line": line})
    frame = pd.DataFrame(rows).reindex(columns=[*COLUMNS, "line"])
    text = frame.drop(columns="line").astype("string")
    return text.assign(file=folder.relative_to(root).as_posix(), line=frame["line"])


def _exif_fields(file: Path) -> dict[str, str]:
    """Coordinates, time, author and size that an image file states; what it lacks is left out."""
    try:
        with Image.open(file) as image:
            exif = image.getexif()
            gps = exif.get_ifd(ExifTags.IFD.GPSInfo)
            taken = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
            fields = {"width": str(image.width), "height": str(image.height)}
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError):
        return {}
    for name, value, positive, negative in (
        ("latitude", ExifTags.GPS.GPSLatitude, "N", "S"),
        ("longitude", ExifTags.GPS.GPSLongitude, "E", "W"),
    ):
        reference = str(gps.get(value - 1, positive)).strip("\0 ").upper()[:1]
        try:
            degrees, minutes, seconds = (float(part) for part in gps[value])
        except (KeyError, TypeError, ValueError, ZeroDivisionError):
            continue
        sign = -1 if reference == negative else 1
        fields[name] = f"{sign * (degrees + minutes / 60 + seconds / 3600):.7f}"
    if taken:
        fields["captured_at"] = _exif_time(str(taken))
    author = exif.get(ExifTags.Base.Artist)
    if author:
        fields["author"] = str(author).strip("\0 ")
    return fields


def _exif_time(text: str) -> str:
    """``2021:05:03 10:11:12`` -> ``2021-05-03 10:11:12``."""
    return re.sub(r"^(\d{4}):(\d\d):(\d\d)", r"\1-\2-\3", text.strip("\0 "))


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
    raw: pd.DataFrame, root: str | Path, region: Region
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts the rows of photo tables into photos that can be used and rejections.

    A row gets the first reason that applies, in this order: ``missing_id``, ``missing_path``,
    ``coordinate_missing``, ``coordinate_not_a_number``, ``coordinates_swapped``,
    ``coordinate_out_of_range``, ``coordinates_zero``, ``unknown_province``,
    ``path_outside_root``, ``file_missing``, ``duplicate_id``.

    Args:
        raw: rows as :func:`read_tables` gives them.
        root: folder that holds all photos; paths are relative to it and may not leave it.
        region: whose province names are known labels.

    Returns:
        The photos: ``id, path`` text (path normalised, forward slashes), ``latitude, longitude``
        float64 degrees, ``label_province`` the display name or missing, and the other optional
        columns; and the rejections: ``reason, detail``. Both are indexed by the row of ``raw``.
    """
    raw = raw.reindex(columns=[*raw.columns, *(c for c in COLUMNS if c not in raw.columns)])
    reason = pd.Series(pd.NA, index=raw.index, dtype="string")
    detail = pd.Series(pd.NA, index=raw.index, dtype="string")

    def reject(rows: pd.Series, why: str, what: pd.Series | str) -> None:
        first = rows.fillna(False).astype(bool) & reason.isna()
        reason[first] = why
        detail[first] = what[first] if isinstance(what, pd.Series) else what

    reject(raw["id"].isna(), "missing_id", "the id is empty; give every photo its own")
    reject(raw["path"].isna(), "missing_path", "the path is empty")

    degrees = {}
    for axis in ("latitude", "longitude"):
        text = raw[axis]
        absent = text.isna() | text.str.casefold().isin(["nan", "none", "null", "na", "n/a"])
        degrees[axis] = pd.to_numeric(text, errors="coerce").astype("float64")
        reject(absent, "coordinate_missing", f"the {axis} is empty")
        reject(
            ~degrees[axis].between(-np.inf, np.inf, inclusive="neither"),
            "coordinate_not_a_number",
            f"the {axis} is "
            + text.map(repr, na_action="ignore").astype("string")
            + ", not decimal degrees",
        )
    lat, lon = degrees["latitude"], degrees["longitude"]
    place = "latitude " + raw["latitude"] + ", longitude " + raw["longitude"]
    swapped = (lat.abs() > 90) & (lat.abs() <= 180) & (lon.abs() <= 90)
    reject(swapped, "coordinates_swapped", place + ": only the other way round is on the globe")
    outside = (lat.abs() > 90) | (lon.abs() > 180)
    reject(outside, "coordinate_out_of_range", place + ": latitude is -90..90, longitude -180..180")
    reject(
        (lat == 0) & (lon == 0),
        "coordinates_zero",
        "0, 0 stands for a missing position in many exports",
    )

    labels = {name: region.find(name) for name in raw["province"].dropna().unique()}
    unknown = {name for name, index in labels.items() if index is None}
    hints = {
        name: f"{name!r} is no province of {region.title}.{nearest_name(name, region.names)} Add "
        "the spelling to region.provinces.<key>.aliases"
        for name in unknown
    }
    reject(
        raw["province"].isin(list(unknown)),
        "unknown_province",
        raw["province"].map(hints).astype("string"),
    )

    check, open_rows = _PathCheck(root), raw.index[reason.isna()]
    resolved = pd.DataFrame(
        [check(path) for path in raw.loc[open_rows, "path"]],
        index=open_rows,
        columns=["path", "reason", "detail"],
        dtype="string",
    )
    unusable = resolved[resolved["reason"].notna()]
    reason[unusable.index], detail[unusable.index] = (unusable["reason"], unusable["detail"])

    kept = reason.isna()
    again = kept & raw["id"].where(kept).duplicated() & raw["id"].notna()
    first_of = raw[kept].drop_duplicates("id").set_index("id")
    where = first_of["file"].astype(str) + " line " + first_of["line"].astype(str)
    reject(again, "duplicate_id", "the id is also that of " + raw["id"].map(where).astype("string"))

    photos = raw.loc[reason.isna(), ["id"]].copy()
    photos["path"] = resolved["path"].reindex(photos.index)
    photos["latitude"], photos["longitude"] = lat[photos.index], lon[photos.index]
    names = {name: None if i is None else region.names[i] for name, i in labels.items()}
    photos["label_province"] = raw.loc[photos.index, "province"].map(names).astype("string")
    for column in OPTIONAL_COLUMNS:
        if column in ("width", "height"):
            pixels = pd.to_numeric(raw.loc[photos.index, column], errors="coerce")
            photos[column] = pixels.round().astype("Int64")
        elif column != "province":
            photos[column] = raw.loc[photos.index, column]
    bad = reason.notna()
    return photos, rejections(raw.index[bad], reason[bad], detail[bad])


class _PathCheck:
    """Resolves relative paths under the data root; a folder's links are followed once."""

    def __init__(self, root: str | Path) -> None:
        self.root = os.path.realpath(root)
        self._inside: dict[str, bool] = {}

    def __call__(self, path: str) -> tuple[str, str | None, str | None]:
        """(normalised path, reason, detail); reason and detail are ``None`` for a usable path."""
        if os.path.isabs(path) or path.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", path):
            return (path, "path_outside_root", f"{path!r} is absolute; make it relative to root")
        normal = os.path.normpath(path)
        if normal == ".." or normal.startswith(".." + os.sep):
            return path, "path_outside_root", f"{path!r} leaves the data root"
        full = os.path.join(self.root, normal)
        try:
            is_file = os.path.isfile(full)
            target = os.path.realpath(full) if os.path.islink(full) else full
        except ValueError:
            return path, "file_missing", f"{path!r} is not a file name"
        folder = os.path.dirname(target)
        if folder not in self._inside:
            real = os.path.realpath(folder)
            self._inside[folder] = real == self.root or real.startswith(
                self.root.rstrip(os.sep) + os.sep
            )
        if not self._inside[folder]:
            return (path, "path_outside_root", f"{path!r} is a link that leaves the data root")
        if not is_file:
            return (path, "file_missing", f"there is no file {path!r} under the data root")
        return normal.replace(os.sep, "/"), None, None
