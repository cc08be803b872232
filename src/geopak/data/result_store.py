"""Results of a function over photos on disk: Arrow files that are written once, rows found by key.

The key of a row is the hash of all that the row depends on, so that a row is never taken for
another photo or another examiner.

- Files are written under another name, synced and renamed; none is ever changed. A file's name is
  the hash of its content, so that a damaged one is noticed and made again.
- Rows from two processes at work on one store lie beside each other; at worst both are the same.
- When files have become many they are merged, without the rows whose photo has changed or gone;
  results of a function that no run has asked for in 30 days are removed. So a store holds about
  what the photos at hand need, for every examiner in use.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
from filelock import FileLock
from numpy.typing import NDArray

from geopak.errors import GeopakError

log = logging.getLogger(__name__)

KEY_BYTES = 16
KEY_TYPE = np.dtype([("high", "<u8"), ("low", "<u8")])
_KEY, _ITEM = "_key", "_item"
_OWN_FILE = re.compile(r"[0-9a-f]{32}\.arrow")
_SUFFIX, _UNFINISHED = ".arrow", (".geopak-", ".part")
_FILE_ROWS = 65_536
_FEW_FILES = 64
_UNFINISHED_FOR_S = 3600.0
_UNUSED_FOR_S = 30 * 24 * 3600.0


class ResultStore:
    """Results of one function, in a folder of its own within the store.

    Args:
        root: folder of the store, which several functions and runs may share.
        name: of the function, for those who look into the folder.
        identity: text that two functions share only if they give the same results.
        keys_of: from items to the keys, of ``KEY_TYPE``, that their results have as of now.

    Raises:
        GeopakError: the folder cannot be used; so does every method.
    """

    def __init__(
        self, root: Path, name: str, identity: str, keys_of: Callable[[list[str]], NDArray[np.void]]
    ) -> None:
        short = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
        self._root = root
        self._folder = root / f"{name}-{short}"
        self._keys_of = keys_of
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            os.utime(self._folder)

    def find(self, keys: NDArray[np.void]) -> tuple[NDArray[np.int64], pa.Table]:
        """Results that are there.

        Args:
            keys: (N,) distinct keys.

        Returns:
            Which of the keys were found, and a row for each.
        """
        # Nobody reads a file later than here, so that whoever holds the lock may merge them.
        with self._writable(), FileLock(self._root / ".lock"):
            self._remove_leftovers()
            paths = sorted(self._folder.glob(f"*{_SUFFIX}"))
            tables = [table for path in paths if (table := self._read(path)) is not None]
            if not tables:
                return np.zeros(0, np.int64), pa.table({})
            there = np.concatenate([_key_column(table) for table in tables])
            order = np.argsort(there["high"], kind="stable")
            place = np.searchsorted(there["high"][order], keys["high"])
            row = order[np.minimum(place, len(order) - 1)]
            found = np.flatnonzero(there[row] == keys)
            if len(paths) > _FEW_FILES + 2 * len(there) // _FILE_ROWS:
                used = np.zeros(len(there), bool)
                used[row[found]] = True
                self._merge(paths, tables, there, used)
        if not len(found):
            return found, pa.table({})
        return found, take_rows([t.drop_columns([_KEY, _ITEM]) for t in tables], row[found])

    def add(
        self,
        keys: NDArray[np.void],
        items: list[str],
        table: pa.Table,
        lasting: NDArray[np.bool_],
    ) -> None:
        """Keeps the lasting rows of a finished partition; all arguments have a value per row."""
        if lasting.any():
            buffer = pa.py_buffer(np.ascontiguousarray(keys).tobytes())
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(KEY_BYTES), len(keys), [None, buffer]
            )
            names = pa.array([os.fsencode(item) for item in items], pa.binary())
            table = table.append_column(_KEY, column).append_column(_ITEM, names)
            self._write(table if lasting.all() else table.filter(pa.array(lasting)))

    def _write(self, table: pa.Table) -> Path:
        sink = pa.BufferOutputStream()
        feather.write_feather(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        path = self._folder / f"{_digest(content)}{_SUFFIX}"
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(_UNFINISHED[1], _UNFINISHED[0], self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)
                raise
            _sync_folder(self._folder)
        return path

    def _read(self, path: Path) -> pa.Table | None:
        """The rows of a file; a file that is not what was written is removed."""
        content = path.read_bytes()
        if _digest(content) == path.stem:
            return feather.read_table(pa.BufferReader(content))
        log.warning("%s is damaged; its photos are examined again", path)
        path.unlink()
        return None

    def _merge(
        self,
        paths: list[Path],
        tables: list[pa.Table],
        there: NDArray[np.void],
        used: NDArray[np.bool_],
    ) -> None:
        """Replaces many files by few, without rows that no run can use any more."""
        table = pa.concat_tables(tables, promote_options="permissive")
        rest = np.flatnonzero(~used)
        items = [os.fsdecode(item) for item in table[_ITEM].take(pa.array(rest)).to_pylist()]
        used = used.copy()
        used[rest] = self._keys_of(items) == there[rest]
        rows = np.flatnonzero(used)
        rows = np.sort(rows[distinct_keys(there[rows])[0]]) if len(rows) else rows
        new = set()
        for start in range(0, len(rows), _FILE_ROWS):
            new.add(self._write(take_rows(tables, rows[start : start + _FILE_ROWS])))
        for path in set(paths) - new:
            path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Removes what killed runs left unfinished, and results nobody has asked for in a month."""
        now = time.time()
        for path in self._root.glob("*/" + "*".join(_UNFINISHED)):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _UNFINISHED_FOR_S:
                    path.unlink()
        for folder in self._root.iterdir():
            # By its content, lest a folder of the user's be taken for one of ours.
            if now - folder.stat().st_mtime > _UNUSED_FOR_S and folder.is_dir():
                files = list(folder.iterdir())
                if files and all(_OWN_FILE.fullmatch(file.name) for file in files):
                    log.info("Removing %s: no run has used it for a month", folder)
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GeopakError(
                f"{self._root}, where results are kept, cannot be used: {error.strerror or error}. "
                "Free or mend it, or choose another folder; what is finished is kept."
            ) from error


def distinct_keys(keys: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Finds equal keys.

    Args:
        keys: (N,) of ``KEY_TYPE``.

    Returns:
        (D,) the first row of each distinct key; (N,) per row the number of its key among those.
    """
    order = np.lexsort((keys["low"], keys["high"]))
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    number = np.empty(len(keys), np.int64)
    number[order] = np.cumsum(new) - 1
    return order[new], number


def take_rows(tables: list[pa.Table], rows: NDArray[np.int64]) -> pa.Table:
    """Rows of the tables laid end to end, text in types that hold more than two gigabytes.

    Raises:
        RuntimeError: the tables have different columns.
    """
    names = tables[0].column_names
    for table in tables:
        if table.column_names != names:
            raise RuntimeError(f"partitions have other columns: {names}, {table.column_names}")
    table = pa.concat_tables(tables, promote_options="permissive")
    index = pa.array(rows)
    columns = []
    for column in table.columns:
        kind = _wide(column.type)
        column = column if column.type == kind else column.cast(kind)
        columns.append(pc.take(column.combine_chunks(), index))
    return pa.table(columns, names=names)


def _wide(kind: pa.DataType) -> pa.DataType:
    """The type that holds more than two gigabytes of text, and text where all is missing."""
    if pa.types.is_null(kind) or pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary(kind) else kind


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _key_column(table: pa.Table) -> NDArray[np.void]:
    column = table[_KEY].combine_chunks()
    whole = np.frombuffer(column.buffers()[1], KEY_TYPE)
    return whole[column.offset : column.offset + len(column)]
