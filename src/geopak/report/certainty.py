"""How far a model's claims can be trusted: reliability, regions against their promise, silence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geopak import metrics
from geopak.conformal import (
    ConformalScores,
    conformal_threshold,
    effective_photos,
    fewest_photos,
    promised_range,
)
from geopak.geo.region import Region
from geopak.selective import risk_curve

# Shares of the photos answered, surest first, that the report tells of.
ANSWERED = (0.25, 0.5, 0.75, 0.9, 1.0)
KEPT, LESS, MORE = "kept", "less", "more"


@dataclass(frozen=True, eq=False)
class Claims:
    """What a model claims of N photos, and whether it holds.

    Attributes:
        province, cell: (N,) probability of the most probable one.
        province_right, cell_right: (N,) bool, it is the true one.
        confidence: (N,) probability that the truth lies within some distance of the prediction.
        within: (N,) bool, it does.
    """

    province: NDArray[np.float64]
    province_right: NDArray[np.bool_]
    cell: NDArray[np.float64]
    cell_right: NDArray[np.bool_]
    confidence: NDArray[np.float64]
    within: NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class PhotoRegions:
    """Regions of one promise for N photos.

    Attributes:
        coverage: promised probability.
        per_province: promised to the photos of each province apart.
        covered: (N,) bool, the true cell is in the region.
        num_cells: (N,).
        area_km2: (N,).
    """

    coverage: float
    per_province: bool
    covered: NDArray[np.bool_]
    num_cells: NDArray[np.int64]
    area_km2: NDArray[np.float64]

    @property
    def name(self) -> str:
        """Such as ``90`` or ``90_per_province``."""
        return f"{100 * self.coverage:g}{'_per_province' if self.per_province else ''}"


@dataclass(frozen=True, eq=False)
class MeasuredRegions:
    """Regions of several promises, and what these rest on.

    Attributes:
        promises: for the same photos.
        scores: of the calibration photos.
        whole_km2: area of the region that the model is made for.
        doubts: why the photos are not exchangeable with those of the calibration, in sentences;
            empty where nothing speaks against it.
    """

    promises: Sequence[PhotoRegions]
    scores: ConformalScores
    whole_km2: float
    doubts: Sequence[str] = ()


def summarize_claims(claims: Claims, confidence_km: float, num_bins: int) -> dict[str, Any]:
    """Reliability of all claims: ``province, cell, within_confidence_km``."""
    return {
        "province": _reliability(claims.province, claims.province_right, num_bins),
        "cell": _reliability(claims.cell, claims.cell_right, num_bins),
        "within_confidence_km": {
            "confidence_km": float(confidence_km),
            **_reliability(claims.confidence, claims.within, num_bins),
        },
    }


def _reliability(
    confidence: NDArray[np.float64], correct: NDArray[np.bool_], num_bins: int
) -> dict[str, Any]:
    bins = metrics.reliability(confidence, correct, num_bins)
    return {
        "expected_calibration_error": bins.expected_calibration_error,
        "mean_confidence": float(np.mean(confidence)),
        "accuracy": float(np.mean(correct)),
        "bins": {f.name: getattr(bins, f.name).tolist() for f in fields(bins)},
    }


def summarize_regions(
    regions: MeasuredRegions,
    province_id: NDArray[np.int64],
    group: NDArray[np.int64],
    region: Region,
    *,
    num_resamples: int,
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    """Coverage and area of regions against what was promised.

    Args:
        regions: of N photos.
        province_id: (N,) true province.
        group: (N,) labels of photos that resemble each other.
        region: names the provinces.
        num_resamples, confidence, seed: of the bootstrap over groups.

    Returns:
        ``promises`` -> name -> ``coverage, per_province, overall, provinces``; each part holds
        ``num_photos, covered`` (``value, low, high`` by the bootstrap over groups, and
        ``binomial``, the Wilson interval of independent photos), ``expected`` (``low, high``: where
        the coverage of a kept promise lies), ``verdict`` (``kept, less, more``; null where nothing
        is promised), ``cells`` and ``area_km2`` (``median, mean``), ``country_share``
        of the mean. Beside them ``calibration`` (photos and groups of it) and ``doubts``.
    """
    parts = {"overall": np.arange(len(province_id))}
    parts |= {
        province.key: rows
        for index, province in enumerate(region.provinces)
        if len(rows := np.flatnonzero(province_id == index))
    }

    def statistic(counts: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        return {
            f"{promise.name}/{part}": metrics.mean_of(promise.covered[rows], counts[:, rows])
            for promise in regions.promises
            for part, rows in parts.items()
        }

    intervals = metrics.bootstrap_intervals(
        statistic, len(province_id), num_resamples=num_resamples, confidence=confidence,
        seed=seed, group=group,
    )  # fmt: skip
    keys = {province.key: index for index, province in enumerate(region.provinces)}
    promises = {}
    for promise in regions.promises:
        found: dict[str, dict[str, Any]] = {}
        for part, rows in parts.items():
            promised = (part != "overall") == promise.per_province
            known = slice(None) if part == "overall" else regions.scores.province_id == keys[part]
            found[part] = _measured(
                promise, rows, group[rows], intervals[f"{promise.name}/{part}"],
                regions.scores.score[known] if promised else None, regions.scores.group[known],
                regions.whole_km2, confidence,
            )  # fmt: skip
        promises[promise.name] = {
            "coverage": promise.coverage,
            "per_province": promise.per_province,
            "overall": found.pop("overall"),
            "provinces": found,
        }
    counts = np.bincount(regions.scores.province_id, minlength=region.num_provinces)
    return {
        "promises": promises,
        "calibration": {
            "num_photos": len(regions.scores.score),
            "num_groups": len(np.unique(regions.scores.group)),
            "per_province": {key: int(counts[index]) for key, index in keys.items()},
        },
        "doubts": list(regions.doubts),
    }


def _measured(
    promise: PhotoRegions,
    rows: NDArray[np.int64],
    group: NDArray[np.int64],
    interval: tuple[float, float],
    calibration_score: NDArray[np.float64] | None,
    calibration_group: NDArray[np.int64],
    whole_km2: float,
    confidence: float,
) -> dict[str, Any]:
    covered, area = promise.covered[rows], promise.area_km2[rows]
    share, num = float(covered.mean()), len(rows)
    wilson = metrics.wilson_interval(share, num)
    low, high = (float(end) if np.isfinite(end) else None for end in interval)
    found: dict[str, Any] = {
        "num_photos": num,
        "covered": {
            "value": share,
            "low": low,
            "high": high,
            "binomial": {"low": wilson[0], "high": wilson[1]},
        },
        "expected": None,
        "verdict": None,
        "cells": {
            "median": float(np.median(promise.num_cells[rows])),
            "mean": float(promise.num_cells[rows].mean()),
        },
        "area_km2": {"median": float(np.median(area)), "mean": float(area.mean())},
        "country_share": float(area.mean()) / whole_km2,
    }
    if calibration_score is None:
        return found
    expected = (1.0, 1.0)
    # With fewer photos every cell of the province is in every region.
    if len(calibration_score) >= fewest_photos(promise.coverage):
        cut = conformal_threshold(calibration_score, promise.coverage)
        expected = promised_range(
            promise.coverage,
            len(calibration_score),
            num,
            effective_calibration=effective_photos(calibration_score <= cut, calibration_group),
            effective_new=effective_photos(covered, group),
            confidence=confidence,
        )
    verdict = LESS if share < expected[0] else MORE if share > expected[1] else KEPT
    return {
        **found,
        "expected": {"low": expected[0], "high": expected[1]},
        "verdict": verdict,
    }


def summarize_silence(
    score: NDArray[np.float64],
    error_km: NDArray[np.float64],
    province_id: NDArray[np.int64],
    region: Region,
    within_km: float,
    abstain_below: float | None,
) -> dict[str, Any]:
    """What is gained by answering only the photos of a high score.

    Args:
        score: (N,) of :func:`geopak.calibration.answer_score`.
        error_km: (N,) of the answers.
        province_id: (N,) true province.
        region: names the provinces.
        within_km: an answer further off than this counts as wrong.
        abstain_below: score below which no answer is given; ``None``: every photo is answered.

    Returns:
        ``within_km``; ``areas`` -> ``wrong`` (answers further off) and ``mean_km`` -> areas under
        the risk curves of ``score, random, oracle``, and ``gained``; ``answered``: a line per share
        of :data:`ANSWERED`; ``abstain_below`` with the line of what is then answered, of what is
        not, and the answered share per province.
    """
    wrong = error_km > within_km
    order = np.argsort(-score, kind="stable")

    def line(rows: NDArray[np.int64]) -> dict[str, Any]:
        if not len(rows):
            return {"num_photos": 0, "share": 0.0}
        return {
            "num_photos": len(rows),
            "share": len(rows) / len(score),
            "lowest_score": float(score[rows].min()),
            "within": float(1 - wrong[rows].mean()),
            "median_km": float(np.median(error_km[rows])),
            "mean_km": float(error_km[rows].mean()),
        }

    found: dict[str, Any] = {
        "within_km": float(within_km),
        "areas": {
            "wrong": risk_curve(score, wrong).areas,
            "mean_km": risk_curve(score, error_km).areas,
        },
        "answered": [line(order[: max(1, round(share * len(score)))]) for share in ANSWERED],
        "abstain_below": None,
    }
    if abstain_below is not None:
        answers = score >= abstain_below
        found["abstain_below"] = {
            "score": float(abstain_below),
            "answered": line(np.flatnonzero(answers)),
            "not_answered": line(np.flatnonzero(~answers)),
            "per_province": {
                province.key: float(answers[inside].mean())
                for index, province in enumerate(region.provinces)
                if (inside := province_id == index).any()
            },
        }
    return found


def verdict_in_words(part: Mapping[str, Any], doubts: Sequence[str] = ()) -> str:
    """Whether a promise was kept, for a table.

    Args:
        part: of :func:`summarize_regions`.
        doubts: with any there is no promise to be kept: only where the coverage lies is said.
    """
    if part["verdict"] is None:
        return "not promised"
    low, high = part["expected"]["low"], part["expected"]["high"]
    words = {KEPT: "kept", LESS: "less than promised", MORE: "more than promised"}
    if doubts:
        words = {KEPT: "not guaranteed", LESS: "not guaranteed, less", MORE: "not guaranteed, more"}
    return f"{words[part['verdict']]} ({low:.1%} to {high:.1%})"
