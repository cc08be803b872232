"""One function over many photos: in parallel, on one machine or several, resumable at any moment.

The items are cut into partitions, the unit of work. What a partition gave is kept in a store, a
folder of Arrow files with a row per item under the hash of all that the row depends on: the
function, its version and arguments, and the item with the size and time of its file. So a row is
never taken for another photo or another examiner, however the items are cut or ordered, and when
one photo is added, one is examined.

- Files of the store are written under another name, synced and renamed; none is ever changed. A
  file's name is the hash of its content, so that a damaged one is noticed and made again.
- Rows from two processes at work on one store lie beside each other; at worst both are the same.
- When files have become many they are merged, without the rows whose photo has changed or gone;
  results of a function that no run has asked for in 30 days are removed. So a store holds about
  what the photos at hand need, for every examiner in use.
- The death of a worker costs its partition another try. If it dies again and again, the partition
  is halved down to the item that kills it.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import logging
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather as feather
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from geopak.errors import ConfigError, GeopakError, nearest_name

log = logging.getLogger(__name__)

PartitionFunction = Callable[[list[str]], pd.DataFrame]

EXECUTORS = ("local", "dask")
# Every worker has a core to itself; libraries that start threads of their own would fight for it.
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")
}
# Partitions given to a worker at a time: one at work, one waiting, so that none stands idle.
_AHEAD = 2
# Work enough for every worker to have this many partitions, as long as they are not tiny.
_PARTITIONS_PER_WORKER, _SMALLEST_PARTITION = 8, 16
_KEY, _ITEM = "_key", "_item"
_KEY_BYTES = 16
_OWN_FILE = re.compile(r"[0-9a-f]{32}\.arrow")
_KEY_TYPE = np.dtype([("high", "<u8"), ("low", "<u8")])
_SUFFIX, _UNFINISHED = ".arrow", (".geopak-", ".part")
_FILE_ROWS = 65_536
_FEW_FILES = 64
_UNFINISHED_FOR_S = 3600.0
_UNUSED_FOR_S = 30 * 24 * 3600.0
_CONNECT_S = 30


@dataclass(frozen=True)
class ExecutorSettings:
    """Where and how partitions are worked on; section ``executor`` of the configuration.

    Attributes:
        name: ``local`` (processes of this machine) or ``dask``.
        workers: processes; ``None`` for one per core. With 1 and ``local`` it is this very process,
            and an item that kills it ends the run.
        partition_size: most items of a partition.
        scheduler: address of a Dask scheduler; ``None`` for a cluster of ``workers`` processes on
            this machine that lives as long as the run.
        retries: how often a partition is tried again after its worker has died.
        items_per_worker: more than one local worker is only started if each gets so many items.

    Raises:
        ConfigError: a value out of range.
    """

    name: str = "local"
    workers: int | None = None
    partition_size: int = 256
    scheduler: str | None = None
    retries: int = 2
    items_per_worker: int = 1500

    def __post_init__(self) -> None:
        if self.name not in EXECUTORS:
            raise ConfigError(
                f"executor.name={self.name} is none.{nearest_name(self.name, EXECUTORS)} "
                f"Known: {', '.join(EXECUTORS)}."
            )
        if self.scheduler is not None and self.name != "dask":
            raise ConfigError(
                f"executor.scheduler={self.scheduler} is an address for executor=dask; "
                f"this is executor={self.name}."
            )
        for key, least in (
            ("workers", 1), ("partition_size", 1), ("retries", 0), ("items_per_worker", 1),
        ):  # fmt: skip
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"executor.{key} is {value}; it must be at least {least}.")

    def in_this_process(self) -> ExecutorSettings:
        """The same partitions, worked on here: for a function that holds a model."""
        return replace(self, name="local", workers=1, scheduler=None)


def file_key(item: str) -> str:
    """What the examination of a file depends on: its name, size and time of change."""
    try:
        state = os.stat(item)
    except (OSError, ValueError):
        return f"{item}\0gone"
    return f"{item}\0{state.st_size}\0{state.st_mtime_ns}"


def map_partitions(
    function: PartitionFunction,
    items: Sequence[str],
    store: str | Path | None = None,
    executor: ExecutorSettings | None = None,
    describe: str = "",
    *,
    version: str | int = 0,
    key: Callable[[str], str] = file_key,
    passing: Callable[[pd.DataFrame], pd.Series] | None = None,
    failed: Callable[[list[str], str], pd.DataFrame] | None = None,
) -> pd.DataFrame:
    """Applies a function to all items, partition by partition, and keeps what is finished.

    The result does not depend on partitions, executor, interruptions or the store.

    Args:
        function: from items to a row per item, in order, that depends on nothing but its item;
            with the same columns, of the same types, for any items. A function at the top level of
            a module, or a :class:`functools.partial` of one whose arguments have a ``repr`` that
            says all about them.
        items: names of files, or what ``key`` understands. Equal items are worked on once.
        store: folder that keeps the results for the next run; ``None`` to keep nothing.
        executor: where to work; by default on all cores of this machine.
        describe: beside the progress bar.
        version: of the function; results of another one are not used.
        key: from an item to text that names it and changes whenever its result may.
        passing: from a result to a boolean per row: rows that are used now but not kept, such as
            those of files that could not be read for the moment.
        failed: from items that killed every worker that took them, and the reason in words, to
            their rows. They are not kept in the store. By default such an item is an error.

    Returns:
        A row per item, in order, under a new index. Columns are plain NumPy or text ones;
        integers beside missing values are floats.

    Raises:
        GeopakError: an item kills its worker and ``failed`` is not given; the store cannot be
            written; the workers cannot be started or are lost for good.
        ConfigError: Dask is not installed or its scheduler is not to be reached.
    """
    executor = executor or ExecutorSettings()
    if not len(items):
        return _run(function, []).to_pandas()
    # With the columns, lest a version that was not raised mix two kinds of rows.
    identity = f"{_identity(function, version)} {_run(function, []).column_names}"
    keys = _keys(items, key, identity)
    order, number = _first_and_number(keys)
    keys = keys[order]
    kept = None if store is None else _Store(Path(store), function, identity, key)
    parts: list[tuple[NDArray[np.int64], pa.Table]] = []
    open_numbers = np.arange(len(keys))
    if kept is not None:
        found, table = kept.find(keys)
        open_numbers = np.setdiff1d(open_numbers, found, assume_unique=True)
        if len(found):
            parts.append((found, table))
    if len(open_numbers):
        # In the order of the items: files of one folder are examined together.
        open_numbers = open_numbers[np.argsort(order[open_numbers], kind="stable")]
        with _progress() as progress, _pool(executor, function, len(open_numbers)) as pool:
            shown = progress.add_task(
                describe, total=len(keys), completed=len(keys) - len(open_numbers)
            )
            for numbers, outcome in _work(pool, items, order, open_numbers, executor):
                names = [items[i] for i in order[numbers]]
                if isinstance(outcome, pa.Table):
                    table = outcome
                    if kept is not None:
                        kept.add(keys[numbers], names, _lasting(table, passing))
                elif failed is None:
                    raise GeopakError(
                        f"{names[0]} {outcome}. Take it out, or give the workers more memory; what "
                        "is finished is kept for the next run."
                    )
                else:
                    table = pa.Table.from_pandas(failed(names, outcome), preserve_index=False)
                    table = table.replace_schema_metadata(None)
                parts.append((numbers, table))
                progress.advance(shown, len(numbers))
    numbers = np.concatenate([n for n, _ in parts])
    rows = np.empty(len(keys), np.int64)
    rows[numbers] = np.arange(len(numbers))
    # Column by column, so that no more than one of them exists twice.
    return _take([table for _, table in parts], rows[number]).to_pandas(self_destruct=True)


# --- partitions and their fate --------------------------------------------------------------------


@dataclass(frozen=True)
class _Partition:
    """Items by number, how often they were tried in vain, and whether nothing else is to run."""

    numbers: NDArray[np.int64]
    tries: int = 0
    alone: bool = False


# What became of a partition: its table; its worker died at it; it was lost by the fault of another.
_Outcome: TypeAlias = pa.Table | Literal["died", "lost"]


class _Pool(Protocol):
    """Workers, from the point of view of those who hand out the work."""

    workers: int
    # Whether a partition that is said to have died was at work then, and not next in line.
    knows_culprit: bool

    @property
    def in_flight(self) -> int: ...

    def submit(self, partition: _Partition, items: list[str]) -> None: ...

    def wait(self) -> list[tuple[_Partition, _Outcome]]:
        """What has ended, at least one partition."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...  # fmt: skip


def _work(
    pool: _Pool,
    items: Sequence[str],
    order: NDArray[np.int64],
    open_numbers: NDArray[np.int64],
    settings: ExecutorSettings,
) -> Iterator[tuple[NDArray[np.int64], pa.Table | str]]:
    """Works off all items; yields each partition with its table, or one item with what it did."""
    even = -(-len(open_numbers) // (pool.workers * _PARTITIONS_PER_WORKER))
    size = min(settings.partition_size, max(_SMALLEST_PARTITION, even))
    starts = range(0, len(open_numbers), size)
    todo = deque(_Partition(open_numbers[start : start + size]) for start in starts)
    suspects: deque[_Partition] = deque()
    while todo or suspects or pool.in_flight:
        while todo and pool.in_flight < _AHEAD * pool.workers:
            partition = todo.popleft()
            pool.submit(partition, [items[i] for i in order[partition.numbers]])
        if not pool.in_flight:
            partition = replace(suspects.popleft(), alone=True)
            pool.submit(partition, [items[i] for i in order[partition.numbers]])
        for partition, outcome in pool.wait():
            if isinstance(outcome, pa.Table):
                yield partition.numbers, outcome
                continue
            if outcome == "lost":
                todo.appendleft(partition)
                continue
            again = replace(partition, tries=partition.tries + 1)
            first = items[order[partition.numbers[0]]]
            count = len(partition.numbers)
            what = first if count == 1 else f"{count} items from {first} on"
            log.warning("A worker process died at %s", what)
            if count == 1 and not (partition.alone or pool.knows_culprit):
                # Perhaps it was another one's fault; judged when all else is done.
                suspects.append(replace(partition, tries=0))
            elif partition.tries < settings.retries:
                (suspects if partition.alone else todo).append(again)
            elif count == 1:
                times = f"{again.tries} times" if again.tries > 1 else "once"
                yield partition.numbers, f"killed the process that worked on it, {times} in a row"
            else:
                for half in np.array_split(partition.numbers, 2):
                    todo.appendleft(_Partition(half, settings.retries))


def _run(function: PartitionFunction, items: list[str]) -> pa.Table:
    """The function's rows as an Arrow table; runs in the workers."""
    frame = function(items)
    if len(frame) != len(items):
        raise RuntimeError(f"{function} gave {len(frame)} rows for {len(items)} items")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    # What pandas notes beside the columns depends on the values of this partition.
    return table.replace_schema_metadata(None)


def _pool(settings: ExecutorSettings, function: PartitionFunction, num_items: int) -> _Pool:
    if settings.name == "dask":
        return _DaskPool(settings, function)
    if settings.workers == 1:
        return _ThisProcess(function)
    # One process at least, even for few: perhaps the very ones that killed it last time.
    workers = min(settings.workers or os.cpu_count() or 1, num_items // settings.items_per_worker)
    return _LocalPool(max(1, workers), function)


class _ThisProcess:
    """Works here and now, where processes could not share what the function needs."""

    workers = 1
    knows_culprit = True

    def __init__(self, function: PartitionFunction) -> None:
        self._function = function
        self._waiting: deque[tuple[_Partition, list[str]]] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, partition: _Partition, items: list[str]) -> None:
        self._waiting.append((partition, items))

    def wait(self) -> list[tuple[_Partition, _Outcome]]:
        partition, items = self._waiting.popleft()
        return [(partition, _run(self._function, items))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()


class _LocalPool:
    """Processes of this machine, each a pool of its own: a death tells whose partition it was."""

    knows_culprit = True

    def __init__(self, workers: int, function: PartitionFunction) -> None:
        self.workers = workers
        self._function = function
        self._pools = [self._new_pool() for _ in range(workers)]
        # Per process, in the order in which it takes them.
        self._queues: list[deque[tuple[Future[pa.Table], _Partition]]] = [
            deque() for _ in range(workers)
        ]

    @staticmethod
    def _new_pool() -> Any:
        # Starts without importing the program's own main module, which costs seconds here.
        from joblib.externals.loky import ProcessPoolExecutor

        return ProcessPoolExecutor(
            1, env=ONE_THREAD, initializer=_live_no_longer_than, initargs=(os.getpid(),)
        )

    @property
    def in_flight(self) -> int:
        return sum(map(len, self._queues))

    def submit(self, partition: _Partition, items: list[str]) -> None:
        slot = min(range(self.workers), key=lambda i: len(self._queues[i]))
        try:
            future = self._pools[slot].submit(_run, self._function, items)
        except BrokenProcessPool as error:
            # It died idle, or at the partition before and nobody has looked yet.
            future = Future()
            future.set_exception(error)
        self._queues[slot].append((future, partition))

    def wait(self) -> list[tuple[_Partition, _Outcome]]:
        wait([f for queue in self._queues for f, _ in queue], return_when=FIRST_COMPLETED)
        ended: list[tuple[_Partition, _Outcome]] = []
        for slot, queue in enumerate(self._queues):
            while queue and queue[0][0].done():
                future, partition = queue.popleft()
                try:
                    ended.append((partition, future.result()))
                except BrokenProcessPool:
                    ended.append((partition, "died"))
                    ended.extend((waiting, "lost") for _, waiting in queue)
                    queue.clear()
                    self._restart(slot)
        return ended

    def _restart(self, slot: int) -> None:
        self._pools[slot].shutdown(wait=True, kill_workers=True)
        self._pools[slot] = self._new_pool()
        self._check_started([self._pools[slot]])

    def _check_started(self, pools: list[Any]) -> None:
        """Lest a machine where no process lives pass for photos that kill processes."""
        try:
            for future in [pool.submit(_run, self._function, []) for pool in pools]:
                future.result()
        except BrokenProcessPool as error:
            raise GeopakError(
                "Worker processes end as they start. Is the memory, or the number of processes, "
                "limited? executor.workers=1 works without any."
            ) from error

    def __enter__(self) -> Self:
        try:
            self._check_started(self._pools)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pool in self._pools:
            pool.shutdown(wait=True, kill_workers=True)


def _live_no_longer_than(parent: int) -> None:
    """Ends this worker when the process that started it is gone, killed with no time for that."""
    # A Ctrl-C goes to the whole group; the parent decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _DaskPool:
    """Workers of a Dask cluster, of this machine or of many."""

    knows_culprit = False

    def __init__(self, settings: ExecutorSettings, function: PartitionFunction) -> None:
        try:
            self._dask = importlib.import_module("distributed")
        except ImportError as error:
            raise ConfigError(
                f"executor=dask needs dask ({error}): pip install 'geopak[dask]'. "
                "executor=local works without it."
            ) from None
        self._settings = settings
        self._function = function
        self._running: dict[Any, _Partition] = {}
        self._open = contextlib.ExitStack()
        self.workers = 1

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def __enter__(self) -> Self:
        with self._open:
            address = self._settings.scheduler
            if address is None:
                self._connect(self._own_cluster())
            else:
                try:
                    self._connect(address)
                except (OSError, TimeoutError, ValueError) as error:
                    raise ConfigError(
                        f"executor.scheduler={address}: no Dask scheduler with workers answers "
                        f"there ({error}). Start `dask scheduler` and `dask worker {address}`, or "
                        "set executor.scheduler=null for a cluster on this machine."
                    ) from error
            self._count_workers()
            self._open = self._open.pop_all()
        return self

    def _connect(self, cluster: Any) -> None:
        client = self._dask.Client(cluster, timeout=_CONNECT_S, set_as_default=False)
        self._client = self._open.enter_context(client)
        self._client.wait_for_workers(1, timeout=_CONNECT_S)

    def _own_cluster(self) -> Any:
        # Every death is reported at once and dealt with here.
        cluster = self._dask.LocalCluster(
            n_workers=self._settings.workers or os.cpu_count() or 1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
            scheduler_kwargs={"allowed_failures": 0},
        )
        return self._open.enter_context(cluster)

    def _count_workers(self) -> None:
        # They may come and go; with none for the moment, work waits at the scheduler.
        self.workers = max(1, sum(self._client.nthreads().values()))

    def submit(self, partition: _Partition, items: list[str]) -> None:
        future = self._client.submit(_run, self._function, items, pure=False)
        self._running[future] = partition

    def wait(self) -> list[tuple[_Partition, _Outcome]]:
        try:
            with self._client.as_current():
                done = self._dask.wait(list(self._running), return_when="FIRST_COMPLETED").done
            ended = [(self._running.pop(future), self._outcome(future)) for future in done]
            self._count_workers()
        except (self._dask.CancelledError, OSError) as error:
            raise GeopakError(
                f"The Dask scheduler is lost ({error}). What is finished is kept: run the same "
                "command again."
            ) from error
        return ended

    def _outcome(self, future: Any) -> _Outcome:
        try:
            return future.result()
        except self._dask.KilledWorker:
            return "died"
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"The Dask workers lack {error.name}: install the same version of geopak there."
            ) from error

    def __exit__(self, *_: object) -> None:
        self._running.clear()
        self._open.close()


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(),
        TimeRemainingColumn(), console=Console(stderr=True),
    )  # fmt: skip


# --- keys -----------------------------------------------------------------------------------------


def _identity(function: PartitionFunction, version: str | int) -> str:
    """Text that two functions share only if they give the same results."""
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        arguments = (*function.args, *arguments)
        named = {**function.keywords, **named}
        function = function.func
    name = f"{function.__module__}.{function.__qualname__}"
    if "<" in name:
        raise TypeError(f"{name} cannot be sent to workers; define it at the top level of a module")
    values = f"{arguments!r} {sorted(named.items())!r}"
    if " at 0x" in values:
        raise TypeError(f"the arguments of {name} do not say what they are: {values}")
    return f"{name} {version} {values}"


def _keys(items: Sequence[str], key: Callable[[str], str], identity: str) -> NDArray[np.void]:
    """A hash per item of all that its row depends on."""
    start = hashlib.blake2b(identity.encode(), digest_size=_KEY_BYTES)
    digests = bytearray()
    for item in items:
        hashed = start.copy()
        hashed.update(b"\0" + key(item).encode("utf-8", "surrogateescape"))
        digests += hashed.digest()
    return np.frombuffer(bytes(digests), _KEY_TYPE)


def _first_and_number(
    keys: NDArray[np.void],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first row of every distinct key, and per row the number of its key among those."""
    order = np.lexsort((keys["low"], keys["high"]))
    ordered = keys[order]
    new = np.ones(len(keys), bool)
    new[1:] = ordered[1:] != ordered[:-1]
    number = np.empty(len(keys), np.int64)
    number[order] = np.cumsum(new) - 1
    return order[new], number


# --- the store ------------------------------------------------------------------------------------


def _lasting(
    table: pa.Table, passing: Callable[[pd.DataFrame], pd.Series] | None
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """The table and which of its rows may be used by later runs."""
    if passing is None:
        return table, np.ones(len(table), bool)
    return table, ~np.asarray(passing(table.to_pandas()), bool)


class _Store:
    """Results of one function on disk: files that are written once, found again by key."""

    def __init__(
        self, root: Path, function: PartitionFunction, identity: str, key: Callable[[str], str]
    ) -> None:
        while isinstance(function, functools.partial):
            function = function.func
        short = hashlib.blake2b(identity.encode(), digest_size=6).hexdigest()
        self._root = root
        self._folder = root / f"{function.__name__}-{short}"
        self._identity = identity
        self._key = key
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            os.utime(self._folder)

    def find(self, keys: NDArray[np.void]) -> tuple[NDArray[np.int64], pa.Table]:
        """Results that are there.

        Args:
            keys: (N,) distinct keys.

        Returns:
            Which of the keys were found, and a row for each.
        """
        # Nobody reads a file later than here, so that whoever holds the lock may merge them.
        with self._writable(), FileLock(self._root / ".lock"):
            self._remove_leftovers()
            paths = sorted(self._folder.glob(f"*{_SUFFIX}"))
            tables = [table for path in paths if (table := self._read(path)) is not None]
            if not tables:
                return np.zeros(0, np.int64), pa.table({})
            there = np.concatenate([_key_column(table) for table in tables])
            order = np.argsort(there["high"], kind="stable")
            place = np.searchsorted(there["high"][order], keys["high"])
            row = order[np.minimum(place, len(order) - 1)]
            found = np.flatnonzero(there[row] == keys)
            if len(paths) > _FEW_FILES + 2 * len(there) // _FILE_ROWS:
                used = np.zeros(len(there), bool)
                used[row[found]] = True
                self._merge(paths, tables, there, used)
        if not len(found):
            return found, pa.table({})
        return found, _take([t.drop_columns([_KEY, _ITEM]) for t in tables], row[found])

    def add(
        self, keys: NDArray[np.void], items: list[str], lasting: tuple[pa.Table, NDArray[np.bool_]]
    ) -> None:
        """Keeps the lasting rows of a finished partition."""
        table, last = lasting
        if last.any():
            buffer = pa.py_buffer(np.ascontiguousarray(keys).tobytes())
            column = pa.FixedSizeBinaryArray.from_buffers(
                pa.binary(_KEY_BYTES), len(keys), [None, buffer]
            )
            names = pa.array([os.fsencode(item) for item in items], pa.binary())
            table = table.append_column(_KEY, column).append_column(_ITEM, names)
            self._write(table if last.all() else table.filter(pa.array(last)))

    def _write(self, table: pa.Table) -> Path:
        sink = pa.BufferOutputStream()
        feather.write_feather(table, sink, compression="zstd")
        content = sink.getvalue().to_pybytes()
        path = self._folder / f"{_digest(content)}{_SUFFIX}"
        with self._writable():
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(_UNFINISHED[1], _UNFINISHED[0], self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(unfinished, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)
                raise
            _sync_folder(self._folder)
        return path

    def _read(self, path: Path) -> pa.Table | None:
        """The rows of a file; a file that is not what was written is removed."""
        content = path.read_bytes()
        if _digest(content) == path.stem:
            return feather.read_table(pa.BufferReader(content))
        log.warning("%s is damaged; its photos are examined again", path)
        path.unlink()
        return None

    def _merge(
        self,
        paths: list[Path],
        tables: list[pa.Table],
        there: NDArray[np.void],
        used: NDArray[np.bool_],
    ) -> None:
        """Replaces many files by few, without rows that no run can use any more."""
        table = pa.concat_tables(tables, promote_options="permissive")
        rest = np.flatnonzero(~used)
        items = [os.fsdecode(item) for item in table[_ITEM].take(pa.array(rest)).to_pylist()]
        used = used.copy()
        used[rest] = _keys(items, self._key, self._identity) == there[rest]
        rows = np.flatnonzero(used)
        rows = np.sort(rows[_first_and_number(there[rows])[0]]) if len(rows) else rows
        new = set()
        for start in range(0, len(rows), _FILE_ROWS):
            new.add(self._write(_take(tables, rows[start : start + _FILE_ROWS])))
        for path in set(paths) - new:
            path.unlink(missing_ok=True)

    def _remove_leftovers(self) -> None:
        """Removes what killed runs left unfinished, and results nobody has asked for in a month."""
        now = time.time()
        for path in self._root.glob("*/" + "*".join(_UNFINISHED)):
            with contextlib.suppress(FileNotFoundError):
                if now - path.stat().st_mtime > _UNFINISHED_FOR_S:
                    path.unlink()
        for folder in self._root.iterdir():
            # By its content, lest a folder of the user's be taken for one of ours.
            if now - folder.stat().st_mtime > _UNUSED_FOR_S and folder.is_dir():
                files = list(folder.iterdir())
                if files and all(_OWN_FILE.fullmatch(file.name) for file in files):
                    log.info("Removing %s: no run has used it for a month", folder)
                    shutil.rmtree(folder, ignore_errors=True)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GeopakError(
                f"{self._root}, where results are kept, cannot be used: {error.strerror or error}. "
                "Free or mend it, or choose another folder; what is finished is kept."
            ) from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _key_column(table: pa.Table) -> NDArray[np.void]:
    column = table[_KEY].combine_chunks()
    whole = np.frombuffer(column.buffers()[1], _KEY_TYPE)
    return whole[column.offset : column.offset + len(column)]


def _take(tables: list[pa.Table], rows: NDArray[np.int64]) -> pa.Table:
    """Rows of the tables laid end to end."""
    names = tables[0].column_names
    for table in tables:
        if table.column_names != names:
            raise RuntimeError(f"partitions have other columns: {names}, {table.column_names}")
    table = pa.concat_tables(tables, promote_options="permissive")
    index = pa.array(rows)
    columns = []
    for column in table.columns:
        kind = _wide(column.type)
        column = column if column.type == kind else column.cast(kind)
        columns.append(pc.take(column.combine_chunks(), index))
    return pa.table(columns, names=names)


def _wide(kind: pa.DataType) -> pa.DataType:
    """The type that holds more than two gigabytes of text, and text where all is missing."""
    if pa.types.is_null(kind) or pa.types.is_string(kind):
        return pa.large_string()
    return pa.large_binary() if pa.types.is_binary(kind) else kind
