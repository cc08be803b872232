"""Files of model weights: read without running anything in them, and told what does not fit."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from geopak.errors import CheckpointError

_STATES = ("state_dict", "model_state_dict")
_SHOWN = 8


class WeightFile(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state: names and tensors.
        beside: what a training's checkpoint holds besides.
    """

    state: dict[str, Tensor]
    beside: dict[str, Any]


def read_weight_file(path: str | Path) -> WeightFile:
    """Reads a file: safetensors, a PyTorch state dict, or a TorchScript archive.

    A state dict may be in a training's checkpoint, as its ``state_dict`` or ``model_state_dict``,
    with ``module.`` before its names or not.

    Nothing but tensors, numbers (numpy's too) and plain containers is unpickled.

    Raises:
        CheckpointError: missing file, or none of these formats.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"No weight file at {path}.")
    try:
        if path.suffix == ".safetensors":
            return WeightFile(load_file(path), {})
        if _is_torchscript(path):
            return WeightFile(dict(torch.jit.load(str(path), map_location="cpu").state_dict()), {})
        with torch.serialization.safe_globals(_numpy_numbers()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise _unreadable(path, error) from error
    except Exception as error:  # pickle raises its own, unrelated classes
        if type(error).__module__ not in ("pickle", "_pickle"):
            raise
        raise _unreadable(path, error) from error
    beside: dict[str, Any] = {}
    for name in _STATES:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            beside |= {str(key): value for key, value in loaded.items() if key != name}
            loaded = loaded[name]
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise CheckpointError(f"{path} holds no state dict of tensors.")
    return WeightFile({k.removeprefix("module."): v for k, v in loaded.items()}, beside)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file, see :func:`read_weight_file`."""
    return read_weight_file(path).state


def check_fit(
    wrong: str,
    missing: Sequence[str],
    unexpected: Sequence[str],
    shapes: Sequence[str],
    remedy: str,
) -> None:
    """Refuses weights that are not those of a model.

    Args:
        wrong: what they are then, the beginning of a sentence.
        missing, unexpected: names.
        shapes: names with the shape that is there and the one that is wanted.
        remedy: a sentence.

    Raises:
        CheckpointError: there are any of these.
    """
    problems = [
        f"{what}: {listed(keys)}"
        for what, keys in (
            ("missing keys", missing),
            ("unexpected keys", unexpected),
            ("wrong shapes", shapes),
        )
        if keys
    ]
    if problems:
        raise CheckpointError(f"{wrong}: {'; '.join(problems)}. {remedy}")


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _numpy_numbers() -> list[Any]:
    """What a pickled number of numpy's consists of: trainings keep figures beside weights."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in (*np.typecodes["AllInteger"], *"?efd")}
    # numpy 1 had it in another module.
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
    return [*((scalar, name) for name in names), np.dtype, *kinds]


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    # What comes before is PyTorch's advice to unpickle it nevertheless.
    text = str(error).rpartition("WeightsUnpickler error:")[2].strip()
    if refused := re.search(r"GLOBAL ([\w.]+)", text):
        return CheckpointError(
            f"{path} cannot be read as model weights: it holds {refused[1]}, but nothing except "
            "tensors, numbers and plain containers is unpickled, since anything else can run code. "
            "Save its state_dict alone."
        )
    first_line = text.splitlines()[0] if text else type(error).__name__
    return CheckpointError(
        f"{path} cannot be read as model weights ({first_line}). Expected safetensors or a "
        "PyTorch state dict; download it again if it should be one."
    )
