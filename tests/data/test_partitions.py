"""Partitions: the same rows however they are cut, wherever they are made, whatever dies midway."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.feather as feather
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from geopak.data import partitions
from geopak.data.partitions import ExecutorSettings, file_key, map_partitions
from geopak.errors import ConfigError, GeopakError
from tests.data.examiners import (
    dead,
    measure,
    measure_and_die_once,
    measure_or_die,
    measure_with_pid,
    short,
)

HERE = ExecutorSettings(workers=1, partition_size=7)
TWO = ExecutorSettings(workers=2, partition_size=16, items_per_worker=1, retries=1)


def text_key(item: str) -> str:
    return item


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """120 files, some with equal content, and one that is missing."""
    folder = tmp_path / "files"
    folder.mkdir()
    for i in range(120):
        (folder / f"{i}.bin").write_bytes(b"%d" % (i % 50) * (i % 13))
    return [str(folder / f"{i}.bin") for i in range(120)] + [str(folder / "missing.bin")]


@pytest.fixture
def calls(tmp_path: Path) -> Callable[[], list[str]]:
    """Items examined since the last look, in order; noted in ``calls``."""
    path = tmp_path / "calls"

    def since() -> list[str]:
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return lines

    return since


def naive(items: list[str]) -> pd.DataFrame:
    rows = [measure([item]) for item in items]
    return pd.concat(rows, ignore_index=True)


def same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    """Same values, and a missing value wherever one is wanted."""
    assert list(found.columns) == list(wanted.columns)
    assert isinstance(found.index, pd.RangeIndex)
    for column in wanted:
        theirs = [None if pd.isna(v) else v for v in wanted[column]]
        assert [None if pd.isna(v) else v for v in found[column]] == theirs, column


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


# --- the store ------------------------------------------------------------------------------------


def stored(store: Path) -> list[str]:
    """Items that a store has rows for."""
    tables = [feather.read_table(path) for path in store.glob("*/*.arrow")]
    return [item.decode() for table in tables for item in table["_item"].to_pylist()]


def test_the_second_run_examines_nothing(files: list[str], calls: Callable, tmp_path: Path) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    first = map_partitions(examine, files, tmp_path / "store", HERE)
    assert sorted(calls()) == sorted(files)
    second = map_partitions(examine, files[::-1], tmp_path / "store", HERE)
    assert calls() == []
    pd.testing.assert_frame_equal(second[::-1].reset_index(drop=True), first, check_exact=True)


def test_only_what_is_new_or_changed_is_examined(
    files: list[str], calls: Callable, tmp_path: Path
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    map_partitions(examine, files[:100], tmp_path / "store", HERE)
    calls()
    Path(files[5]).write_bytes(b"other content")
    state = os.stat(files[6])
    os.utime(files[6], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    Path(files[-1]).write_bytes(b"there now")
    found = map_partitions(examine, files, tmp_path / "store", HERE)
    assert sorted(calls()) == sorted([files[5], files[6], *files[100:]])
    same(found, naive(files))


def test_another_version_or_argument_is_another_result(
    files: list[str], calls: Callable, tmp_path: Path
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    items, store = files[:20], tmp_path / "store"
    map_partitions(examine, items, store, HERE, version=1)
    calls()
    map_partitions(examine, items, store, HERE, version=2)
    assert len(calls()) == 20
    map_partitions(partial(examine, pause_s=0.0001), items, store, HERE, version=2)
    assert len(calls()) == 20
    map_partitions(examine, items, store, HERE, version=1)
    assert calls() == []


@pytest.mark.parametrize("damage", ["truncated", "empty", "one byte"])
def test_a_damaged_file_is_made_again(
    files: list[str], calls: Callable, tmp_path: Path, damage: str
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    store = tmp_path / "store"
    wanted = map_partitions(examine, files, store, HERE)
    calls()
    path = sorted(store.glob("*/*.arrow"))[2]
    content = bytearray(path.read_bytes())
    lost = [item.decode() for item in feather.read_table(path)["_item"].to_pylist()]
    if damage == "one byte":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"truncated": len(content) - 9, "empty": 0}.get(damage)])
    found = map_partitions(examine, files, store, HERE)
    assert sorted(calls()) == sorted(lost)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    map_partitions(examine, files, store, HERE)
    assert calls() == []


def test_rows_for_the_moment_are_not_kept(
    files: list[str], calls: Callable, tmp_path: Path
) -> None:
    examine = partial(measure, calls=str(tmp_path / "calls"))
    run = partial(
        map_partitions, examine, files, tmp_path / "store", HERE,
        passing=lambda rows: rows["error"] == "cannot be read",
    )  # fmt: skip
    same(run(), naive(files))
    calls()
    same(run(), naive(files))
    assert calls() == [files[-1]]


def test_many_files_become_few_and_the_outdated_go(
    files: list[str], calls: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partitions, "_SMALLEST_PARTITION", 1)
    monkeypatch.setattr(partitions, "_FILE_ROWS", 50)
    monkeypatch.setattr(partitions, "_FEW_FILES", 20)
    examine = partial(measure, calls=str(tmp_path / "calls"))
    store = tmp_path / "store"
    tiny = ExecutorSettings(workers=1, partition_size=2)
    map_partitions(examine, files, store, tiny)
    assert len(list(store.glob("*/*.arrow"))) == 61
    calls()
    Path(files[0]).write_bytes(b"changed")
    Path(files[1]).unlink()
    items = files[:60]
    same(map_partitions(examine, items, store, tiny), naive(items))
    assert calls() == files[:2]
    # 119 rows still hold, in three files, what another run uses among them; two were made anew.
    assert len(list(store.glob("*/*.arrow"))) == 5
    assert sorted(stored(store)) == sorted(files)
    same(map_partitions(examine, files, store, tiny), naive(files))
    assert calls() == []


def test_leftovers_of_killed_runs_and_of_old_versions_go(files: list[str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    map_partitions(measure, files, store, HERE, version="old")
    (old,) = (path for path in store.iterdir() if path.is_dir())
    (own := store / "holidays").mkdir()
    (own / "beach.jpg").touch()
    for folder in (old, own):
        os.utime(folder, (time.time() - 40 * 24 * 3600,) * 2)
    map_partitions(measure, files, store, HERE, version="new")
    assert not old.exists()
    assert (own / "beach.jpg").exists()
    (new,) = (path for path in store.iterdir() if path.is_dir() and path != own)
    for name, age_s in ((".geopak-a.part", 7200), (".geopak-b.part", 5)):
        (new / name).write_bytes(b"half")
        os.utime(new / name, (time.time() - age_s,) * 2)
    same(map_partitions(measure, files, store, HERE, version="new"), naive(files))
    assert [path.name for path in new.glob("*.part")] == [".geopak-b.part"]


def test_two_runs_share_a_store(files: list[str], tmp_path: Path) -> None:
    """At the same time, on overlapping items, one of them merging files all the while."""
    results: dict[int, pd.DataFrame] = {}
    examine = partial(measure, pause_s=0.0005)

    def work(number: int) -> None:
        items = files if number % 2 else files[::-1]
        settings = ExecutorSettings(workers=1, partition_size=3 + number)
        results[number] = map_partitions(examine, items, tmp_path / "store", settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_FEW_FILES", 0)
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for worker in workers:
            worker.start()
            time.sleep(0.05)
        for worker in workers:
            worker.join()
    for number in range(4):
        same(results[number], naive(files if number % 2 else files[::-1]))
    assert set(stored(tmp_path / "store")) == set(files)


def test_a_store_that_cannot_be_written_is_named(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file, not a folder")
    with pytest.raises(GeopakError, match=r"store, where results are kept, cannot be used"):
        map_partitions(measure, files, tmp_path / "store", HERE)


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


# --- worker processes -----------------------------------------------------------------------------


def test_processes_give_what_one_gives_though_one_is_killed(
    files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "seen").mkdir()
    examine = partial(
        measure_and_die_once, marker=str(tmp_path / "marker"), at="40.bin",
        seen=str(tmp_path / "seen"),
    )  # fmt: skip
    there = map_partitions(examine, files, tmp_path / "store", TWO)
    assert (tmp_path / "marker").exists()
    here = map_partitions(measure, files, executor=HERE)
    pd.testing.assert_frame_equal(there, here, check_exact=True)
    # Three processes, the one that was killed among them, and none starts threads of its own.
    assert len(list((tmp_path / "seen").iterdir())) == 3
    assert {path.read_text() for path in (tmp_path / "seen").iterdir()} == {"1"}


def test_the_item_that_kills_every_worker_is_found(files: list[str], tmp_path: Path) -> None:
    examine = partial(measure_or_die, culprits=("17.bin",))
    settings = ExecutorSettings(workers=2, partition_size=2, items_per_worker=1, retries=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        found = map_partitions(examine, files, tmp_path / "store", settings, failed=dead)
    wanted = naive(files)
    text = "it killed the process that worked on it, once in a row"
    wanted.loc[17] = (text, 0, 0.0, "", b"")
    same(found, wanted)
    # Perhaps it was the machine's fault: the next run tries it again, and nothing else.
    assert set(files) - set(stored(tmp_path / "store")) == {files[17]}
    with pytest.raises(GeopakError, match=r"17\.bin killed the process"):
        map_partitions(examine, files, tmp_path / "store", replace(settings, workers=None))


def test_an_error_in_the_function_is_no_crash(files: list[str]) -> None:
    with pytest.raises(RuntimeError, match="rows for"):
        map_partitions(short, files, executor=ExecutorSettings())


SCRIPT = """
import sys
from functools import partial
from geopak.data.partitions import ExecutorSettings, map_partitions
from tests.data.examiners import measure
calls, store, workers, *items = sys.argv[1:]
settings = ExecutorSettings(workers=int(workers), partition_size=16, items_per_worker=1)
map_partitions(partial(measure, calls=calls, pause_s=0.01), items, store, settings)
"""


def test_killed_runs_are_taken_up(files: list[str], calls: Callable, tmp_path: Path) -> None:
    """kill -9 at several moments, in the middle of partitions; then a run to the end."""
    psutil = pytest.importorskip("psutil")
    log, store = tmp_path / "calls", tmp_path / "store"
    rng, before = random.Random(3), set()
    for workers in (1, 2):
        command = [sys.executable, "-c", SCRIPT, str(log), str(store), str(workers), *files]
        run = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
        goal = rng.randint(18, 40)
        while not log.exists() or log.read_bytes().count(b"\n") < goal:
            assert run.poll() is None
            time.sleep(0.002)
        children = psutil.Process(run.pid).children()
        run.kill()
        run.wait()
        # Its workers end by themselves.
        assert psutil.wait_procs(children, timeout=20)[1] == []
        assert not before & set(calls())
        kept = set(stored(store))
        assert before < kept < set(files)
        before = kept
    examine = partial(measure, calls=str(log), pause_s=0.01)
    found = map_partitions(examine, files, store, HERE)
    assert sorted(calls()) == sorted(set(files) - kept)
    same(found, naive(files))


# --- Dask -----------------------------------------------------------------------------------------


@pytest.fixture
def quiet_dask() -> Iterator[None]:
    """Dask's own warnings are not ours: about workers that die, and what it leaves to collect."""
    pytest.importorskip("distributed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("quiet_dask")
def test_dask_gives_the_same_though_a_worker_is_killed(files: list[str], tmp_path: Path) -> None:
    """On a cluster that is there already, two workers, by its address."""
    import distributed

    pids, store = tmp_path / "pids", tmp_path / "store"
    pids.mkdir()
    examine = partial(measure_with_pid, folder=str(pids))
    killed: list[int] = []

    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (len(list(pids.iterdir())) == 2 and stored(store)):
            time.sleep(0.005)
        killed.append(int(next(pids.iterdir()).name))
        os.kill(killed[0], signal.SIGKILL)
        killed.append(len(set(stored(store))))

    killer = threading.Thread(target=kill)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.CRITICAL
    ) as cluster:
        settings = ExecutorSettings(
            name="dask", scheduler=cluster.scheduler_address, partition_size=8
        )
        killer.start()
        found = map_partitions(examine, files, store, settings, failed=dead)
        killer.join()
    assert killed[0] != os.getpid()
    assert 0 < killed[1] < len(files)
    local = map_partitions(measure, files, None, HERE)
    pd.testing.assert_frame_equal(found, local, check_exact=True)
    # Kept as local processes keep it: nothing is left for them to do.
    same(map_partitions(examine, files, store, HERE), naive(files))
    assert not (pids / str(os.getpid())).exists()


@pytest.mark.usefixtures("quiet_dask")
def test_dask_finds_the_item_that_kills(files: list[str]) -> None:
    examine = partial(measure_or_die, culprits=("3.bin",))
    settings = ExecutorSettings(name="dask", workers=2, partition_size=1, retries=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        found = map_partitions(examine, files[:12], executor=settings, failed=dead)
    assert found["error"].str.contains("killed the process").fillna(False).to_list() == [
        i == 3 for i in range(12)
    ]
    others = [i for i in range(12) if i != 3]
    same(found.loc[others].reset_index(drop=True), naive([files[i] for i in others]))


@pytest.mark.usefixtures("quiet_dask")
def test_a_scheduler_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_CONNECT_S", 0.5)
    settings = ExecutorSettings(name="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"executor\.scheduler=tcp://127\.0\.0\.1:9"):
        map_partitions(measure, ["a"], executor=settings)


def test_without_dask_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'geopak\[dask\]'"):
        map_partitions(measure, ["a"], executor=ExecutorSettings(name="dask"))


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
