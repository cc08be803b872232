"""What a run was made with: its command line, versions, the code's git state, the prepared set."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import geopak

# Libraries whose version may change what a training computes or reads.
LIBRARIES = (
    "torch", "torchvision", "lightning", "torchmetrics", "timm", "open_clip_torch",
    "hydra-core", "omegaconf", "numpy", "pandas", "pyarrow", "pillow", "simplejpeg", "wandb",
)  # fmt: skip


def provenance(prepared: str | Path) -> dict[str, Any]:
    """All of it in plain containers.

    Args:
        prepared: folder of the prepared set.

    Returns:
        ``command`` (as one would type it), ``versions`` by library, ``git`` (see
        :func:`git_state`) and ``dataset`` (see :func:`dataset_state`).
    """
    return {
        "command": command_line(sys.argv),
        "versions": versions(),
        "git": git_state(),
        "dataset": dataset_state(prepared),
    }


def hardware() -> dict[str, Any]:
    """What computes: system, processor and its threads, GPUs by name."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": gpus,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def command_line(arguments: list[str]) -> str:
    """The command of this process as one would type it.

    Args:
        arguments: ``sys.argv``.
    """
    program = Path(arguments[0])
    package = Path(__file__).resolve().parent
    is_command = program.suffix == ".py" and program.resolve().parent == package
    start = f"python -m geopak.{program.stem}" if is_command else shlex.quote(program.name)
    return " ".join([start, *map(shlex.quote, arguments[1:])])


def versions() -> dict[str, str]:
    """Versions of Python, geopak and the libraries under it; those not installed are left out."""
    found = {"python": platform.python_version(), "geopak": geopak.__version__}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state() -> dict[str, Any] | None:
    """Where the code comes from; ``None`` where it is no checkout or git is missing.

    Returns:
        ``commit``, ``branch`` (``HEAD`` where none is checked out), and whether tracked files are
        ``dirty``, that is, differ from the commit.
    """
    # A package that merely lies in somebody's repository (a virtual environment) is not of it.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {
        "commit": commit,
        "branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
        "dirty": bool(changes),
    }


def git_diff() -> str:
    """What tracked files differ in from the commit, as a patch; empty if in nothing.

    Of no other repository that the package may lie in.
    """
    if git_state() is None:
        return ""
    patch = _git("diff", "HEAD", "--binary")
    return f"{patch}\n" if patch else ""


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            check=True,
            timeout=30,
            encoding="utf-8",
            errors="surrogateescape",
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.rstrip("\n")


def dataset_state(prepared: str | Path) -> dict[str, Any]:
    """Which prepared set it is.

    Returns:
        ``folder``, and ``manifest_sha256`` of its manifest's file (``None``: it has none).
    """
    # Imports pandas, which a prediction does without.
    from geopak.data.manifest import FILE_NAME, file_sha256

    folder = Path(prepared)
    manifest = folder / FILE_NAME
    return {
        "folder": str(folder),
        "manifest_sha256": file_sha256(manifest) if manifest.is_file() else None,
    }
