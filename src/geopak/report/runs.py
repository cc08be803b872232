"""Runs as they lie on disk: from what a user names to what its training and evaluation left."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from geopak.checkpoint import BEST_NAME, CHECKPOINT_FOLDER, OWN_KEYS, read_checkpoint
from geopak.errors import CheckpointError, ComparisonError
from geopak.sweeps.trials import COMPLETE, read_trial
from geopak.sweeps.trials import FILE_NAME as TRIAL_RECORD

_NEEDED = ("group", "error_km", "predicted_province", "province", "latitude", "longitude", "id")
# What runs of one variant may differ in.
SEED_KEYS = ("seed", "name", "logger")


@dataclass(frozen=True)
class FoundRun:
    """A run that a user named, before anything of it is read.

    Attributes:
        folder: of the run; ``None`` for a report that lies by itself.
        checkpoint: the one asked for, in the run's folder.
        report: folder of its evaluation on the split; ``None``: not evaluated.
    """

    folder: Path | None
    checkpoint: Path | None
    report: Path | None


@dataclass(frozen=True, eq=False)
class EvaluatedRun:
    """One training and what its evaluation found, photo by photo.

    Attributes:
        title: tells it from the others.
        folder: of the run; ``None`` for a report that lies by itself.
        report: content of ``report.json``; ``rule`` is the one that ``error_km`` is of.
        predictions: a row per photo, see :func:`geopak.report.evaluation.predictions_frame`.
        config: of the training, as composed; empty where it is not known.
        ancestors: overrides of the phases before, as far as their run folders are there.
        warnings: what to know about this run's figures.
    """

    title: str
    folder: Path | None
    report: Mapping[str, Any]
    predictions: pd.DataFrame
    config: Mapping[str, Any]
    ancestors: tuple[tuple[str, ...], ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def seed(self) -> int | None:
        """Of the training; ``None`` where the configuration is not known."""
        return self.config.get("seed")

    @property
    def provinces(self) -> dict[str, str]:
        """Key -> name of every province, in class-index order."""
        return {key: part["name"] for key, part in self.report["per_province"].items()}

    def variant_key(self) -> str | None:
        """Equal for runs that differ in their seed alone, the phases before included."""
        if not self.config:
            return None
        own = {k: v for k, v in self.config.items() if k not in SEED_KEYS}
        before = [
            [o for o in overrides if o.partition("=")[0].lstrip("+").split(".")[0] not in SEED_KEYS]
            for overrides in self.ancestors
        ]
        return json.dumps([own, before], sort_keys=True, default=str)


def find_runs(arguments: Sequence[str], split: str, skip_unfinished: bool) -> list[FoundRun]:
    """What a user named, each run once and in the order named.

    Args:
        arguments: run folders, checkpoints, report folders, or globs of them.
        split: that the reports are to be of.
        skip_unfinished: leave out runs whose training has not ended.

    Raises:
        ComparisonError: something that is none of these, an unfinished run, or a report of another
            split.
    """
    found: dict[Path, FoundRun] = {}
    unfinished = []
    for argument in arguments:
        pattern = os.path.expanduser(argument)
        literal = os.path.exists(pattern) or not glob.has_magic(pattern)
        paths = [pattern] if literal else sorted(glob.glob(pattern, recursive=True))
        if not literal:
            paths = [p for p in paths if _kind(Path(p))]
            if not paths:
                raise ComparisonError(f"No run, checkpoint or report matches {argument}.")
        for path in map(Path, paths):
            if _is_elsewhere(path):
                continue
            run = _find(path, split)
            if run.folder is not None and run.checkpoint is None and run.report is None:
                unfinished.append(path)
                continue
            found.setdefault((run.report or run.checkpoint or path).resolve(), run)
    if unfinished and not skip_unfinished:
        listed = "\n".join(f"    {path}" for path in unfinished)
        raise ComparisonError(
            "Not finished, so there is no best checkpoint to compare yet:\n\n"
            f"{listed}\n\nContinue each with resume_from=, name its checkpoint instead of its "
            "folder, or leave them out with unfinished=skip."
        )
    if not found:
        raise ComparisonError("No finished run is among those named.")
    return list(found.values())


def _is_elsewhere(path: Path) -> bool:
    """Whether a run of a sweep found its training done before, in another folder."""
    record = path / TRIAL_RECORD
    if not record.is_file() or (path / CHECKPOINT_FOLDER).is_dir():
        return False
    return read_trial(record).state == COMPLETE


def _kind(path: Path) -> str | None:
    if path.suffix == ".ckpt" and path.is_file():
        return "checkpoint"
    if (path / "report.json").is_file():
        return "report"
    # A run of a sweep that failed early has left its record alone.
    has_record = (path / "run.json").is_file() or (path / TRIAL_RECORD).is_file()
    if has_record or (path / CHECKPOINT_FOLDER).is_dir():
        return "run"
    return None


def _find(path: Path, split: str) -> FoundRun:
    kind = _kind(path)
    if kind == "report":
        context = read_json(path / "report.json").get("context", {})
        if context.get("split") != split:
            raise ComparisonError(
                f"{path} is a report of the {context.get('split')} split, compared is the {split} "
                f"split. Name the run instead, or pass split={context.get('split')}."
            )
        run = path.parent if (path.parent / CHECKPOINT_FOLDER).is_dir() else None
        checkpoint = run and run / CHECKPOINT_FOLDER / str(context.get("checkpoint"))
        return FoundRun(run, checkpoint, path)
    if kind == "checkpoint":
        if path.parent.name != CHECKPOINT_FOLDER:
            raise ComparisonError(
                f"{path} does not lie in a run's {CHECKPOINT_FOLDER}/ folder, so its report is not "
                "known. Name the folder of its report (out= of geopak.evaluate)."
            )
        folder = path.parent.parent
        return FoundRun(folder, path, _report_of(folder, path.name, split))
    if kind == "run":
        if not (path / "run.json").is_file():
            return FoundRun(path, None, None)
        record = read_json(path / "run.json")
        checkpoint = path / CHECKPOINT_FOLDER / str(record.get("best", f"{BEST_NAME}.ckpt"))
        return FoundRun(path, checkpoint, _report_of(path, checkpoint.name, split))
    if not path.exists():
        raise ComparisonError(f"There is no run at {path}.")
    below = sorted({str(p.parent) for p in path.glob("**/run.json")}) if path.is_dir() else []
    hint = f" Runs lie below it, such as {below[-1]}." if below else ""
    raise ComparisonError(
        f"{path} is no run folder (run.json, {CHECKPOINT_FOLDER}/), checkpoint or report folder "
        f"(report.json).{hint}"
    )


def _report_of(folder: Path, checkpoint: str, split: str) -> Path | None:
    """The newest evaluation of a checkpoint on a split in the run's folder."""
    found = []
    for path in folder.glob("*/report.json"):
        context = read_json(path).get("context", {})
        if (context.get("split"), context.get("checkpoint")) == (split, checkpoint):
            found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None


def read_json(path: Path) -> dict[str, Any]:
    """A file of geopak that holds a JSON object.

    Raises:
        ComparisonError: anything else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ComparisonError(f"{path} does not hold what geopak writes there.")
    return content


def read_runs(found: Sequence[FoundRun], rule: str | None = None) -> list[EvaluatedRun]:
    """What the evaluations of runs hold.

    Args:
        found: each with a report.
        rule: decoding rule whose errors to take; ``None``: that which each model answers by.

    Raises:
        ComparisonError: a report that is incomplete, or without this rule.
    """
    places = [run.folder or run.report for run in found]
    titles = short_titles([place for place in places if place is not None])
    return [_read_run(run, title, rule) for run, title in zip(found, titles, strict=True)]


def _read_run(run: FoundRun, title: str, rule: str | None) -> EvaluatedRun:
    if run.report is None:
        raise ComparisonError(f"{run.folder} has not been evaluated.")
    report = read_json(run.report / "report.json")
    table = run.report / "predictions.parquet"
    try:
        predictions = pd.read_parquet(table)
    except (OSError, ValueError) as error:
        raise ComparisonError(f"{table} cannot be read: {error} Evaluate again.") from error
    missing = [c for c in _NEEDED if c not in predictions] + [
        k for k in ("context", "per_province", "rule") if k not in report
    ]
    if missing:
        raise ComparisonError(
            f"{run.report} lacks {', '.join(missing)}: it was written by an earlier version of "
            "geopak. Evaluate the run again."
        )
    warnings = []
    if rule is not None:
        if f"error_km_{rule}" not in predictions:
            columns = map(str, predictions)
            known = [c.removeprefix("error_km_") for c in columns if c.startswith("error_km_")]
            raise ComparisonError(f"{run.report} has no rule={rule}. Known: {', '.join(known)}.")
        predictions["error_km"] = predictions[f"error_km_{rule}"]
        report["rule"] = rule
    if not report["context"].get("same set as training", True):
        warnings.append(
            "was evaluated on another prepared set than it was trained on: nothing rules out that "
            "it was trained on these photos"
        )
    if run.checkpoint is not None and run.checkpoint.is_file():
        written = (run.report / "report.json").stat().st_mtime
        if run.checkpoint.stat().st_mtime > written:
            warnings.append(
                f"{run.checkpoint.name} was written after its report: evaluate it again if it was "
                "trained further"
            )
    config = report.get("config") or {}
    if not config and run.checkpoint is not None:
        try:
            config = read_checkpoint(run.checkpoint)["geopak"]["config"]
        except CheckpointError as error:
            warnings.append(f"its configuration is not known: {error}")
    if run.folder is not None and not (run.folder / "run.json").is_file():
        warnings.append("its training has not finished")
    return EvaluatedRun(
        title, run.folder, report, predictions, config, _ancestors(run.folder), tuple(warnings)
    )


def _ancestors(folder: Path | None) -> tuple[tuple[str, ...], ...]:
    """Overrides of the runs that a run's weights come from, nearest first."""
    found: list[tuple[str, ...]] = []
    seen = set()
    while folder is not None and folder not in seen and (folder / "run.json").is_file():
        seen.add(folder)
        record = read_json(folder / "run.json")
        if len(seen) > 1:
            started = folder / "provenance.json"
            # That of a rerun holds the overrides of the run that it repeats too.
            typed = read_json(started) if started.is_file() else record
            # The last of a key counts.
            keys = {str(o).lstrip("+~").partition("=")[0]: str(o) for o in typed["overrides"]}
            found.append(
                tuple(
                    sorted(
                        override
                        for key, override in keys.items()
                        # What is a phase's own makes its weights, as phase.lr does.
                        if key != "phase" and key.partition(".")[0] not in OWN_KEYS[1:]
                    )
                )
            )
        parent = record.get("parent")
        folder = Path(parent).parent.parent if parent else None
    return tuple(found)


def short_titles(paths: Sequence[Path]) -> list[str]:
    """Names that tell paths apart: without the folders that all have in common at their start."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) == 1:
        return ["/".join(parts[0][-2:])] * len(parts)
    shared = 0
    while len({p[: shared + 1] for p in parts}) == 1 and shared + 1 < min(map(len, parts)):
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def read_curves(folder: Path) -> pd.DataFrame | None:
    """What a run logged to CSV files, or ``None`` where there are none.

    A run that was interrupted has a file per part; what a later part trained again counts from
    there only.
    """
    files = sorted(folder.glob("csv*/metrics.csv"), key=_part_number)
    curves: pd.DataFrame | None = None
    for path in files:
        try:
            part = pd.read_csv(path)
        except (OSError, ValueError):  # a run that died before its first row
            continue
        if "step" not in part or part.empty:
            continue
        if curves is not None:
            curves = pd.concat([curves[curves["step"] < part["step"].min()], part])
        else:
            curves = part
    return None if curves is None else curves.reset_index(drop=True)


def _part_number(log: Path) -> int:
    number = re.search(r"-(\d+)$", log.parent.name)
    return int(number[1]) if number else 1


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with dots -> values; lists are values."""
    out: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            out |= flat(value, f"{prefix}{key}.")
        else:
            out[f"{prefix}{key}"] = value
    return out


def config_differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The nested keys in which configurations differ -> their values.

    ``–`` stands where one lacks the key, ``?`` for every key of an empty configuration: one that is
    not known.
    """
    flats = [flat(config) for config in configs]
    found = {}
    for key in dict.fromkeys(key for config in flats for key in config):
        values = [
            "?" if not config else _shown(config[key]) if key in config else "–" for config in flats
        ]
        if len(set(values) - {"?"}) > 1:
            found[key] = values
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)
