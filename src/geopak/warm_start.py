"""Where a training's weights come from: its parent, a run to go on with, pretrained encoders."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopak import runs as run_folders
from geopak.build import load_pretrained
from geopak.checkpoint import (
    check_continuation,
    find_parent,
    load_state,
    newest_finished,
    read_matching,
    run_record,
    shared_overrides,
)
from geopak.errors import CheckpointError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.identity import portable_config
from geopak.models.fusion import GatedFusion
from geopak.models.geolocator import Geolocator
from geopak.runs import AUTO, Start
from geopak.schema.training import Phase
from geopak.sweeps.trials import (
    COMPLETE,
    FAILED,
    PRUNED,
    RUNNING,
    SWEEP_VARIABLE,
    Trial,
    newest_trial,
)

if TYPE_CHECKING:
    from omegaconf import DictConfig


log = logging.getLogger(__name__)


def resolve_parent(cfg: DictConfig, phase: Phase, overrides: Sequence[str]) -> Path | None:
    """The checkpoint that a phase starts from: ``init_from``, or its parent's best, or none.

    Without ``require_parent`` a parent is one that shares all overrides, and may be missing.
    """
    if cfg.init_from:
        return Path(cfg.init_from).expanduser()
    if phase.parent is None:
        return None
    run_root, shared = Path(cfg.run_root), shared_overrides(overrides)
    newest = newest_trial(run_root, phase.parent, lambda theirs: shared_overrides(theirs) == shared)
    if newest is not None and _gave_nothing(*newest, run_root, phase.parent, overrides):
        trial = newest[0]
        fate = {RUNNING: "was lost", PRUNED: "was pruned"}.get(trial.state, "failed")
        raise CheckpointError(
            f"This run starts from phase {phase.parent} with the same overrides, and that {fate} "
            f"in {trial.folder}: {trial.error or 'it has no result.'} No other run takes its "
            "place; mend it, or pass init_from=CHECKPOINT."
        )
    if not cfg.require_parent:
        return newest_finished(run_root, phase.parent, overrides, same_only=True)
    return find_parent(run_root, phase.parent, overrides)


def _gave_nothing(
    trial: Trial, written_unix: float, run_root: Path, phase: int, overrides: Sequence[str]
) -> bool:
    """Whether the run that should be the parent has ended without a checkpoint to start from."""
    own = trial.sweep == os.environ.get(SWEEP_VARIABLE)
    if trial.state == COMPLETE or (trial.state != FAILED and not own):
        return False
    # It may have been done again since, by itself.
    finished = newest_finished(run_root, phase, overrides, same_only=True)
    # A checkpoint that has been calibrated since is written anew, the record of its run is not.
    return finished is None or run_record(finished).stat().st_mtime < written_unix


def choose_start(cfg: DictConfig, phase: Phase, folder: Path, overrides: Sequence[str]) -> Start:
    """Where the training begins by ``cfg.resume_from``: see :func:`geopak.runs.choose_start`."""
    runs = Path(cfg.run_root) / f"phase-{phase.index}"
    parent = None
    if cfg.resume_from == AUTO:
        # A run that goes on needs its parent no longer.
        with contextlib.suppress(CheckpointError):
            parent = resolve_parent(cfg, phase, overrides)
    return run_folders.choose_start(cfg.resume_from, folder, runs, overrides, parent)


def start_weights(
    model: Geolocator,
    config: Mapping[str, Any],
    parent: Path | None,
    phase: Phase,
    region: Region,
    cells: CellTable,
    cfg: DictConfig,
    resume_from: Path | None,
) -> bool:
    """Puts the weights into the model that its phase starts from.

    Returns:
        Whether the encoders hold anything learned.
    """
    if resume_from:
        # The trainer restores all weights once more; a feature cache needs the encoders before.
        checkpoint = read_matching(resume_from, region, cells, config, phase.index)
        check_continuation(checkpoint, portable_config(cfg), phase.epochs, resume_from)
        load_state(model, checkpoint, resume_from)
        return phase.parent is not None or bool(config["pretrained"])
    if parent is not None:
        checkpoint = read_matching(parent, region, cells, config, phase.parent)
        load_state(model, checkpoint, parent)
        theirs = checkpoint["geopak"]["model"]["fusion"]["gate_bias"]
        ours = config["fusion"]["gate_bias"]
        if theirs != ours and isinstance(model.fusion, GatedFusion):
            log.warning(
                "warning: model.fusion.gate_bias=%g has no effect in phase %d: the gate comes from "
                "%s, and began there at %g. Sweep it with -m phase=0,%d.",
                ours, phase.index, parent, theirs, phase.index,
            )  # fmt: skip
        return True
    if config["pretrained"]:
        load_pretrained(model, config)
        return True
    return False
