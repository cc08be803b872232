"""A study of Optuna over training runs: kept on disk, continued, and pruned."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_params_from_overrides,
)
from optuna.trial import FrozenTrial, TrialState

from geopak.errors import SweepError
from geopak.sweeps.trials import SWEEP_FOLDER, TRIAL_VARIABLE, Failed, Pruned

log = logging.getLogger(__name__)

_LOST = "lost"


class Study(OptunaSweeperImpl):
    """The sweeper of hydra-optuna-sweeper, whose studies outlive the process.

    Runs that ended count towards ``n_trials``, so that the same command goes on with a study that
    was interrupted; a run that was lost on the way is done again with the same values.

    Args:
        pruner: of Optuna; runs report to it after each epoch.
        options: of hydra-optuna-sweeper.
    """

    def __init__(self, *, pruner: optuna.pruners.BasePruner, **options: Any) -> None:
        super().__init__(
            direction="minimize", search_space=None, custom_search_space=None, **options
        )
        self.pruner = pruner

    def sweep(self, arguments: list[str]) -> None:
        """Runs trials until there are ``n_trials``.

        Raises:
            SweepError: nothing to search, another process at the same study, a study of another
                search space, or too many failures.
        """
        self._process_searchspace_config()
        space, fixed = create_params_from_overrides(
            [*self._parse_sweeper_params_config(), *arguments]
        )
        space = {name: values for name, values in space.items() if name not in fixed}
        if not space:
            raise SweepError(
                "The study has nothing to search: give ranges, as in "
                "'phase.lr.heads=tag(log,interval(1e-4,1e-2))', or choose a file of conf/sweep/."
            )
        assert self.config is not None
        # Of this machine's processes alone, where the study is kept on a server.
        folder = Path(self.config.hydra.sweep.dir) / SWEEP_FOLDER / str(self.study_name)
        folder.mkdir(parents=True, exist_ok=True)
        optuna.logging.set_verbosity(logging.WARNING)
        try:
            with FileLock(folder / "study.lock").acquire(timeout=0):
                self._run(space, fixed)
        except Timeout:
            raise SweepError(
                f"Another process is at the study {self.study_name} in {folder}. Wait for it, or "
                "start a study of your own: hydra.sweeper.study_name=…"
            ) from None

    def _run(self, space: dict[str, Any], fixed: dict[str, Any]) -> None:
        assert self.config is not None
        assert self.launcher is not None
        mode = self.config.phase.monitor_mode
        study = optuna.create_study(
            study_name=self.study_name,
            storage=self.storage,
            sampler=self.sampler,
            pruner=self.pruner,
            direction={"min": "minimize", "max": "maximize"}[mode],
            load_if_exists=True,
        )
        self._check_same(study, space, fixed)
        self._retry_lost(study)
        ended = _ended(study)
        log.info(
            "study %s: %d of %d runs have ended, in %s",
            study.study_name, len(ended), self.n_trials, self.storage,
        )  # fmt: skip
        while (missing := self.n_trials - len(_ended(study))) > 0:
            trials = [study.ask() for _ in range(min(missing, self.n_jobs))]
            jobs = [
                (*job, f"+hydra.job.env_set.{TRIAL_VARIABLE}='{trial.number}'")
                for job, trial in zip(
                    self._configure_trials(trials, space, fixed), trials, strict=True
                )
            ]
            returns = self.launcher.launch(jobs, initial_job_idx=trials[0].number)
            for trial, result in zip(trials, returns, strict=True):
                self._tell(study, trial, result)
            failed = [t for t in _ended(study) if t.state is TrialState.FAIL]
            if len(failed) > self.max_failure_rate * max(len(_ended(study)), 2 * self.n_jobs):
                raise SweepError(
                    f"{len(failed)} of {len(_ended(study))} runs of the study failed, more than "
                    f"hydra.sweeper.max_failure_rate={self.max_failure_rate}; the last error: "
                    f"{failed[-1].user_attrs.get('error')}"
                )

    def _check_same(
        self, study: optuna.Study, space: dict[str, Any], fixed: dict[str, Any]
    ) -> None:
        """Refuses to go on with a study of something else.

        Raises:
            SweepError: what is searched or held fixed has changed.
        """
        asked = {
            "space": {name: repr(values) for name, values in sorted(space.items())},
            "fixed": {
                name: str(value)
                for name, value in sorted(fixed.items())
                if not name.startswith(("hydra", "launcher", "trainer", "callbacks", "logger"))
            },
        }
        known = study.user_attrs.get("asked")
        if known is None:
            study.set_user_attr("asked", asked)
        elif known != asked:
            raise SweepError(
                f"The study {study.study_name} was begun with {known}, and is asked to go on with "
                f"{asked}. Give the new one a name: hydra.sweeper.study_name=…"
            )

    def _retry_lost(self, study: optuna.Study) -> None:
        """Queues runs that were under way when an earlier process ended."""
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            study._storage.set_trial_user_attr(trial._trial_id, _LOST, True)
            study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                log.info("run %d of the study was lost; it is done again", trial.number)
                with warnings.catch_warnings():
                    # Experimental for four years, and unchanged since.
                    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                    study.enqueue_trial(trial.params)

    def _tell(self, study: optuna.Study, trial: optuna.Trial, result: JobReturn) -> None:
        value = None
        if result.status is JobStatus.COMPLETED:
            value = result.return_value
        if isinstance(value, Pruned):
            study.tell(trial, state=TrialState.PRUNED)
        elif isinstance(value, float) and math.isfinite(value):
            study.tell(trial, value)
        else:
            error = value.message if isinstance(value, Failed) else f"the run gave {value!r}"
            trial.set_user_attr("error", error)
            study.tell(trial, state=TrialState.FAIL)


def _ended(study: optuna.Study) -> Sequence[FrozenTrial]:
    """Runs that count: of those that failed, not the ones that were merely lost."""
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    trials = study.get_trials(deepcopy=False, states=states)
    return [trial for trial in trials if not trial.user_attrs.get(_LOST)]


def current_trial(options: Any) -> optuna.Trial | None:
    """The trial of a study that this process runs; ``None``: it runs none.

    Args:
        options: ``hydra.sweeper`` of the run.
    """
    number = os.environ.get(TRIAL_VARIABLE)
    if number is None:
        return None
    from hydra.utils import instantiate

    study = optuna.load_study(
        study_name=options.study_name,
        storage=options.storage,
        pruner=instantiate(options.pruner),
    )
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, int(number))
    return optuna.Trial(study, trial_id)
