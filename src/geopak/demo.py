"""The whole method on the rendered photos of a region, in minutes: ``python -m geopak.demo``.

Photos, preparation, three phases, calibration, an evaluation report and a prediction, each with
the configuration that the command of its own would compose, then a table of test-split results.
"""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict

from geopak.cli import compose, entry_point
from geopak.errors import ConfigError

log = logging.getLogger(__name__)


class Stopwatch:
    """Wall-clock seconds of named steps."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str, command: str) -> Iterator[None]:
        """Announces a step by the command that does the same, and times it."""
        log.info("\n$ python -m geopak.%s", command)
        began = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - began, 1)


def demo(cfg: DictConfig) -> dict[str, Any]:
    """Runs all steps.

    Returns:
        The content of ``summary.json``: per phase and baseline the end-to-end results on the test
        split, and the seconds of every step.
    """
    from geopak.calibrate import calibrate
    from geopak.evaluate import evaluate
    from geopak.options import plain
    from geopak.predict import predict
    from geopak.preparation import prepare
    from geopak.render.photoset import write_photo_set
    from geopak.train import train

    watch = Stopwatch()
    folder = Path(cfg.paths.outputs) / cfg.name
    root = str(cfg.root)

    region = f"region={cfg.region.name}"

    overrides = [f"out={root}", *cfg.synthetic]
    with watch.step("photos", " ".join(["synthetic", region, *overrides])):
        write_photo_set(plain(compose_step("synthetic", overrides, cfg)))
    overrides = [f"root={root}", *cfg.prepare]
    with watch.step("preparation", " ".join(["prepare", region, *overrides])):
        prepare(compose_step("prepare", overrides, cfg))

    checkpoints: dict[int, Path] = {}
    reports: dict[int, dict[str, Any]] = {}
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for phase in (0, 1, 2):
        overrides = [f"phase={phase}", f"name={cfg.name}", f"data.root={root}", *cfg.train[phase]]
        with watch.step(f"phase_{phase}", " ".join(["train", region, *overrides])):
            run = folder / f"phase-{phase}" / stamp
            result = train(compose_step("train", overrides, cfg), run, [region, *overrides])
        checkpoints[phase] = result.checkpoint
        if phase == 2:
            # On val alone: temperatures, and thresholds of the regions that the report measures.
            overrides = [f"ckpt={result.checkpoint}", f"root={root}", *cfg.calibrate]
            with watch.step("calibration", " ".join(["calibrate", *overrides])):
                calibrate(compose("calibrate", overrides))
        overrides = [f"ckpt={result.checkpoint}", f"root={root}", *cfg.evaluate]
        if phase == 2:
            overrides.append(f"out={folder / 'report'}")
        with watch.step(f"evaluation_{phase}", " ".join(["evaluate", *overrides])):
            reports[phase] = evaluate(compose("evaluate", overrides))

    photo = a_test_photo(Path(root))
    overrides = [f"images={photo}", f"ckpt={checkpoints[2]}", f"map={folder / 'prediction.png'}"]
    with watch.step("prediction", " ".join(["predict", *overrides])):
        predict(compose("predict", overrides))

    summary = {
        "phases": {str(phase): headline(report) for phase, report in reports.items()},
        "baselines": {
            name: {"median_km": baseline["median_km"]["value"]}
            for name, baseline in reports[2]["baselines"].items()
        },
        "num_test_photos": reports[2]["num_photos"],
        "split": "test",
        "leaks": reports[2]["context"]["leaks"],
        "seconds": {**watch.seconds, "total": round(sum(watch.seconds.values()), 1)},
    }
    path = folder / "summary.json"
    path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print_summary(summary, folder)
    return summary


def compose_step(command: str, overrides: list[str], cfg: DictConfig) -> DictConfig:
    """The configuration of a step, its region and landscape those of the demo.

    They are handed over whole: so they hold whatever the demo's own arguments changed in them, and
    may come from a folder that only the demo was told of (``--config-dir``).

    Raises:
        ConfigError: an override of them for one step alone, or any that cannot be applied.
    """
    for override in overrides:
        if re.match(r"[+~]*(region|landscape)\b", override):
            raise ConfigError(
                f"{command}: {override} would hold for this step alone. Give it to the demo: "
                f"python -m geopak.demo {override}"
            )
    composed = compose(command, overrides)
    sections = ("region", "landscape") if command == "synthetic" else ("region",)
    with open_dict(composed):
        for section in sections:
            composed[section] = cfg.get(section)
    return composed


def headline(report: dict[str, Any]) -> dict[str, float]:
    """The few numbers of a report that the summary shows."""
    end_to_end = report["end_to_end"]
    names = ("median_km", "within_25km", "province_acc", "province_macro_acc")
    return {name: end_to_end[name]["value"] for name in names}


def a_test_photo(root: Path) -> Path:
    """A photo of the test split."""
    import pandas as pd

    photos = pd.read_parquet(root / "prepared" / "photos.parquet", columns=["path", "split"])
    return root / str(photos.loc[photos["split"] == "test", "path"].iloc[0])


def print_summary(summary: dict[str, Any], folder: Path) -> None:
    """Prints the closing table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"end to end on {summary['num_test_photos']:,} test photos")
    for column in ("", "median km", "within 25 km", "province macro accuracy"):
        table.add_column(column, justify="right" if column else "left")
    for name, baseline in summary["baselines"].items():
        table.add_row(f"baseline: {name.replace('_', ' ')}", f"{baseline['median_km']:.1f}", "", "")
    for phase, values in summary["phases"].items():
        table.add_row(
            f"phase {phase}",
            f"{values['median_km']:.1f}",
            f"{values['within_25km']:.1%}",
            f"{values['province_macro_acc']:.1%}",
        )
    console = Console()
    console.print(table)
    console.print(summary["leaks"], highlight=False, soft_wrap=True)
    console.print(f"report:     {folder / 'report' / 'report.html'}")
    console.print(f"prediction: {folder / 'prediction.png'}")
    console.print(f"summary:    {folder / 'summary.json'}, {summary['seconds']['total']:.0f} s")


@entry_point("demo")
def main(cfg: DictConfig) -> None:
    demo(cfg)


if __name__ == "__main__":
    main()
