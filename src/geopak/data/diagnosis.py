"""What is wrong or weak in a prepared set, in plain words, and what would help most."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from geopak.data.leaks import LeakReport
from geopak.data.ties import capture_day
from geopak.geo.cells import CellTable
from geopak.geo.outline_report import OutlineReport
from geopak.geo.region import Region
from geopak.schema.preparation import Thresholds

# In the order in which they are told.
LEVELS = ("wrong", "weak", "note")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong or weak.

    Attributes:
        level: ``wrong`` (figures made with this set cannot be trusted), ``weak`` (they can, but
            are poorer or less certain than they could be) or ``note``.
        topic: a word or two: ``leaks``, ``few photos``.
        text: what was found, with its numbers.
        remedy: what to do about it.
    """

    level: str
    topic: str
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings, the worst first, and what would help most, the most helpful first."""

    findings: Sequence[Finding]
    advice: Sequence[str]

    def lines(self) -> list[str]:
        """The diagnosis as text, a paragraph per finding."""
        counts = {level: sum(f.level == level for f in self.findings) for level in LEVELS}
        lines = [
            ", ".join(
                f"{count} {word}"
                for count, word in zip(counts.values(), ("wrong", "weak", "to note"), strict=True)
            )
        ]
        for finding in self.findings:
            remedy = f" {finding.remedy}" if finding.remedy else ""
            lines.append(f"[{finding.level}] {finding.topic}: {finding.text}{remedy}")
        if self.advice:
            lines.append("What would help most:")
            lines += [f"  {k}. {text}" for k, text in enumerate(self.advice, start=1)]
        return lines


@dataclass
class _Case:
    """Everything that the checks look at."""

    photos: pd.DataFrame
    rejected: pd.DataFrame
    cells: CellTable
    region: Region
    leaks: LeakReport
    min_distance_km: float
    split_method: str
    limits: Thresholds
    train: pd.DataFrame = field(init=False)
    num_by_split: pd.DataFrame = field(init=False)

    def __post_init__(self) -> None:
        self.train = self.photos[self.photos["split"] == "train"]
        counts = pd.crosstab(self.photos["province_id"], self.photos["split"])
        self.num_by_split = counts.reindex(
            index=range(self.region.num_provinces),
            columns=["train", "val", "test", "buffer"],
            fill_value=0,
        )

    def wanted(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """(P,) train photos that the target number of cells needs at its minimum each."""
        return np.array([p.target_cells * p.min_cluster_size for p in self.region.provinces])


def diagnose(
    photos: pd.DataFrame,
    rejected: pd.DataFrame,
    cells: CellTable,
    region: Region,
    leaks: LeakReport,
    violations: Sequence[str],
    outlines: OutlineReport,
    *,
    split_method: str,
    min_distance_km: float,
    thresholds: Thresholds,
) -> Diagnosis:
    """Looks a prepared set over.

    Args:
        photos: the split table, ``photos.parquet``.
        rejected: ``rejected.parquet``.
        cells: the geocells.
        region: the set's region.
        leaks: of the set's split.
        violations: invariants of the cells that do not hold, as ``check_invariants`` gives them.
        outlines: what is questionable about the outlines.
        split_method: how the set was split.
        min_distance_km: the distance that the split was to keep.
        thresholds: from where on something is said.
    """
    case = _Case(photos, rejected, cells, region, leaks, min_distance_km, split_method, thresholds)
    findings = [
        Finding(
            "wrong", "broken cells", text,
            "photos.parquet and cells.parquet do not belong together: prepare the set again.",
        )
        for text in violations
    ]  # fmt: skip
    if not outlines.is_clean:
        findings.append(
            Finding(
                "weak", "outlines", " ".join(outlines.lines()[:3]),
                "Mend the file of region.boundaries, or give another.",
            )
        )  # fmt: skip
    for check in (
        _leaks, _split_method, _few_photos, _imbalance, _cells, _labels, _concentration, _buffer,
        _rejections, _coverage, _ties,
    ):  # fmt: skip
        findings += check(case)
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Diagnosis(tuple(findings), tuple(_advice(case)))


def _percent(share: float) -> str:
    return f"{share:.1%}" if share < 0.0995 else f"{share:.0%}"


def _named(pairs: Sequence[tuple[str, str]], most: int = 6) -> str:
    text = ", ".join(f"{name} ({what})" for name, what in pairs[:most])
    return text + (f" and {len(pairs) - most} more" if len(pairs) > most else "")


def _leaks(case: _Case) -> Iterator[Finding]:
    for split, leak in case.leaks.held_out.items():
        if not leak.num_photos:
            yield Finding(
                "wrong" if split == "test" else "weak", "empty split",
                f"There is no {split} photo.",
                f"Raise split.{split}_fraction, or add photos from more places.",
            )  # fmt: skip
            continue
        found = [
            (count, f"{count:,} ({_percent(count / leak.num_photos)}) {what}")
            for count, what in (
                (leak.within(case.min_distance_km),
                 f"within {case.min_distance_km * 1000:g} m of a train photo"),
                (leak.same_author_day, "of an author and day that train has too"),
                (leak.same_album, "of an album that train has too"),
                (leak.near_duplicate, "that look like a train photo"),
            )
            if count
        ]  # fmt: skip
        if found:
            yield Finding(
                "wrong", "leaks",
                f"Of {leak.num_photos:,} {split} photos " + ", ".join(t for _, t in found) + ".",
                "Errors measured on them flatter the model. Split with split=places or "
                "split=spatial_blocks.",
            )  # fmt: skip


def _split_method(case: _Case) -> Iterator[Finding]:
    if case.split_method == "random":
        yield Finding(
            "wrong", "random split",
            "The set was split at random, so photos of one scene are in train and test.",
            "Use it for comparison only; split=places for figures to report.",
        )  # fmt: skip


def _few_photos(case: _Case) -> Iterator[Finding]:
    for split, least, why in (
        ("train", case.limits.min_train_photos, "Little can be learned there"),
        ("test", case.limits.min_test_photos, "Figures of these provinces are anecdotes"),
    ):
        counts = case.num_by_split[split]
        few = [
            (case.region.names[k], f"{counts[k]:,}")
            for k in np.argsort(counts.to_numpy(), kind="stable")
            if counts[k] < least
        ]
        if few:
            yield Finding(
                "weak", f"few {split} photos",
                f"Provinces with fewer than {least:,} {split} photos: {_named(few)}.",
                f"{why}: collect more photos, from more places.",
            )  # fmt: skip


def _imbalance(case: _Case) -> Iterator[Finding]:
    counts = case.num_by_split["train"]
    ratio = counts.max() / max(1, counts.min())
    if ratio > case.limits.max_imbalance:
        most, fewest = (case.region.names[k] for k in (counts.argmax(), counts.argmin()))
        yield Finding(
            "weak", "imbalance",
            f"{most} has {ratio:,.0f} times as many train photos as {fewest} "
            f"({counts.max():,} and {counts.min():,}).",
            "Balanced batches repeat the few photos many times over, which invites learning them "
            "by heart: more photos help, a larger quota does not.",
        )  # fmt: skip


def _cells(case: _Case) -> Iterator[Finding]:
    sparse, full = [], []
    for index, province in enumerate(case.region.provinces):
        own = case.cells.province_id == index
        if not own.any():
            continue
        share = float(case.cells.sparse[own].mean())
        if share > case.limits.max_sparse_share:
            minimum = province.min_cluster_size
            sparse.append(
                (province.name,
                 f"{int(case.cells.sparse[own].sum())} of {int(own.sum())}, minimum {minimum}")
            )  # fmt: skip
        top = float(case.cells.count[own].max() / max(1, case.cells.count[own].sum()))
        if top > case.limits.max_cell_share and own.sum() > 3:
            full.append((province.name, _percent(top)))
    if sparse:
        yield Finding(
            "weak", "sparse cells",
            "Provinces where most cells have fewer train photos than the minimum: "
            f"{_named(sparse)}.",
            "They are places apart that nothing may be merged with inside the radius cap: more "
            "photos there, or larger caps (cells.rural_radius_cap_km).",
        )  # fmt: skip
    if full:
        yield Finding(
            "weak", "one crowded cell",
            f"Provinces with much of their train photos in a single cell: {_named(full)}.",
            "Guessing that cell already looks good there: read the densest-cell baseline of these "
            "provinces, and collect elsewhere.",
        )  # fmt: skip
    large = case.cells.radius_km >= case.limits.large_radius_km
    if large.any():
        photos = int(case.cells.count[large].sum())
        share = photos / max(1, int(case.cells.count.sum()))
        yield Finding(
            "weak" if share > 0.1 else "note", "large cells",
            f"{int(large.sum()):,} of {case.cells.num_cells:,} cells have a radius of "
            f"{case.limits.large_radius_km:g} km or more, up to "
            f"{case.cells.radius_km.max():.0f} km; {_percent(share)} of the train photos lie in "
            "them.",
            "The cell alone says little about a place there; the offset has to do the rest.",
        )  # fmt: skip


def _labels(case: _Case) -> Iterator[Finding]:
    photos = case.photos
    labelled = photos["label_province"].notna()
    if labelled.any():
        wrong = labelled & (photos["label_province"] != photos["province"]).fillna(False)
        near = photos["near_border"].astype(bool)
        clear = int((wrong & ~near).sum())
        share = clear / max(1, int((labelled & ~near).sum()))
        if wrong.any():
            pairs = photos.loc[wrong & ~near, ["label_province", "province"]].value_counts()
            worst = ", ".join(
                f"{label} said, {found} found: {n:,}"
                for label, found, n in pairs[:3].reset_index().itertuples(index=False)
            )
            yield Finding(
                "weak" if share > case.limits.max_label_noise else "note", "label noise",
                f"{int(wrong.sum()):,} of {int(labelled.sum()):,} province labels disagree with "
                f"their coordinates, {clear:,} of them away from any border "
                f"({_percent(share)} of the labels there)" + (f": {worst}." if worst else "."),
                "The coordinates are used, so labels do no harm; but a wrong label may also mean a "
                "wrong coordinate: look through label_disagreements.csv.",
            )  # fmt: skip
    share = float(photos["near_border"].mean())
    if share > case.limits.max_border_share:
        yield Finding(
            "weak", "borders",
            f"{_percent(share)} of the photos lie so close to a border that the outlines may put "
            "them on the wrong side.",
            "Give exact outlines: region.boundaries=FILE.",
        )  # fmt: skip


def _concentration(case: _Case) -> Iterator[Finding]:
    num = len(case.photos)
    for column, limit, harm in (
        ("author", case.limits.max_author_share,
         "One person's camera and habits weigh heavily"),
        ("source", case.limits.max_source_share,
         "The model learns what photos of this source look like; others will be harder"),
    ):  # fmt: skip
        values = case.photos[column].dropna()
        if values.empty:
            yield Finding("note", f"{column} unknown", f"No photo has {_article(column)}.")
            continue
        counts = values.value_counts()
        share = counts.iloc[0] / num
        if share > limit:
            yield Finding(
                "weak", f"one {column}",
                f"{_percent(share)} of the photos are from the {column} {counts.index[0]!r}.",
                f"{harm}: add photos from others.",
            )  # fmt: skip


def _article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _buffer(case: _Case) -> Iterator[Finding]:
    shares = case.num_by_split["buffer"] / case.num_by_split.sum(axis=1).clip(lower=1)
    costly = [
        (case.region.names[k], _percent(float(shares[k])))
        for k in np.argsort(-shares.to_numpy(), kind="stable")
        if shares[k] > case.limits.max_buffer_share
    ]
    if costly:
        yield Finding(
            "note", "buffer",
            "The split sets aside many photos that lie between train and the held-out places: "
            f"{_named(costly)}.",
            "The price of an honest split; a smaller split.min_distance_km or larger "
            "split.block_km lowers it.",
        )  # fmt: skip


def _rejections(case: _Case) -> Iterator[Finding]:
    total = len(case.photos) + len(case.rejected)
    share = len(case.rejected) / max(1, total)
    if share > case.limits.max_rejected_share:
        reasons = case.rejected["reason"].value_counts()
        top = ", ".join(f"{reason} {n:,}" for reason, n in reasons[:4].items())
        yield Finding(
            "weak", "many rejected",
            f"{len(case.rejected):,} of {total:,} rows ({_percent(share)}) were rejected: {top}.",
            "rejected.parquet has every one with its reason; the report shows examples.",
        )  # fmt: skip


def _coverage(case: _Case) -> Iterator[Finding]:
    leak = case.leaks.held_out.get("test")
    if leak is None or not leak.num_photos:
        return
    far = [
        (case.region.names[k], f"{median:.0f} km")
        for k, median in leak.median_km_by_province(case.photos).items()
        if median > case.limits.far_from_train_km
    ]
    if far:
        yield Finding(
            "weak", "thin coverage",
            "Provinces whose test photos are mostly far from any train photo (median distance): "
            f"{_named(far)}.",
            "Errors there cannot be small: photos from more places help, more of the same places "
            "do not.",
        )  # fmt: skip


def _ties(case: _Case) -> Iterator[Finding]:
    photos = case.photos
    known = photos["author"].notna() & capture_day(photos["captured_at"]).notna()
    share = float((~known).mean())
    if share > 0.05:
        yield Finding(
            "weak" if share > 0.5 else "note", "unknown ties",
            f"Author or day is unknown for {_percent(share)} of the photos, so that photos of one "
            "walk may be in train and test, beyond the distance that the split keeps.",
            "Fill author and captured_at, or album, where the source has them.",
        )  # fmt: skip


def _advice(case: _Case) -> list[str]:
    """Where more photos would change most: the provinces farthest from what their cells need."""
    have = case.num_by_split["train"].to_numpy()
    wanted = case.wanted()
    lines = []
    for index in np.argsort(have / wanted, kind="stable")[:3]:
        missing = int(wanted[index] - have[index])
        if missing <= 0:
            continue
        province = case.region.provinces[index]
        own = case.cells.province_id == index
        sparse = int(case.cells.sparse[own].sum())
        test = int(case.num_by_split["test"].iloc[index])
        text = (
            f"{missing:,} more train photos in {province.name}: it has {have[index]:,}, and "
            f"{province.target_cells} cells of {province.min_cluster_size} photos need "
            f"{wanted[index]:,}. Of its {int(own.sum())} cells {sparse} are sparse"
        )
        if test < case.limits.min_test_photos:
            text += f", and its figures rest on {test} test photos"
        lines.append(text + ".")
    return lines
