"""Folders, files and records that are written whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from geopak.errors import PreparedSetError


@contextlib.contextmanager
def replaced_folder(out: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of ``out`` when the block ends without an error.

    Whoever reads ``out`` sees the old content or the new one, never a part. A run killed between
    the two renames leaves the old content under a hidden name beside ``out``: the next run brings
    it back before it begins, and removes what killed runs left unfinished.

    Args:
        out: folder to make or to replace.

    Yields:
        The folder to write into, on the same file system.

    Raises:
        PreparedSetError: another process is about to replace the same folder.
    """
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    new, old, lock = (out.with_name(f".{out.name}.{part}") for part in ("new", "old", "lock"))
    try:
        held = FileLock(lock).acquire(timeout=0)
    except Timeout:
        raise PreparedSetError(
            f"Another process is preparing {out} at this moment. Wait for it, or choose another "
            "out=FOLDER."
        ) from None
    with held:
        # Whatever lies there is of a run that was killed: the lock says that none lives.
        if old.exists() and not out.exists():
            old.rename(out)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            yield new
            _sync(new)
            if out.exists():
                out.rename(old)
            try:
                new.rename(out)
            except OSError:
                if old.exists():
                    old.rename(out)
                raise
        finally:
            shutil.rmtree(new, ignore_errors=True)
            if out.exists():
                shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Sees to it that the files are on the disk before their folder gets its name."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of another once it is whole and on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """Replaces a JSON file by another in one step, whoever else is about to."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
