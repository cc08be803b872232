"""What the runs of a sweep have found: table, pictures and page."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from geopak.report import sweep_figures
from geopak.report.page import Page, Section, Table, write_page
from geopak.runs import FINISH_RECORD
from geopak.sweeps.trials import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    Trial,
    best_of,
    swept_values,
)

# Fewer say nothing of what the score depends on.
MIN_RUNS_FOR_IMPORTANCE = 6
_STATES = {COMPLETE: "", PRUNED: "pruned", FAILED: "failed", RUNNING: "no end recorded"}


def trials_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """A row per run: what it tried, what came of it, where it lies."""
    swept = swept_values(trials)
    return pd.DataFrame(
        {
            "run": [t.number for t in trials],
            "phase": [t.phase for t in trials],
            **swept,
            "metric": [t.monitor for t in trials],
            "score": [np.nan if t.score is None else t.score for t in trials],
            "state": [t.state for t in trials],
            "epochs": pd.array([t.epochs for t in trials], dtype="Int64"),
            "seconds": [np.nan if t.seconds is None else t.seconds for t in trials],
            "error": [t.error or "" for t in trials],
            "folder": [t.folder for t in trials],
        }
    )


def best_commands(best: Trial) -> tuple[str, str]:
    """The commands that train the best run again, and that measure it on the test split."""
    own = [o for o in best.overrides if not o.lstrip("+~").startswith(("hydra.", "launcher="))]
    if any(o.startswith("sweep=") for o in own):
        # Its file sets more than what is searched, and would start the study again.
        own.append("hydra.mode=RUN")
    parent = _parent_of(best)
    if parent and not any(o.startswith("init_from=") for o in own):
        # The newest run of the phase before may be another by then.
        own.append(f"init_from={parent}")
    train = " ".join(["python -m geopak.train", *map(shlex.quote, own)])
    measured = [f"ckpt={best.checkpoint}"]
    for key in ("root", "prepared"):
        # The photos are those of the training.
        measured += [o.removeprefix("data.") for o in own if o.startswith(f"data.{key}=")]
    return train, " ".join(["python -m geopak.evaluate", *map(shlex.quote, measured)])


def _parent_of(trial: Trial) -> str | None:
    """The checkpoint that a run started from."""
    record = Path(trial.checkpoint or "").parents[1:2]
    path = record[0] / FINISH_RECORD if record else None
    if path is None or not path.is_file():
        return None
    parent: str | None = json.loads(path.read_text("utf-8")).get("parent")
    return parent


def short(value: str) -> str:
    """A swept value as a table shows it: numbers with four digits."""
    try:
        number = f"{float(value):.4g}"
    except ValueError:
        return value
    return min(number, value, key=len)


def importance(swept: Mapping[str, Sequence[str]], scores: Sequence[float]) -> dict[str, float]:
    """Share of the scores' spread that each key explains, summing to 1.

    The decrease of variance in the splits of a random forest that predicts the scores from the
    values (Breiman, Random Forests, 2001). It says what mattered among these runs, no more.
    """
    from sklearn.ensemble import RandomForestRegressor

    inputs = np.stack([sweep_figures.as_numbers(v)[0] for v in swept.values()], axis=1)
    forest = RandomForestRegressor(n_estimators=200, random_state=0)
    forest.fit(inputs, np.asarray(scores, float))
    return dict(zip(swept, map(float, forest.feature_importances_), strict=True))


def write_sweep_report(folder: Path, trials: Sequence[Trial]) -> Trial | None:
    """Writes ``trials.csv``, ``report.html``, ``report.md`` and the pictures.

    Args:
        folder: of the sweep.
        trials: its runs; pictures are of those of the last phase.

    Returns:
        The best run; ``None``: none has ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    table = trials_table(trials)
    table.to_csv(folder / "trials.csv", index=False)
    best = best_of(trials)
    sections = _pictures(folder, trials, best) if best else []
    write_page(_page(folder.name, trials, table, best, sections), folder)
    return best


def _pictures(folder: Path, trials: Sequence[Trial], best: Trial) -> list[Section]:
    scored = [t for t in trials if t.phase == best.phase and t.score is not None]
    scores = [float(t.score or 0) for t in scored]
    pruned = [t.state == PRUNED for t in scored]
    sweep_figures.draw_best_so_far(
        folder / "best_so_far.png", scores, pruned, best.monitor, best.mode
    )
    sections = [Section("Best so far", figure="best_so_far.png")]
    complete = [t for t in scored if t.state == COMPLETE]
    swept = swept_values(complete)
    if len(complete) < 2 or not swept:
        return sections
    values = [float(t.score or 0) for t in complete]
    sweep_figures.draw_parallel_coordinates(
        folder / "parallel_coordinates.png", swept, values, best.monitor, best.mode
    )
    sections.append(
        Section(
            "Parallel coordinates",
            figure="parallel_coordinates.png",
            caption="Pruned and failed runs are left out.",
        )
    )
    if len(complete) < MIN_RUNS_FOR_IMPORTANCE or len(set(values)) < 2:
        text = (
            f"Not said from {len(complete)} runs that ended"
            f"{'' if len(set(values)) > 1 else ', all with the same score'}: it takes "
            f"{MIN_RUNS_FOR_IMPORTANCE}, with different scores."
        )
        return [*sections, Section("Importance", [text])]
    sweep_figures.draw_importance(folder / "importance.png", importance(swept, values))
    caption = (
        "Share of the scores' spread that a random forest puts down to each key. It is of these "
        "runs alone, and unsure where they are few."
    )
    return [*sections, Section("Importance", figure="importance.png", caption=caption)]


def _page(
    name: str,
    trials: Sequence[Trial],
    table: pd.DataFrame,
    best: Trial | None,
    pictures: Sequence[Section],
) -> Page:
    counts = {state: sum(t.state == state for t in trials) for state in _STATES}
    tiles = [
        ("runs", str(len(trials)), f"{counts[COMPLETE]} ended, {counts[PRUNED]} pruned"),
        ("failed", str(counts[FAILED]), f"{counts[RUNNING]} without a recorded end"),
    ]
    sections = []
    if best:
        tiles.insert(0, (f"best {best.monitor}", f"{best.score:.4g}", f"run {best.number}"))
        train, evaluate = best_commands(best)
        sections.append(
            Section(
                "The best run",
                [
                    "Chosen by validation, as everything here: the test split was not opened. "
                    "Measure the chosen run on it once, at the end.",
                    f"Train it again: {train}",
                    f"Measure it: {evaluate}",
                    f"The next phase starts from it with init_from={best.checkpoint}",
                ],
            )
        )
    sections += pictures
    swept = list(swept_values(trials))
    rows = [
        [
            str(t.number),
            *(short(str(v)) for v in table.loc[i, swept]),
            "" if t.score is None else f"{t.score:.4g}",
            _STATES[t.state],
            "" if t.epochs is None else str(t.epochs),
            "" if t.seconds is None else f"{t.seconds:.0f}",
        ]
        for i, t in enumerate(trials)
    ]
    strong = [i for i, t in enumerate(trials) if best and t.folder == best.folder]
    faint = [i for i, t in enumerate(trials) if t.state != COMPLETE]
    sections.append(
        Section(
            "All runs",
            table=Table(
                ["run", *swept, "score", "state", "epochs", "seconds"], rows, strong, faint,
                words=[*range(1, len(swept) + 1), len(swept) + 2],
            ),
        )
    )  # fmt: skip
    errors = [f"Run {t.number}: {t.error} ({t.folder})" for t in trials if t.state == FAILED]
    if errors:
        sections.append(Section("What failed", points=errors))
    return Page(f"Sweep {name}", "validation scores of its runs", tiles, sections)
