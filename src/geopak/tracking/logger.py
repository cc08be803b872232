"""The loggers of a training: W&B, which may fail at any time, and CSV files beside it."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from geopak.tracking.guard import Guard, stop_service, within
from geopak.tracking.run import RunPlan, model_artifact_name

log = logging.getLogger(__name__)

# W&B's process drops what a full disk does not take, and says nothing.
_MIN_FREE_BYTES = 1_000_000
# Beyond W&B's own limits, which it keeps by some seconds.
_GRACE_S = 20.0


class CurveLogger(CSVLogger):
    """Lightning's CSV log, which a disk that cannot be written does not turn into an error."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._warned = False

    @rank_zero_only
    def save(self) -> None:
        try:
            super().save()
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("The CSV log in %s cannot be written: %s.", self.log_dir, error)


class RunLogger(Logger):
    """Logs to a run of W&B. Whatever happens there, the training goes on without it.

    Only the first process has a run; calls in others do nothing.

    Args:
        plan: what the run is started with.
        mode: ``online`` or ``offline``.
    """

    def __init__(self, plan: RunPlan, mode: str) -> None:
        super().__init__()
        self.plan = plan
        self.mode = mode
        self.step = 0
        self.guard = Guard(plan.options.call_timeout_s, lambda: self._finish(exit_code=1))
        self._run: Any = None
        self._exit_code = 1

    @rank_zero_only
    def open(self) -> None:
        """Starts the run; offline, with a warning, where the server does not answer."""
        if self.mode == "online":
            limit_s = self.plan.options.init_timeout_s + _GRACE_S
            try:
                self._run = within(limit_s, lambda: self.plan.start("online"))
            except Exception as error:
                log.warning(
                    "W&B's server cannot be used (%s): this run is logged offline. Upload it "
                    "later: wandb sync %s/wandb/offline-run-*",
                    str(error).strip().partition("\n")[0] or type(error).__name__,
                    self.plan.folder,
                )
                stop_service()
                self.mode = "offline"
        if self._run is None:
            self._run = self.guard.call("its start", lambda: self.plan.start("offline"))
        if self._run is not None:
            self._link_parent()

    def _link_parent(self) -> None:
        parent = self.plan.parent
        if parent is None or parent.artifact_name is None:
            return
        checkpoint, name = Path(parent.checkpoint), parent.artifact_name

        def use() -> None:
            # The public use_artifact() refuses to work offline. This record is what it writes
            # online: the server knows by its content that the artifact is the parent's.
            artifact = _model_artifact(name, checkpoint, self.plan.folder)
            artifact.finalize()
            self._run._interface.publish_artifact(
                self._run,
                artifact,
                [checkpoint.stem],
                None,
                is_user_created=True,
                use_after_commit=True,
            )

        self.guard.attempt("the link to its parent's checkpoint", use)

    @property
    def name(self) -> str:
        return self.plan.options.project

    @property
    def version(self) -> str | None:
        return None if self._run is None else self._run.id

    @property
    def experiment(self) -> Any:
        """The ``wandb.Run``; calls to it are not guarded. ``None`` where there is none."""
        return self._run

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The run has the whole configuration from its start."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs numbers, and W&B's own media.

        Args:
            metrics: by name.
            step: of the optimizer; ``None``: the one logged before.
        """
        if self._run is None or self.guard.failed:
            return
        self.step = self.step if step is None else max(step, self.step)
        row = {**metrics, "trainer/global_step": self.step}
        self.guard.call("logging", lambda: self._log(row))

    @rank_zero_only
    def log_panels(self, what: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Makes media of W&B and logs them at the latest step; a failure leaves only them out."""
        if self._run is None or self.guard.failed:
            return
        try:
            made = make()
        except Exception as error:
            log.warning("W&B goes without %s: %s: %s", what, type(error).__name__, error)
            return
        self.log_metrics(made)

    def _log(self, row: dict[str, Any]) -> None:
        free = shutil.disk_usage(self._run.dir).free
        if free < _MIN_FREE_BYTES:
            raise OSError(f"{self._run.dir}: the disk is full, {free:,} bytes are free")
        with _staging_below(self.plan.folder):
            self._run.log(row, step=self.step)

    @rank_zero_only
    def log_checkpoints(self, best: Path, last: Path, metadata: Mapping[str, Any]) -> None:
        """Makes both checkpoints versions of the run's model artifact.

        Args:
            best: gets the alias ``best``.
            last: gets the aliases ``last`` and ``latest``.
            metadata: of both.
        """
        if self._run is None:
            return
        name = model_artifact_name(self._run.id)
        # W&B gives ``latest`` to the one that comes last.
        for path in (best, last):
            if path.is_file():
                self.guard.attempt(
                    f"{path.name} as an artifact",
                    lambda path=path: self._run.log_artifact(  # type: ignore[misc]
                        _model_artifact(
                            name, path, self.plan.folder, {**metadata, "checkpoint": str(path)}
                        ),
                        aliases=[path.stem],
                    ),
                )

    @rank_zero_only
    def summarize(self, values: Mapping[str, Any]) -> None:
        """Adds to the summary of the run."""
        if self._run is not None:
            self.guard.call("its summary", lambda: self._run.summary.update(dict(values)))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self._exit_code = 0 if status == "success" else 1

    @rank_zero_only
    def close(self) -> None:
        """Ends the run; waits for uploads for as long as the options say."""
        if self._run is not None:
            o = self.plan.options
            limit_s = o.finish_timeout_s if self.mode == "online" else o.call_timeout_s
            limit_s += _GRACE_S
            self.guard.call("its end", lambda: self._finish(self._exit_code), limit_s)

    def _finish(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


def _data_folder(folder: Path) -> Path:
    """Where files wait to be uploaded: in the run folder, where W&B would use the home folder."""
    return Path(os.environ.get("WANDB_DATA_DIR", folder / "wandb" / "data"))


@contextmanager
def _staging_below(folder: Path) -> Iterator[None]:
    """Lets W&B stage files in the run folder.

    It reads the variable when it stages one, and warns where it is set at the next start.
    """
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(_data_folder(folder))
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


def _model_artifact(
    name: str, checkpoint: Path, folder: Path, metadata: Mapping[str, Any] | None = None
) -> Any:
    """A checkpoint as an artifact. The name and the content alone decide which version it is.

    Args:
        name: of the artifact.
        checkpoint: file.
        folder: of the run that logs it.
        metadata: what else is to be said of it.
    """
    import wandb

    # `wandb sync` deletes the files of an artifact that it has uploaded, wherever they lie (its
    # ArtifactSaver, with an empty staging folder): it gets a name of its own for each.
    waiting = _data_folder(folder) / "checkpoints" / secrets.token_hex(4) / checkpoint.name
    waiting.parent.mkdir(parents=True)
    try:
        os.link(checkpoint, waiting)
    except OSError:
        # Another disk, or one without hard links.
        shutil.copyfile(checkpoint, waiting)
    artifact = wandb.Artifact(name, type="model", metadata=dict(metadata or {}))
    # Not copied a second time.
    artifact.add_file(str(waiting), name=checkpoint.name, policy="immutable", skip_cache=True)
    return artifact
