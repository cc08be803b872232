"""One function over many photos: in parallel, on one machine or several, resumable at any moment.

The items are cut into partitions, the unit of work. What a partition gave is kept in a store, with
a row per item under the hash of all that the row depends on: the function, its version and
arguments, and the item with the size and time of its file. So however the items are cut or
ordered, when one photo is added, one is examined.

The death of a worker costs its partition another try. If it dies again and again, the partition is
halved down to the item that kills it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
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

from geopak.data.result_store import KEY_BYTES, KEY_TYPE, ResultStore, distinct_keys, take_rows
from geopak.data.worker_pools import (
    DaskPool,
    LocalPool,
    Partition,
    PartitionFunction,
    ThisProcess,
    WorkerPool,
    examine_items,
)
from geopak.errors import GeopakError
from geopak.schema.preparation import ExecutorSettings

log = logging.getLogger(__name__)

# Partitions given to a worker at a time: one at work, one waiting, so that none stands idle.
_AHEAD = 2
# Work enough for every worker to have this many partitions, as long as they are not tiny.
_PARTITIONS_PER_WORKER, _SMALLEST_PARTITION = 8, 16


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
        return examine_items(function, []).to_pandas()
    # With the columns, lest a version that was not raised mix two kinds of rows.
    identity = f"{_identity(function, version)} {examine_items(function, []).column_names}"
    keys_of = functools.partial(_keys, key=key, identity=identity)
    keys = keys_of(items)
    order, number = distinct_keys(keys)
    keys = keys[order]
    kept = None
    if store is not None:
        kept = ResultStore(Path(store), _plain(function).__name__, identity, keys_of)
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
        with progress_bar() as progress, _pool(executor, function, len(open_numbers)) as pool:
            shown = progress.add_task(
                describe, total=len(keys), completed=len(keys) - len(open_numbers)
            )
            for numbers, outcome in _work(pool, items, order, open_numbers, executor):
                names = [items[i] for i in order[numbers]]
                if isinstance(outcome, pa.Table):
                    table = outcome
                    if kept is not None:
                        kept.add(keys[numbers], names, table, _lasting(table, passing))
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
    return take_rows([table for _, table in parts], rows[number]).to_pandas(self_destruct=True)


# --- partitions and their fate --------------------------------------------------------------------


def _pool(settings: ExecutorSettings, function: PartitionFunction, num_items: int) -> WorkerPool:
    """The workers that the settings ask for, no more than the items are worth."""
    if settings.name == "dask":
        return DaskPool(settings.scheduler, settings.workers, function)
    if settings.workers == 1:
        return ThisProcess(function)
    # One process at least, even for few: perhaps the very ones that killed it last time.
    workers = min(settings.workers or os.cpu_count() or 1, num_items // settings.items_per_worker)
    return LocalPool(max(1, workers), function)


def _work(
    pool: WorkerPool,
    items: Sequence[str],
    order: NDArray[np.int64],
    open_numbers: NDArray[np.int64],
    settings: ExecutorSettings,
) -> Iterator[tuple[NDArray[np.int64], pa.Table | str]]:
    """Works off all items; yields each partition with its table, or one item with what it did."""
    even = -(-len(open_numbers) // (pool.workers * _PARTITIONS_PER_WORKER))
    size = min(settings.partition_size, max(_SMALLEST_PARTITION, even))
    starts = range(0, len(open_numbers), size)
    todo = deque(Partition(open_numbers[start : start + size]) for start in starts)
    suspects: deque[Partition] = deque()
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
                    todo.appendleft(Partition(half, settings.retries))


def _lasting(
    table: pa.Table, passing: Callable[[pd.DataFrame], pd.Series] | None
) -> NDArray[np.bool_]:
    """Which rows of the table may be used by later runs."""
    if passing is None:
        return np.ones(len(table), bool)
    return ~np.asarray(passing(table.to_pandas()), bool)


class _Rate(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s", style="progress.data.speed")


def progress_bar() -> Progress:
    """A bar of photos done, with their rate and the time left."""
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


def _plain(function: PartitionFunction) -> Any:
    """The function itself, without the arguments that it was given beforehand."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _keys(items: Sequence[str], key: Callable[[str], str], identity: str) -> NDArray[np.void]:
    """A hash per item of all that its row depends on."""
    start = hashlib.blake2b(identity.encode(), digest_size=KEY_BYTES)
    digests = bytearray()
    for item in items:
        hashed = start.copy()
        hashed.update(b"\0" + key(item).encode("utf-8", "surrogateescape"))
        digests += hashed.digest()
    return np.frombuffer(bytes(digests), KEY_TYPE)
