"""Functions over items that the tests send to worker processes; imports are kept light."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from pathlib import Path

import pandas as pd


def measure(items: list[str], calls: str = "", pause_s: float = 0.0) -> pd.DataFrame:
    """A row per file, with every kind of column; each call is noted in the file ``calls``."""
    rows = []
    for item in items:
        if calls:
            with open(calls, "ab", buffering=0) as file:
                file.write(item.encode() + b"\n")
        time.sleep(pause_s)
        try:
            content = Path(item).read_bytes()
            error = "holds a 7" if b"7" in content else None
        except OSError:
            content, error = b"", "cannot be read"
        digest = hashlib.sha256(content)
        rows.append((error, len(content), len(content) / 3, digest.hexdigest(), digest.digest()))
    return pd.DataFrame(rows, columns=["error", "size", "third", "sha256", "digest"])


def measure_or_die(items: list[str], culprits: tuple[str, ...] = ()) -> pd.DataFrame:
    """As :func:`measure`, but the process is gone at the culprits."""
    for item in items:
        if os.path.basename(item) in culprits:
            os.kill(os.getpid(), signal.SIGKILL)
    return measure(items)


def measure_and_die_once(
    items: list[str], marker: str = "", at: str = "", seen: str = ""
) -> pd.DataFrame:
    """As :func:`measure`, but the first process that comes to the item ``at`` is gone there.

    A file per process in the folder ``seen`` holds the number of threads that it was told to use.
    """
    if items:
        (Path(seen) / str(os.getpid())).write_text(os.environ.get("OMP_NUM_THREADS", ""))
    if any(os.path.basename(item) == at for item in items):
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return measure(items)


def measure_with_pid(items: list[str], folder: str = "") -> pd.DataFrame:
    """As :func:`measure`, slowly; the process makes itself known by a file of its number."""
    if items:
        (Path(folder) / str(os.getpid())).touch()
    return measure(items, pause_s=0.01)


def dead(items: list[str], reason: str) -> pd.DataFrame:
    """The rows of items that kill their process."""
    return pd.DataFrame(
        {"error": [f"it {reason}" for _ in items], "size": 0, "third": 0.0, "sha256": "",
         "digest": b""},
        index=range(len(items)),
    )  # fmt: skip


def short(items: list[str]) -> pd.DataFrame:
    """One row too few."""
    return measure(items[:-1])
