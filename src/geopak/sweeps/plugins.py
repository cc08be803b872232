"""The sweeper of studies, in the form and place where Hydra looks for it."""

from __future__ import annotations

import os
import sys
import types
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


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
    # Optuna 2 is at home in SQLAlchemy 1, which would say at length that there is another. Hydra
    # imports Optuna for the sampler, before the sweeper.
    os.environ.setdefault("SQLALCHEMY_SILENCE_UBER_WARNING", "1")
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
    sys.modules[name] = module
    hydra_plugins.geopak = module  # type: ignore[attr-defined]
    Plugins.instance().register(StudySweeper)
