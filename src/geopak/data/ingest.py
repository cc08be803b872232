"""From files to rows: photo tables of any format and folders of photos, merged into one table.

Reading keeps every row as it was written, with the file and line it came from. What is wrong with
a row is noted beside it and is for :func:`geopak.data.table.validate` to reject; what is wrong with
a whole file (missing, no header, a column missing or ambiguous) is an error, raised before any
table is read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from geopak.data import geojson
from geopak.data.delimited import DELIMITERS, DelimitedFile, row_table, suffix_of
from geopak.data.photo_folder import read_folder
from geopak.data.table import (
    COLUMNS,
    ORIGIN_COLUMNS,
    REQUIRED_COLUMNS,
    RESERVED_COLUMNS,
    SPLIT_TABLE_COLUMNS,
    check_split_table,
)
from geopak.errors import ConfigError, TableError, nearest_name

_PARQUET = (".parquet", ".pq")
_BATCH_ROWS = 500_000


def _fold(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.casefold()).strip("_")


@dataclass(frozen=True)
class ColumnNames:
    """Which names of columns in a table are taken for the columns of a photo table.

    Upper and lower case, and spaces, underscores, dots and hyphens, make no difference. A column's
    own name wins over every alias.

    Attributes:
        aliases: accepted names per column, as written in the configuration.
    """

    aliases: Mapping[str, tuple[str, ...]]

    @classmethod
    def from_config(cls, config: Mapping[str, str | Sequence[str] | None] | None) -> ColumnNames:
        """Takes the section ``columns``: a name or a list of names per column.

        Raises:
            ConfigError: a key is no column of a photo table, or a name would stand for two columns.
        """
        aliases: dict[str, tuple[str, ...]] = {}
        owner = {_fold(column): column for column in COLUMNS}
        for column, names in (config or {}).items():
            if column not in COLUMNS:
                raise ConfigError(
                    f"columns.{column} is no column of a photo table."
                    f"{nearest_name(str(column), COLUMNS)} Known: {', '.join(COLUMNS)}."
                )
            listed = [names] if isinstance(names, str) else list(names or ())
            aliases[column] = tuple(str(name) for name in listed)
            for name in aliases[column]:
                if owner.setdefault(_fold(name), column) != column:
                    raise ConfigError(
                        f"columns.{column} has the name {name!r}, which already stands for "
                        f"{owner[_fold(name)]!r}. A name can stand for one column only."
                    )
        return cls(aliases)

    def resolve(
        self, where: str | Path, names: Sequence[str], required: Sequence[str] = REQUIRED_COLUMNS
    ) -> list[str]:
        """New names for a table's columns: those of a photo table, others as they are.

        Args:
            where: the file, for messages.
            names: of its columns, as written.
            required: columns that must be there.

        Raises:
            TableError: a required column is missing, a column is there twice or under two aliases,
                or a column has a name that geopak needs for itself.
        """
        names = [name.strip() for name in names]
        renamed = dict[int, str]()
        for column in dict.fromkeys((*COLUMNS, *required)):
            found = self._find(where, names, column)
            if found is not None:
                renamed[found] = column
            elif column in required:
                raise TableError(self._missing(where, names, column))
        taken = set(renamed.values())
        for k, name in enumerate(names):
            if k in renamed:
                continue
            # A table that was split has been through all this: its origins are no one's concern.
            if name in RESERVED_COLUMNS and "split" not in required:
                raise TableError(
                    f"{where} has a column {name!r}, a name that is needed to say where a row "
                    "came from and what is wrong with it. Rename or remove it."
                )
            unique, number = name or f"column {k + 1}", 1
            while unique in taken:
                number += 1
                unique = f"{name} ({number})"
            taken.add(unique)
            renamed[k] = unique
        return [renamed[k] for k in range(len(names))]

    def _find(self, where: str | Path, names: Sequence[str], column: str) -> int | None:
        own = [k for k, name in enumerate(names) if name == column]
        own = own or [k for k, name in enumerate(names) if _fold(name) == column]
        if len(own) > 1:
            written = " and ".join(repr(names[k]) for k in own)
            raise TableError(
                f"{where} has the column {column!r} twice ({written}). Rename or remove one."
            )
        if own:
            return own[0]
        folded = {_fold(name) for name in self.aliases.get(column, ())}
        found = [k for k, name in enumerate(names) if _fold(name) in folded]
        if len(found) > 1:
            written = " and ".join(repr(names[k]) for k in found)
            raise TableError(
                f"{where} has two columns that could be {column!r}: {written}. Rename the right "
                f"one to {column!r}, or list only its name: columns.{column}=[{names[found[0]]}]."
            )
        return found[0] if found else None

    def _missing(self, where: str | Path, names: Sequence[str], column: str) -> str:
        others = [name for name in names if _fold(name) not in COLUMNS]
        short = {"latitude": ("lat", "y"), "longitude": ("lon", "lng", "long", "x")}
        likely = (n for s in short.get(column, ()) for n in others if _fold(n) == s)
        alike = next(likely, None)
        hint = f" Did you mean {alike!r}?" if alike else nearest_name(column, others)
        shown = ", ".join(names[:30]) + (", ..." if len(names) > 30 else "")
        setting = f" or set columns.{column}=[ITS NAME]" if column in COLUMNS else ""
        return (
            f"{where} has no column {column!r}.{hint} It has: {shown}. Rename the column that "
            f"holds it to {column!r}{setting}. The first line must name the columns."
        )


def read_sources(
    tables: Sequence[str | Path],
    folders: Sequence[str | Path],
    root: str | Path,
    columns: ColumnNames | Mapping[str, str | Sequence[str] | None] | None = None,
) -> pd.DataFrame:
    """Reads photo tables and folders of photos into one table, every value still as text.

    Args:
        tables: CSV, TSV, TXT (these also with ``.gz``), Parquet or GeoJSON files.
        folders: folders inside ``root`` whose photos are taken with their EXIF data.
        root: the data root; paths in the tables are relative to it.
        columns: aliases of the columns of a photo table, as
            :meth:`ColumnNames.from_config` takes them.

    Returns:
        All rows of all sources, indexed from 0: the columns of a photo table that are there and
        all others as nullable text, empty values missing; ``file``, the name of the table (as much
        of its path as tells the tables apart) or folder; ``line`` (int64), where the row begins in
        it (text: line of the file, the header is on line 1; Parquet: row from 1; GeoJSON: feature
        from 1; folder: photo from 1); and ``malformed``, why the row could not be read as one.

    Raises:
        TableError: no source is given, or one is missing, unreadable, empty, lacks a required
            column or has one twice.
        ConfigError: ``columns`` has an unknown column or an ambiguous name.
    """
    if not isinstance(columns, ColumnNames):
        columns = ColumnNames.from_config(columns)
    if not tables and not folders:
        raise TableError("No photo table given. Set tables=[FILE.csv] or folders=[FOLDER].")
    paths = [Path(path) for path in tables]
    opened = [_open(path) for path in paths]
    resolved = [
        None if source.names is None else columns.resolve(source.path, source.names)
        for source in opened
    ]
    parts = []
    for source, names, label in zip(opened, resolved, source_names(paths), strict=True):
        table = source.read(columns, names, REQUIRED_COLUMNS)
        if not table.num_rows:
            raise TableError(
                f"{source.path} has no rows. It needs a header "
                f"({', '.join(REQUIRED_COLUMNS)}, ...) and one row per photo."
            )
        parts.append(table.append_column("file", pa.repeat(_large(label), table.num_rows)))
    for folder in folders:
        photos = pa.Table.from_pandas(read_folder(folder, root), preserve_index=False)
        parts.append(photos)
    return _to_pandas(pa.concat_tables(parts, promote_options="permissive"))


def read_split_table(
    path: str | Path,
    columns: ColumnNames | Mapping[str, str | Sequence[str] | None] | None = None,
) -> pd.DataFrame:
    """Reads a table of photos that were split elsewhere.

    Args:
        path: a table in any format that :func:`read_sources` takes, with at least ``id, latitude,
            longitude, split``.
        columns: aliases of the columns.

    Returns:
        As :func:`geopak.data.table.check_split_table` gives it.

    Raises:
        TableError: the file is missing, unreadable, lacks a column, or a row is malformed.
        PreparedSetError: a value in it cannot be used; says the column and a row.
    """
    if not isinstance(columns, ColumnNames):
        columns = ColumnNames.from_config(columns)
    source = _open(Path(path))
    required = SPLIT_TABLE_COLUMNS
    if isinstance(source, _ParquetFile):
        # As it is: hashes of photos are bytes, which text has no place for.
        names = columns.resolve(path, source.names, required)
        frame = pq.read_table(source.path).rename_columns(names).to_pandas()
        return check_split_table(frame, path)
    given = None if source.names is None else columns.resolve(path, source.names, required)
    frame = _to_pandas(source.read(columns, given, required))
    bad = frame["malformed"].notna()
    if bad.any():
        first = frame[bad].iloc[0]
        raise TableError(
            f"{path} line {first['line']} is malformed: {first['malformed']}. "
            f"{int(bad.sum()):,} of {len(frame):,} rows are; mend or remove them."
        )
    return check_split_table(frame.drop(columns=["malformed"]), path)


def source_names(paths: Sequence[str | Path]) -> list[str]:
    """The shortest ends of the paths that tell the files apart; the names, where they differ.

    Raises:
        TableError: a file is given twice.
    """
    parts = [Path(path).resolve().parts[1:] for path in paths]
    for k, own in enumerate(parts):
        if own in parts[:k]:
            raise TableError(f"{paths[k]} is given twice in tables. Take one out.")
    names = []
    for own in parts:
        depth = 1
        while sum(other[-depth:] == own[-depth:] for other in parts) > 1:
            depth += 1
        names.append("/".join(own[-depth:]))
    return names


def _large(text: str) -> pa.Scalar:
    return pa.scalar(text, pa.large_string())


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    own = [c for c in COLUMNS if c in table.column_names]
    last = [c for c in (*ORIGIN_COLUMNS, "malformed") if c in table.column_names]
    others = [c for c in table.column_names if c not in own and c not in last]
    frame = {}
    for name in [*own, *others, *last]:
        column = table[name]
        if name == "line":
            frame[name] = pd.Series(column.to_numpy().astype(np.int64), copy=False)
        else:
            text = column.cast(pa.large_string()).combine_chunks()
            frame[name] = pd.Series(pd.array(text, dtype="string"), copy=False)
    return pd.DataFrame(frame, copy=False)


def _open(path: Path) -> _TextFile | _ParquetFile | _GeoJsonFile:
    if path.is_dir():
        raise TableError(
            f"{path} is a folder, not a table. For its photos with EXIF GPS set folders=[{path}]; "
            "for the tables in it list each: tables=[FILE, FILE]."
        )
    if not path.is_file():
        raise TableError(
            f"No photo table at {path}. Set tables=[FILE] to a CSV, Parquet or GeoJSON file, or "
            "render the synthetic set: python -m geopak.synthetic"
        )
    suffix = suffix_of(path)
    if suffix in _PARQUET and suffix == path.suffix.lower():
        return _ParquetFile(path)
    if suffix in DELIMITERS:
        return _TextFile(path)
    if suffix in geojson.SUFFIXES:
        return _GeoJsonFile(path)
    raise TableError(
        f"{path}: {path.suffix or 'no suffix'} is not a table format that is read here. Save it "
        "as .csv, .tsv, .parquet or .geojson."
    )


class _TextFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = DelimitedFile(path)
        self.names: list[str] | None = self._file.names

    def read(
        self, columns: ColumnNames, names: Sequence[str] | None, required: Sequence[str]
    ) -> pa.Table:
        assert names is not None
        return _concat(self._file.blocks(names), names)


class _ParquetFile:
    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with pq.ParquetFile(path) as file:
                self._schema = file.schema_arrow
        except (OSError, ValueError) as error:
            raise TableError(self._broken(error)) from error
        # Lists, structures and bytes have no text form.
        self.names: list[str] = [str(name) for name in self._schema.names]

    def _broken(self, error: Exception) -> str:
        return (
            f"{self.path} cannot be read as a table: {error}. Check that it is a complete parquet "
            "file."
        )

    def read(
        self, columns: ColumnNames, names: Sequence[str] | None, required: Sequence[str]
    ) -> pa.Table:
        """As text; columns of lists, structures or bytes are left out unless they are known."""
        assert names is not None
        kept = [
            (name, k)
            for k, (name, field) in enumerate(zip(names, self._schema, strict=True))
            if name in COLUMNS or not _has_no_text(field.type)
        ]
        try:
            with pq.ParquetFile(self.path) as file:
                return _concat(self._blocks(file, kept), [name for name, _ in kept])
        except (OSError, ValueError) as error:
            if isinstance(error, TableError):
                raise
            raise TableError(self._broken(error)) from error

    def _blocks(self, file: pq.ParquetFile, kept: Sequence[tuple[str, int]]) -> Iterator[pa.Table]:
        line = 1
        for batch in file.iter_batches(_BATCH_ROWS):
            malformed: dict[int, str] = {}
            values = [self._text(batch.column(k), name, malformed) for name, k in kept]
            problems = None
            if malformed:
                problems = pa.array(map(malformed.get, range(len(batch))), pa.large_string())
            lines = pa.array(np.arange(line, line + len(batch)))
            yield row_table([name for name, _ in kept], values, lines, problems)
            line += len(batch)

    def _text(self, column: pa.Array, name: str, malformed: dict[int, str]) -> pa.Array:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            text = column.cast(pa.large_string())
            text.validate(full=True)
            return text
        except pa.ArrowNotImplementedError as error:
            raise TableError(
                f"{self.path}: the column {name!r} holds {column.type}, which is no text or "
                "number. Save it as text."
            ) from error
        except pa.ArrowInvalid:
            values: list[str | None] = []
            for k, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
                try:
                    values.append(value if value is None else value.decode())
                except UnicodeDecodeError:
                    values.append(value.decode(errors="backslashreplace"))
                    malformed[k] = (
                        f"the {name} {values[-1]!r} is not UTF-8 text; save the table as UTF-8"
                    )
            return pa.array(values, pa.large_string())


def _has_no_text(kind: pa.DataType) -> bool:
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return bool(pa.types.is_nested(kind) or binary or pa.types.is_fixed_size_binary(kind))


class _GeoJsonFile:
    names: list[str] | None = None  # every feature names its own properties

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(
        self, columns: ColumnNames, names: Sequence[str] | None, required: Sequence[str]
    ) -> pa.Table:
        table = geojson.read_features(self.path)
        line, malformed = table["line"], table["malformed"]
        rows = table.drop_columns(["line", "malformed"])
        if pc.count(malformed).as_py() == len(table) and not rows.num_columns:
            raise TableError(
                f"{self.path} holds no feature that can be read; the first "
                f"{malformed[0].as_py()}. It must be a FeatureCollection of points."
            )
        resolved = columns.resolve(self.path, rows.column_names, required)
        rows = rows.rename_columns(resolved)
        return rows.append_column("line", line).append_column("malformed", malformed)


def _concat(blocks: Iterable[pa.Table], names: Sequence[str]) -> pa.Table:
    tables = list(blocks)
    if not tables:
        empty = pa.nulls(0, pa.large_string())
        return row_table(names, [empty] * len(names), pa.nulls(0, pa.int64()))
    return pa.concat_tables(tables)
