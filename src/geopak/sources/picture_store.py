"""Pictures on their way from a data set to the collector, in files that take bounded room."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from geopak.errors import RefusedQueryError


class PictureStore:
    """Pictures on their way from a data set to the collector, in files.

    Args:
        folder: for them; ``None``: one that goes with the process.
        most_mb: most of them, 10⁶ bytes; parts used last stay.
    """

    # So many parts stay whatever their size: the collector may be about to read them.
    _FEWEST = 32

    def __init__(self, folder: Path | None, most_mb: float) -> None:
        self._given = folder
        self._folder: Path | None = None
        self._most = most_mb * 1e6
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._lock = threading.Lock()
        self._making: dict[str, threading.Lock] = {}

    def one(self, part: str, pictures: Callable[[], Any], row: int) -> str:
        """The ``file:`` address of a row's picture; all of its part are written at once.

        Raises:
            RefusedQueryError: the row has none.
        """
        with self._lock:
            making = self._making.setdefault(part, threading.Lock())
        with making:
            folder = self._place(part)
            if not folder.is_dir():
                self._write(part, folder, pictures())
            with self._lock:
                # Another part may just have taken its room.
                if part in self._sizes:
                    self._sizes.move_to_end(part)
            path = folder / str(row)
            if not path.is_file():
                raise RefusedQueryError(f"row {row} holds no picture")
            return path.as_uri()

    def _place(self, part: str) -> Path:
        with self._lock:
            if self._folder is None:
                if self._given is None:
                    self._folder = Path(tempfile.mkdtemp(prefix="geopak-"))
                    weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
                else:
                    self._folder = self._given / "pictures"
                    shutil.rmtree(self._folder, ignore_errors=True)
                    self._folder.mkdir(parents=True)
            return self._folder / hashlib.sha256(part.encode()).hexdigest()[:24]

    def _write(self, part: str, folder: Path, pictures: Any) -> None:
        new, size = folder.with_suffix(".new"), 0
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        try:
            for row, content in pictures:
                (new / str(row)).write_bytes(content)
                size += len(content)
            new.rename(folder)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        with self._lock:
            self._sizes[part] = size
            while sum(self._sizes.values()) > self._most and len(self._sizes) > self._FEWEST:
                old, _ = self._sizes.popitem(last=False)
                assert self._folder is not None
                name = hashlib.sha256(old.encode()).hexdigest()[:24]
                shutil.rmtree(self._folder / name, ignore_errors=True)
