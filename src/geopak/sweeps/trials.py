"""What became of every run of a sweep: a record in its folder, and all records of a sweep."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopak.data.atomic import write_json
from geopak.errors import SweepError, TrialPrunedError

log = logging.getLogger(__name__)

FILE_NAME = "trial.json"
SWEEP_FOLDER = "sweeps"
# Set in the processes of a sweep's runs: the sweep's name, and the number in Optuna's study.
SWEEP_VARIABLE, TRIAL_VARIABLE = "GEOPAK_SWEEP", "GEOPAK_TRIAL"
RUNNING, COMPLETE, PRUNED, FAILED = "running", "complete", "pruned", "failed"
_TRACEBACK_LINES = 12


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        sweep: its name.
        number: within the sweep.
        overrides: that make this run, as typed.
        state: ``running`` (or ended without a word), ``complete``, ``pruned`` or ``failed``.
        phase: index of the phase trained.
        monitor, mode: the validation metric that chooses, and ``min`` or ``max``.
        score: its best value; ``None``: none was reached.
        checkpoint: of that value; ``None``: there is none.
        epochs: done; ``None``: not known.
        seconds: that the run took.
        error: what a user reads of a failure.
        trace: the end of its traceback, where it is a defect.
        study_number: number in Optuna's study; ``None``: the sweep is a grid.
        folder: of the run.
    """

    sweep: str
    number: int
    overrides: tuple[str, ...]
    state: str
    phase: int
    monitor: str
    mode: str
    score: float | None = None
    checkpoint: str | None = None
    epochs: int | None = None
    seconds: float | None = None
    error: str | None = None
    trace: str | None = None
    study_number: int | None = None
    folder: str = ""

    def write(self) -> Trial:
        """Replaces the record in the run's folder."""
        path = Path(self.folder) / FILE_NAME
        record = dataclasses.asdict(self)
        del record["folder"]
        write_json(path, record)
        return self


@dataclass(frozen=True)
class Failed:
    """What a failed run of a sweep returns, so that the others go on.

    Attributes:
        message: what went wrong.
    """

    message: str


@dataclass(frozen=True)
class Pruned:
    """What a run returns that was stopped since others do better.

    Attributes:
        score: the best value it had.
    """

    score: float | None


@dataclass(frozen=True)
class Outcome:
    """What a run that has ended leaves.

    Attributes:
        score: best validation value.
        checkpoint: of that value; ``None``: nothing was trained.
        epochs: done; ``None``: it was finished before, or nothing was trained.
    """

    score: float
    checkpoint: Path | None
    epochs: int | None = None


def recorded(
    start: Trial,
    run: Callable[[], Outcome],
    explain: Callable[[Exception], Exception | None],
) -> float | Failed | Pruned:
    """Does a run of a sweep and records what became of it.

    Args:
        start: the record as it begins.
        run: does it.
        explain: the error that a user can mend, for one that was raised; ``None``: it is a defect.

    Returns:
        The score; or :class:`Failed` or :class:`Pruned`, which end no sweep.
    """
    began = time.perf_counter()
    trial = dataclasses.replace(start, state=RUNNING).write()

    def ended(state: str, **found: Any) -> None:
        seconds = round(time.perf_counter() - began, 1)
        dataclasses.replace(trial, state=state, seconds=seconds, **found).write()

    try:
        outcome = run()
    except TrialPrunedError as stop:
        ended(PRUNED, score=stop.score, checkpoint=stop.checkpoint, epochs=stop.epochs)
        log.info("pruned: %s", stop)
        return Pruned(stop.score)
    except Exception as error:
        mendable = explain(error)
        message = str(mendable or f"{type(error).__name__}: {error}")
        trace = None
        if mendable is None:
            trace = "".join(traceback.format_exception(error))
            log.error("%s", trace)
            trace = "\n".join(trace.splitlines()[-_TRACEBACK_LINES:])
        ended(FAILED, error=message, trace=trace)
        log.error("\nerror: %s\nThe other runs of the sweep go on.", message)
        return Failed(message)
    checkpoint = None if outcome.checkpoint is None else str(outcome.checkpoint)
    ended(COMPLETE, score=outcome.score, checkpoint=checkpoint, epochs=outcome.epochs)
    return outcome.score


def sweep_trial(cfg: Any, hydra: Any, folder: Path) -> Trial | None:
    """The record that a run of a sweep begins with; ``None``: it is a run by itself.

    Args:
        cfg: of the run.
        hydra: Hydra's own configuration of it.
        folder: of the run.
    """
    sweep = os.environ.get(SWEEP_VARIABLE)
    if not sweep:
        return None
    study_number = os.environ.get(TRIAL_VARIABLE)
    return Trial(
        sweep=sweep,
        number=int(hydra.job.num if study_number is None else study_number),
        overrides=tuple(hydra.overrides.task),
        state=RUNNING,
        phase=int(cfg.phase.index),
        monitor=str(cfg.phase.monitor),
        mode=str(cfg.phase.monitor_mode),
        study_number=None if study_number is None else int(study_number),
        folder=str(folder),
    )


def read_trial(path: Path) -> Trial:
    """The record of a run.

    Raises:
        SweepError: it cannot be read.
    """
    try:
        record = json.loads(path.read_text("utf-8"))
        record["overrides"] = tuple(record["overrides"])
        return Trial(**record, folder=str(path.parent))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SweepError(f"{path} is not the record of a run: {error!r}. Delete it.") from error


def trials_of(run_root: Path, sweep: str) -> list[Trial]:
    """All runs of a sweep, by number; of several with one number the newest.

    Args:
        run_root: ``outputs/<name>``.
        sweep: its name.
    """
    paths = sorted(run_root.glob(f"phase-*/*/{FILE_NAME}"), key=lambda p: p.stat().st_mtime)
    found = (read_trial(path) for path in paths)
    numbered = {(t.phase, t.number): t for t in found if t.sweep == sweep}
    return [numbered[key] for key in sorted(numbered, key=lambda key: (key[1], key[0]))]


def newest_trial(
    run_root: Path, phase: int, is_same: Callable[[Sequence[str]], bool]
) -> tuple[Trial, float] | None:
    """The newest run of a phase in any grid, of those with the same overrides, and its time.

    Args:
        run_root: ``outputs/<name>``.
        phase: index.
        is_same: whether overrides are the same for the purpose.
    """
    paths = (run_root / f"phase-{phase}").glob(f"*/{FILE_NAME}")
    found = [(path.stat().st_mtime, read_trial(path)) for path in paths]
    same = [
        (written, trial)
        for written, trial in found
        # Which of a study's runs to go on with is said by what it found.
        if trial.study_number is None and is_same(trial.overrides)
    ]
    if not same:
        return None
    written, trial = max(same, key=lambda item: item[0])
    return trial, written


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The run with the best validation value, of those of the last phase that ended."""
    ended = [t for t in trials if t.state == COMPLETE and t.score is not None]
    last = [t for t in ended if t.phase == max(t.phase for t in ended)] if ended else []
    if not last:
        return None
    sign = 1 if last[0].mode == "min" else -1
    return min(last, key=lambda t: sign * float(t.score or 0.0))


def swept_values(trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Key -> value in each run, of the keys that differ; ``""`` where a run does not have one."""
    each: list[Mapping[str, str]] = [
        {key.lstrip("+"): value for key, _, value in (o.partition("=") for o in t.overrides)}
        for t in trials
    ]
    keys = dict.fromkeys(key for values in each for key in values)
    table = {key: [values.get(key, "") for values in each] for key in keys}
    return {key: values for key, values in table.items() if len(set(values)) > 1}
