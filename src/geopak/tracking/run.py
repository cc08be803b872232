"""A training as a run of W&B: its options, its name and place, and the run that it starts from."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from geopak.checkpoint import run_folder
from geopak.data.atomic import write_json
from geopak.errors import CheckpointError, ConfigError
from geopak.schema.monitoring import WandbOptions

log = logging.getLogger(__name__)

STATE_FILE = "wandb_run.json"


def choose_mode(mode: str) -> str:
    """``online``, ``offline`` or ``disabled``, from ``logger.mode``, ``WANDB_MODE`` and the key.

    Args:
        mode: one of ``MODES``. With ``auto``, ``WANDB_MODE`` counts where it is set.

    Raises:
        ConfigError: ``online`` without an API key, or a ``WANDB_MODE`` that W&B does not know.
    """
    import wandb

    said = os.environ.get("WANDB_MODE")
    if mode == "auto" and said:
        known = {"run": "online", "dryrun": "offline"}
        chosen = known.get(said, said)
        if chosen not in ("online", "offline", "disabled"):
            raise ConfigError(f"WANDB_MODE={said}: use online, offline or disabled.")
        return chosen
    if mode == "offline":
        return mode
    try:
        has_key = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        if mode == "online":
            raise ConfigError(f"logger.mode=online: {error}") from error
        log.warning("W&B works offline, the API key cannot be used: %s", error)
        return "offline"
    if mode == "online" and not has_key:
        raise ConfigError(
            "logger.mode=online needs an API key: run `wandb login`, set WANDB_API_KEY, or use "
            "logger.mode=auto."
        )
    return "online" if has_key else "offline"


@dataclass(frozen=True)
class ParentRun:
    """What a phase starts from.

    Attributes:
        checkpoint: file.
        folder: of its run; ``None`` where it lies outside of one.
        id: its run in W&B; ``None`` where it has none.
        url: of that run, where it was online.
    """

    checkpoint: str
    folder: str | None = None
    id: str | None = None
    url: str | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: Path) -> ParentRun:
        """Finds the run that made a checkpoint."""
        try:
            folder = run_folder(checkpoint)
        except CheckpointError:
            return cls(str(checkpoint))
        state = RunState.read(folder)
        if state is None:
            return cls(str(checkpoint), str(folder))
        return cls(str(checkpoint), str(folder), state.id, state.url)

    @property
    def artifact_name(self) -> str | None:
        return None if self.id is None else model_artifact_name(self.id)


@dataclass(frozen=True)
class RunState:
    """What a run folder remembers of its run in W&B (``wandb_run.json``).

    Attributes:
        id: of the run; a resumed training goes on with it.
        mode: that it was last in.
        url: where it was online.
        parent: see :class:`ParentRun`.
    """

    id: str
    mode: str
    url: str | None = None
    parent: dict[str, str | None] | None = field(default=None)

    @classmethod
    def read(cls, folder: Path) -> RunState | None:
        """``None`` where there is none, or none that can be read."""
        path = folder / STATE_FILE
        if not path.is_file():
            return None
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            log.warning("%s cannot be read (%s): W&B gets a new run.", path, error)
            return None

    def write(self, folder: Path) -> None:
        """Replaces what the folder remembers, in one piece."""
        path = folder / STATE_FILE
        write_json(path, asdict(self))


def model_artifact_name(run_id: str) -> str:
    """Under which a run's checkpoints are artifacts."""
    return f"model-{run_id}"


@dataclass(frozen=True)
class RunPlan:
    """All that a run of W&B is started with.

    Attributes:
        options: see :class:`WandbOptions`.
        folder: of the run.
        job_type: ``phase-<k>``.
        tags: all of them.
        config: what the dashboard shows as configuration.
        parent: see :class:`ParentRun`; ``None`` where the phase has none.
    """

    options: WandbOptions
    folder: Path
    job_type: str
    tags: tuple[str, ...]
    config: Mapping[str, Any]
    parent: ParentRun | None

    def start(self, mode: Literal["online", "offline"]) -> Any:
        """Starts the run, or goes on with the one that the folder remembers.

        Args:
            mode: ``online`` or ``offline``.

        Returns:
            The ``wandb.Run``. It is not the global ``wandb.run``.
        """
        import wandb

        state = RunState.read(self.folder)
        parent = asdict(self.parent) if self.parent else state.parent if state else None
        about = {"folder": str(self.folder), "job_type": self.job_type, "parent": parent}
        run_id = state.id if state else secrets.token_hex(4)
        run = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            group=self.options.group,
            name=self.options.name,
            job_type=self.job_type,
            tags=self.tags,
            config={**self.config, "run": about},
            dir=os.environ.get("WANDB_DIR", str(self.folder)),
            id=run_id,
            # Offline there is nobody to ask, and W&B warns about it.
            resume="allow" if mode == "online" else None,
            mode=mode,
            # A run that somebody else has open is none of ours.
            reinit="create_new",
            settings=wandb.Settings(
                init_timeout=self.options.init_timeout_s,
                finish_timeout=self.options.finish_timeout_s,
            ),
        )
        url = run.url if mode == "online" else None
        RunState(run_id, mode, url, parent).write(self.folder)
        if parent:
            run.summary.update({"parent": parent})
        return run
