"""Run folders: what a run records when it starts, and whether a command goes on with an old one."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from geopak.checkpoint import (
    BEST_NAME,
    CHECKPOINT_FOLDER,
    LAST_NAME,
    PREVIOUS_NAME,
    resumable,
    run_folder,
)
from geopak.data.atomic import write_json
from geopak.errors import CheckpointError, ConfigError

log = logging.getLogger(__name__)

# Written when a run starts: see geopak.provenance; run.json follows when it has finished.
START_RECORD = "provenance.json"
FINISH_RECORD = "run.json"
AUTO = "auto"
_LOCK = ".lock"
# What Hydra and the lock leave in a folder where nothing was done.
_NOTHING = {".hydra", _LOCK}
# Tells the processes that this one starts as ranks what it has chosen.
_CHOICE = "GEOPAK_RUN_START"
# Overrides that a run may be continued with or without: they change no result.
_NO_MATTER = (
    "resume_from", "hydra", "launcher", "logger", "callbacks.progress_bar",
    "callbacks.checkpoint_every_n_batches", "trainer.devices", "trainer.num_nodes",
    "trainer.heartbeat_s", "trainer.timeout_s",
)  # fmt: skip


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        folder: of its run.
        checkpoint: to go on from; ``None``: it begins anew.
        finished: record of the run in ``folder``, if that is finished: nothing is left to do.
        parent: checkpoint that the run being continued once started from.
    """

    folder: Path
    checkpoint: Path | None = None
    finished: dict[str, Any] | None = None
    parent: str | None = None


def distinguishing_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that two commands must share to mean the same run, sorted."""
    return sorted(o for o in overrides if not _is_one_of(_key(o), _NO_MATTER))


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _is_one_of(key: str, names: Sequence[str]) -> bool:
    return any(key == n or key.startswith((f"{n}.", f"{n}/", f"{n}@")) for n in names)


def choose_start(
    resume_from: str | None,
    folder: Path,
    runs: Path,
    overrides: Sequence[str],
    parent: Path | None,
) -> Start:
    """Decides from ``resume_from`` where a training begins, and says so.

    Args:
        resume_from: a checkpoint; ``auto``: the newest run below ``runs`` of the same overrides,
            if there is one; or ``None``.
        folder: of a new run.
        runs: ``outputs/<name>/phase-<k>``.
        overrides: of this command.
        parent: the checkpoint that a new run would start from, as far as it is known.

    Raises:
        CheckpointError: the checkpoint to go on from is missing or broken.
        ConfigError: another process is training that very run.
    """
    if int(os.environ.get("LOCAL_RANK", 0)) and "TORCHELASTIC_RUN_ID" not in os.environ:
        # Started by the first rank, which has chosen.
        chosen = json.loads(os.environ.get(_CHOICE, "null"))
        if chosen:
            checkpoint = Path(chosen[1]) if chosen[1] else None
            return Start(Path(chosen[0]), checkpoint, parent=chosen[2])
    if resume_from is None:
        start = Start(folder)
    elif resume_from == AUTO:
        start = _choose(folder, runs, distinguishing_overrides(overrides), parent)
    else:
        path = Path(resume_from).expanduser()
        # A file system without links may have the one before alone.
        if not path.is_file() and (before := path.with_name(f"{PREVIOUS_NAME}.ckpt")).is_file():
            path = before
        own = run_folder(path)
        start = Start(own, resumable(path), parent=_read_start(own).get("parent"))
    os.environ[_CHOICE] = json.dumps(
        [str(start.folder), start.checkpoint and str(start.checkpoint), start.parent]
    )
    return start


def _choose(folder: Path, runs: Path, overrides: list[str], parent: Path | None) -> Start:
    """The newest run of the same overrides, or a new one."""
    found = []
    for path in runs.glob(f"*/{START_RECORD}"):
        record = _read_start(path.parent)
        if record.get("overrides") is not None and path.parent != folder:
            same = distinguishing_overrides(record["overrides"]) == overrides
            found.append((float(record["started_unix"]), path.parent, record, same))
    found.sort(key=lambda run: run[:2], reverse=True)
    for _, run, record, same in found:
        if not same:
            continue
        if parent is not None and _tail(record.get("parent")) != _tail(str(parent)):
            log.info("resume_from=auto: %s started from another parent.", run)
            break
        finished = _finished(run)
        if finished:
            return Start(run, finished=finished, parent=record.get("parent"))
        names = (f"{name}.ckpt" for name in (LAST_NAME, PREVIOUS_NAME))
        paths = [p for p in (run / CHECKPOINT_FOLDER / name for name in names) if p.is_file()]
        if paths:
            checkpoint = resumable(paths[0])
            log.info("resume_from=auto: continues %s", run)
            return Start(run, checkpoint, parent=record.get("parent"))
        log.info("resume_from=auto: %s ended before its first checkpoint.", run)
        break
    else:
        others = sum(not same for *_, same in found)
        hint = f" ({others} of others)" if others else ""
        log.info("resume_from=auto: no run of these overrides below %s%s.", runs, hint)
    log.info("resume_from=auto: starts anew in %s", folder)
    return Start(folder)


def _tail(checkpoint: str | None) -> tuple[str, ...]:
    """phase-<k>/<run>/checkpoints/<name>: outputs may have moved."""
    return Path(checkpoint).parts[-4:] if checkpoint else ()


def _finished(folder: Path) -> dict[str, Any] | None:
    """The record of a finished run whose best checkpoint is still there."""
    path = folder / FINISH_RECORD
    if not path.is_file() or not (folder / CHECKPOINT_FOLDER / f"{BEST_NAME}.ckpt").is_file():
        return None
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not a run record: {error!r}. Delete it.") from error
    return record


def _read_start(folder: Path) -> dict[str, Any]:
    path = folder / START_RECORD
    return _read(path) if path.is_file() else {}


def write_start(folder: Path, record: Mapping[str, Any]) -> None:
    """Records the start of a run; of one that is continued, adds what it is continued with.

    Args:
        folder: of the run.
        record: see :func:`geopak.provenance.provenance`, and ``overrides`` and ``parent``.
    """
    now = {"started_unix": time.time(), **record}
    known = _read_start(folder)
    if known:
        now = {**known, "continued": [*known.get("continued", []), now]}
    write_json(folder / START_RECORD, now)


def add_to_start(folder: Path, more: Mapping[str, Any]) -> None:
    """Adds to what a run recorded when it started, if it did."""
    if record := _read_start(folder):
        write_json(folder / START_RECORD, {**record, **more})


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in the same run folder; the first rank's task.

    Raises:
        ConfigError: another process does so now.
    """
    if not is_first_rank():
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Another process is training in {folder} at this moment. Wait until it has ended, or "
            "start a run of its own: leave resume_from out."
        ) from None
    except NotImplementedError:
        log.debug("%s: this file system knows no locks", folder)
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def removed_if_unused(folder: Path) -> Iterator[None]:
    """Removes a run folder at the end if nothing was written there: the run failed, or went on
    elsewhere."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if {path.name for path in folder.iterdir()} <= _NOTHING:
                shutil.rmtree(folder)


def is_first_rank() -> bool:
    """Whether this process is the first of a training, or the only one."""
    names = ("RANK", "SLURM_PROCID", "NODE_RANK", "LOCAL_RANK")
    return all(int(os.environ.get(name) or 0) == 0 for name in names)
