"""The pictures of how sure a model is: claims against facts, regions, and answering only some."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from geopak.report.certainty import MeasuredRegions
from geopak.report.style import (
    GRID,
    INK,
    MODEL_COLOR,
    MUTED,
    TRUTH_COLOR,
    new_figure,
    save_figure,
    set_title,
    tidy_axes,
)
from geopak.selective import risk_curve

_BEFORE_COLOR = "#e08a1e"
_REGION_COLORS = ("#9ecae1", "#4fa8a8", "#1f6f8b", "#22303c")


def draw_reliability(path: str | Path, calibration: Mapping[str, Any]) -> None:
    """Draws what the model claims against what holds, for province, cell and distance.

    Args:
        path: PNG file to write.
        calibration: as in ``report.json``; with ``before`` both states are drawn.
    """
    within = calibration["within_confidence_km"]
    titles = {
        "province": "The most probable province is right",
        "cell": "The most probable cell is right",
        "within_confidence_km": f"The prediction lies within {within['confidence_km']:g} km",
    }
    figure = new_figure(13.5, 5.2)
    axes = figure.subplots(2, 3, sharex=True, height_ratios=(4, 1))
    for column, (name, title) in enumerate(titles.items()):
        above, below = axes[0, column], axes[1, column]
        tidy_axes(above)
        above.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        above.annotate(
            "too modest", (0.03, 0.95), fontsize=8, color=MUTED, va="top", style="italic"
        )
        above.annotate(
            "too sure", (0.97, 0.05), fontsize=8, color=MUTED, ha="right", style="italic"
        )
        error = f"{calibration[name]['expected_calibration_error']:.3f}"
        if "before" in calibration:
            before = calibration["before"][name]
            above.plot(
                before["bins"]["confidence"], before["bins"]["accuracy"], color=_BEFORE_COLOR,
                marker="s", markersize=4, linewidth=1.2, linestyle=(0, (3, 2)),
                label="before calibration",
            )  # fmt: skip
            error = f"{before['expected_calibration_error']:.3f} before, {error} after"
        bins = {key: np.asarray(values) for key, values in calibration[name]["bins"].items()}
        spread = np.stack((bins["accuracy"] - bins["low"], bins["high"] - bins["accuracy"])).clip(
            min=0
        )
        above.errorbar(
            bins["confidence"], bins["accuracy"], yerr=spread, color=MODEL_COLOR, marker="o",
            markersize=5, linewidth=1.6, elinewidth=1.1, capsize=2.5,
            label="after calibration" if "before" in calibration else "model",
        )  # fmt: skip
        above.set_xlim(0, 1)
        above.set_ylim(0, 1)
        set_title(above, f"{title}\nexpected calibration error {error}", 10)
        tidy_axes(below, grid=False)
        below.bar(bins["confidence"], bins["count"], width=0.05, color=MODEL_COLOR, alpha=0.7)
        below.set_xlabel("probability claimed", fontsize=9, color=INK)
        for ax in (above, below):
            ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        above.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes[0, 0].set_ylabel("observed, with 95% interval", fontsize=9, color=INK)
    axes[1, 0].set_ylabel("photos", fontsize=9, color=INK)
    if "before" in calibration:
        axes[0, 2].legend(loc="center right", fontsize=8, frameon=False)
    save_figure(figure, path)


def draw_regions(path: str | Path, summary: Mapping[str, Any], regions: MeasuredRegions) -> None:
    """Draws what regions were promised to hold against what they hold, and how large they are.

    Args:
        path: PNG file to write.
        summary: ``regions`` of ``report.json``.
        regions: the same, photo by photo.
    """
    figure = new_figure(11.0, 4.6)
    left, right = figure.subplots(1, 2)
    tidy_axes(left)
    left.plot((0, 1), (0, 1), color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    overall = [p for p in summary["promises"].values() if not p["per_province"]]
    for promise in overall:
        coverage, part = promise["coverage"], promise["overall"]
        low, high = part["expected"]["low"], part["expected"]["high"]
        left.plot((coverage, coverage), (low, high), color=GRID, linewidth=9, zorder=2)
        covered = part["covered"]
        ends = [
            covered["value"] if end is None else end for end in (covered["low"], covered["high"])
        ]
        left.plot((coverage, coverage), ends, color=MODEL_COLOR, linewidth=1.3, zorder=3)
        left.plot(coverage, covered["value"], color=MODEL_COLOR, marker="o", markersize=6, zorder=4)
    left.set_xlim(0.4, 1)
    lowest = min(min(p["overall"]["expected"]["low"], p["overall"]["covered"]["value"])
                 for p in overall)  # fmt: skip
    left.set_ylim(max(0, min(0.4, lowest - 0.03)), 1.01)
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_formatter(lambda share, _: f"{share:.0%}")
    left.set_xlabel("promised", fontsize=9, color=INK)
    left.set_ylabel("regions that hold the true place", fontsize=9, color=INK)
    set_title(left, "Promise and coverage\ngrey: range if the promise is kept", 10)
    tidy_axes(right)
    for number, promise in enumerate(p for p in regions.promises if not p.per_province):
        area = np.sort(np.maximum(promise.area_km2, 1e-2))
        share = np.arange(1, len(area) + 1) / len(area)
        color = _REGION_COLORS[number % len(_REGION_COLORS)]
        right.step(area, share, where="post", color=color, linewidth=1.8,
                   label=f"{promise.coverage:.0%}")  # fmt: skip
    right.axvline(regions.whole_km2, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
    right.set_xscale("log")
    right.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    right.set_xlabel("km² (logarithmic); dashed: the whole country", fontsize=9, color=INK)
    right.set_ylabel("photos with a smaller region", fontsize=9, color=INK)
    right.legend(loc="upper left", fontsize=8.5, frameon=False, title="promised",
                 title_fontsize=8.5)  # fmt: skip
    set_title(right, "How large the regions are", 10)
    save_figure(figure, path)


def draw_silence(
    path: str | Path, answer_score: ArrayLike, error_km: ArrayLike, within_km: float
) -> None:
    """Draws what answers cost against how many photos are answered, the surest first.

    Args:
        path: PNG file to write.
        answer_score: (N,).
        error_km: (N,) of the answers.
        within_km: an answer further off counts as wrong.
    """
    error = np.asarray(error_km, float)
    figure = new_figure(11.0, 4.4)
    panels = (
        (error > within_km, f"answers more than {within_km:g} km off"),
        (error, "mean error, km"),
    )
    for number, (ax, (loss, label)) in enumerate(zip(figure.subplots(1, 2), panels, strict=True)):
        curve = risk_curve(answer_score, loss)
        areas = curve.areas
        tidy_axes(ax)
        lines = (
            ("no score", np.full(len(error), curve.random), MUTED, (0, (4, 3)), areas["random"]),
            ("answer score", curve.risk, MODEL_COLOR, "solid", areas["score"]),
            ("the error itself", curve.oracle, TRUTH_COLOR, (0, (1.2, 1.2)), areas["oracle"]),
        )
        for name, risk, color, dash, area in lines:
            value = f"{area:.3f}" if number == 0 else f"{area:.0f} km"
            ax.plot(curve.share, risk, color=color, linestyle=dash, linewidth=1.8,
                    label=f"{name}: area {value}")  # fmt: skip
        ax.set_xlim(0, 1)
        # Room for the legend above the line of no score.
        ax.set_ylim(0, 1.3 * max(curve.random, curve.risk.max(), 1e-3))
        ax.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        if number == 0:
            ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        ax.set_xlabel("photos answered, those of the highest score first", fontsize=9, color=INK)
        ax.set_ylabel(label, fontsize=9, color=INK)
        ax.legend(loc="upper left", fontsize=8.5, frameon=False)
    save_figure(figure, path)
