"""What the command ``geopak.prepare`` does: photo tables to a clean split table and geocells.

``prepare`` names the steps in their order; each is a function of its own in ``geopak.data`` and
``geopak.geo``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from geopak.data.atomic import replaced_folder
from geopak.data.ingest import read_sources, source_names
from geopak.data.manifest import (
    file_sha256,
    make_manifest,
    photo_files_sha256,
    table_sha256,
    write_manifest,
)
from geopak.data.partitions import map_partitions
from geopak.data.provinces import assign_provinces
from geopak.data.quality import (
    MEASURES_VERSION,
    crashed_files,
    examine_files,
    judge,
    may_pass,
)
from geopak.data.split import SPLITS, read_previous, split_with_report
from geopak.data.table import (
    ORIGIN_COLUMNS,
    REJECTION_COLUMNS,
    natural_order,
    rejections,
    validate,
)
from geopak.doctor import look_over
from geopak.errors import ConfigError, PreparedSetError
from geopak.geo.boundaries import Outlines
from geopak.geo.cell_settings import CellSettings
from geopak.geo.clustering import CellBuild, build_cells
from geopak.geo.outline_report import examine_outlines
from geopak.geo.region import Region
from geopak.models.places365 import IndoorClassifier, indoor_scores
from geopak.options import options, plain
from geopak.report.preparation import Preparation, summarize, write_preparation_report
from geopak.schema.preparation import (
    ExecutorSettings,
    IndoorSettings,
    ProvinceSettings,
    QualitySettings,
    SplitSettings,
    Thresholds,
    ValidationSettings,
)

log = logging.getLogger(__name__)

PHOTO_COLUMNS = (
    "id", "path", "latitude", "longitude", "province", "province_id", "label_province",
    "near_border", "cell_id", "urban", "split", "source", "license", "author", "captured_at", "url",
    "width", "height", "album", "accuracy_km", "look", "phash", "sha256", "file", "line",
)  # fmt: skip
# What a set consists of: other columns can differ without making it another set.
_IDENTITY = ("id", "path", "latitude", "longitude", "province_id", "cell_id", "split")
_OWN_FILES = ("photos.parquet", "cells.parquet", "summary.json")


@dataclass(frozen=True)
class Settings:
    """The settings of every step."""

    validation: ValidationSettings
    provinces: ProvinceSettings
    quality: QualitySettings
    indoor: IndoorSettings
    split: SplitSettings
    cells: CellSettings
    executor: ExecutorSettings
    seed: int

    @classmethod
    def from_config(cls, cfg: DictConfig) -> Settings:
        """Reads and checks all sections before any work.

        Raises:
            ConfigError: an unknown key, a wrong type or an impossible value.
        """
        kinds: dict[str, Any] = {
            "validation": ValidationSettings,
            "provinces": ProvinceSettings,
            "quality": QualitySettings,
            "indoor": IndoorSettings,
            "split": SplitSettings,
            "cells": CellSettings,
            "executor": ExecutorSettings,
        }
        sections = {key: options(kind, plain(cfg[key]), key) for key, kind in kinds.items()}
        return cls(**sections, seed=cfg.seed)

    def to_dict(self) -> dict[str, Any]:
        """All that decides what the set becomes, as plain containers."""
        config = dataclasses.asdict(self)
        # Who computes it does not change the result; where files lie is true on one machine only.
        del config["executor"]
        config["indoor"] = {"max_probability": self.indoor.max_probability}
        del config["split"]["previous"]
        return config

    def files(self) -> dict[str, Any]:
        """Name and hash of every file that the settings name."""
        named = {
            "indoor.checkpoint": self.indoor.checkpoint,
            "indoor.categories": self.indoor.categories,
            "split.previous": self.split.previous,
        }
        return {key: _file_entry(path) for key, path in named.items() if path is not None}


def prepare(cfg: DictConfig) -> dict[str, Any]:
    """Runs all steps and writes the prepared set.

    Args:
        cfg: configuration with the keys of ``conf/prepare.yaml``.

    Returns:
        The content of ``summary.json``.

    Raises:
        GeopakError: input that cannot be used; says which file, row or key, and the remedy.
    """
    settings = Settings.from_config(cfg)
    thresholds = options(Thresholds, plain(cfg.thresholds), "thresholds")
    region = Region.from_config(plain(cfg.region))
    outlines = Outlines.of_region(region)
    outline_report = examine_outlines(outlines, region)
    for line in outline_report.lines():
        log.warning("outlines: %s", line)
    root, out = Path(cfg.root), Path(cfg.out)
    _check_out(out, root)
    previous = None if settings.split.previous is None else read_previous(settings.split.previous)
    clock = _Clock()
    raw = read_sources(list(cfg.tables), list(cfg.folders), root, plain(cfg.columns))
    with replaced_folder(out) as folder:
        photos, invalid = validate(raw, root, region, settings.validation)
        clock.lap("ingest")
        # Before quality, lest a misplaced photo be kept as the original of a duplicate and go.
        photos, misplaced, disagreements = assign_provinces(
            photos, outlines, region, settings.provinces.border_km
        )
        _check_provinces(photos, pd.concat([invalid, misplaced]), region)
        clock.lap("provinces")
        measures = _examine(photos, root, cfg.work, settings)
        examined_sha256 = photo_files_sha256(photos["path"], measures["sha256"])
        photos, bad = judge(photos, measures, settings.quality)
        num_crowded = int(photos.attrs.pop("num_crowded", 0))
        photos, indoor = _outdoors(photos, root, cfg.work, settings)
        clock.lap("quality")
        rejected = pd.concat([invalid, misplaced, bad, indoor])
        _check_counts(photos.index, rejected.index, len(raw))
        _check_provinces(photos, rejected, region)
        disagreements = disagreements.loc[disagreements.index.intersection(photos.index)]
        photos = photos.loc[natural_order(photos["id"]).sort_values(kind="stable").index]
        split = split_with_report(photos, settings.split, settings.seed, previous)
        photos["split"] = split.split
        clock.lap("split")
        built = _add_cells(photos, region, settings.cells)
        clock.lap("cells")

        photos = photos.join(raw[list(ORIGIN_COLUMNS)])
        table = photos.reindex(columns=list(PHOTO_COLUMNS)).reset_index(drop=True)
        rejected = _rejected_table(raw, rejected)
        config = settings.to_dict()
        examined = look_over(
            table, rejected, built.cells, region, config, outline_report, thresholds
        )
        clock.lap("diagnosis")
        manifest = make_manifest(
            region=region.to_dict() | {"boundaries": _name(region.boundaries)},
            config=config,
            inputs={
                "tables": _inputs(cfg, raw),
                "outlines": _file_entry(str(region.boundaries)),
                **settings.files(),
                "photos": examined_sha256,
            },
            content={
                "photos": table_sha256(table, _IDENTITY),
                "photo_files": photo_files_sha256(table["path"], table["sha256"]),
                "rejected": table_sha256(
                    rejected.sort_values(["id", "path", "reason"], kind="stable"),
                    ("id", "path", "reason"),
                ),
                "cells": built.cells.fingerprint(),
            },
        )
        summary = {
            "set_id": manifest["set_id"],
            "region": region.name,
            "config": config,
            **summarize(
                region, table, rejected, disagreements, built.cells, built.before, len(raw)
            ),
            # Photos that resemble so many others that look-alikes may have been missed.
            "num_crowded": num_crowded,
            "split_notes": [
                *split.notes,
                *(f"{region.names[p.province_id]}: {n}" for p in split.provinces for n in p.notes),
            ],
            "outlines": outline_report.to_dict(),
            "leaks": examined.leaks.to_dict(),
            "leaks_headline": examined.leaks.headline(),
            "findings": [dataclasses.asdict(f) for f in examined.diagnosis.findings],
        }
        table.to_parquet(folder / "photos.parquet", index=False)
        rejected.to_parquet(folder / "rejected.parquet", index=False)
        disagreements.to_csv(folder / "label_disagreements.csv", index=False)
        built.cells.write(folder, region)
        write_preparation_report(
            Preparation(
                photos=table,
                rejected=rejected,
                disagreements=disagreements,
                measures=_shown_measures(measures, settings.quality),
                cells=built.cells,
                before=built.before,
                region=region,
                outlines=outlines,
                outline_report=outline_report,
                leaks=examined.leaks,
                diagnosis=examined.diagnosis,
                summary=summary,
                manifest=manifest,
                root=root,
                min_distance_km=settings.split.min_distance_km,
            ),
            folder,
        )
        clock.lap("write")
        summary["seconds"] = clock.seconds
        text = json.dumps(summary, indent=2, ensure_ascii=False)
        (folder / "summary.json").write_text(text + "\n", encoding="utf-8")
        write_manifest(manifest, folder)
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


def _examine(
    photos: pd.DataFrame, root: Path, work: str | None, settings: Settings
) -> pd.DataFrame:
    """The measures of every photo, those of an earlier run taken over."""
    return map_partitions(
        examine_files,
        [str(root / path) for path in photos["path"]],
        store=None if work is None else Path(work) / "examined",
        executor=settings.executor,
        describe="examining photos",
        version=f"{MEASURES_VERSION}, Pillow {PIL.__version__}",
        passing=may_pass,
        failed=crashed_files,
    )


def _outdoors(
    photos: pd.DataFrame, root: Path, work: str | None, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Parts photos into those taken outdoors and rejections, where a scene classifier is given."""
    chosen = settings.indoor
    if not chosen.enabled or photos.empty:
        return photos, pd.DataFrame(columns=list(REJECTION_COLUMNS), dtype="string")
    classifier = IndoorClassifier.load(chosen)
    scores = map_partitions(
        functools.partial(indoor_scores, classifier=classifier),
        [str(root / path) for path in photos["path"]],
        store=None if work is None else Path(work) / "indoor",
        executor=settings.executor.in_this_process(),
        describe="telling indoors from outdoors",
    ).set_axis(photos.index)
    probability = scores["indoor_probability"]
    inside = probability > chosen.max_probability
    detail = probability[inside].map("indoors with probability {:.2f}".format)
    return photos[~inside], rejections(photos.index[inside], "indoor", detail)


def _check_counts(kept: pd.Index, rejected: pd.Index, num_rows: int) -> None:
    """Every row that was read is either kept or rejected, exactly once."""
    rows = np.sort(np.concatenate((kept.to_numpy(np.int64), rejected.to_numpy(np.int64))))
    if not np.array_equal(rows, np.arange(num_rows)):
        raise AssertionError(
            f"{num_rows:,} rows were read, {len(kept):,} kept and {len(rejected):,} rejected: rows "
            "were lost or counted twice."
        )


def _check_provinces(photos: pd.DataFrame, rejected: pd.DataFrame, region: Region) -> None:
    """Ends the run as soon as a province has no photo left, as nothing can be learned there.

    Raises:
        PreparedSetError: names the provinces, and what became of the rows.
    """
    counts = np.bincount(photos["province_id"].to_numpy(np.int64), minlength=region.num_provinces)
    lacking = [name for name, count in zip(region.names, counts, strict=True) if not count]
    if not lacking:
        return
    num_rows = len(photos) + len(rejected)
    lines = [
        f"  {len(rows):,} {reason}, such as: {rows['detail'].iloc[0]}"
        for reason, rows in rejected.groupby("reason")
    ]
    if photos.empty:
        raise PreparedSetError("\n".join([f"None of the {num_rows:,} rows can be used:", *lines]))
    left = [f"{len(photos):,} of the {num_rows:,} rows are left.", *lines]
    raise PreparedSetError(
        f"No photo is left in {', '.join(lacking)}, and every province of the region needs some. "
        "Add photos there, look at the reasons below and at the outlines "
        "(region.boundaries), or take the province out of the region.\n" + "\n".join(left)
    )


def _add_cells(photos: pd.DataFrame, region: Region, settings: CellSettings) -> CellBuild:
    """Makes cells of the train photos alone, and gives every photo its cell."""
    latlon_deg = photos[["latitude", "longitude"]].to_numpy()
    province_id = photos["province_id"].to_numpy()
    train = (photos["split"] == "train").to_numpy(bool)
    built = build_cells(latlon_deg[train], province_id[train], region, settings)
    cell_id = np.empty(len(photos), np.int64)
    cell_id[train] = built.cell_id
    cell_id[~train] = built.cells.nearest(latlon_deg[~train], province_id[~train])
    photos["cell_id"] = cell_id
    photos["urban"] = built.cells.urban[cell_id]
    return built


def _rejected_table(raw: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    rows = raw.loc[rejected.index].drop(columns=["malformed"])
    columns = [c for c in rows.columns if c not in ORIGIN_COLUMNS]
    return rows[[*columns, *ORIGIN_COLUMNS]].join(rejected).sort_index().reset_index(drop=True)


def _inputs(cfg: DictConfig, raw: pd.DataFrame) -> list[dict[str, Any]]:
    """Name, rows and content hash of every source; names only, a set may be moved."""
    rows = raw["file"].value_counts()
    tables = zip(source_names(cfg.tables), cfg.tables, strict=True)
    entries = {name: {"file": name, "sha256": file_sha256(path)} for name, path in tables}
    folders = {str(name): {"file": str(name)} for name in sorted(rows.index) if name not in entries}
    return [{**entry, "rows": int(rows[name])} for name, entry in (entries | folders).items()]


def _name(path: str | None) -> str | None:
    return None if path is None else Path(path).name


def _file_entry(path: str) -> dict[str, Any]:
    """Name and hash of a file, of all files of a Shapefile, of a prepared set's photos."""
    file = Path(path)
    if file.is_dir():
        return {"file": file.name, "sha256": file_sha256(file / "photos.parquet")}
    if file.suffix.lower() == ".shp":
        parts = sorted(p for p in file.parent.glob(f"{file.stem}.*") if p.is_file())
        return {"file": file.name, "sha256": {p.name: file_sha256(p) for p in parts}}
    return {"file": file.name, "sha256": file_sha256(file)}


def _shown_measures(
    measures: pd.DataFrame, settings: QualitySettings
) -> dict[str, tuple[np.ndarray[Any, Any], float | None]]:
    """The measures whose distribution the report shows, with the least that is asked of each."""
    decoded = measures[measures["error"].isna()]
    if decoded.empty:
        return {}
    return {
        "shorter side, pixels": (
            decoded[["width", "height"]].min(axis=1).to_numpy(float),
            settings.min_side_px,
        ),
        "contrast": (decoded["contrast"].to_numpy(float), settings.min_contrast),
        "sharpness": (decoded["sharpness"].to_numpy(float), settings.min_sharpness),
    }


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
    for note in summary["split_notes"]:
        console.print(f"split: {note}", highlight=False, soft_wrap=True)
    if summary["num_crowded"]:
        console.print(
            f"{summary['num_crowded']:,} photos resemble so many others that near-duplicates of "
            "theirs may have been missed"
        )
    console.print(summary["leaks_headline"], highlight=False, soft_wrap=True)
    levels = [finding["level"] for finding in summary["findings"]]
    console.print(
        f"doctor: {levels.count('wrong')} wrong, {levels.count('weak')} weak "
        f"(python -m geopak.prepare doctor prepared={out})",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"prepared set: {out}", soft_wrap=True)
    console.print(f"report:       {out / 'report.html'}", soft_wrap=True)
