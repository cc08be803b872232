"""Worker processes: what they give is what this process gives, whatever dies midway."""

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
from functools import partial
from pathlib import Path

import pandas as pd
import pytest

from geopak.data import partitions, worker_pools
from geopak.data.partitions import ExecutorSettings, map_partitions
from geopak.errors import ConfigError
from tests.data.examiners import (
    dead,
    measure,
    measure_and_die_once,
    measure_or_die,
    measure_with_pid,
    short,
)
from tests.data.results import naive, same, stored

HERE = ExecutorSettings(workers=1, partition_size=7)


# --- processes of this machine --------------------------------------------------------------------


def test_processes_give_what_one_gives_though_one_is_killed(
    files: list[str], tmp_path: Path
) -> None:
    (tmp_path / "seen").mkdir()
    examine = partial(
        measure_and_die_once, marker=str(tmp_path / "marker"), at="40.bin",
        seen=str(tmp_path / "seen"),
    )  # fmt: skip
    two = ExecutorSettings(workers=2, partition_size=16, items_per_worker=1, retries=1)
    there = map_partitions(examine, files, tmp_path / "store", two)
    assert (tmp_path / "marker").exists()
    here = map_partitions(measure, files, executor=HERE)
    pd.testing.assert_frame_equal(there, here, check_exact=True)
    # Three processes, the one that was killed among them, and none starts threads of its own.
    assert len(list((tmp_path / "seen").iterdir())) == 3
    assert {path.read_text() for path in (tmp_path / "seen").iterdir()} == {"1"}


def test_the_item_that_kills_every_worker_is_found(files: list[str], tmp_path: Path) -> None:
    """In a process of its own, though the items are too few for more than one."""
    examine = partial(measure_or_die, culprits=("17.bin",))
    settings = ExecutorSettings(partition_size=2, retries=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "_SMALLEST_PARTITION", 1)
        found = map_partitions(examine, files, tmp_path / "store", settings, failed=dead)
    wanted = naive(files)
    text = "it killed the process that worked on it, once in a row"
    wanted.loc[17] = (text, 0, 0.0, "", b"")
    same(found, wanted)
    assert set(files) - set(stored(tmp_path / "store")) == {files[17]}


def test_an_error_in_the_function_is_no_crash(files: list[str]) -> None:
    with pytest.raises(RuntimeError, match="rows for"):
        map_partitions(short, files, executor=ExecutorSettings())


# Starts a run with each number of workers that it is told; forked, so that it loads only once.
SCRIPT = """
import os, sys
from functools import partial
from geopak.data.partitions import ExecutorSettings, map_partitions
from tests.data.examiners import measure
calls, store, *items = sys.argv[1:]
for line in sys.stdin:
    child = os.fork()
    if not child:
        settings = ExecutorSettings(workers=int(line), partition_size=16, items_per_worker=1)
        map_partitions(partial(measure, calls=calls, pause_s=0.01), items, store, settings)
        os._exit(0)
    print(child, flush=True)
    os.waitpid(child, 0)
"""


def test_killed_runs_are_taken_up(files: list[str], calls: Callable, tmp_path: Path) -> None:
    """kill -9 at several moments, in the middle of partitions; then a run to the end."""
    psutil = pytest.importorskip("psutil")
    log, store = tmp_path / "calls", tmp_path / "store"
    rng, before = random.Random(3), set()
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(log), str(store), *files],
        cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, bufsize=1,
    )  # fmt: skip
    with script, script.stdin as orders, script.stdout as pids:
        for workers in (1, 2):
            orders.write(f"{workers}\n")
            run = psutil.Process(int(pids.readline()))
            goal, written = rng.randint(18, 40), len(list(store.glob("*/*.arrow")))
            while (
                not log.exists()
                or log.read_bytes().count(b"\n") < goal
                or len(list(store.glob("*/*.arrow"))) == written
            ):
                assert run.status() != psutil.STATUS_ZOMBIE
                time.sleep(0.005)
            children = run.children()
            run.kill()
            # Its workers end by themselves.
            assert psutil.wait_procs([run, *children], timeout=20)[1] == []
            assert not before & set(calls())
            kept = set(stored(store))
            assert before < kept < set(files)
            before = kept
    examine = partial(measure, calls=str(log), pause_s=0.01)
    found = map_partitions(examine, files, store, HERE)
    assert sorted(calls()) == sorted(set(files) - kept)
    same(found, naive(files))


# --- Dask -----------------------------------------------------------------------------------------


METHOD = "distributed.worker.multiprocessing-method"


@pytest.fixture
def quiet_dask() -> Iterator[None]:
    """Dask's own warnings are not ours: about workers that die, and what it leaves to collect.

    Workers are forked from a process that has loaded Dask, which is sooner done than starting each.
    """
    pytest.importorskip("distributed")
    dask = pytest.importorskip("dask")
    with warnings.catch_warnings(), dask.config.set({METHOD: "forkserver"}):
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
    settings = ExecutorSettings(name="dask", workers=1, partition_size=1, retries=0)
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
    monkeypatch.setattr(worker_pools, "_CONNECT_S", 0.5)
    settings = ExecutorSettings(name="dask", scheduler="tcp://127.0.0.1:9")
    with pytest.raises(ConfigError, match=r"executor\.scheduler=tcp://127\.0\.0\.1:9"):
        map_partitions(measure, ["a"], executor=settings)


def test_without_dask_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'geopak\[dask\]'"):
        map_partitions(measure, ["a"], executor=ExecutorSettings(name="dask"))
