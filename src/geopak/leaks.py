"""How much a split shows in train of what it asks in test: ``python -m geopak.prepare leaks``.

Works for any table with a split, made here or elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from geopak.cli import entry_point
from geopak.data.ingest import read_split_table
from geopak.data.leaks import LeakReport, leak_report
from geopak.data.partitions import ExecutorSettings, map_partitions
from geopak.data.quality import crashed_files, examine_files
from geopak.errors import TableError
from geopak.options import plain


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
    """(N,) perceptual hashes; missing where a photo does not decode."""
    if "path" not in photos:
        raise TableError(
            f"{table} has no column 'path', so its photos cannot be hashed. Leave out "
            "hash_photos=true, or add the column."
        )
    measures = map_partitions(
        examine_files,
        [str(root / path) for path in photos["path"]],
        store=None,
        executor=ExecutorSettings(workers=workers),
        describe="hashing photos",
        failed=crashed_files,
    )
    return measures["phash"].where(measures["error"].isna()).set_axis(photos.index)


@entry_point("leaks")
def main(cfg: DictConfig) -> dict[str, Any]:
    report = measure_leaks(cfg)
    print("\n".join([report.headline(), *report.lines()]))
    content = report.to_dict()
    if cfg.out:
        text = json.dumps(content, indent=2, ensure_ascii=False)
        Path(cfg.out).write_text(text + "\n", encoding="utf-8")
    return content


if __name__ == "__main__":
    main()
