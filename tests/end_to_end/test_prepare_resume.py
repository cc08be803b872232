"""Examining photos is killed at the worst moments, and taken up where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.feather as feather
import pytest
from PIL import Image

from geopak.data import quality
from geopak.data.partitions import ExecutorSettings, map_partitions

MOMENTS = ["before fsync", "before replace", "after replace"]
# Runs the stage for each moment and store, killing itself there as kill -9 would: at the third file
# that the store writes. Every run is forked, so that the program is loaded only once.
SCRIPT = """
import os, signal, sys
from geopak.data.partitions import ExecutorSettings, map_partitions
from geopak.data.quality import examine_files

def run(moment, store, photos):
    name = moment.partition(" ")[2]
    original, calls = getattr(os, name), []

    def killed(*arguments):
        calls.append(arguments)
        third = len(calls) == (5 if name == "fsync" else 3)  # of two for every file
        if third and moment.startswith("before"):
            os.kill(os.getpid(), signal.SIGKILL)
        original(*arguments)
        if third:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(os, name, killed)
    settings = ExecutorSettings(workers=1, partition_size=16)
    map_partitions(examine_files, photos, store, settings)

root, moments, *photos = sys.argv[1:]
for moment in moments.split(","):
    child = os.fork()
    if not child:
        run(moment, os.path.join(root, moment), photos)
        os._exit(0)
    print(moment, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), sep=",")
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """60 photos; some are truncated, one is no photo."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(1)
    paths = []
    for i in range(60):
        pixels = rng.integers(0, 256, (6, 8, 3), np.uint8)
        path = folder / f"{i}.jpg"
        Image.fromarray(pixels).resize((96 + i, 80), Image.Resampling.BICUBIC).save(path)
        if i % 30 == 7:
            path.write_bytes(path.read_bytes()[:-200])
        paths.append(str(path))
    Path(paths[50]).write_text("no photo")
    return paths


@pytest.fixture(scope="module")
def killed(photos: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with a store for each moment."""
    root = tmp_path_factory.mktemp("stores")
    command = [sys.executable, "-c", SCRIPT, str(root), ",".join(MOMENTS), *photos]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout.splitlines() == [f"{moment},{-signal.SIGKILL}" for moment in MOMENTS]
    return root


@pytest.fixture(scope="module")
def wanted(photos: list[str]) -> pd.DataFrame:
    return map_partitions(quality.examine_files, photos, None, ExecutorSettings(workers=1))


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_while_writing(
    photos: list[str], killed: Path, wanted: pd.DataFrame, moment: str
) -> None:
    store = killed / moment
    kept = [
        item.decode()
        for path in store.glob("*/*.arrow")
        for item in feather.read_table(path)["_item"].to_pylist()
    ]
    assert len(kept) == (48 if moment.startswith("after") else 32)
    assert len(list(store.glob("*/*.part"))) == (0 if moment.startswith("after") else 1)

    examined: list[str] = []

    def counted(paths: Sequence[str]) -> pd.DataFrame:
        examined.extend(paths)
        return examine(paths)

    # Under its own name: results are kept by the name of the function.
    examine = quality.examine_files
    counted.__module__, counted.__name__ = examine.__module__, examine.__name__
    counted.__qualname__ = examine.__qualname__
    found = map_partitions(counted, photos, store, ExecutorSettings(workers=1))
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert sorted(examined) == sorted(set(photos) - set(kept))
    assert found["error"].notna().sum() == 3
