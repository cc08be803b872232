"""Workers that examine partitions: this process, processes of this machine, a Dask cluster.

A pool is given partitions and says what became of each. A worker may die at any moment; a pool
then starts another one and tells which partitions died with it. Whoever hands out the work decides
what is tried again.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Protocol, Self, TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from geopak.errors import ConfigError, GeopakError

PartitionFunction = Callable[[list[str]], pd.DataFrame]

# Every worker has a core to itself; libraries that start threads of their own would fight for it.
ONE_THREAD = {
    f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB")
}
_CONNECT_S = 30


@dataclass(frozen=True)
class Partition:
    """Items by number, how often they were tried in vain, and whether nothing else is to run."""

    numbers: NDArray[np.int64]
    tries: int = 0
    alone: bool = False


# What became of a partition: its table; its worker died at it; it was lost by the fault of another.
Outcome: TypeAlias = pa.Table | Literal["died", "lost"]


class WorkerPool(Protocol):
    """Workers, from the point of view of those who hand out the work."""

    workers: int
    # Whether a partition that is said to have died was at work then, and not next in line.
    knows_culprit: bool

    @property
    def in_flight(self) -> int:
        """Partitions that were submitted and have not ended."""
        ...

    def submit(self, partition: Partition, items: list[str]) -> None:
        """Has the partition's items worked on."""
        ...

    def wait(self) -> list[tuple[Partition, Outcome]]:
        """What has ended, at least one partition."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...  # fmt: skip


def examine_items(function: PartitionFunction, items: list[str]) -> pa.Table:
    """The function's rows as an Arrow table; runs in the workers.

    Raises:
        RuntimeError: the function gave more or fewer rows than items.
    """
    frame = function(items)
    if len(frame) != len(items):
        raise RuntimeError(f"{function} gave {len(frame)} rows for {len(items)} items")
    table = pa.Table.from_pandas(frame, preserve_index=False)
    # What pandas notes beside the columns depends on the values of this partition.
    return table.replace_schema_metadata(None)


class ThisProcess:
    """Works here and now, where processes could not share what the function needs."""

    workers = 1
    knows_culprit = True

    def __init__(self, function: PartitionFunction) -> None:
        self._function = function
        self._waiting: deque[tuple[Partition, list[str]]] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    def submit(self, partition: Partition, items: list[str]) -> None:
        self._waiting.append((partition, items))

    def wait(self) -> list[tuple[Partition, Outcome]]:
        partition, items = self._waiting.popleft()
        return [(partition, examine_items(self._function, items))]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.clear()


class LocalPool:
    """Processes of this machine, each a pool of its own: a death tells whose partition it was.

    Raises:
        GeopakError: processes end as they start.
    """

    knows_culprit = True

    def __init__(self, workers: int, function: PartitionFunction) -> None:
        self.workers = workers
        self._function = function
        self._pools = [self._new_pool() for _ in range(workers)]
        # Per process, in the order in which it takes them.
        self._queues: list[deque[tuple[Future[pa.Table], Partition]]] = [
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

    def submit(self, partition: Partition, items: list[str]) -> None:
        slot = min(range(self.workers), key=lambda i: len(self._queues[i]))
        try:
            future = self._pools[slot].submit(examine_items, self._function, items)
        except BrokenProcessPool as error:
            # It died idle, or at the partition before and nobody has looked yet.
            future = Future()
            future.set_exception(error)
        self._queues[slot].append((future, partition))

    def wait(self) -> list[tuple[Partition, Outcome]]:
        wait([f for queue in self._queues for f, _ in queue], return_when=FIRST_COMPLETED)
        ended: list[tuple[Partition, Outcome]] = []
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
            for future in [pool.submit(examine_items, self._function, []) for pool in pools]:
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


class DaskPool:
    """Workers of a Dask cluster, of this machine or of many.

    Args:
        scheduler: its address; ``None`` for a cluster on this machine that lives as long as the
            pool.
        workers: of a cluster on this machine; ``None`` for one per core.
        function: what the workers do.

    Raises:
        ConfigError: Dask is not installed, here or there, or its scheduler is not to be reached.
        GeopakError: the scheduler is lost.
    """

    knows_culprit = False

    def __init__(
        self, scheduler: str | None, workers: int | None, function: PartitionFunction
    ) -> None:
        try:
            self._dask = importlib.import_module("distributed")
        except ImportError as error:
            raise ConfigError(
                f"executor=dask needs dask ({error}): pip install 'geopak[dask]'. "
                "executor=local works without it."
            ) from None
        self._scheduler = scheduler
        self._num_workers = workers or os.cpu_count() or 1
        self._function = function
        self._running: dict[Any, Partition] = {}
        self._open = contextlib.ExitStack()
        self.workers = 1

    @property
    def in_flight(self) -> int:
        return len(self._running)

    def __enter__(self) -> Self:
        with self._open:
            address = self._scheduler
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
            n_workers=self._num_workers,
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

    def submit(self, partition: Partition, items: list[str]) -> None:
        future = self._client.submit(examine_items, self._function, items, pure=False)
        self._running[future] = partition

    def wait(self) -> list[tuple[Partition, Outcome]]:
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

    def _outcome(self, future: Any) -> Outcome:
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
