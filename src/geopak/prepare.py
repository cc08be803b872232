"""Makes a prepared set: photo tables in, clean split table and geocells out.

    python -m geopak.prepare root=FOLDER tables=[FOLDER/photos.csv]

Writes into ``out``: ``photos.parquet`` (what is trained and measured on), ``rejected.parquet``
(every other row, with its reason), ``label_disagreements.csv``, ``cells.parquet``,
``cells.geojson``, ``map.png`` and ``summary.json``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import geopak
from geopak.cli import entry_point
from geopak.data.provinces import assign_provinces
from geopak.data.quality import QualitySettings, examine, judge
from geopak.data.split import SPLITS, SplitSettings, split_photos
from geopak.data.table import (
    ORIGIN_COLUMNS,
    REJECTION_COLUMNS,
    natural_order,
    read_folder,
    read_tables,
    validate,
)
from geopak.errors import ConfigError, PreparedSetError, nearest_name
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.clustering import CellSettings, build_cells
from geopak.geo.region import Region
from geopak.report.maps import write_preparation_map

log = logging.getLogger(__name__)

PHOTO_COLUMNS = (
    "id", "path", "latitude", "longitude", "province", "province_id", "label_province", "cell_id",
    "urban", "split", "source", "license", "author", "captured_at", "url", "width", "height",
    "album",
)  # fmt: skip
_OWN_FILES = ("photos.parquet", "cells.parquet", "summary.json")

Settings = TypeVar("Settings", QualitySettings, SplitSettings, CellSettings)


def prepare(cfg: DictConfig) -> dict[str, Any]:
    """Runs all steps and writes the prepared set.

    Args:
        cfg: configuration with the keys of ``conf/prepare.yaml``.

    Returns:
        The content of ``summary.json``.

    Raises:
        GeopakError: input that cannot be used; says which file, row or key, and the remedy.
    """
    quality = _settings(QualitySettings, cfg, "quality")
    split = _settings(SplitSettings, cfg, "split")
    cell_settings = _settings(CellSettings, cfg, "cells")
    region = Region.from_config(OmegaConf.to_container(cfg.region, resolve=True))  # type: ignore[arg-type]
    outlines = Outlines.of_region(region)
    root, out = Path(cfg.root), Path(cfg.out)
    _check_out(out, root)
    clock = _Clock()

    raw = _ingest(cfg, root)
    photos, invalid = validate(raw, root, region)
    clock.lap("ingest")
    # Before quality, lest a misplaced photo be kept as the original of a duplicate and then go.
    photos, misplaced, disagreements = assign_provinces(photos, outlines, region)
    photos, bad = _check_quality(photos, root, quality, cfg.workers)
    clock.lap("quality")
    rejected = pd.concat([invalid, misplaced, bad])
    disagreements = disagreements.loc[disagreements.index.intersection(photos.index)]
    if photos.empty:
        raise PreparedSetError(_nothing_left(rejected, len(raw)))
    photos = photos.loc[natural_order(photos["id"]).sort_values(kind="stable").index]
    photos["split"] = split_photos(photos, split, cfg.seed)
    clock.lap("split")
    cells = _add_cells(photos, region, cell_settings)
    clock.lap("cells")

    # Every row that was read is either kept or rejected, exactly once.
    assert sorted([*photos.index, *rejected.index]) == list(range(len(raw)))
    summary = {
        "geopak": geopak.__version__,
        "region": region.name,
        "seed": int(cfg.seed),
        "config": {
            "quality": dataclasses.asdict(quality),
            "split": dataclasses.asdict(split),
            "cells": dataclasses.asdict(cell_settings),
        },
        "inputs": _inputs(cfg, raw),
        **_summary(region, photos, rejected, disagreements, cells, len(raw)),
    }
    summary["fingerprints"] = {
        "outlines": _short_hash(json.dumps(outlines.to_dict()).encode()),
        "cells": cells.fingerprint(),
        "photos": _short_hash(
            photos[["id", "path", "latitude", "longitude", "province", "cell_id", "split"]]
            .to_csv(index=False)
            .encode()
        ),
    }
    with _replaced_folder(out) as folder:
        table = photos.reindex(columns=list(PHOTO_COLUMNS)).reset_index(drop=True)
        table.to_parquet(folder / "photos.parquet", index=False)
        _rejected_table(raw, rejected).to_parquet(folder / "rejected.parquet", index=False)
        disagreements.to_csv(folder / "label_disagreements.csv", index=False)
        cells.write(folder, region)
        write_preparation_map(
            folder / "map.png", outlines, region,
            photos[["latitude", "longitude"]].to_numpy(), photos["split"].to_list(), cells,
        )  # fmt: skip
        clock.lap("write")
        summary["seconds"] = clock.seconds
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
    return summary


class _Clock:
    """Seconds of each step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, step: str) -> None:
        now = time.perf_counter()
        self.seconds[step] = round(now - self._last, 2)
        self._last = now


def _settings(kind: type[Settings], cfg: DictConfig, key: str) -> Settings:
    known = [field.name for field in dataclasses.fields(kind)]
    for name in cfg[key]:
        if name not in known:
            raise ConfigError(
                f"{key}.{name} is not a setting.{nearest_name(str(name), known)} "
                f"Known: {', '.join(known)}."
            )
    return kind(**cfg[key])


def _check_out(out: Path, root: Path) -> None:
    """The folder ``out`` is replaced as a whole: it must be new, empty or an earlier result."""
    if root.resolve().is_relative_to(out.resolve()):
        raise ConfigError(
            f"out={out} holds the data root; it would be replaced. Choose a folder of its own."
        )
    if out.exists() and (
        not out.is_dir()
        or (any(out.iterdir()) and not all((out / name).is_file() for name in _OWN_FILES))
    ):
        raise PreparedSetError(
            f"{out} exists and is not a prepared set; it is not replaced. Choose another "
            "out=FOLDER."
        )


def _ingest(cfg: DictConfig, root: Path) -> pd.DataFrame:
    parts = [read_folder(folder, root) for folder in cfg.folders]
    if cfg.tables or not parts:
        parts.insert(0, read_tables(list(cfg.tables)))
    return pd.concat(parts, ignore_index=True)


def _check_quality(
    photos: pd.DataFrame, root: Path, settings: QualitySettings, workers: int | None
) -> tuple[pd.DataFrame, pd.DataFrame]:
    columns = (
        TextColumn("examining photos"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    if photos.empty:
        return photos, pd.DataFrame(columns=list(REJECTION_COLUMNS))
    measures = []
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=len(photos))
        for part in examine(photos["path"].to_list(), str(root), workers):
            measures.append(part)
            progress.advance(task, len(part))
    return judge(photos, pd.concat(measures, ignore_index=True), settings)


def _nothing_left(rejected: pd.DataFrame, num_rows: int) -> str:
    lines = [
        f"  {len(rows):,} {reason}, such as: {rows['detail'].iloc[0]}"
        for reason, rows in rejected.groupby("reason")
    ]
    return f"None of the {num_rows:,} rows can be used:\n" + "\n".join(lines)


def _add_cells(photos: pd.DataFrame, region: Region, settings: CellSettings) -> CellTable:
    """Makes cells of the train photos alone, and gives every photo its cell."""
    latlon_deg = photos[["latitude", "longitude"]].to_numpy()
    province_id = photos["province_id"].to_numpy()
    train = (photos["split"] == "train").to_numpy(bool)
    cells, of_train = build_cells(latlon_deg[train], province_id[train], region, settings)
    cell_id = np.empty(len(photos), np.int64)
    cell_id[train] = of_train
    cell_id[~train] = cells.nearest(latlon_deg[~train], province_id[~train])
    photos["cell_id"] = cell_id
    photos["urban"] = cells.urban[cell_id]
    return cells


def _rejected_table(raw: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    rows = raw.loc[rejected.index].drop(columns=list(ORIGIN_COLUMNS))
    rows = rows.assign(**{c: raw.loc[rejected.index, c] for c in ORIGIN_COLUMNS})
    return rows.join(rejected).sort_index().reset_index(drop=True)


def _inputs(cfg: DictConfig, raw: pd.DataFrame) -> list[dict[str, Any]]:
    """Name, rows and content hash of every table; names only, a set may be moved."""
    rows = raw["file"].value_counts()
    tables = [
        {"file": Path(t).name, "sha256": hashlib.sha256(Path(t).read_bytes()).hexdigest()}
        for t in cfg.tables
    ]
    folders = [{"file": name} for name in rows.index if name not in {t["file"] for t in tables}]
    return [{**entry, "rows": int(rows[entry["file"]])} for entry in [*tables, *folders]]


def _summary(
    region: Region,
    photos: pd.DataFrame,
    rejected: pd.DataFrame,
    disagreements: pd.DataFrame,
    cells: CellTable,
    num_rows: int,
) -> dict[str, Any]:
    by_split = photos.groupby(["province", "split"]).size()
    per_province, of_cells = {}, {}
    for index, province in enumerate(region.provinces):
        counts = {s: int(by_split.get((province.name, s), 0)) for s in SPLITS}
        per_province[province.name] = {
            **counts,
            "buffer_share": round(counts["buffer"] / max(1, sum(counts.values())), 4),
        }
        own = cells.province_id == index
        of_cells[province.name] = {
            "cells": int(own.sum()),
            "target_cells": province.target_cells,
            "urban": int(cells.urban[own].sum()),
            "sparse": int(cells.sparse[own].sum()),
            "median_count": float(np.median(cells.count[own])),
            "median_radius_km": round(float(np.median(cells.radius_km[own])), 3),
            "max_radius_km": round(float(cells.radius_km[own].max()), 3),
        }
    totals = photos["split"].value_counts()
    reasons = rejected["reason"].value_counts()
    return {
        "rows": {"in": num_rows, "kept": len(photos), "rejected": len(rejected)},
        "rejected_by_reason": {str(reason): int(n) for reason, n in reasons.items()},
        "split": {
            "total": {s: int(totals.get(s, 0)) for s in SPLITS},
            "per_province": per_province,
        },
        "label_disagreements": {
            "total": len(disagreements),
            "by_label": {
                str(k): int(n) for k, n in disagreements["label_province"].value_counts().items()
            },
        },
        "cells": {"total": cells.num_cells, "per_province": of_cells},
    }


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@contextlib.contextmanager
def _replaced_folder(out: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``out`` when the block ends without an error."""
    out = Path(os.path.abspath(out))
    out.parent.mkdir(parents=True, exist_ok=True)
    new = out.with_name(f".{out.name}.new-{os.getpid()}")
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    new.mkdir()
    try:
        yield new
        if out.exists():
            out.rename(old)
        new.rename(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def print_summary(summary: Mapping[str, Any], out: Path) -> None:
    """Prints the counts a person looks at first."""
    console = Console()
    rows = summary["rows"]
    console.print(
        f"{rows['in']:,} rows: {rows['kept']:,} kept, {rows['rejected']:,} rejected"
        + "".join(f"\n  {n:>7,} {why}" for why, n in summary["rejected_by_reason"].items())
    )
    wrong = summary["label_disagreements"]["total"]
    if wrong:
        console.print(
            f"{wrong:,} province labels disagree with their coordinates; the coordinates win "
            "(label_disagreements.csv)"
        )
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("province")
    for heading in (*SPLITS, "cells", "sparse", "max radius km"):
        table.add_column(heading, justify="right")
    for name, counts in summary["split"]["per_province"].items():
        cells = summary["cells"]["per_province"][name]
        table.add_row(
            name, *(f"{counts[s]:,}" for s in SPLITS), f"{cells['cells']:,}",
            f"{cells['sparse']:,}", f"{cells['max_radius_km']:.1f}",
        )  # fmt: skip
    total = summary["split"]["total"]
    table.add_row(
        "all", *(f"{total[s]:,}" for s in SPLITS), f"{summary['cells']['total']:,}", style="bold"
    )
    console.print(table)
    if summary["config"]["split"]["method"] == "random":
        console.print("[yellow]random split: for comparison only, it flatters every figure")
    console.print(f"prepared set: {out}")


@entry_point("prepare")
def main(cfg: DictConfig) -> dict[str, Any]:
    summary = prepare(cfg)
    print_summary(summary, Path(cfg.out))
    return summary


if __name__ == "__main__":
    main()
