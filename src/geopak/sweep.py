"""What a sweep has found: ``python -m geopak.sweep``, and at the end of every multirun."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict

from geopak.cli import entry_point
from geopak.errors import SweepError
from geopak.sweeps.plugins import register
from geopak.sweeps.trials import SWEEP_FOLDER, SWEEP_VARIABLE

if TYPE_CHECKING:
    from geopak.sweeps.trials import Trial

log = logging.getLogger(__name__)


class SweepRecord(Callback):
    """Gives every sweep a name and a folder, and says in the end what it has found.

    The name is the study's, so that a study which goes on is one sweep; else the time of day.
    """

    def __init__(self) -> None:
        register()
        self.folder: Path | None = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        root = Path(config.hydra.sweep.dir)
        # Not every sweeper has a study.
        study = OmegaConf.select(config, "hydra.sweeper.study_name")
        name = str(study or time.strftime("%Y-%m-%d_%H-%M-%S"))
        self.folder = root / SWEEP_FOLDER / name
        number = 1
        while study is None and self.folder.exists():
            number += 1
            self.folder = root / SWEEP_FOLDER / f"{name}-{number}"
        self.folder.mkdir(parents=True, exist_ok=True)
        if not str(config.hydra.launcher._target_).endswith(".BasicLauncher"):
            part_by_phase(config)
        about = {
            "overrides": list(config.hydra.overrides.task),
            "sweeper": OmegaConf.to_container(config.hydra.sweeper, resolve=True),
            "launcher": str(config.hydra.launcher._target_).rpartition(".")[2],
            "phase": str(OmegaConf.select(config, "hydra.runtime.choices.phase")),
        }
        text = json.dumps(about, indent=1, ensure_ascii=False, default=str)
        (self.folder / "sweep.json").write_text(text + "\n", "utf-8")
        # The way into the processes of all launchers, those of a cluster included.
        with open_dict(config):
            config.hydra.overrides.hydra.append(
                f"+hydra.job.env_set.{SWEEP_VARIABLE}='{self.folder.name}'"
            )

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Processes of joblib would start those of data loaders in a way of their own, which is
        # particular about what they are given.
        if multiprocessing.get_start_method(allow_none=True) == "loky":
            multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if self.folder is not None and not finish(self.folder, config):
            # Hydra has no place for the exit status of a sweep.
            raise SystemExit(1)


def part_by_phase(config: DictConfig) -> None:
    """Has runs of one phase launched together, and those of the next when they have ended.

    A launcher that does several at once would begin a phase before its parent is there.
    """
    sweeper = config.hydra.sweeper
    if not str(sweeper._target_).endswith(".BasicSweeper") or sweeper.max_batch_size is not None:
        return
    params = {str(key): value for key, value in (sweeper.params or {}).items()}
    parser = OverridesParser.create()
    typed = parser.parse_overrides(list(config.hydra.overrides.task))
    given = {o.get_key_element(): str(o.input_line).partition("=")[2] for o in typed}
    known = params.pop("phase", None)
    phases = given.get("phase", known)
    if phases is None:
        return
    # The first key changes last.
    params = {"phase": phases, **params}
    parsed = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
    overrides = [*parsed, *typed]
    [runs] = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    sweeper.params = params
    sweeper.max_batch_size = len(runs) // len({run[0] for run in runs})


def finish(folder: Path, config: DictConfig) -> bool:
    """Reports a sweep whose runs have ended.

    Args:
        folder: of the sweep.
        config: of all its runs, with Hydra's own.

    Returns:
        Whether no run failed, nor the report.
    """
    from geopak.sweeps.trials import COMPLETE, FAILED, swept_values, trials_of

    trials = trials_of(folder.parents[1], folder.name)
    failed = [t for t in trials if t.state == FAILED]
    is_well = not failed
    # Phases in a row are no sweep: nothing is chosen among them.
    if len(trials) > 1 and set(swept_values(trials)) - {"phase"}:
        try:
            best = report(folder, trials)
            if OmegaConf.select(config, "logger.kind") == "wandb":
                _log(folder, trials, best, config)
        except Exception:
            # Hydra would pass over it, and over what failed.
            log.exception("the sweep's report could not be made: python -m geopak.sweep")
            is_well = False
    if failed:
        done = sum(t.state == COMPLETE for t in trials)
        lines = [f"  {t.folder}: {' '.join((t.error or '').split())}" for t in failed]
        log.error("\n%d of %d runs failed, %d ended:\n%s", len(failed), len(trials), done,
                  "\n".join(lines))  # fmt: skip
    return is_well


def _log(folder: Path, trials: Sequence[Trial], best: Trial | None, config: DictConfig) -> None:
    from geopak.options import options, plain
    from geopak.report.sweep import best_commands, trials_table
    from geopak.schema.monitoring import WandbOptions
    from geopak.tracking.sweep import log_sweep

    summary: dict[str, Any] = {"runs": len(trials)}
    if best:
        summary |= {"best": best.score, "metric": best.monitor, "command": best_commands(best)[0]}
    chosen = options(WandbOptions, plain(config.logger), "logger")
    log_sweep(chosen, folder, trials_table(trials), summary)


def report(folder: Path, trials: Sequence[Trial]) -> Trial | None:
    """Writes a sweep's report and prints its table and best run."""
    from rich.console import Console
    from rich.table import Table

    from geopak.report.sweep import best_commands, short, trials_table, write_sweep_report
    from geopak.sweeps.trials import swept_values

    best = write_sweep_report(folder, trials)
    frame = trials_table(trials)
    swept = list(swept_values(trials))
    table = Table(title=f"sweep {folder.name}", title_justify="left", box=None, header_style="bold")
    for column in ("run", *swept, "score", "state", "epochs", "seconds"):
        is_number = column in ("score", "epochs", "seconds")
        table.add_column(column, justify="right" if is_number else "left")
    for trial, (_, row) in zip(trials, frame.iterrows(), strict=True):
        table.add_row(
            str(trial.number),
            *(short(str(row[key])) for key in swept),
            "" if trial.score is None else f"{trial.score:.4g}",
            trial.state,
            "" if trial.epochs is None else str(trial.epochs),
            "" if trial.seconds is None else f"{trial.seconds:.0f}",
            style="bold" if best and trial.folder == best.folder else None,
        )
    console = Console()
    console.print(table)
    if best:
        train, evaluate = best_commands(best)
        console.print(
            f"best by {best.monitor}: run {best.number}, {best.score:.4g}. Train it again:\n\n"
            f"    {train}\n\nMeasure it on the test split, once:\n\n    {evaluate}\n\n"
            f"The next phase starts from it with init_from={best.checkpoint}\n",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip
    else:
        console.print("no run has ended: there is no best", highlight=False)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True, highlight=False)
    return best


def find_sweep(outputs: Path, name: str) -> Path:
    """The folder of the newest sweep of the runs called name.

    Raises:
        SweepError: there is none.
    """
    records = (outputs / name / SWEEP_FOLDER).glob("*/sweep.json")
    newest = max(records, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise SweepError(
            f"There is no sweep in {outputs / name}. Make one: "
            "python -m geopak.train -m phase=1 seed=0,1,2"
        )
    return newest.parent


@entry_point("sweep")
def main(cfg: DictConfig) -> Any:
    from geopak.sweeps.trials import trials_of

    folder = Path(cfg.folder) if cfg.folder else find_sweep(Path(cfg.paths.outputs), cfg.name)
    trials = trials_of(folder.absolute().parents[1], folder.name)
    if not trials:
        raise SweepError(f"{folder} has no runs: it is no sweep, or none has begun.")
    best = report(folder, trials)
    return best.score if best else None


if __name__ == "__main__":
    main()
