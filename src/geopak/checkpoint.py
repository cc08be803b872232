"""Checkpoints: safe reading, warm start from a parent phase, and finding that parent."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from geopak.data.atomic import write_json
from geopak.errors import CheckpointError
from geopak.geo.cells import CellTable
from geopak.geo.region import Region
from geopak.model_folder import is_model_folder, read_model_folder
from geopak.models.geolocator import Geolocator
from geopak.schema.model import CROP

log = logging.getLogger(__name__)

FORMAT = 1
BEST_NAME = "best"
LAST_NAME = "last"
# The last.ckpt before.
PREVIOUS_NAME = "last-previous"
CHECKPOINT_FOLDER = "checkpoints"
RUN_RECORD = "run.json"
_MODEL_PREFIX = "model."
# What a checkpoint carries beside weights, see geopak.identity.model_identity.
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

    Args:
        path: a training's checkpoint, or a folder of ``geopak.export format=safetensors``.

    Raises:
        CheckpointError: missing, unsafe, not a checkpoint, or not one of geopak.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"No checkpoint at {path}.")
    if is_model_folder(path):
        loaded = read_model_folder(path)
    else:
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


def write_whole(checkpoint: Mapping[str, Any], path: Path) -> Path:
    """Writes a checkpoint under a partial name beside its own, to be renamed to it.

    Returns:
        The file, complete and on the disk.

    Raises:
        OSError, RuntimeError: no room, or no right to write there.
    """
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "wb") as file:
        torch.save(dict(checkpoint), file)
        file.flush()
        os.fsync(file.fileno())
    return partial


def sync_folder(folder: Path) -> None:
    """Sees to it that the names in a folder are on the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# What a run needs beside the model's weights to go on.
_TRAINING_STATE = ("loops", "callbacks", "optimizer_states", "lr_schedulers")


def check_resumable(path: str | Path) -> None:
    """Makes sure that a run can go on from a checkpoint: that all of it is there, unchanged.

    Raises:
        CheckpointError: missing, cut short, altered, or without the state of a training.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No checkpoint at {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            # Reads everything: torch itself would not notice a changed byte.
            altered = archive.testzip()
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path} is not a whole checkpoint: {error}.") from error
    if altered:
        raise CheckpointError(f"{path} has been altered: {altered} in it fails its checksum.")
    missing = [part for part in _TRAINING_STATE if part not in read_checkpoint(path)]
    if missing:
        raise CheckpointError(
            f"{path} holds no state of a training to go on from: it lacks {', '.join(missing)}."
        )


def resumable(path: str | Path) -> Path:
    """A checkpoint that a run can go on from, or the one before it where that is broken.

    Args:
        path: any checkpoint; for a ``last.ckpt`` the ``last-previous.ckpt`` beside it stands in,
            with a warning.

    Raises:
        CheckpointError: neither can be used; says why not the first.
    """
    path = Path(path).expanduser().resolve()
    previous = path.with_name(f"{PREVIOUS_NAME}.ckpt")
    try:
        check_resumable(path)
        return path
    except CheckpointError as error:
        if path.name != f"{LAST_NAME}.ckpt" or not previous.is_file():
            raise
        try:
            check_resumable(previous)
        except CheckpointError as other:
            raise CheckpointError(f"{error} Nor is the one before it of use: {other}") from error
        log.warning("warning: %s Going on from the one before it, %s.", error, previous)
        return previous


# What fills a tensor with random numbers, wherever it is called from.
_DRAWS = {torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.erfinv_}


class WithoutInitialisation(TorchFunctionMode):
    """Modules made in this context keep whatever their memory holds for weights.

    Random weights for a large model take seconds to draw. Only for a model that
    :func:`load_state` fills next: it insists on a value for every weight.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _DRAWS or getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


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


def read_matching(
    path: str | Path,
    region: Region,
    cells: CellTable,
    model_config: Mapping[str, Any],
    expected_phase: int | None,
) -> dict[str, Any]:
    """Reads a checkpoint that a run can go on from: its parent's, or its own interrupted one.

    Args:
        path: the checkpoint.
        region, cells: of the present run.
        model_config: description of the present model.
        expected_phase: index of the phase that made it.

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
            f"{path} comes from phase {identity['phase']['index']}, wanted is {wanted}: "
            "init_from= takes the phase before, resume_from= the phase itself."
        )
    theirs, ours = model_description(identity["model"]), model_description(model_config)
    for part in ours:
        if theirs[part] != ours[part]:
            raise CheckpointError(
                f"{path} holds the model {identity['model']['name']!r} with another {part}: "
                f"{theirs[part]} instead of {ours[part]}. Choose the same model= and experiment= "
                "as its run."
            )
    if CellTable.from_dict(identity["cells"]).fingerprint() != cells.fingerprint():
        raise CheckpointError(
            f"{path} was trained on other geocells than this prepared set has. Train the phases "
            "before this one again: python -m geopak.train -m phase=0,1,2"
        )
    return checkpoint


# Parts of a configuration that change nothing in what a run learns.
_NO_MATTER = (
    "logger", "name", "callbacks.progress_bar", "callbacks.checkpoint_every_n_batches",
    "trainer.devices", "trainer.num_nodes", "trainer.heartbeat_s", "trainer.timeout_s",
    "trainer.log_every_n_steps", "data.num_workers", "data.memory_cache", "data.memory_cache_gb",
)  # fmt: skip
# Those without which an optimizer's state has no meaning.
_FIXED = ("phase.train", "phase.unfreeze", "loss.cell_target", "model.pretrained")
# Weights of terms: with one of 0 what the term alone trains stays frozen.
_SWITCHES = ("loss.province", "loss.cell", "loss.offset", "loss.auxiliary")


def check_continuation(
    checkpoint: Mapping[str, Any], config: Mapping[str, Any], epochs: int, path: str | Path
) -> None:
    """Compares the configuration of an interrupted run with the one that it is to go on with.

    What changes the training is said in a warning; the run then goes on with the new values.

    Args:
        checkpoint: of the interrupted run.
        config: the present portable configuration, see :func:`geopak.identity.portable_config`.
        epochs: that the phase has now.
        path: of the checkpoint.

    Raises:
        CheckpointError: other parts train, or fewer epochs than are done.
    """
    changes = config_differences(checkpoint["geopak"]["config"], config)
    for key, (before, now) in changes.items():
        if key.startswith(_FIXED) or (key in _SWITCHES and bool(before) != bool(now)):
            raise CheckpointError(
                f"{path} was trained with {key}={before}, now it is {now}: its optimizer state is "
                "of other parts of the model. Go on with the value of before, or start a run from "
                "its parent."
            )
    # The checkpoint within an epoch is of an epoch that counts as not done.
    if epochs <= checkpoint["epoch"]:
        raise CheckpointError(
            f"{path} is of epoch {checkpoint['epoch'] + 1}, but phase.epochs is now "
            f"{epochs}: nothing is left to train."
        )
    if changes:
        lines = (f"\n    {key}: {before} -> {now}" for key, (before, now) in changes.items())
        log.warning(
            "warning: this run goes on with another configuration than it began with:%s",
            "".join(lines),
        )


def config_differences(
    before: Mapping[str, Any], now: Mapping[str, Any]
) -> dict[str, tuple[Any, Any]]:
    """Values that differ between two configurations and may change a result, by dotted key.

    A key that one of them lacks counts as ``None``.
    """
    flat = [dict(_flattened(config)) for config in (before, now)]
    keys = sorted(flat[0].keys() | flat[1].keys())
    return {
        key: (flat[0].get(key), flat[1].get(key))
        for key in keys
        if flat[0].get(key) != flat[1].get(key)
        and not any(key == part or key.startswith(f"{part}.") for part in _NO_MATTER)
    }


def _flattened(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def model_description(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a ``model`` section that decides which weights fit.

    Where pretrained weights lie and the rates they adapt at are no part of it.
    """
    config = with_choices(config)
    return {
        "image_size": config["image_size"],
        "framing": config["framing"],
        "semantic": {"shape": config["semantic"]["shape"]},
        "scene": {"shape": config["scene"]["shape"]},
        "sizes": config["sizes"],
        "fusion": {"kind": config["fusion"]["kind"]},
        "cell_heads": config["cell_heads"],
        "offset": config["offset"],
        "auxiliary": config["auxiliary"],
    }


def with_choices(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``model`` section with all its choices: older checkpoints carry not all of them."""
    semantic = config["semantic"]
    return {
        "cell_heads": "per_province",
        "framing": CROP,
        **config,
        "semantic": {**semantic, "shape": {"class_token": "after_norm", **semantic["shape"]}},
        "fusion": {"kind": "gated", **config["fusion"]},
        "offset": {"bound": "smooth", "bounded": "always", **config.get("offset", {})},
        "auxiliary": {"output": "region", **config.get("auxiliary", {})},
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


def run_record(checkpoint: Path) -> Path:
    """The ``run.json`` of the finished run that holds a checkpoint."""
    return checkpoint.parent.parent / RUN_RECORD


def write_run_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Marks a run folder as finished (``run.json``)."""
    write_json(folder / RUN_RECORD, {**record, "finished_unix": time.time()})


# Sections of the configuration, and keys, that a phase does not share with its parent.
OWN_KEYS = (
    "phase", "init_from", "resume_from", "rerun", "hydra", "trainer", "logger", "callbacks",
    "finder", "launcher", "sweep",
)  # fmt: skip


def shared_overrides(overrides: Sequence[str]) -> list[str]:
    """The overrides that a phase has in common with its parent, as typed.

    What belongs to one phase, one machine or one log is left out.
    """
    return sorted(o for o in overrides if not o.lstrip("+~").startswith(OWN_KEYS))


def newest_finished(
    run_root: Path,
    phase: int,
    overrides: Sequence[str] | None = None,
    same_only: bool = False,
) -> Path | None:
    """The best checkpoint of the newest finished run of a phase below ``outputs/<name>``.

    Runs of a study are left out: which of them to go on with is said by what it found.

    Args:
        run_root: ``outputs/<name>``.
        phase: index.
        overrides: of the run looking for it; a run with the same :func:`shared_overrides` comes
            before any other, so that every branch of a sweep finds its own parent.
        same_only: leave the others out.

    Raises:
        CheckpointError: a broken run record.
    """
    found: list[tuple[bool, float, Path]] = []
    for path in sorted((run_root / f"phase-{phase}").glob(f"*/{RUN_RECORD}")):
        best = path.parent / CHECKPOINT_FOLDER / f"{BEST_NAME}.ckpt"
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            finished, theirs = float(record["finished_unix"]), record["overrides"]
        except (ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is not a run record: {error!r}. Delete it.") from error
        if best.is_file() and not record.get("of_study"):
            same = overrides is not None and theirs == shared_overrides(overrides)
            if same or not same_only:
                found.append((same, finished, best))
    return max(found)[2] if found else None


def find_parent(run_root: Path, parent: int, overrides: Sequence[str]) -> Path:
    """The checkpoint that a phase starts from, found by itself.

    Args:
        run_root: ``outputs/<name>``, which holds ``phase-<k>/<run>/``.
        parent: index of the phase looked for.
        overrides: of the present run, see :func:`newest_finished`.

    Raises:
        CheckpointError: there is none; names the command to run.
    """
    found = newest_finished(run_root, parent, overrides)
    if found:
        return found
    command = ["python -m geopak.train", f"phase={parent}", *shared_overrides(overrides)]
    unfinished = sorted(
        (run_root / f"phase-{parent}").glob(f"*/{CHECKPOINT_FOLDER}/{LAST_NAME}.ckpt")
    )
    hint = (
        f"\nA run that did not finish left {unfinished[-1]}: continue it with resume_from=."
        if unfinished
        else ""
    )
    raise CheckpointError(
        f"This phase starts from phase {parent}, of which there is no finished run below "
        f"{run_root}. Run it first:\n\n    {' '.join(command)}\n\n"
        f"or pass init_from=CHECKPOINT.{hint}"
    )


def find_latest(run_root: Path) -> Path:
    """The best checkpoint of the highest phase that has a finished run.

    Raises:
        CheckpointError: there is none; names the command to run.
    """
    folders = (re.fullmatch(r"phase-(\d+)", p.name) for p in run_root.glob("phase-*"))
    for phase in sorted((int(match[1]) for match in folders if match), reverse=True):
        if found := newest_finished(run_root, phase):
            return found
    raise CheckpointError(
        f"There is no finished run below {run_root}. Pass ckpt=CHECKPOINT, or train first:\n\n"
        "    python -m geopak.train -m phase=0,1,2\n"
    )


def chosen_checkpoint(ckpt: str | None, run_root: Path) -> Path:
    """The checkpoint that a command was given, or :func:`find_latest` of the runs of a name.

    Raises:
        CheckpointError: none was given, and no run is finished.
    """
    return Path(ckpt).expanduser() if ckpt else find_latest(run_root)
