"""Compares runs on the same photos: ``python -m geopak.compare RUN RUN …``."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from geopak.cli import compose, entry_point
from geopak.errors import ComparisonError, ConfigError

if TYPE_CHECKING:
    from geopak.report.comparison import Comparison
    from geopak.report.page import Table
    from geopak.report.runs import FoundRun

log = logging.getLogger(__name__)

# Columns of text that goes to a file or a pipe.
_WIDTH = 160


def compare(cfg: DictConfig) -> dict[str, Any]:
    """Compares, prints, writes the folder, and returns the content of ``comparison.json``.

    Raises:
        GeopakError: something that is no run, unfinished or not evaluated; runs without a photo in
            common, or of different regions.
    """
    named = [cfg.runs] if isinstance(cfg.runs, str) else [str(run) for run in cfg.runs]
    if cfg.baseline is not None:
        named = [str(cfg.baseline), *named]
    if not named:
        raise ConfigError(
            "Name the runs to compare: python -m geopak.compare outputs/geopak/phase-2/*"
        )
    from geopak.report.comparison import compare_runs
    from geopak.report.runs import find_runs, read_runs

    found = find_runs(named, cfg.split, cfg.unfinished == "skip")
    if waiting := [run for run in found if run.report is None]:
        _evaluate(waiting, cfg)
        found = find_runs(named, cfg.split, cfg.unfinished == "skip")
    runs = read_runs(found, cfg.rule)
    comparison = compare_runs(runs, num_resamples=cfg.resamples, seed=cfg.seed)
    print_comparison(comparison)
    return write_comparison(Path(cfg.out), comparison)


def _evaluate(waiting: Sequence[FoundRun], cfg: DictConfig) -> None:
    """Evaluates runs, or says how to."""
    overrides = [[*evaluation_overrides(run, cfg.split), *cfg.evaluate_with] for run in waiting]
    commands = [shlex.join(["python", "-m", "geopak.evaluate", *each]) for each in overrides]
    if not cfg.evaluate:
        listed = "\n".join(f"    {command}" for command in commands)
        which = "has" if len(waiting) == 1 else "have"
        raise ComparisonError(
            f"{len(waiting)} of the runs {which} not been evaluated on the {cfg.split} split:\n\n"
            f"{listed}\n\nRun this, or let this command do it with evaluate=true."
        )
    from geopak.evaluate import evaluate

    for each, command in zip(overrides, commands, strict=True):
        log.info("$ %s", command)
        evaluate(compose("evaluate", each))


def evaluation_overrides(run: FoundRun, split: str) -> list[str]:
    """What ``geopak.evaluate`` is to be told to measure a run on the set that it was trained on.

    The checkpoint knows no paths, but Hydra's record of the run does, where there is one.
    """
    overrides = [f"ckpt={run.checkpoint}", f"split={split}"]
    if run.folder is None or run.checkpoint is None:
        return overrides
    if run.checkpoint.name != "best.ckpt":
        # Not to replace the report of the best one.
        overrides.append(f"out={run.folder / f'report-{split}-{run.checkpoint.stem}'}")
    record = run.folder / ".hydra" / "config.yaml"
    if record.is_file():
        trained = OmegaConf.load(record)
        usual = compose("evaluate")
        for key in ("root", "prepared"):
            try:
                value = OmegaConf.select(trained, f"data.{key}")
            except OmegaConfBaseException:
                continue
            if value is not None and value != usual[key]:
                overrides.append(f"{key}={value}")
                usual = compose("evaluate", [f"root={value}"]) if key == "root" else usual
    return overrides


def write_comparison(folder: Path, comparison: Comparison) -> dict[str, Any]:
    """Writes ``comparison.html, comparison.md, comparison.json`` and the figures."""
    from geopak.report import comparison_figures as figures
    from geopak.report.comparison_page import comparison_page
    from geopak.report.page import write_page
    from geopak.report.runs import read_curves

    folder.mkdir(parents=True, exist_ok=True)
    content = comparison.to_dict()
    text = json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "comparison.json").write_text(text + "\n", encoding="utf-8")
    if len(comparison.runs) > 1:
        figures.draw_differences(folder / "differences.png", comparison)
    logs = {
        run.label: None if run.run.folder is None else read_curves(run.run.folder)
        for run in comparison.runs
    }
    curves = {
        label: frame
        for label, frame in logs.items()
        if frame is not None and set(figures.CURVES) & set(frame)
    }
    if curves:
        figures.draw_curves(folder / "curves.png", list(curves), list(curves.values()))
    without = [label for label in logs if label not in curves]
    write_page(comparison_page(comparison, bool(curves), without), folder, stem="comparison")
    log.info("comparison: %s", folder / "comparison.html")
    return content


def print_comparison(comparison: Comparison) -> None:
    """Prints the runs, their figures, differences and configuration."""
    from rich.console import Console

    from geopak.report import comparison_page as page

    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    tables = [
        ("", page.runs_table(comparison)),
        (page.headline(comparison), page.metrics_table(comparison, page.MAIN_METRICS)),
    ]
    if len(comparison.runs) > 1:
        base = comparison.runs[0].label
        tables.append(
            (f"differences to {base}; p Holm-adjusted", page.differences_table(comparison))
        )
    if comparison.variants:
        tables.append(("over seeds", page.variants_table(comparison, brief=True)))
    if comparison.config:
        tables.append(("configured differently", page.config_table(comparison)))
    for title, table in tables:
        _print_table(console, title, table)
    for warning in comparison.warnings:
        console.print(f"warning: {warning}", highlight=False, soft_wrap=True)


def _print_table(console: Any, title: str, content: Table) -> None:
    from rich.table import Table as RichTable

    table = RichTable(
        title=title or None, box=None, pad_edge=False, header_style="bold", title_justify="left"
    )
    for number, column in enumerate(content.columns):
        words = number == 0 or number in content.words
        table.add_column(
            column, justify="left" if words else "right", overflow="fold", no_wrap=number == 0
        )
    for row in content.rows:
        # Square brackets of values are no markup.
        table.add_row(*(cell.replace("[", r"\[") for cell in row))
    console.print(table)
    console.print()


@entry_point("compare", positional="runs")
def main(cfg: DictConfig) -> None:
    compare(cfg)


if __name__ == "__main__":
    main()
