"""What is wrong or weak in a prepared set: ``python -m geopak.prepare doctor prepared=FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.data.diagnosis import Diagnosis, Finding, Thresholds, diagnose
from geopak.data.leaks import LeakReport, leak_report
from geopak.data.manifest import changed_files, differences, read_manifest
from geopak.data.table import check_split_table
from geopak.errors import PreparedSetError
from geopak.geo.cell_settings import CellSettings
from geopak.geo.cells import CellTable
from geopak.geo.invariants import check_invariants
from geopak.geo.region import Region
from geopak.options import options, plain


@dataclass(frozen=True)
class Examined:
    """A prepared set's diagnosis and the leak report that it rests on."""

    diagnosis: Diagnosis
    leaks: LeakReport


def look_over(
    photos: pd.DataFrame,
    rejected: pd.DataFrame,
    cells: CellTable,
    region: Region,
    config: Mapping[str, Any],
    thresholds: Thresholds,
) -> Examined:
    """Measures leaks, checks the cells and says what is wrong or weak.

    Args:
        photos, rejected, cells: the set's tables.
        region: the set's region.
        config: settings of every step, as the manifest has them.
        thresholds: from where on something is said.
    """
    leaks = leak_report(photos, near_duplicate_bits=config["quality"]["near_duplicate_bits"])
    train = (photos["split"] == "train").to_numpy(bool)
    violations = check_invariants(
        cells,
        photos.loc[train, "cell_id"].to_numpy(np.int64),
        photos.loc[train, ["latitude", "longitude"]].to_numpy(float),
        photos.loc[train, "province_id"].to_numpy(np.int64),
        region,
        CellSettings(**config["cells"]),
    )
    diagnosis = diagnose(
        photos,
        rejected,
        cells,
        region,
        leaks,
        violations,
        split_method=config["split"]["method"],
        min_distance_km=config["split"]["min_distance_km"],
        thresholds=thresholds,
    )
    return Examined(diagnosis, leaks)


def doctor(cfg: DictConfig) -> list[str]:
    """Reads a prepared set and says in plain words what is wrong or weak.

    Args:
        cfg: configuration with the keys of ``conf/doctor.yaml``.

    Returns:
        The lines of the diagnosis.

    Raises:
        PreparedSetError: the folder is no prepared set.
    """
    folder = Path(cfg.prepared)
    thresholds = options(Thresholds, plain(cfg.thresholds), "thresholds")
    manifest = read_manifest(folder)
    photos = check_split_table(_table(folder / "photos.parquet"), folder / "photos.parquet")
    rejected = _table(folder / "rejected.parquet")
    cells = CellTable.read(folder / "cells.parquet")
    region = Region.from_dict(manifest["region"])
    examined = look_over(photos, rejected, cells, region, manifest["config"], thresholds)
    altered = [
        Finding(
            "wrong", "altered file",
            f"{name} is missing or not what manifest.json says.",
            "Prepare the set again, or fetch the whole of it.",
        )
        for name in changed_files(manifest, folder)
    ]  # fmt: skip
    diagnosis = Diagnosis((*altered, *examined.diagnosis.findings), examined.diagnosis.advice)
    lines = [
        f"{folder}: {region.title}, {len(photos):,} photos, {cells.num_cells:,} geocells, set "
        f"{manifest['set_id']}",
        examined.leaks.headline(),
        *diagnosis.lines(),
    ]
    if cfg.against:
        lines += _against(manifest, Path(cfg.against))
    return lines


def _table(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PreparedSetError(
            f"{path} cannot be read as a table: {error}. Prepare the set again."
        ) from error


def _against(manifest: Mapping[str, Any], other: Path) -> list[str]:
    theirs = read_manifest(other)
    if theirs["set_id"] == manifest["set_id"]:
        return [f"{other} is the same set."]
    return [f"{other} is another set:", *(f"  {d}" for d in differences(manifest, theirs))]


@entry_point("doctor")
def main(cfg: DictConfig) -> list[str]:
    lines = doctor(cfg)
    print("\n".join(lines))
    return lines


if __name__ == "__main__":
    main()
