"""A server's own folder, deleted with the server, or by the next one where it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_PREFIX = "geopak-app-"
_LOCK, _PHOTOS = "lock", "photos"


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """An empty folder that nobody else of this machine may look into.

    What servers that were killed have left in the temporary folder is deleted first.

    Yields:
        The folder; it is deleted at the end.
    """
    delete_abandoned(Path(tempfile.gettempdir()))
    outer = Path(tempfile.mkdtemp(prefix=_PREFIX))
    lock = FileLock(outer / _LOCK)
    try:
        lock.acquire()
        photos = outer / _PHOTOS
        photos.mkdir(mode=0o700)
        yield photos
    finally:
        lock.release()
        shutil.rmtree(outer, ignore_errors=True)


def delete_abandoned(temporary: Path) -> None:
    """Deletes folders of servers that are at work no more, of this user alone."""
    for outer in temporary.glob(f"{_PREFIX}*"):
        # Without a lock, one is just being made.
        if outer.is_symlink() or not (outer / _LOCK).is_file():
            continue
        if hasattr(os, "getuid") and outer.stat().st_uid != os.getuid():
            continue
        with contextlib.suppress(Timeout, OSError), FileLock(outer / _LOCK, timeout=0):
            shutil.rmtree(outer, ignore_errors=True)
