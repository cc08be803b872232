"""Partitions: the same rows however they are cut, whatever their workers die of."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from geopak.data import partitions
from geopak.data.partitions import ExecutorSettings, file_key, map_partitions
from geopak.data.worker_pools import Outcome, Partition, PartitionFunction, ThisProcess
from geopak.errors import ConfigError, GeopakError
from tests.data.examiners import dead, measure, short
from tests.data.results import naive, same, stored

HERE = ExecutorSettings(workers=1, partition_size=7)


def text_key(item: str) -> str:
    return item


# --- rows, order, partitions ----------------------------------------------------------------------


def test_a_row_per_item_in_order(files: list[str]) -> None:
    items = [*files, files[3], files[3]]
    random.Random(1).shuffle(items)
    same(map_partitions(measure, items, executor=HERE), naive(items))


@given(
    st.lists(st.sampled_from([f"item {i}" for i in range(12)]), max_size=40),
    st.integers(1, 50),
    st.integers(0, 11),
)
@examples(max_examples=25)
def test_partitions_leave_no_trace(items: list[str], size: int, known: int) -> None:
    """Whatever the partition size, and whatever a store holds already."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        settings = ExecutorSettings(workers=1, partition_size=size)
        wanted = map_partitions(measure, items, executor=HERE, key=text_key)
        found = map_partitions(measure, items, executor=settings, key=text_key)
    assert len(wanted) == len(items)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)


def test_an_item_is_examined_once(files: list[str], calls: Callable, tmp_path: Path) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    map_partitions(examine, [*files, *files], executor=HERE)
    assert calls() == files


def test_no_items_no_rows() -> None:
    found = map_partitions(measure, [], executor=HERE)
    assert list(found.columns) == ["error", "size", "third", "sha256", "digest"]
    assert len(found) == 0


def test_types_do_not_depend_on_the_partition(files: list[str]) -> None:
    """A partition without errors has a column of nothing but missing values."""
    small = ExecutorSettings(workers=1, partition_size=1)
    one = map_partitions(measure, files, executor=ExecutorSettings(workers=1, partition_size=999))
    many = map_partitions(measure, files, executor=small)
    pd.testing.assert_frame_equal(one, many, check_exact=True)
    assert one["size"].dtype == np.int64
    clean = map_partitions(measure, files[1:2], executor=HERE)
    assert clean["error"].dtype == one["error"].dtype


def test_a_wrong_number_of_rows_is_a_defect(files: list[str]) -> None:
    with pytest.raises(RuntimeError, match="6 rows for 7 items"):
        map_partitions(short, files[:7], executor=HERE)


def test_workers_load_little() -> None:
    """Every worker process imports them; a model or a schema would cost it seconds."""
    code = (
        "import geopak.data.quality, geopak.data.partitions, sys; "
        "print({'torch', 'pandera'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "set()\n"


# --- deaths ---------------------------------------------------------------------------------------


class MortalPool(ThisProcess):
    """A worker that some items kill, together with what waits for it."""

    def __init__(
        self, function: PartitionFunction, culprits: set[str], knows_culprit: bool
    ) -> None:
        super().__init__(function)
        self._culprits = culprits
        self.knows_culprit = knows_culprit

    def wait(self) -> list[tuple[Partition, Outcome]]:
        if self._culprits.isdisjoint(self._waiting[0][1]):
            return super().wait()
        others: Outcome = "lost" if self.knows_culprit else "died"
        ended: list[tuple[Partition, Outcome]] = [
            (partition, others if number else "died")
            for number, (partition, _) in enumerate(self._waiting)
        ]
        self._waiting.clear()
        return ended


@given(st.sets(st.integers(0, 9), max_size=3), st.integers(1, 10), st.integers(0, 2), st.booleans())
@examples(max_examples=20)
def test_the_items_that_kill_are_found_and_no_others(
    culprits: set[int], size: int, retries: int, knows: bool
) -> None:
    items = [f"item {i}" for i in range(10)]
    deadly = {items[i] for i in culprits}
    settings = ExecutorSettings(workers=1, partition_size=size, retries=retries)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        patch.setattr(partitions, "_pool", lambda _, f, __: MortalPool(f, deadly, knows))
        found = map_partitions(measure, items, executor=settings, key=text_key, failed=dead)
    wanted = naive(items)
    times = "once" if retries == 0 else f"{retries + 1} times"
    text = f"it killed the process that worked on it, {times} in a row"
    for i in culprits:
        wanted.loc[i] = (text, 0, 0.0, "", b"")
    same(found, wanted)


def test_an_item_that_kills_is_tried_again_by_the_next_run(
    files: list[str], calls: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Perhaps it was the machine's fault. Without rows for such items the run ends."""
    deadly = {files[17]}
    monkeypatch.setattr(partitions, "_pool", lambda _, f, __: MortalPool(f, deadly, True))
    examine = partial(measure, calls=str(tmp_path / "calls"))
    run = partial(map_partitions, examine, files, tmp_path / "store", HERE)
    run(failed=dead)
    assert set(files) - set(stored(tmp_path / "store")) == deadly
    with pytest.raises(GeopakError, match=r"17\.bin killed the process"):
        run()
    calls()
    deadly.clear()
    same(run(), naive(files))
    assert calls() == [files[17]]


# --- keys and settings ----------------------------------------------------------------------------


def test_arguments_must_say_what_they_are() -> None:
    with pytest.raises(TypeError, match="do not say what they are"):
        map_partitions(partial(measure, calls=object()), ["a"], executor=HERE)
    with pytest.raises(TypeError, match="top level"):
        map_partitions(lambda items: measure(items), ["a"], executor=HERE)


def test_the_key_of_a_file_changes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    keys = [file_key(str(path))]
    path.write_bytes(b"1")
    keys.append(file_key(str(path)))
    os.utime(path, ns=(0, 5))
    keys.append(file_key(str(path)))
    path.write_bytes(b"12")
    os.utime(path, ns=(0, 5))
    keys.append(file_key(str(path)))
    assert len(set(keys)) == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "dusk"}, "Did you mean 'dask'"),
        ({"workers": 0}, "executor.workers is 0"),
        ({"partition_size": 0}, "executor.partition_size is 0"),
        ({"retries": -1}, "executor.retries is -1"),
        ({"scheduler": "tcp://host:1"}, "is an address for executor=dask"),
    ],
)
def test_settings_are_checked(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExecutorSettings(**values)


def test_what_holds_a_model_stays_in_this_process() -> None:
    far = ExecutorSettings(name="dask", scheduler="tcp://host:1", partition_size=9)
    assert far.in_this_process() == ExecutorSettings(workers=1, partition_size=9)
