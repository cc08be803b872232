"""Checkpoints: safe reading, warm start from a parent phase, and finding that parent."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geopak.errors import CheckpointError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.models.geolocator import Geolocator

FORMAT = 1
BEST_NAME = "best"
CHECKPOINT_FOLDER = "checkpoints"
_MODEL_PREFIX = "model."
# What a checkpoint carries beside weights, see geopak.build.model_identity.
IDENTITY = (
    "format",
    "version",
    "region",
    "cells",
    "outlines",
    "phase",
    "province_temperature",
    "model",
    "decoding",
    "config",
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of geopak without unpickling anything but tensors and plain containers.

    Raises:
        CheckpointError: missing, unsafe, not a checkpoint, or not one of geopak.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch each raise their own
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is not a checkpoint that can be loaded safely: {first_line}"
        ) from error
    identity = loaded.get("geopak") if isinstance(loaded, dict) else None
    if not isinstance(identity, dict) or "state_dict" not in loaded:
        raise CheckpointError(
            f"{path} is not a checkpoint of geopak: it carries no region, cells and model "
            "description. Checkpoints lie in outputs/<name>/phase-<k>/<run>/checkpoints/."
        )
    written = identity.get("format")
    if written != FORMAT:
        raise CheckpointError(
            f"{path} has checkpoint format {written}, this version of geopak reads {FORMAT}."
        )
    missing = [part for part in IDENTITY if part not in identity]
    if missing:
        raise CheckpointError(f"{path} is incomplete: it lacks {', '.join(missing)}.")
    return loaded


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone module's part of a checkpoint's state dict."""
    return {
        k.removeprefix(_MODEL_PREFIX): v
        for k, v in checkpoint["state_dict"].items()
        if k.startswith(_MODEL_PREFIX)
    }


def load_state(model: Geolocator, checkpoint: Mapping[str, Any], path: str | Path) -> None:
    """Loads the backbone's weights, all of them.

    Raises:
        CheckpointError: keys or shapes that do not match.
    """
    try:
        model.load_state_dict(model_state(checkpoint))
    except RuntimeError as error:
        raise CheckpointError(f"{path} holds another model: {error}") from error


def warm_start(
    model: Geolocator,
    path: str | Path,
    region: Region,
    cells: CellTable,
    model_config: Mapping[str, Any],
    expected_phase: int | None,
) -> None:
    """Starts a phase from the checkpoint of its parent phase.

    Args:
        model: receives the weights.
        path: the parent's checkpoint.
        region, cells: of the present run.
        model_config: description of the present model.
        expected_phase: index of the parent phase.

    Raises:
        CheckpointError: a checkpoint of another region, cell table, model or phase.
    """
    checkpoint = read_checkpoint(path)
    identity = checkpoint["geopak"]
    other = Region.from_dict(identity["region"])
    if (other.name, other.names) != (region.name, region.names):
        raise CheckpointError(
            f"{path} is of the region {other.title} ({', '.join(other.names)}), this run is of "
            f"{region.title}. Choose region={other.name}, or another checkpoint."
        )
    if identity["phase"]["index"] != expected_phase:
        wanted = "no other phase" if expected_phase is None else f"phase {expected_phase}"
        raise CheckpointError(
            f"{path} comes from phase {identity['phase']['index']}; this phase starts from "
            f"{wanted}. To continue an interrupted run of the same phase use resume_from=."
        )
    theirs, ours = model_description(identity["model"]), model_description(model_config)
    for part in ours:
        if theirs[part] != ours[part]:
            raise CheckpointError(
                f"{path} holds the model {identity['model']['name']!r} with another {part}: "
                f"{theirs[part]} instead of {ours[part]}. Choose the same model= as its run."
            )
    if CellTable.from_dict(identity["cells"]).fingerprint() != cells.fingerprint():
        raise CheckpointError(
            f"{path} was trained on other geocells than this prepared set has. Train the phases "
            f"before this one again: python -m geopak.train -m phase=0,1,2"
        )
    load_state(model, checkpoint, path)


def model_description(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ``model`` section that decides which weights fit.

    Where pretrained weights lie and the rates they adapt at are no part of it.
    """
    return {
        "image_size": config["image_size"],
        "semantic": {"shape": config["semantic"]["shape"]},
        "scene": {"shape": config["scene"]["shape"]},
        "sizes": config["sizes"],
    }


def run_folder(checkpoint: str | Path) -> Path:
    """The run folder that holds a checkpoint in its ``checkpoints/``.

    Raises:
        CheckpointError: the file is missing, or lies elsewhere.
    """
    path = Path(checkpoint).expanduser().resolve()
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}.")
    if path.parent.name != CHECKPOINT_FOLDER:
        raise CheckpointError(
            f"{path} does not lie in a run's {CHECKPOINT_FOLDER}/ folder, so there is no run to "
            "continue. To start a phase from its weights use init_from=."
        )
    return path.parent.parent


def write_run_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Marks a run folder as finished (``run.json``)."""
    text = json.dumps({**record, "finished_unix": time.time()}, indent=2)
    (folder / "run.json").write_text(text, encoding="utf-8")


def newest_finished(run_root: Path, phase: int) -> Path | None:
    """The best checkpoint of the newest finished run of a phase below ``outputs/<name>``."""
    newest: tuple[float, Path] | None = None
    for record in sorted((run_root / f"phase-{phase}").glob("*/run.json")):
        best = record.parent / CHECKPOINT_FOLDER / f"{BEST_NAME}.ckpt"
        finished = json.loads(record.read_text(encoding="utf-8"))["finished_unix"]
        if best.is_file() and (newest is None or finished > newest[0]):
            newest = (finished, best)
    return newest[1] if newest else None


def find_parent(run_root: Path, parent: int, overrides: str) -> Path:
    """The checkpoint that a phase starts from, found by itself.

    Args:
        run_root: ``outputs/<name>``, which holds ``phase-<k>/<run>/``.
        parent: index of the phase looked for.
        overrides: what to add to the command that the error suggests.

    Raises:
        CheckpointError: there is none; names the command to run.
    """
    found = newest_finished(run_root, parent)
    if found:
        return found
    unfinished = sorted((run_root / f"phase-{parent}").glob(f"*/{CHECKPOINT_FOLDER}/last.ckpt"))
    hint = (
        f"\nA run that did not finish left {unfinished[-1]}: continue it with resume_from=."
        if unfinished
        else ""
    )
    raise CheckpointError(
        f"This phase starts from phase {parent}, of which there is no finished run below "
        f"{run_root}. Run it first:\n\n    python -m geopak.train phase={parent}{overrides}\n\n"
        f"or pass init_from=CHECKPOINT.{hint}"
    )


def find_latest(run_root: Path) -> Path:
    """The best checkpoint of the highest phase that has a finished run.

    Raises:
        CheckpointError: there is none; names the command to run.
    """
    phases = sorted(int(p.name.removeprefix("phase-")) for p in run_root.glob("phase-*"))
    for phase in reversed(phases):
        if found := newest_finished(run_root, phase):
            return found
    raise CheckpointError(
        f"There is no finished run below {run_root}. Pass ckpt=CHECKPOINT, or train first:\n\n"
        "    python -m geopak.train -m phase=0,1,2\n"
    )
