"""A model as a folder of ``config.json`` and ``model.safetensors``: nothing in it can run code.

It holds what a checkpoint holds but for the state of its training: all tensors, of weights, cells
and calibration, by their names in the safetensors file, all else as JSON.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from geopak.data.atomic import write_json
from geopak.errors import CheckpointError

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
LIBRARY = "geopak"
_SECTION = "geopak"
# In place of a tensor in the JSON: its name in the safetensors file.
_TENSOR = "tensor"
_STATE = "state_dict."


def is_model_folder(path: str | Path) -> bool:
    """Whether a path is such a folder, or the safetensors file in it."""
    path = Path(path)
    return path.suffix == ".safetensors" if path.is_file() else path.is_dir()


def write_model_folder(
    folder: Path, identity: Mapping[str, Any], state: Mapping[str, Tensor]
) -> None:
    """Writes both files.

    Args:
        folder: made if it is not there; other files in it stay.
        identity: what a checkpoint carries beside weights; plain containers and tensors.
        state: names and tensors of the model.

    Raises:
        CheckpointError: the folder cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    config = {"library_name": LIBRARY, _SECTION: _without_tensors(identity, _SECTION, tensors)}
    for name, tensor in state.items():
        tensors[f"{_STATE}{name}"] = tensor
    # One layout and a memory of its own for each, as the format wants it.
    whole = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    partial = folder / f"{WEIGHTS}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(whole, partial, metadata={"format": "pt"})
        os.replace(partial, folder / WEIGHTS)
        write_json(folder / CONFIG, config)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"Cannot write the model to {folder}: {error}.") from error
    finally:
        partial.unlink(missing_ok=True)


def read_model_folder(path: str | Path) -> dict[str, Any]:
    """Reads both files into what a checkpoint holds: ``geopak`` and ``state_dict``.

    Args:
        path: the folder, or the safetensors file in it.

    Raises:
        CheckpointError: a file is missing or broken, or is none of geopak.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    weights = folder / WEIGHTS if path.is_dir() else path
    for file in (folder / CONFIG, weights):
        if not file.is_file():
            raise CheckpointError(
                f"{folder} holds no {file.name}: a model of geopak is a folder of {CONFIG} and "
                f"{WEIGHTS}, made by python -m geopak.export format=safetensors."
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        section = config[_SECTION]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} is no description of a model of geopak ({error!r})."
        ) from error
    try:
        tensors = load_file(weights)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{weights} cannot be read: {error}.") from error
    try:
        identity = _with_tensors(section, tensors)
    except KeyError as error:
        raise CheckpointError(
            f"{weights} lacks {error}, which {CONFIG} beside it names: the two are of different "
            "models. Export them again."
        ) from error
    # As they are called in a checkpoint.
    state = {
        f"model.{name.removeprefix(_STATE)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(_STATE)
    }
    return {"geopak": identity, "state_dict": state}


def _without_tensors(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """The value for JSON; its tensors go into ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {_TENSOR: name}
    if isinstance(value, Mapping):
        return {str(k): _without_tensors(v, f"{name}.{k}", tensors) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(v, f"{name}.{k}", tensors) for k, v in enumerate(value)]
    return value


def _with_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Inverse of :func:`_without_tensors`, but for tuples."""
    if isinstance(value, dict):
        if value.keys() == {_TENSOR}:
            return tensors[value[_TENSOR]]
        return {k: _with_tensors(v, tensors) for k, v in value.items()}
    return [_with_tensors(v, tensors) for v in value] if isinstance(value, list) else value
