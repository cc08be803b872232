"""Hashes of what photo files hold, remembered until a file changes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from geopak.data.manifest import file_sha256
from geopak.data.partitions import map_partitions
from geopak.errors import PhotoError
from geopak.schema.preparation import ExecutorSettings

# A file changed so shortly before it was hashed may change again without its time showing it.
_SETTLED_AFTER_S = 2.0


@dataclass(frozen=True)
class FileContents:
    """What files hold.

    Attributes:
        sha256: hexadecimal, per file.
        state: per file, of before it was hashed: as long as :func:`file_state` says the same, the
            file holds the same.
    """

    sha256: list[str]
    state: list[str]


def content_hashes(paths: Sequence[str], store: str | Path) -> FileContents:
    """Hexadecimal SHA-256 of every file.

    A file is read once and again when its size, one of its times or its inode has changed. The time
    of the last change of its inode is among them, which no ordinary program can set back.

    Args:
        paths: of the files.
        store: folder that remembers the hashes.

    Raises:
        PhotoError: a file that is missing or cannot be read.
    """
    state = [file_state(path) for path in paths]
    executor = ExecutorSettings(workers=1).in_this_process()
    table = map_partitions(
        hash_files, paths, store, executor, "hashing photos", key=file_state, passing=_unsettled
    )
    return FileContents(table["sha256"].tolist(), state)


def hash_files(paths: Sequence[str]) -> pd.DataFrame:
    """``sha256`` of every file, and whether the file had rested before it was read."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        rows = list(threads.map(_hash_file, paths))
    return pd.DataFrame(rows, columns=["sha256", "settled"]).astype(
        {"sha256": "str", "settled": "bool"}
    )


def _hash_file(path: str) -> tuple[str, bool]:
    try:
        changed_s = os.stat(path).st_ctime
        settled = time.time() - changed_s > _SETTLED_AFTER_S
        return file_sha256(path), settled
    except OSError as error:
        raise PhotoError(f"Cannot read the photo {path}: {error.strerror or error}.") from error


def _unsettled(table: pd.DataFrame) -> pd.Series:
    return ~table["settled"]


def file_state(path: str) -> str:
    """Text that names a file and changes whenever its content may have changed."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return f"{path}\0gone"
    numbers = (state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino)
    return "\0".join([path, *map(str, numbers)])
