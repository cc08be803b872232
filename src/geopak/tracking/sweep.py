"""A sweep as a run of W&B: its table, its pictures and its page."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from geopak.schema.monitoring import WandbOptions
from geopak.tracking.logger import RunLogger
from geopak.tracking.run import RunPlan, choose_mode


def log_sweep(
    options: WandbOptions, folder: Path, trials: pd.DataFrame, summary: Mapping[str, Any]
) -> None:
    """Logs what a sweep's folder holds, beside its runs; a failure of W&B leaves only this out.

    Args:
        options: those of the sweep's runs.
        folder: of the sweep, with its report.
        trials: a row per run.
        summary: of the run.
    """
    mode = choose_mode(options.mode)
    if mode == "disabled":
        return
    named = dataclasses.replace(options, name=f"{options.group}-sweep-{folder.name}")
    plan = RunPlan(named, folder, "sweep", ("sweep", *options.tags), {}, parent=None)
    logger = RunLogger(plan, mode)
    logger.open()

    def make() -> dict[str, Any]:
        import wandb

        # Columns of one type each, as W&B's tables want.
        numbers = trials.select_dtypes("number").columns
        types = {c: float if c in numbers else str for c in trials}
        table = wandb.Table(dataframe=trials.astype(types))
        page = (folder / "report.html").read_text("utf-8")
        pictures = {f"sweep/{p.stem}": wandb.Image(str(p)) for p in sorted(folder.glob("*.png"))}
        return {"sweep/trials": table, "sweep/report": wandb.Html(page, inject=False), **pictures}

    logger.log_panels("the sweep's table and pictures", make)
    logger.summarize(summary)
    logger.finalize("success")
    logger.close()
