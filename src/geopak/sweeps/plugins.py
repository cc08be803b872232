"""What Hydra calls in a sweep: before and after all runs, and to choose each next one."""

from __future__ import annotations

import json
import logging
import sys
import time
import types
from pathlib import Path
from typing import Any

from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from geopak.sweeps.trials import SWEEP_FOLDER, SWEEP_VARIABLE

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

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        from geopak.sweep import finish

        if self.folder is not None and not finish(self.folder, config):
            # Hydra has no place for the exit status of a sweep.
            raise SystemExit(1)


class StudySweeper(Sweeper):
    """hydra-optuna-sweeper, with studies that are kept, go on, and prune.

    Args:
        options: those of ``conf/hydra/sweeper/study.yaml``.
    """

    def __init__(self, **options: Any) -> None:
        from geopak.sweeps.study import Study

        self.study = Study(**options)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.study.setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> Any:
        return self.study.sweep(arguments)


def register() -> None:
    """Makes the sweeper known to Hydra, which takes plugins from its own name space alone."""
    try:
        import hydra_plugins
    except ImportError:
        # There is none to be had: only a study needs it, and Hydra says what to install.
        return
    name = "hydra_plugins.geopak"
    if name in sys.modules:
        return
    module = types.ModuleType(name)
    module.StudySweeper = StudySweeper  # type: ignore[attr-defined]
    StudySweeper.__module__ = name
    sys.modules[name] = hydra_plugins.geopak = module
    Plugins.instance().register(StudySweeper)
