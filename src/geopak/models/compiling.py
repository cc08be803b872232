"""torch.compile of the encoders, in place."""

from __future__ import annotations

import torch

from geopak.errors import ConfigError
from geopak.models.encoders import Encoder


def check_compiler(device: torch.device) -> None:
    """Compiles a small function, so that a missing compiler shows before anything is loaded.

    Forgets what was compiled in this process before, for another phase.

    Raises:
        ConfigError: nothing can be compiled for the device.
    """
    torch.compiler.reset()
    value = torch.arange(64.0, device=device)
    try:
        torch.compile(_small)(value)
    except Exception as error:  # whatever fails inside the compiler
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        needed = "a C++ compiler (g++ or clang++, or CXX=…)"
        if device.type == "cuda":
            needed = "Triton and a C compiler (gcc or clang)"
        raise ConfigError(
            f"trainer.compile=true needs {needed}, and cannot compile here: {first_line} "
            "Install it, or use trainer.compile=false."
        ) from error


def _small(value: torch.Tensor) -> torch.Tensor:
    return value.sin() + 1


def compile_encoder(encoder: Encoder) -> None:
    """Compiles an encoder when it is first used, for each way that it is used in.

    Done in place: state dicts keep their names. Training and evaluation are compiled separately; a
    batch of another size is compiled once, for all further sizes.
    """
    encoder.body().compile()


def is_compiled(encoder: Encoder) -> bool:
    """Whether :func:`compile_encoder` was applied."""
    return encoder.body()._compiled_call_impl is not None
