"""What is wrong or weak in a prepared set: ``python -m geopak.prepare doctor prepared=FOLDER``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.data.diagnosis import Diagnosis, Finding, diagnose
from geopak.data.leaks import LeakReport, leak_report
from geopak.data.manifest import changed_files, differences, read_manifest
from geopak.data.table import check_split_table
from geopak.errors import PreparedSetError
from geopak.geo.cell_settings import CellSettings
from geopak.geo.cells import CellTable
from geopak.geo.invariants import check_invariants
from geopak.geo.outline_report import OutlineReport
from geopak.geo.region import Region
from geopak.options import options, plain
from geopak.schema.preparation import Thresholds

# What the checks look at, beside the columns that every table with a split has.
_PHOTO_COLUMNS = (
    "province", "province_id", "label_province", "near_border", "cell_id", "author", "captured_at",
    "source",
)  # fmt: skip


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
    outlines: OutlineReport,
    thresholds: Thresholds,
) -> Examined:
    """Measures leaks, checks the cells and says what is wrong or weak.

    Args:
        photos, rejected, cells: the set's tables.
        region: the set's region.
        config: settings of every step, as the manifest has them.
        outlines: what is questionable about the outlines.
        thresholds: from where on something is said.
    """
    leaks = leak_report(photos, near_duplicate_bits=config["quality"]["near_duplicate_bits"])
    latlon_deg = photos[["latitude", "longitude"]].to_numpy(float)
    province_id = photos["province_id"].to_numpy(np.int64)
    cell_id = photos["cell_id"].to_numpy(np.int64)
    train = (photos["split"] == "train").to_numpy(bool)
    violations = check_invariants(
        cells,
        cell_id[train],
        latlon_deg[train],
        province_id[train],
        region,
        options(CellSettings, config["cells"], "cells"),
    )
    held = ~train
    astray = cells.nearest(latlon_deg[held], province_id[held]) != cell_id[held]
    if astray.any():
        first = photos["id"][held][astray].iloc[0]
        violations.append(
            f"{int(astray.sum()):,} photos that are not in train are not in the nearest cell of "
            f"their province, such as {first}."
        )
    diagnosis = diagnose(
        photos,
        rejected,
        cells,
        region,
        leaks,
        violations,
        outlines,
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
    altered = [
        Finding(
            "wrong", "altered file",
            f"{name} is missing or not what manifest.json says.",
            "Prepare the set again, or fetch the whole of it.",
        )
        for name in changed_files(manifest, folder)
    ]  # fmt: skip
    try:
        photos = _table(folder / "photos.parquet", _PHOTO_COLUMNS)
        photos = check_split_table(photos, folder / "photos.parquet")
        rejected = _table(folder / "rejected.parquet", ("reason",))
        cells = CellTable.read(folder / "cells.parquet")
        region = Region.from_dict(manifest["region"])
        outlines = OutlineReport.from_dict(_summary(folder)["outlines"])
        examined = look_over(
            photos, rejected, cells, region, manifest["config"], outlines, thresholds
        )
    except PreparedSetError as error:
        told = "".join(f"\n{finding.text}" for finding in altered)
        raise PreparedSetError(f"{error}{told}") from error
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


def _table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise PreparedSetError(
            f"{path} cannot be read as a table: {error}. Prepare the set again."
        ) from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise PreparedSetError(
            f"{path} has no column {', '.join(missing)}: it is of another version, or altered. "
            "Prepare the set again."
        )
    return table


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["outlines"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreparedSetError(
            f"{path} is no summary of a prepared set: {error!r}. Prepare the set again."
        ) from error
    return content


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
