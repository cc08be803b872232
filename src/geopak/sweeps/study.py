"""A study of Optuna over training runs: kept on disk, continued, and pruned."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock, Timeout
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper._impl import (
    OptunaSweeperImpl,
    create_params_from_overrides,
)
from omegaconf import DictConfig
from optuna.trial import FrozenTrial, TrialState

from geopak.errors import ConfigError, SweepError
from geopak.sweeps.trials import FAILED, SWEEP_FOLDER, TRIAL_VARIABLE, Failed, Pruned, Trial

log = logging.getLogger(__name__)

_LOST = "lost"
# Keys that change nothing in what is searched.
_NO_MATTER = ("hydra", "launcher", "trainer", "callbacks", "logger", "resume_from")


class Study(OptunaSweeperImpl):
    """The sweeper of hydra-optuna-sweeper, whose studies outlive the process.

    Runs that ended count towards ``n_trials``, so that the same command goes on with a study that
    was interrupted; a run that was lost on the way is done again with the same values.

    Args:
        sampler, pruner: of Optuna, still as ``_target_`` and its arguments; runs report to the
            pruner after each epoch.
        options: of hydra-optuna-sweeper.
    """

    def __init__(self, *, sampler: DictConfig, pruner: DictConfig, **options: Any) -> None:
        super().__init__(
            sampler=None,
            direction="minimize",
            search_space=None,
            custom_search_space=None,
            **options,
        )
        self.sampler_options, self.pruner = sampler, pruner

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
            pruner=_instantiated(self.pruner),
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
            trials, jobs = [], []
            for count in range(len(_ended(study)), len(_ended(study)) + min(missing, self.n_jobs)):
                study.sampler = self._sampler(count)
                trials.append(study.ask())
                [job] = self._configure_trials(trials[-1:], space, fixed)
                jobs.append((*job, f"+hydra.job.env_set.{TRIAL_VARIABLE}='{trials[-1].number}'"))
            accepted = [
                (trial, job)
                for trial, job in zip(trials, jobs, strict=True)
                if not self._is_refused(study, trial, job)
            ]
            returns: Sequence[JobReturn] = []
            if accepted:
                first = accepted[0][0].number
                returns = self.launcher.launch([j for _, j in accepted], initial_job_idx=first)
            for (trial, _), result in zip(accepted, returns, strict=True):
                self._tell(study, trial, result)
            failed = [t for t in _ended(study) if t.state is TrialState.FAIL]
            if len(failed) > self.max_failure_rate * max(len(_ended(study)), 2 * self.n_jobs):
                raise SweepError(
                    f"{len(failed)} of {len(_ended(study))} runs of the study failed, more than "
                    f"hydra.sweeper.max_failure_rate={self.max_failure_rate}; the last error: "
                    f"{failed[-1].user_attrs.get('error')}"
                )

    def _is_refused(self, study: optuna.Study, trial: optuna.Trial, job: Sequence[str]) -> bool:
        """Whether a run's configuration cannot be, which is recorded as its failure."""
        assert self.config is not None
        assert self.hydra_context is not None
        try:
            self.hydra_context.config_loader.load_sweep_config(self.config, list(job))
        except ConfigError as error:
            log.error("\nerror: run %d of the study: %s", trial.number, error)
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=TrialState.FAIL)
            phase = self.config.phase
            runs = Path(self.config.hydra.sweep.dir) / f"phase-{phase.index}"
            Trial(
                sweep=str(self.study_name),
                number=trial.number,
                overrides=tuple(o for o in job if not o.startswith("+hydra.")),
                state=FAILED,
                phase=int(phase.index),
                monitor=str(phase.monitor),
                mode=str(phase.monitor_mode),
                error=str(error),
                study_number=trial.number,
                folder=str(runs / f"refused-{self.study_name}-{trial.number}"),
            ).write()
            return True
        return False

    def _sampler(self, count: int) -> optuna.samplers.BaseSampler:
        """The sampler of the run that follows so many others.

        A sampler that was made once would draw the same again when a study goes on.
        """
        seed = self.sampler_options.get("seed")
        if seed is None:
            return _instantiated(self.sampler_options)
        drawn = np.random.SeedSequence([seed, count]).generate_state(1)[0]
        return _instantiated(self.sampler_options, seed=int(drawn))

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
                if not name.startswith(_NO_MATTER)
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


def _instantiated(options: DictConfig, **more: Any) -> Any:
    """A sampler or pruner; what Optuna has called experimental for years is meant here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return instantiate(options, **more)


def current_trial(options: Any) -> optuna.Trial | None:
    """The trial of a study that this process runs; ``None``: it runs none.

    Args:
        options: ``hydra.sweeper`` of the run.
    """
    number = os.environ.get(TRIAL_VARIABLE)
    if number is None:
        return None
    study = optuna.load_study(
        study_name=options.study_name,
        storage=options.storage,
        pruner=_instantiated(options.pruner),
    )
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, int(number))
    return optuna.Trial(study, trial_id)
