"""How much a split shows in train of what it asks in test: ``python -m geopak.prepare leaks``.

Works for any table with a split, made here or elsewhere.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.data.ingest import read_split_table
from geopak.data.leaks import LeakReport, leak_report
from geopak.data.partitions import map_partitions
from geopak.data.photo_paths import ResolvedPaths
from geopak.data.quality import crashed_files, examine_files
from geopak.errors import ConfigError, TableError
from geopak.options import plain
from geopak.schema.preparation import ExecutorSettings

log = logging.getLogger(__name__)


def measure_leaks(cfg: DictConfig) -> LeakReport:
    """Measures the leaks of the table that the configuration names.

    Args:
        cfg: configuration with the keys of ``conf/leaks.yaml``.

    Raises:
        TableError: the table cannot be read or lacks a column.
    """
    path = Path(cfg.table)
    photos = read_split_table(path, plain(cfg.columns))
    if cfg.hash_photos:
        photos = photos.assign(phash=_hashes(photos, path, Path(cfg.root), cfg.workers))
    return leak_report(
        photos,
        train=cfg.train,
        held_out=tuple(cfg.held_out),
        distances_km=tuple(cfg.distances_km),
        near_duplicate_bits=cfg.near_duplicate_bits,
    )


def _hashes(photos: pd.DataFrame, table: Path, root: Path, workers: int | None) -> pd.Series:
    """(N,) perceptual hashes; missing where there is no photo below the root that decodes."""
    if "path" not in photos:
        raise TableError(
            f"{table} has no column 'path', so its photos cannot be hashed. Leave out "
            "hash_photos=true, or add the column."
        )
    paths = ResolvedPaths(photos["path"].astype("string").fillna(""), root)
    usable = np.ones(len(photos), bool)
    for reason, rows, told in paths.problems():
        usable &= ~rows
        log.warning("%s rows: %s, such as: %s", f"{rows.sum():,}", reason, told.iloc[0])
    measures = map_partitions(
        examine_files,
        [str(root / path) for path in paths.normal[usable]],
        store=None,
        executor=ExecutorSettings(workers=workers),
        describe="hashing photos",
        failed=crashed_files,
    ).set_axis(photos.index[usable])
    for kind, count in measures["error_kind"].value_counts().items():
        log.warning("%s photos cannot be hashed: %s", f"{count:,}", kind)
    return measures["phash"].where(measures["error"].isna()).reindex(photos.index)


@entry_point("leaks")
def main(cfg: DictConfig) -> dict[str, Any]:
    if cfg.out and not Path(cfg.out).resolve().parent.is_dir():
        raise ConfigError(f"out={cfg.out}: there is no such folder. Make it first.")
    report = measure_leaks(cfg)
    print("\n".join([report.headline(), *report.lines()]))
    content = report.to_dict()
    if cfg.out:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        Path(cfg.out).write_text(text + "\n", encoding="utf-8")
    return content


if __name__ == "__main__":
    main()
