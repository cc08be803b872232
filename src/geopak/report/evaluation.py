"""From the predictions of one model on one split to a folder that a person can judge it by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geopak import metrics
from geopak.errors import GeopakError
from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.distance import haversine_km_array
from geopak.geo.region import Region
from geopak.report import certainty_figures, evaluation_figures, photo_figures
from geopak.report.certainty import (
    Claims,
    MeasuredRegions,
    summarize_claims,
    summarize_regions,
    summarize_silence,
)
from geopak.report.evaluation_page import evaluation_page
from geopak.report.groups import PhotoGroups
from geopak.report.page import write_page
from geopak.retrieval import NearestPhotos

CONFIDENCE = 0.95
NEAREST = "nearest_train_photo_by_encoder_features"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Truth and predictions of N photos, one model, one split.

    Attributes:
        id: N photo ids.
        path: N image files, absolute or relative to the photo root.
        latlon_deg: (N, 2) true degrees, latitude first.
        province_id: (N,) true province.
        cell_id: (N,) true cell: the one of the true province whose center is nearest.
        urban: (N,) bool, the true cell is urban.
        predicted_latlon_deg: decoding rule -> (N, 2) degrees.
        rule: the rule that the model answers with; all end-to-end metrics are of this one.
        province_prob: (N, P) probabilities.
        cell_rank: (N,) rank of the true cell by joint probability over all cells, 0 = first.
        top_cell_prob: (N,) joint probability of the first cell.
        confidence: (N,) claimed probability that the truth lies within ``confidence_km`` of the
            prediction.
        confidence_km: kilometres.
        teacher_forced_latlon_deg: (N, 2) degrees, refined within the true cell.
        hypothesis_latlon_deg: (N, K, 2) degrees.
        hypothesis_probability: (N, K), sums to 1 over K.
        gate: (N,) weight of the scene encoder.
        answer_score: (N,) how far the answer may be relied on; without a calibration the
            confidence.
        uncalibrated: what the same model claims without its calibration; ``None``: it has none.
        regions: of a calibrated model, against their promise.
        abstain_below: answer scores below this get no answer; ``None``: every photo is answered.
        groups: photos that resemble each other, which the bootstrap draws together; ``None``:
            photos are taken for independent.
        nearest: the most similar train photos, for one more baseline.
    """

    id: list[str]
    path: list[str]
    latlon_deg: NDArray[np.float64]
    province_id: NDArray[np.int64]
    cell_id: NDArray[np.int64]
    urban: NDArray[np.bool_]
    predicted_latlon_deg: Mapping[str, NDArray[np.float64]]
    rule: str
    province_prob: NDArray[np.float64]
    cell_rank: NDArray[np.int64]
    top_cell_prob: NDArray[np.float64]
    confidence: NDArray[np.float64]
    confidence_km: float
    teacher_forced_latlon_deg: NDArray[np.float64]
    hypothesis_latlon_deg: NDArray[np.float64]
    hypothesis_probability: NDArray[np.float64]
    gate: NDArray[np.float64]
    answer_score: NDArray[np.float64]
    uncalibrated: Claims | None = None
    regions: MeasuredRegions | None = None
    abstain_below: float | None = None
    groups: PhotoGroups | None = None
    nearest: NearestPhotos | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise GeopakError("Nothing to evaluate: the split holds no photos.")
        if self.rule not in self.predicted_latlon_deg:
            raise GeopakError(
                f"No predictions by the rule {self.rule!r}; there are: "
                f"{', '.join(self.predicted_latlon_deg)}."
            )
        columns = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in (
            "predicted_latlon_deg", "rule", "confidence_km", "uncalibrated", "regions",
            "abstain_below", "groups", "nearest",
        ):  # fmt: skip
            del columns[name]
        if self.uncalibrated is not None:
            columns |= {f"uncalibrated {k}": v for k, v in vars(self.uncalibrated).items()}
        for promise in () if self.regions is None else self.regions.promises:
            columns |= {
                f"{name} of region {promise.name}": getattr(promise, name)
                for name in ("covered", "num_cells", "area_km2")
            }
        if self.nearest is not None:
            columns["nearest train photo"] = self.nearest.latlon_deg
        if self.groups is not None:
            columns["groups"] = self.groups.label
        columns |= {f"prediction by {k}": v for k, v in self.predicted_latlon_deg.items()}
        for name, column in columns.items():
            if len(column) != len(self.id):
                raise GeopakError(f"{name} has {len(column)} rows for {len(self.id)} photos.")
            values = np.asarray(column)
            if values.dtype.kind == "f" and (bad := ~np.isfinite(values)).any():
                row = int(bad.reshape(len(values), -1).any(1).argmax())
                raise GeopakError(f"{name} of photo {self.id[row]} is not a finite number.")

    @property
    def num_photos(self) -> int:
        return len(self.id)

    @property
    def error_km(self) -> NDArray[np.float64]:
        """(N,) end-to-end error of the main rule."""
        return self.error_of_rule_km(self.rule)

    @property
    def teacher_forced_km(self) -> NDArray[np.float64]:
        """(N,) distance left when the true cell is given."""
        return haversine_km_array(self.teacher_forced_latlon_deg, self.latlon_deg)

    @property
    def predicted_province_id(self) -> NDArray[np.int64]:
        """(N,) most probable province."""
        top: NDArray[np.int64] = np.argmax(self.province_prob, axis=1)
        return top

    @property
    def claims(self) -> Claims:
        """What the model claims, and whether it holds."""
        return Claims(
            province=self.province_prob.max(1),
            province_right=self.predicted_province_id == self.province_id,
            cell=self.top_cell_prob,
            cell_right=self.cell_rank == 0,
            confidence=self.confidence,
            within=self.error_km <= self.confidence_km,
        )

    def error_of_rule_km(self, rule: str) -> NDArray[np.float64]:
        """(N,) end-to-end error of a decoding rule."""
        return haversine_km_array(self.predicted_latlon_deg[rule], self.latlon_deg)

    def baseline_errors_km(self, cells: CellTable) -> dict[str, NDArray[np.float64]]:
        """(N,) error per baseline.

        The trivial ones know only the cells, made from train alone; the one of the nearest photo
        knows the train photos and what the encoders say of them.
        """
        centroid = metrics.province_centroid_latlon(cells, self.province_id)
        errors = {
            "densest_cell": haversine_km_array(metrics.densest_cell_latlon(cells), self.latlon_deg),
            "province_centroid_true": haversine_km_array(centroid, self.latlon_deg),
        }
        if self.nearest is not None:
            errors[NEAREST] = haversine_km_array(self.nearest.latlon_deg, self.latlon_deg)
        return errors


def write_report(
    folder: str | Path,
    evaluation: Evaluation,
    region: Region,
    outlines: Outlines,
    cells: CellTable,
    context: Mapping[str, Any],
    photo_root: str | Path,
    *,
    num_resamples: int = 1000,
    num_bins: int = 10,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes ``report.json, report.md, report.html, predictions.parquet`` and the figures.

    Args:
        folder: made if missing; files of an earlier report are replaced.
        evaluation: truth and predictions.
        region: names the provinces.
        outlines: province outlines, for maps.
        cells: the model's cells, for the baselines.
        context: what was evaluated (checkpoint, phase, split, seed, ...), shown as it is. The key
            ``split`` says which split the photos are of; without it they count as ``test``.
        photo_root: folder that relative photo paths start from.
        num_resamples: of the bootstrap.
        num_bins: of the reliability diagrams.
        seed: of the bootstrap and of the photos drawn at random.
        config: of the training, kept in ``report.json`` for comparisons and not shown.

    Returns:
        The content of ``report.json``: that of :func:`summarize`, and ``config`` if given.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = summarize(
        evaluation,
        region,
        cells,
        context,
        num_resamples=num_resamples,
        num_bins=num_bins,
        seed=seed,
    )
    if config is not None:
        report["config"] = dict(config)
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")
    predictions = predictions_frame(evaluation, region, cells)
    predictions.to_parquet(folder / "predictions.parquet", index=False)
    error_km = evaluation.error_km
    evaluation_figures.draw_error_map(
        folder / "error_map.png",
        evaluation.latlon_deg,
        evaluation.predicted_latlon_deg[evaluation.rule],
        error_km,
        region,
        outlines,
    )
    evaluation_figures.draw_error_curve(
        folder / "error_curve.png",
        error_km,
        evaluation.baseline_errors_km(cells),
        evaluation.teacher_forced_km,
    )
    evaluation_figures.draw_confusion(
        folder / "confusion.png",
        evaluation.province_id,
        evaluation.predicted_province_id,
        region.names,
    )
    certainty_figures.draw_reliability(folder / "reliability.png", report["calibration"])
    certainty_figures.draw_silence(
        folder / "silence.png", evaluation.answer_score, error_km, evaluation.confidence_km
    )
    if evaluation.regions is None:
        (folder / "regions.png").unlink(missing_ok=True)
    else:
        certainty_figures.draw_regions(
            folder / "regions.png", report["regions"], evaluation.regions
        )
    photo_figures.draw_photos(
        folder / "photos.png",
        _cards(evaluation, region, Path(photo_root)),
        error_km,
        region,
        outlines,
        seed=seed,
    )
    write_page(evaluation_page(report, region), folder)
    return report


def summarize(
    evaluation: Evaluation,
    region: Region,
    cells: CellTable,
    context: Mapping[str, Any],
    *,
    num_resamples: int = 1000,
    num_bins: int = 10,
    seed: int = 0,
) -> dict[str, Any]:
    """Every number of the report.

    Args:
        evaluation, region, cells, context, num_resamples, num_bins, seed: see :func:`write_report`.

    Returns:
        Plain containers. ``end_to_end, rules/<rule>, baselines/<name>, teacher_forced,
        per_province/<key>, urban, rural`` hold metrics as ``{"value", "low", "high"}``, the ends of
        their 95% interval; a province without photos holds only ``num_photos``. Beside them
        ``calibration, silence, gate, num_photos, rule, intervals, context``, and of a calibrated
        model ``regions``: see :mod:`geopak.report.certainty`.
    """
    statistic = _Statistics(evaluation, region, cells)
    points = statistic(np.ones((1, evaluation.num_photos)))
    groups = evaluation.groups
    intervals = metrics.bootstrap_intervals(
        statistic,
        evaluation.num_photos,
        num_resamples=num_resamples,
        confidence=CONFIDENCE,
        seed=seed,
        group=None if groups is None else groups.label,
    )
    report: dict[str, Any] = {
        "num_photos": evaluation.num_photos,
        "rule": evaluation.rule,
        "end_to_end": {},
        "rules": {},
        "baselines": {},
        "teacher_forced": {},
        "per_province": {
            province.key: {
                "name": province.name,
                "num_photos": int((evaluation.province_id == index).sum()),
            }
            for index, province in enumerate(region.provinces)
        },
        "urban": {"num_photos": int(evaluation.urban.sum())},
        "rural": {"num_photos": int((~evaluation.urban).sum())},
    }
    for path, value in points.items():
        *sections, name = path.split("/")
        where = report
        for section in sections:
            where = where.setdefault(section, {})
        # JSON knows no NaN, which a small province is in a resample that left all of it out.
        low, high = (end if np.isfinite(end) else None for end in intervals[path])
        where[name] = {"value": float(value[0]), "low": low, "high": high}
    report["calibration"] = summarize_claims(evaluation.claims, evaluation.confidence_km, num_bins)
    if evaluation.uncalibrated is not None:
        report["calibration"]["before"] = summarize_claims(
            evaluation.uncalibrated, evaluation.confidence_km, num_bins
        )
    if evaluation.regions is not None:
        report["regions"] = summarize_regions(
            evaluation.regions,
            evaluation.province_id,
            np.arange(evaluation.num_photos) if groups is None else groups.label,
            region,
            num_resamples=num_resamples,
            confidence=CONFIDENCE,
            seed=seed,
        )
    report["silence"] = summarize_silence(
        evaluation.answer_score,
        evaluation.error_km,
        evaluation.province_id,
        region,
        evaluation.confidence_km,
        evaluation.abstain_below,
    )
    report["gate"] = {
        "mean": float(evaluation.gate.mean()),
        "per_province": {
            province.key: float(evaluation.gate[inside].mean())
            for index, province in enumerate(region.provinces)
            if (inside := evaluation.province_id == index).any()
        },
    }
    report["intervals"] = {
        "confidence": CONFIDENCE,
        "num_resamples": num_resamples,
        "seed": seed,
        "drawn": "photos" if groups is None else "groups",
    }
    if groups is not None:
        sizes = np.unique(groups.label, return_counts=True)[1]
        report["intervals"] |= {
            "num_groups": len(sizes),
            "largest_group": int(sizes.max()),
            "ties": groups.ties,
        }
    report["context"] = json.loads(json.dumps(dict(context), default=str))
    return report


class _Statistics:
    """All bootstrapped metrics as one function of the counts, so that they share the resamples."""

    def __init__(self, evaluation: Evaluation, region: Region, cells: CellTable) -> None:
        self.evaluation = evaluation
        self.province_correct = evaluation.predicted_province_id == evaluation.province_id
        self.error_km = evaluation.error_km
        self.teacher_forced_km = evaluation.teacher_forced_km
        self.distances_km = {
            **{
                f"rules/{r}": evaluation.error_of_rule_km(r)
                for r in evaluation.predicted_latlon_deg
            },
            **{f"baselines/{b}": e for b, e in evaluation.baseline_errors_km(cells).items()},
            "teacher_forced": self.teacher_forced_km,
        }
        parts = {
            f"per_province/{province.key}": evaluation.province_id == index
            for index, province in enumerate(region.provinces)
        }
        parts |= {"urban": evaluation.urban, "rural": ~evaluation.urban}
        self.parts = {name: np.flatnonzero(inside) for name, inside in parts.items()}

    def __call__(self, counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        out = self._end_to_end("end_to_end", np.arange(self.evaluation.num_photos), counts)
        for section, distance_km in self.distances_km.items():
            for name, value in metrics.error_summary(distance_km, counts=counts).items():
                out[f"{section}/{name}"] = value
            out[f"{section}/macro_median_km"] = metrics.macro(
                metrics.median_of, distance_km, self.evaluation.province_id, counts
            )
        if self.evaluation.nearest is not None:
            correct = self.evaluation.nearest.province_id == self.evaluation.province_id
            accuracy = metrics.macro(metrics.mean_of, correct, self.evaluation.province_id, counts)
            out[f"baselines/{NEAREST}/province_macro_acc"] = accuracy
        out["end_to_end/macro_median_km"] = out[f"rules/{self.evaluation.rule}/macro_median_km"]
        for section, rows in self.parts.items():
            if not len(rows):
                continue
            mine = counts[:, rows]
            out |= self._end_to_end(section, rows, mine)
            for name, distance_km in self.distances_km.items():
                if not name.startswith("rules/"):
                    median = metrics.median_of(distance_km[rows], mine)
                    out[f"{section}/{name}/median_km"] = median
        return out

    def _end_to_end(
        self, section: str, rows: NDArray[np.int64], counts: NDArray[np.float64]
    ) -> dict[str, NDArray[np.float64]]:
        values = metrics.geolocation_summary(
            self.error_km[rows],
            self.province_correct[rows],
            self.evaluation.province_id[rows],
            self.evaluation.cell_rank[rows],
            counts=counts,
        )
        if section.startswith("per_province/"):
            del values["province_macro_acc"]  # one province: the same as province_acc
        return {f"{section}/{name}": value for name, value in values.items()}


def predictions_frame(evaluation: Evaluation, region: Region, cells: CellTable) -> pd.DataFrame:
    """One row per photo: truth, prediction, errors and probabilities.

    Distances are in kilometres; ``error_km`` is of the main rule, ``error_km_<rule>`` of each,
    ``baseline_km_<name>`` of the baselines; ``region_covered_90, region_num_cells_90,
    region_area_km2_90`` and so on are of a calibrated model's regions. Photos of one ``group``
    resemble each other.
    """
    groups = evaluation.groups
    predicted = evaluation.predicted_latlon_deg[evaluation.rule]
    names = np.asarray(region.names, object)
    return pd.DataFrame(
        {
            "id": evaluation.id,
            "path": evaluation.path,
            "latitude": evaluation.latlon_deg[:, 0],
            "longitude": evaluation.latlon_deg[:, 1],
            "province": names[evaluation.province_id],
            "cell_id": evaluation.cell_id,
            "urban": evaluation.urban,
            "group": np.arange(evaluation.num_photos) if groups is None else groups.label,
            "predicted_latitude": predicted[:, 0],
            "predicted_longitude": predicted[:, 1],
            "predicted_province": names[evaluation.predicted_province_id],
            "error_km": evaluation.error_km,
            "confidence": evaluation.confidence,
            "answer_score": evaluation.answer_score,
            "cell_rank": evaluation.cell_rank,
            "teacher_forced_km": evaluation.teacher_forced_km,
            "gate": evaluation.gate,
            **{
                f"error_km_{rule}": evaluation.error_of_rule_km(rule)
                for rule in evaluation.predicted_latlon_deg
            },
            **{
                f"region_{name}_{promise.name}": getattr(promise, name)
                for promise in (() if evaluation.regions is None else evaluation.regions.promises)
                for name in ("covered", "num_cells", "area_km2")
            },
            **{
                f"baseline_km_{name}": error_km
                for name, error_km in evaluation.baseline_errors_km(cells).items()
            },
            **{
                f"prob_{province.key}": evaluation.province_prob[:, index]
                for index, province in enumerate(region.provinces)
            },
            "hypothesis_latitude": list(evaluation.hypothesis_latlon_deg[..., 0]),
            "hypothesis_longitude": list(evaluation.hypothesis_latlon_deg[..., 1]),
            "hypothesis_probability": list(evaluation.hypothesis_probability),
        }
    )


def _cards(
    evaluation: Evaluation, region: Region, photo_root: Path
) -> list[photo_figures.PhotoCard]:
    predicted = evaluation.predicted_latlon_deg[evaluation.rule]
    return [
        photo_figures.PhotoCard(
            path=photo_root / evaluation.path[row],
            latlon_deg=evaluation.latlon_deg[row],
            predicted_latlon_deg=predicted[row],
            error_km=float(error_km),
            province=region.names[evaluation.province_id[row]],
            predicted_province=region.names[evaluation.predicted_province_id[row]],
        )
        for row, error_km in enumerate(evaluation.error_km)
    ]
