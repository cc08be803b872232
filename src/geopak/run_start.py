"""What a run writes into its folder when it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geopak import runs as run_folders
from geopak.geo.cells import CellTable
from geopak.provenance import git_diff, hardware, provenance
from geopak.rerun import COMPOSED

if TYPE_CHECKING:
    from omegaconf import DictConfig


def start_record(
    cfg: DictConfig, cells: CellTable, overrides: Sequence[str], parent: str | None
) -> dict[str, Any]:
    """What a run records of itself when it starts: see docs/resume.md.

    Args:
        cfg: the configuration.
        cells: of the prepared set.
        overrides: as typed.
        parent: checkpoint that the run started from.
    """
    return provenance(cfg.data.prepared) | {
        "cells": cells.fingerprint(),
        "hardware": hardware(),
        "name": cfg.name,
        "phase": cfg.phase.index,
        "parent": parent,
        "overrides": list(overrides),
    }


def write_start(cfg: DictConfig, folder: Path, record: Mapping[str, Any]) -> None:
    """Writes into a run's folder what it is made with, and of a new one the configuration.

    Args:
        cfg: kept as composed, for ``--rerun``, and with all values resolved, to read.
        folder: of the run.
        record: see :func:`start_record`.
    """
    from omegaconf import OmegaConf

    if not (folder / run_folders.START_RECORD).is_file():
        for name, resolve in (("config.yaml", True), (COMPOSED, False)):
            (folder / name).write_text(OmegaConf.to_yaml(cfg, resolve=resolve), encoding="utf-8")
        if patch := git_diff():
            path = folder / "git.patch"
            path.write_text(patch, encoding="utf-8", errors="surrogateescape")
    run_folders.write_start(folder, record)
