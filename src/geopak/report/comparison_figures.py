"""The pictures of a comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from geopak.report.comparison import Comparison
from geopak.report.style import (
    INK,
    MODEL_COLOR,
    MUTED,
    new_figure,
    save_figure,
    set_title,
    tidy_axes,
)

# Distinct for red-green blindness together with the dashes that follow each round of colours.
_COLORS = (MODEL_COLOR, "#e08a1e", "#7d5ba6", "#1d9a6c", "#d1495b", "#5f6b76")
_DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (6, 1.5, 1.2, 1.5)))
# Metric -> title, factor of its unit. A share's difference is in percentage points.
_DIFFERENCES = {
    "median_km": ("median error, km", 1.0),
    "within_25km": ("within 25 km, percentage points", 100.0),
    "province_macro_acc": ("province macro accuracy, percentage points", 100.0),
}
CURVES = {
    "val/median_km": ("val median error, km", 1.0),
    "val/province_macro_acc": ("val province macro accuracy, %", 100.0),
    "train/loss": ("train loss", 1.0),
}


def draw_differences(path: str | Path, comparison: Comparison) -> None:
    """Draws every run's differences to the baseline run with their intervals, a row per run."""
    runs = comparison.runs[1:]
    figure = new_figure(10.5, 1.0 + 0.32 * len(runs))
    for ax, (name, (title, factor)) in zip(
        figure.subplots(1, len(_DIFFERENCES), sharey=True), _DIFFERENCES.items(), strict=True
    ):
        ax.axvline(0, color=MUTED, linewidth=1)
        for row, run in enumerate(runs):
            found = run.differences[name]
            clear = not found.low <= 0 <= found.high
            color = MODEL_COLOR if clear else MUTED
            ax.plot([factor * found.low, factor * found.high], [row, row], color=color, linewidth=2)
            ax.plot(factor * found.value, row, "o", color=color, markersize=5)
        ax.set_yticks(range(len(runs)), [run.label for run in runs])
        ax.set_ylim(len(runs) - 0.5, -0.5)
        tidy_axes(ax)
        set_title(ax, title, 9)
    save_figure(figure, path)


def draw_curves(path: str | Path, labels: Sequence[str], curves: Sequence[pd.DataFrame]) -> None:
    """Draws validation curves and the training loss of runs over optimizer steps.

    Args:
        path: PNG to write.
        labels: of the runs.
        curves: what each logged, see :func:`geopak.report.runs.read_curves`.
    """
    figure = new_figure(10.5, 3.4)
    axes = figure.subplots(1, len(CURVES))
    for ax, (name, (title, factor)) in zip(axes, CURVES.items(), strict=True):
        for row, (label, frame) in enumerate(zip(labels, curves, strict=True)):
            if name in frame:
                _draw_curve(ax, frame[["step", name]].dropna(), row, label, factor)
        ax.set_xlabel("step", fontsize=8, color=INK)
        tidy_axes(ax)
        set_title(ax, title, 9)
    handles, names = axes[0].get_legend_handles_labels()
    if not handles:
        handles, names = axes[-1].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=9, frameon=False, fontsize=8,
        labelcolor=INK, handlelength=3.5,
    )  # fmt: skip
    save_figure(figure, path)


def _draw_curve(ax: Axes, points: pd.DataFrame, row: int, label: str, factor: float) -> None:
    steps, values = points["step"].to_numpy(float), factor * points.iloc[:, 1].to_numpy(float)
    window = len(values) // 40
    if window > 1:
        values = pd.Series(values).rolling(window, min_periods=1).mean().to_numpy()
    ax.plot(
        steps,
        values,
        color=_COLORS[row % len(_COLORS)],
        linestyle=_DASHES[row // len(_COLORS) % len(_DASHES)],
        linewidth=1.5,
        marker="o" if np.size(values) < 12 else None,
        markersize=3,
        label=label,
    )
