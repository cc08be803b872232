"""Training in several processes: none waits for one that has died, and all agree on statistics.

A process of a training is called a rank. Ranks wait for each other in every step; one that is
killed would leave the others waiting for up to ``trainer.timeout_s``, and some ways of waiting
have no end at all. Each rank therefore watches, in a thread of its own, the processes it started,
the process that started it, and the heartbeats of all others.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.strategies.launchers import subprocess_script
from torch import nn
from torch._C._distributed_c10d import Store

from geopak.checkpoint import CHECKPOINT_FOLDER, LAST_NAME
from geopak.errors import ConfigError, StoppedBySignalError

# Value of trainer.devices and trainer.num_nodes: as many as were started.
LAUNCHER = "launcher"
_LAUNCHER_PID = "GEOPAK_LAUNCHER_PID"
# The process that started this one as a rank.
_parent: int | None = None
_LOOK_EVERY_S = 0.25
_DONE, _FAILED = "done", "failed"
_BATCH_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
)


def launched_processes(environ: Mapping[str, str]) -> tuple[int, int]:
    """(nodes, processes a node) that torchrun or Slurm has started.

    Args:
        environ: environment variables of this process.

    Raises:
        ConfigError: neither of them started it, or unequal numbers on the nodes.
    """
    if "TORCHELASTIC_RUN_ID" in environ:
        total, per_node = int(environ["WORLD_SIZE"]), int(environ["LOCAL_WORLD_SIZE"])
    elif "SLURM_PROCID" in environ and "SLURM_NTASKS" in environ:
        nodes = environ.get("SLURM_JOB_NUM_NODES") or environ["SLURM_NNODES"]
        total = int(environ["SLURM_NTASKS"])
        per_node = -(-total // int(nodes))
    else:
        raise ConfigError(
            "trainer.devices and trainer.num_nodes are to be as many as were started, but neither "
            "torchrun nor Slurm started this process. Start it with "
            "torchrun --nproc_per_node N -m geopak.train …, with hydra/launcher=slurm, or set both "
            "keys to numbers."
        )
    if total % per_node:
        raise ConfigError(
            f"{total} processes with {per_node} on a node: every node needs as many. With Slurm "
            "set hydra.launcher.tasks_per_node."
        )
    return total // per_node, per_node


class ShardedStrategy(ModelParallelStrategy):
    """FSDP2 over all ranks: see :func:`geopak.models.sharding.shard`.

    A checkpoint is one file with the whole state, as of every other training.
    """

    def __init__(self, timeout: timedelta) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, timeout=timeout)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def build_strategy(name: str, timeout_s: float) -> Strategy | str:
    """The strategy of ``trainer.strategy``; names other than ddp and fsdp are Lightning's own.

    Args:
        name: ``auto``, ``ddp``, ``fsdp``, ….
        timeout_s: the longest that a rank waits for one that is alive.
    """
    timeout = timedelta(seconds=timeout_s)
    if name == "ddp":
        # Buffers are not sent before every forward pass: most never change, ranks with fewer val
        # batches would be waited for, and AgreeOnStatistics does better for the rest.
        return DDPStrategy(
            timeout=timeout, forward_sync_buffers=False, gradient_as_bucket_view=True
        )
    if name == "fsdp":
        return ShardedStrategy(timeout)
    return name


class AgreeOnStatistics(L.Callback):
    """Before they validate, ranks average the statistics of BatchNorms that train.

    All ranks then measure with the model that is saved.
    """

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            average_statistics(pl_module)


def average_statistics(module: nn.Module) -> None:
    """Averages means and variances of all unfrozen BatchNorms over the ranks, in place."""
    for part in module.modules():
        frozen = getattr(part, "frozen", False)
        if isinstance(part, _BATCH_NORMS) and part.track_running_stats and not frozen:
            for statistic in (part.running_mean, part.running_var):
                assert statistic is not None
                # Gloo has no mean.
                dist.all_reduce(statistic)
                statistic.div_(dist.get_world_size())


# What Lightning leaves of a training in the environment of the process that started it.
_LEFT = ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def starts_other_ranks(environ: Mapping[str, str]) -> bool:
    """Whether Lightning would start the other ranks from this process: nobody else has."""
    others = ("LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID")
    return not any(name in environ for name in others)


@contextlib.contextmanager
def started_with(overrides: Sequence[str]) -> Iterator[None]:
    """Has Lightning start other ranks with these overrides, not with those of this process."""
    typed = sys.argv
    sys.argv = [typed[0], *overrides]
    try:
        yield
    finally:
        sys.argv = typed


@contextlib.contextmanager
def leaving_nothing_behind() -> Iterator[None]:
    """Ends what Lightning leaves of a training, so that the next one gets ranks of its own."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in _LEFT:
            if name not in before:
                os.environ.pop(name, None)
        if dist.is_initialized():
            dist.destroy_process_group()


def watch_parent() -> None:
    """Ends this process when the one that started it as a rank ends; call it first thing.

    A rank whose launcher was killed would otherwise train on, or wait for a connection.
    """
    global _parent
    if "LOCAL_RANK" not in os.environ:
        # Lightning starts the other ranks from here; they inherit this.
        os.environ[_LAUNCHER_PID] = str(os.getpid())
        return
    parent = os.getppid()
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        # A parent that has ended already has handed this process on to another.
        parent = int(os.environ.get(_LAUNCHER_PID, parent))
    if _parent is not None or parent == os.getpid():
        return
    _parent = parent

    def watch() -> None:
        while not (reason := _ended_parent()):
            time.sleep(_LOOK_EVERY_S)
        end_process(reason)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _ended_parent() -> str | None:
    """Whether the process has ended that started this rank."""
    if _parent in (None, os.getppid()):
        return None
    return f"process {_parent}, which started this rank, has ended"


def end_process(reason: str, folder: str | Path | None = None) -> NoReturn:
    """Says why on stderr and ends this process, wherever its main thread is waiting."""
    rank = os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ.get("LOCAL_RANK")
    last = Path(folder) / CHECKPOINT_FOLDER / f"{LAST_NAME}.ckpt" if folder else None
    hint = f" Continue it with resume_from=auto or {last}." if last and last.is_file() else ""
    print(f"\nerror: rank {rank or 0} ends the run: {reason}.{hint}", file=sys.stderr, flush=True)
    os._exit(1)


class RankWatch(L.Callback):
    """Ends the run when a rank has died, whatever the others are doing at the time.

    Args:
        heartbeat_s: a rank without a sign of life for so long counts as dead; ``None``: heartbeats
            are left out, and only the processes of the same node are watched.
    """

    def __init__(self, heartbeat_s: float | None) -> None:
        self.heartbeat_s = heartbeat_s
        self._store: Store | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, trainer: L.Trainer) -> None:
        """Begins to watch the processes that the trainer starts: before it fits."""
        if trainer.world_size == 1:
            return
        _end_lightnings_watch()
        self._thread = threading.Thread(
            target=self._watch, args=(trainer,), name="rank-watch", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the watching: after the fit, however it went."""
        self._stop.set()
        if self._thread:
            self._thread.join()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self.heartbeat_s is None:
            return
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        # A connection of its own to the store where the ranks met: the ranks' own may be in use
        # for as long as one waits for another.
        store = dist.TCPStore(  # type: ignore[attr-defined]
            environment.main_address,
            environment.main_port,
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=self.heartbeat_s),
        )
        store.set(_key(trainer.global_rank), "0")
        trainer.strategy.barrier("heartbeats")
        self._store = store

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._close(trainer, _DONE)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        stopped = isinstance(exception, StoppedBySignalError)
        self._close(trainer, _DONE if stopped else _FAILED)

    def _close(self, trainer: L.Trainer, last_word: str) -> None:
        self.stop()
        store, self._store = self._store, None
        if store:
            try:
                store.set(_key(trainer.global_rank), last_word)
            except RuntimeError:
                # Its host has ended already, as all others know by now.
                return

    def _watch(self, trainer: L.Trainer) -> None:
        pulse: _Pulse | None = None
        folder = trainer.default_root_dir
        while not self._stop.wait(_LOOK_EVERY_S):
            launcher = trainer.strategy.launcher
            children: list[subprocess.Popen[Any]] = list(getattr(launcher, "procs", ()))
            reason = _ended_parent() or _ended_child(children)
            if reason is None and self._store and self.heartbeat_s:
                pulse = pulse or _Pulse(trainer.global_rank, trainer.world_size, self.heartbeat_s)
                reason = pulse.feel(self._store)
                if reason:
                    # Connections of a killed process break before it counts as ended.
                    time.sleep(2 * _LOOK_EVERY_S)
                    reason = _ended_parent() or _ended_child(children) or reason
            if reason and not self._stop.is_set():
                for child in children:
                    child.kill()
                end_process(reason, folder)


def _end_lightnings_watch() -> None:
    """Keeps Lightning from being the first to see that a process has died.

    It looks every five seconds, and kills this one without a word on how to go on.
    """
    name = "_launch_process_observer"
    if hasattr(subprocess_script, name):
        setattr(subprocess_script, name, lambda processes: None)


def _key(rank: int) -> str:
    return f"geopak/heartbeat/{rank}"


def _ended_child(children: list[subprocess.Popen[Any]]) -> str | None:
    """Which of the processes started here ended with an error."""
    for rank, child in enumerate(children, start=1):
        status = child.poll()
        if status is None or status == 0:
            continue
        how = f"ended with status {status}; its error stands above"
        if status < 0:
            how = f"was killed by signal {-status} ({signal.Signals(-status).name})"
            if -status == signal.SIGKILL:
                how += ", as happens when memory runs out"
        return f"local rank {rank} (process {child.pid}) {how}"
    return None


class _Pulse:
    """Beats the own heart and feels those of all other ranks.

    Args:
        rank, world_size: of this process.
        heartbeat_s: how long a heart may stand still.
    """

    def __init__(self, rank: int, world_size: int, heartbeat_s: float) -> None:
        self.rank, self.heartbeat_s, self.beats = rank, heartbeat_s, 0
        now = time.monotonic()
        self.seen = {other: ("", now) for other in range(world_size) if other != rank}

    def feel(self, store: Store) -> str | None:
        """One beat; says which rank has died, if one has."""
        self.beats += 1
        try:
            store.set(_key(self.rank), str(self.beats))
            values = [value.decode() for value in store.multi_get([_key(r) for r in self.seen])]
        except RuntimeError as error:
            first_line = (str(error).splitlines() or [""])[0]
            return f"the process where all ranks meet, that of rank 0, has ended ({first_line})"
        now = time.monotonic()
        for rank, value in zip(list(self.seen), values, strict=True):
            before, since = self.seen[rank]
            if value == _FAILED:
                return f"rank {rank} failed; its error stands in its own output"
            if value != before or value == _DONE:
                self.seen[rank] = (value, now)
            elif now - since > self.heartbeat_s:
                return f"rank {rank} has shown no sign of life for {now - since:.0f} s"
        return None
