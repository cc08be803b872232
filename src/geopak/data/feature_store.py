"""A memory-mapped array on disk that several processes may fill together, a chunk at a time.

A folder per array, named by its key::

    <key>/about.json   what the key was made of, in words, and the shape
    <key>/data.bin     the values, row after row; its full size is claimed when the folder is made
    <key>/done.bin     one byte a chunk, 1 once the chunk is safely on the disk
    <key>.locks/       one lock per chunk that is being made; gone when the array is complete

A chunk's byte is written only after its values have been synced, so a run that is killed, or a
machine that loses power, leaves chunks that are whole or missing, never broken. Locks belong to
processes: those of a dead one are free again.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from geopak.errors import FeatureCacheError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Largest error of rounding, relative to the length of the vector: a unit in the last place of a
# number, which has 11 significant bits in half precision and 8 as bfloat16.
TOLERANCE = {"float32": 0.0, "float16": 2.0**-10, "bfloat16": 2.0**-7}
_ABOUT, _DATA, _DONE = "about.json", "data.bin", "done.bin"
_WAIT_S = 0.2


class FeatureStore:
    """One array of vectors, complete or in the making.

    Args:
        root: folder that holds the arrays of all keys.
        key: names the array; whatever the values depend on is to be hashed in it.
        num_rows: vectors.
        dim: length of a vector.
        dtype: ``float32``, ``float16`` or ``bfloat16``.
        chunk_rows: vectors made and marked as done together.
        about: what the key stands for, kept beside the values for whoever looks into the folder.

    Raises:
        FeatureCacheError: no room on the disk, or a folder that cannot be used. Nothing is left
            behind.
    """

    def __init__(
        self,
        root: str | Path,
        key: str,
        num_rows: int,
        dim: int,
        dtype: str,
        chunk_rows: int,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.root = Path(root)
        self.folder = self.root / key
        self.num_rows, self.dim, self.chunk_rows = num_rows, dim, chunk_rows
        self.dtype_name, self.dtype = dtype, DTYPES[dtype]
        self.num_chunks = -(-num_rows // chunk_rows)
        self._locks = self.root / f"{key}.locks"
        self._row_bytes = dim * self.dtype.itemsize
        self._about = {
            "rows": num_rows, "dim": dim, "dtype": dtype, "chunk_rows": chunk_rows,
            **dict(about or {}),
        }  # fmt: skip
        with _in_words(self.root):
            if self._is_sound() and self.complete:
                return
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / f"{key}.lock"):
                if not self._is_sound():
                    self._make()

    @property
    def num_bytes(self) -> int:
        """Size of the values on disk."""
        return self.num_rows * self._row_bytes

    def done(self) -> NDArray[np.bool_]:
        """(num_chunks,) which chunks are there."""
        with _in_words(self.root):
            flags = np.frombuffer((self.folder / _DONE).read_bytes(), np.uint8)
        return flags == 1

    @property
    def complete(self) -> bool:
        """Whether all chunks are there."""
        return bool(self.done().all())

    def rows_of(self, chunk: int) -> slice:
        """The rows of a chunk; the last one may have fewer."""
        start = chunk * self.chunk_rows
        return slice(start, min(self.num_rows, start + self.chunk_rows))

    def claim_missing(self) -> Iterator[Claim]:
        """Chunks that are missing and that no other process is making, each locked until released.

        Ends when every chunk is there, or is being made by another process.
        """
        for chunk in np.flatnonzero(~self.done()).tolist():
            lock = FileLock(self._locks / f"{chunk:06d}")
            try:
                with _in_words(self.root):
                    self._locks.mkdir(exist_ok=True)
                    lock.acquire(timeout=0)
            except Timeout:
                continue
            # Another process may have finished it before the lock was free.
            if self.done()[chunk]:
                lock.release()
                continue
            yield Claim(chunk, lock)

    def write(self, chunk: int, values: Tensor) -> None:
        """Writes a chunk that this process has claimed, and marks it as done.

        Args:
            chunk: its number.
            values: (rows of the chunk, dim) float32.

        Raises:
            FeatureCacheError: values that the type on disk cannot hold to its precision, or a disk
                that is full. The chunk stays missing.
        """
        rows = self.rows_of(chunk)
        if values.shape != (rows.stop - rows.start, self.dim):
            raise ValueError(f"chunk {chunk} has shape {tuple(values.shape)}")
        stored = self._rounded(values.detach().float().cpu())
        with _in_words(self.root):
            content = stored.contiguous().view(torch.uint8).numpy().tobytes()
            _write_synced(self.folder / _DATA, content, rows.start * self._row_bytes)
            _write_synced(self.folder / _DONE, b"\1", chunk)

    def wait(self) -> None:
        """Waits a moment for other processes."""
        time.sleep(_WAIT_S)

    def close_making(self) -> None:
        """Removes the locks of a complete array."""
        if self.complete:
            shutil.rmtree(self._locks, ignore_errors=True)

    def open(self) -> Tensor:
        """(num_rows, dim) the values, mapped into memory: nothing is read before it is used."""
        if not self.num_rows:
            return torch.empty((0, self.dim), dtype=self.dtype)
        mapped = torch.from_file(
            str(self.folder / _DATA), shared=False, size=self.num_rows * self.dim, dtype=self.dtype
        )
        return mapped.view(self.num_rows, self.dim)

    def _rounded(self, values: Tensor) -> Tensor:
        length = values.norm(dim=-1)
        if not length.isfinite().all():
            raise FeatureCacheError(
                "The encoders gave features that are not finite numbers. Check the weights, and "
                "trainer.precision=32-true if it is a half-precision one."
            )
        stored = values.to(self.dtype)
        error = (stored.float() - values).norm(dim=-1) / length.clamp_min(1e-30)
        worst = float(error.max())
        if not worst <= TOLERANCE[self.dtype_name]:
            raise FeatureCacheError(
                f"data.feature_dtype={self.dtype_name} cannot hold these features: rounding moves "
                f"one by {worst:.1%} of its length (at the most "
                f"{TOLERANCE[self.dtype_name]:.2%}). Use data.feature_dtype=float32."
            )
        return stored

    def _is_sound(self) -> bool:
        """Whether the folder holds what its key says, as far as sizes tell."""
        try:
            about = json.loads((self.folder / _ABOUT).read_text(encoding="utf-8"))
            sizes = [(self.folder / name).stat().st_size for name in (_DATA, _DONE)]
        except (FileNotFoundError, ValueError):
            return False
        return about == self._about and sizes == [self.num_bytes, self.num_chunks]

    def _make(self) -> None:
        making = self.folder.with_name(f".{self.folder.name}.making")
        for leftover in (making, self.folder):
            shutil.rmtree(leftover, ignore_errors=True)
        making.mkdir()
        try:
            _allocate(making / _DATA, self.num_bytes)
            (making / _DONE).write_bytes(bytes(self.num_chunks))
            text = json.dumps(self._about, indent=1, ensure_ascii=False)
            (making / _ABOUT).write_text(text + "\n", encoding="utf-8")
            making.rename(self.folder)
        except OSError as error:
            shutil.rmtree(making, ignore_errors=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_room(self.root, self.num_bytes) from error
            raise
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise


def hash_folder(root: str | Path) -> Path:
    """The folder below that of the caches where photos' hashes are remembered.

    Raises:
        FeatureCacheError: the folder of the caches cannot be used.
    """
    with _in_words(Path(root)):
        Path(root).mkdir(parents=True, exist_ok=True)
        if not os.access(root, os.W_OK):
            raise OSError(errno.EROFS, "it cannot be written to")
    return Path(root) / "photos"


def readable_size(num_bytes: int) -> str:
    """A size for people: ``3.7 GB``."""
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= size:
            return f"{num_bytes / size:.3g} {unit}"
    return f"{num_bytes / 1000:.3g} kB"


def known_caches(root: str | Path) -> list[dict[str, Any]]:
    """What every array below a folder says of itself, complete or not."""
    found = []
    for path in sorted(Path(root).glob(f"*/{_ABOUT}")):
        with suppress(OSError, ValueError):
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


class Claim:
    """A chunk that this process has taken on.

    Attributes:
        chunk: its number.
    """

    def __init__(self, chunk: int, lock: FileLock) -> None:
        self.chunk = chunk
        self._lock = lock

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Leaves the chunk to others."""
        self._lock.release()


def release_all(claims: Sequence[Claim]) -> None:
    """Leaves chunks to others, those already released included."""
    for claim in claims:
        claim.release()


def _allocate(path: Path, num_bytes: int) -> None:
    """Makes a file whose blocks are there: writing into it later cannot fill the disk."""
    if shutil.disk_usage(path.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with open(path, "wb") as file:
        if sys.platform == "linux" and num_bytes:
            try:
                os.posix_fallocate(file.fileno(), 0, num_bytes)
            except OSError as error:
                # Not every file system can; there a full disk shows when a chunk is written.
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
                    raise
        file.truncate(num_bytes)


def _write_synced(path: Path, content: bytes, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _no_room(root: Path, num_bytes: int) -> FeatureCacheError:
    free = 0
    with suppress(OSError):
        free = shutil.disk_usage(root).free
    return FeatureCacheError(
        f"The feature cache needs {readable_size(num_bytes)}, and {root} has "
        f"{readable_size(free)} free. Free some, or set data.feature_folder= to a larger disk, "
        "data.feature_dtype=float16 for half of it, fewer data.feature_views=, or "
        "data.feature_cache=false."
    )


@contextmanager
def _in_words(root: Path) -> Iterator[None]:
    """Turns what the operating system says of the folder into an error that a user can mend."""
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FeatureCacheError(
                f"The disk of {root} is full. What is finished is kept: free some room and start "
                "again, or set data.feature_folder= to another disk."
            ) from error
        raise FeatureCacheError(
            f"The feature cache in {root} cannot be used: {error.strerror or error}. Mend the "
            "folder, or set data.feature_folder= to another or data.feature_cache=false."
        ) from error
