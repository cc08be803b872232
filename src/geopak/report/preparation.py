"""The report of a preparation: ``report.html``, complete in one file, and its figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from geopak.data.diagnosis import Diagnosis
from geopak.data.leaks import LeakReport
from geopak.data.quality import FORMATS
from geopak.data.split import SPLITS
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.density import RawClusters
from geopak.geo.outline_report import OutlineReport
from geopak.geo.region import Region
from geopak.report import preparation_figures as figures
from geopak.report.page import Gallery, Page, Section, Table, Thumbnail, small_jpeg, write_page

FIGURE_FOLDER = "figures"
_THUMBNAIL_PX = 160
_THUMBNAILS_PER_REASON = 6
_MOST_REASONS = 14
_MOST_ROWS = 12


@dataclass(frozen=True)
class Preparation:
    """All that a preparation leaves behind and its report shows.

    Attributes:
        photos: the split table.
        rejected: all other rows, with ``reason`` and ``detail``.
        disagreements: photos whose province label disagrees with their coordinates.
        measures: title of a quality measure -> its values, and the least that was asked.
        cells, before: geocells, and the clusters that they were made of.
        region, outlines: provinces and their borders.
        outline_report: what is odd about the outlines.
        leaks: of the split.
        diagnosis: the doctor's findings.
        summary: the content of ``summary.json``.
        manifest: identity of the set.
        root: folder that photo paths are relative to.
        min_distance_km: what the split was to keep between train and the held-out photos.
    """

    photos: pd.DataFrame
    rejected: pd.DataFrame
    disagreements: pd.DataFrame
    measures: Mapping[str, tuple[np.ndarray[Any, Any], float | None]]
    cells: CellTable
    before: RawClusters
    region: Region
    outlines: Outlines
    outline_report: OutlineReport
    leaks: LeakReport
    diagnosis: Diagnosis
    summary: Mapping[str, Any]
    manifest: Mapping[str, Any]
    root: Path
    min_distance_km: float


def summarize(
    region: Region,
    photos: pd.DataFrame,
    rejected: pd.DataFrame,
    disagreements: pd.DataFrame,
    cells: CellTable,
    before: RawClusters,
    num_rows: int,
) -> dict[str, Any]:
    """The counts of a preparation, as ``summary.json`` has them.

    Args:
        region, photos, rejected, disagreements, cells, before: see :class:`Preparation`.
        num_rows: rows read, kept and rejected together.
    """
    by_split = photos.groupby(["province", "split"]).size()
    per_province, of_cells = {}, {}
    for index, province in enumerate(region.provinces):
        counts = {s: int(by_split.get((province.name, s), 0)) for s in SPLITS}
        per_province[province.name] = {
            **counts,
            "buffer_share": round(counts["buffer"] / max(1, sum(counts.values())), 4),
        }
        own = cells.province_id == index
        raw_km = before.radius_km[before.province_id == index]
        of_cells[province.name] = {
            "cells": int(own.sum()),
            "target_cells": province.target_cells,
            "urban": int(cells.urban[own].sum()),
            "sparse": int(cells.sparse[own].sum()),
            "median_count": float(np.median(cells.count[own])),
            "median_radius_km": round(float(np.median(cells.radius_km[own])), 3),
            "max_radius_km": round(float(cells.radius_km[own].max()), 3),
            "max_radius_before_km": round(float(raw_km.max(initial=0.0)), 3),
        }
    totals = photos["split"].value_counts()
    reasons = rejected["reason"].value_counts()
    labels = disagreements["label_province"].value_counts()
    return {
        "rows": {"in": num_rows, "kept": len(photos), "rejected": len(rejected)},
        "rejected_by_reason": {str(reason): int(n) for reason, n in reasons.items()},
        "split": {
            "total": {s: int(totals.get(s, 0)) for s in SPLITS},
            "per_province": per_province,
        },
        "label_disagreements": {
            "total": len(disagreements),
            "by_label": {str(label): int(n) for label, n in labels.items()},
        },
        "near_border": int(photos["near_border"].sum()),
        "cells": {"total": cells.num_cells, "per_province": of_cells},
    }


def write_preparation_report(made: Preparation, folder: Path) -> None:
    """Writes ``report.html`` and the figures that it embeds.

    Args:
        made: what the report shows.
        folder: the set's folder.
    """
    (folder / FIGURE_FOLDER).mkdir(exist_ok=True)
    latlon_deg = made.photos[["latitude", "longitude"]].to_numpy(float)
    figures.draw_split_map(
        folder / _figure("split_map"), latlon_deg, made.photos["split"].to_list(), made.outlines,
        made.region,
    )  # fmt: skip
    figures.draw_cells_before_and_after(
        folder / _figure("cells"), made.before, made.cells, made.outlines, made.region
    )
    figures.draw_cell_histograms(folder / _figure("cell_sizes"), made.before, made.cells)
    if made.measures:
        figures.draw_quality_histograms(folder / _figure("quality"), made.measures)
    figures.draw_nearest_train(
        folder / _figure("nearest_train"),
        {name: leak.nearest_train_km for name, leak in made.leaks.held_out.items()},
        made.min_distance_km,
    )
    write_page(_page(made), folder, formats=("html",))


def _figure(name: str) -> str:
    return f"{FIGURE_FOLDER}/{name}.png"


def _page(made: Preparation) -> Page:
    rows, cells = made.summary["rows"], made.cells
    counts = made.summary["split"]["total"]
    tiles = [
        ("rows read", f"{rows['in']:,}", f"{rows['kept']:,} kept, {rows['rejected']:,} rejected"),
        (
            "photos to train on",
            f"{counts['train']:,}",
            f"val {counts['val']:,}, test {counts['test']:,}, buffer {counts['buffer']:,}",
        ),
        (
            "geocells",
            f"{cells.num_cells:,}",
            f"radius up to {cells.radius_km.max():.1f} km, {int(cells.sparse.sum()):,} sparse",
        ),
        _leak_tile(made),
    ]
    sections = [
        Section(
            "What is wrong or weak",
            points=[f"{f.level}: {f.text} {f.remedy}".strip() for f in made.diagnosis.findings]
            or ["Nothing was found."],
        )
    ]
    if made.diagnosis.advice:
        sections.append(Section("What would help most", points=list(made.diagnosis.advice)))
    sections += [
        Section(
            "Where the photos are",
            [
                "Whole places are drawn for test and val, and train photos that lie too close to "
                "them, or are tied to them by author and day, album or look, are set aside "
                "(buffer)."
                if made.summary["config"]["split"]["method"] != "random"
                else "Photos were drawn at random: for comparison only."
            ],
            points=list(made.summary["split_notes"]),
            table=_province_table(made),
            figure=_figure("split_map"),
        ),
        Section(
            "Does train show what test asks?",
            [made.leaks.headline()],
            points=made.leaks.lines(),
            figure=_figure("nearest_train"),
            caption="The line is the distance that the split was to keep.",
        ),
        Section(
            "Geocells, before and after the rules",
            [
                "Before: the density clusters of HDBSCAN alone, with the photos that belong to no "
                "cluster taken for one cell per province. After: noise given to the nearest cell, "
                "cells split at the radius cap, sparse ones merged where the cap allows.",
            ],
            table=_cell_table(made),
            figure=_figure("cells"),
        ),
        Section("Sizes of the geocells", figure=_figure("cell_sizes")),
        _rejected_section(made),
    ]
    if made.measures:
        sections.append(
            Section(
                "Quality of the photos",
                figure=_figure("quality"),
                caption="All photos that decode, on logarithmic axes; the line is the least that "
                "was asked.",
            )
        )
    sections += [_label_section(made), _outline_section(made), _origin_section(made)]
    sections.append(
        Section(
            "What this set is",
            ["manifest.json holds the hashes of all inputs and outputs, and every setting."],
            table=Table(("", ""), _facts(made)),
        )
    )
    return Page(
        title=f"{made.region.title}: a photo set and its geocells",
        subtitle=f"{rows['kept']:,} photos, {made.region.num_provinces} provinces, "
        f"split by {made.summary['config']['split']['method'].replace('_', ' ')}, "
        f"set {made.manifest['set_id']}",
        tiles=tiles,
        sections=sections,
    )


def _leak_tile(made: Preparation) -> tuple[str, str, str]:
    leak = made.leaks.held_out["test"]
    near = f"within {made.min_distance_km * 1000:,.0f} m of a train photo"
    if not leak.num_photos:
        return ("test photos", "none", "nothing can be measured")
    share = leak.within(made.min_distance_km) / leak.num_photos
    median = float(np.median(leak.nearest_train_km))
    return ("test photos beside train", f"{share:.1%}", f"{near}; half of them {median:.1f} km off")


def _province_table(made: Preparation) -> Table:
    per_province = made.summary["split"]["per_province"]
    rows = [
        [name, *(f"{counts[s]:,}" for s in SPLITS), f"{counts['buffer_share']:.1%}"]
        for name, counts in per_province.items()
    ]
    total = made.summary["split"]["total"]
    share = total["buffer"] / max(1, sum(total.values()))
    rows.append(["all", *(f"{total[s]:,}" for s in SPLITS), f"{share:.1%}"])
    return Table(("", *SPLITS, "buffer's share"), rows, strong=(len(rows) - 1,))


def _cell_table(made: Preparation) -> Table:
    rows = [
        [
            name,
            f"{cells['cells']:,}",
            f"{cells['target_cells']:,}",
            f"{cells['urban']:,}",
            f"{cells['sparse']:,}",
            f"{cells['median_count']:,.0f}",
            f"{cells['median_radius_km']:.1f} km",
            f"{cells['max_radius_km']:.1f} km",
            f"{cells['max_radius_before_km']:,.0f} km",
        ]
        for name, cells in made.summary["cells"]["per_province"].items()
    ]
    columns = (
        "", "cells", "wished for", "urban", "sparse", "median photos", "median radius",
        "largest radius", "largest before",
    )  # fmt: skip
    return Table(columns, rows)


def _rejected_section(made: Preparation) -> Section:
    counts = made.rejected["reason"].value_counts()
    if counts.empty:
        return Section("Rejected rows", ["None."])
    firsts = made.rejected.drop_duplicates("reason").set_index("reason")
    firsts = firsts.loc[counts.index, ["file", "line", "detail"]]
    rows = [
        [str(reason), f"{count:,}", f"{file}, line {line}: {_shortened(detail)}"]
        for (reason, count), (file, line, detail) in zip(
            counts.items(), firsts.itertuples(index=False), strict=True
        )
    ]
    return Section(
        "Rejected rows",
        ["Every one is in rejected.parquet, with file, line, reason and detail."],
        table=Table(("reason", "rows", "for example"), rows, words=(2,)),
        galleries=[
            Gallery(f"{reason}: {counts[reason]:,}", _thumbnails(made, str(reason)))
            for reason in counts.index[:_MOST_REASONS]
            if made.rejected.loc[made.rejected["reason"] == reason, "path"].notna().any()
        ],
    )


def _thumbnails(made: Preparation, reason: str) -> list[Thumbnail]:
    rows = made.rejected[(made.rejected["reason"] == reason) & made.rejected["path"].notna()]
    chosen = np.unique(np.linspace(0, len(rows) - 1, _THUMBNAILS_PER_REASON).round().astype(int))
    # What a worker could not decode, or died of, is no picture to show and not tried again here.
    shown = not reason.startswith("undecodable")
    return [
        Thumbnail(
            _small_jpeg(made.root, str(row["path"])) if shown else b"",
            f"{_shortened(row['id'], 40)}: {_shortened(row['detail'])}",
        )
        for _, row in rows.iloc[chosen].iterrows()
    ]


def _small_jpeg(root: Path, path: str) -> bytes:
    """A small JPEG of a photo under the root; empty if there is none or it does not decode."""
    try:
        file = (root / path).resolve()
        if not file.is_relative_to(root.resolve()) or not file.is_file():
            return b""
    except (OSError, ValueError, RuntimeError):  # a rejected path may be anything
        return b""
    return small_jpeg(file, _THUMBNAIL_PX, FORMATS)


def _shortened(text: object, most: int = 110) -> str:
    words = str(text)
    return words if len(words) <= most else words[: most - 1] + "…"


def _label_section(made: Preparation) -> Section:
    wrong = made.disagreements
    title = "Province labels"
    if wrong.empty:
        return Section(title, ["No label disagrees with its coordinates."])
    counts = wrong.groupby(["label_province", "province"], as_index=False).agg(
        photos=("id", "size"), near_border=("near_border", "sum")
    )
    counts = counts.sort_values("photos", ascending=False, kind="stable")
    rows = [
        [str(label), str(found), f"{photos:,}", f"{near:,}"]
        for label, found, photos, near in counts.head(_MOST_ROWS).itertuples(index=False)
    ]
    return Section(
        title,
        [
            f"{len(wrong):,} labels disagree with their coordinates; the coordinates are used. All "
            "are in label_disagreements.csv."
        ],
        table=Table(
            ("label", "coordinates are in", "photos", "of them near a border"), rows, words=(1,)
        ),
    )


def _outline_section(made: Preparation) -> Section:
    near = made.summary["near_border"]
    return Section(
        "Outlines",
        [
            f"{near:,} photos lie within {made.summary['config']['provinces']['border_km']:g} km "
            "of a border (near_border in photos.parquet)."
        ],
        points=made.outline_report.lines()
        or ["No overlap, gap or invalid ring was found in the outlines."],
    )


def _origin_section(made: Preparation) -> Section:
    rows = []
    for column in ("source", "author", "license"):
        values = made.photos[column].dropna()
        for value, count in values.value_counts().head(4).items():
            rows.append(
                [column, _shortened(value, 60), f"{count:,}", f"{count / len(made.photos):.1%}"]
            )
        missing = len(made.photos) - len(values)
        if missing:
            share = missing / len(made.photos)
            rows.append([column, "unknown", f"{missing:,}", f"{share:.1%}"])
    return Section(
        "Where the photos come from",
        table=Table(("of", "", "photos", "share"), rows, words=(1,)),
    )


def _facts(made: Preparation) -> list[Sequence[str]]:
    manifest = made.manifest
    facts: list[Sequence[str]] = [
        ("set id", manifest["set_id"]),
        ("geopak", manifest["geopak"]),
    ]
    facts += [
        (f"input {entry['file']}", f"{entry['rows']:,} rows, sha256 {entry.get('sha256', '–')}")
        for entry in manifest["inputs"]["tables"]
    ]
    facts += [(f"content {name}", str(value)) for name, value in manifest["content"].items()]
    facts.append(("seed", str(manifest["config"]["seed"])))
    return facts
