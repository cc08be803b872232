"""The pictures of an evaluation's errors: on the map, by distance, between provinces."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.report.maps import draw_provinces
from geopak.report.style import (
    GRID,
    INK,
    MODEL_COLOR,
    MUTED,
    new_figure,
    save_figure,
    set_title,
    tidy_axes,
)
from geopak.report.wording import format_km, rule_title
from geopak.schema.training import THRESHOLDS_KM

_BASELINE_STYLE = (("#e08a1e", (0, (5, 1.5))), ("#7d5ba6", (0, (1.2, 1.2))))
# From near to far: safe for red-green blindness, and still ordered when printed in grey.
_ERROR_COLORS = ("#0b5d7a", "#2f93ad", "#93c9c3", "#f2c14e", "#e76f32", "#9c1c3a")
_MIN_ERROR_KM = 0.1

_SHADE = LinearSegmentedColormap.from_list("share", ["#ffffff", "#cfe3ea", MODEL_COLOR])


def draw_error_map(
    path: str | Path,
    latlon_deg: ArrayLike,
    predicted_latlon_deg: ArrayLike,
    error_km: ArrayLike,
    region: Region,
    outlines: Outlines,
) -> None:
    """Draws each photo at its true place, coloured by error, with a line to the prediction.

    Args:
        path: PNG file to write.
        latlon_deg: (N, 2) truth, degrees.
        predicted_latlon_deg: (N, 2) prediction, degrees.
        error_km: (N,) distance between them.
        region: names the provinces.
        outlines: province outlines.
    """
    true = outlines.in_frame(latlon_deg)
    predicted = outlines.in_frame(predicted_latlon_deg)
    error = np.asarray(error_km, float)
    level = np.searchsorted(THRESHOLDS_KM, error)
    figure = new_figure(9.5, 8.2)
    ax = figure.subplots()
    draw_provinces(ax, outlines, region, alpha=0.11)
    size = float(np.clip(12000 / len(error), 8, 45))
    # Many lines make a grey cloud: they fade as there are more of them.
    line_alpha = float(np.clip(150 / len(error), 0.12, 0.7))
    colors = np.array(_ERROR_COLORS)[level]
    ends = np.stack((true[:, ::-1], predicted[:, ::-1]), axis=1)
    ax.add_collection(
        LineCollection(list(ends), colors=colors, linewidths=0.6, alpha=line_alpha, zorder=2)
    )
    # The largest errors below, so that no colour hides only because of the order of the table.
    order = np.argsort(-error, kind="stable")
    ax.scatter(
        true[order, 1], true[order, 0], s=size, c=colors[order], edgecolors="white",
        linewidths=0.25, zorder=3,
    )  # fmt: skip
    edges = [f"{t:g}" for t in THRESHOLDS_KM]
    names = [
        f"under {edges[0]} km",
        *[f"{a} to {b} km" for a, b in itertools.pairwise(edges)],
        f"over {edges[-1]} km",
    ]
    shares = np.bincount(level, minlength=len(names)) / len(error)
    handles = [
        Line2D([], [], marker="o", ls="", ms=6, color=color, label=f"{name}  ({share:.0%})")
        for name, color, share in zip(names, _ERROR_COLORS, shares, strict=True)
    ]
    ax.legend(
        handles=handles, title="end-to-end error", title_fontsize=9, fontsize=8.5,
        loc="lower right", frameon=True, facecolor="white", edgecolor="none", framealpha=0.85,
        alignment="left",
    ).set_zorder(8)  # fmt: skip
    set_title(ax, f"Where {len(error):,} photos were taken, and lines to where the model puts them")
    save_figure(figure, path)


def draw_error_curve(
    path: str | Path,
    error_km: ArrayLike,
    baseline_error_km: Mapping[str, ArrayLike],
    teacher_forced_km: ArrayLike,
) -> None:
    """Draws the share of photos within each distance: model, baselines, teacher-forced.

    Args:
        path: PNG file to write.
        error_km: (N,) end-to-end error.
        baseline_error_km: baseline -> (N,) error.
        teacher_forced_km: (N,) distance when the true cell is given.
    """
    figure = new_figure(9.5, 4.9)
    ax = figure.subplots()
    tidy_axes(ax)
    farthest = _MIN_ERROR_KM

    def curve(distance_km: ArrayLike, label: str, **style: Any) -> None:
        nonlocal farthest
        distance = np.sort(np.maximum(np.asarray(distance_km, float), _MIN_ERROR_KM))
        farthest = max(farthest, float(distance[-1]))
        share = np.arange(1, len(distance) + 1) / len(distance)
        median = format_km(float(np.median(np.asarray(distance_km, float))))
        x, y = np.append(distance, 1e5), np.append(share, 1.0)
        ax.step(x, y, where="post", label=f"{label}: median {median} km", **style)

    curve(error_km, "model, end to end", color=MODEL_COLOR, linewidth=2.6, zorder=5)
    for (name, distance_km), (color, dash) in zip(
        baseline_error_km.items(), _BASELINE_STYLE * len(baseline_error_km), strict=False
    ):
        curve(
            distance_km, f"baseline, {rule_title(name)}", color=color, linestyle=dash, linewidth=1.8
        )
    curve(
        teacher_forced_km,
        "teacher-forced (given the true cell, so not an error)",
        color=MUTED,
        linestyle=(0, (2, 2)),
        linewidth=1.4,
    )
    for threshold in THRESHOLDS_KM:
        ax.axvline(threshold, color="#c5ced6", linewidth=0.9, zorder=1)
    ax.set_xscale("log")
    ax.set_xlim(_MIN_ERROR_KM, max(farthest, 1000) * 1.25)
    ax.set_xticks([0.1, *THRESHOLDS_KM], ["0.1", *(f"{t:g}" for t in THRESHOLDS_KM)])
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    ax.set_xlabel("distance from the true place, km (logarithmic)", fontsize=9, color=INK)
    ax.set_ylabel("photos within that distance", fontsize=9, color=INK)
    ax.minorticks_off()
    figure.legend(loc="outside lower center", fontsize=8.5, frameon=False, ncols=2)
    set_title(ax, "Share of photos placed within a distance")
    save_figure(figure, path)


def draw_confusion(
    path: str | Path, province_id: ArrayLike, predicted_province_id: ArrayLike, names: Sequence[str]
) -> None:
    """Draws the province confusion matrix, each row as shares with the counts beneath.

    Args:
        path: PNG file to write.
        province_id: (N,) true.
        predicted_province_id: (N,) most probable.
        names: in class-index order.
    """
    num = len(names)
    pair = np.asarray(province_id) * num + np.asarray(predicted_province_id)
    counts = np.bincount(pair, minlength=num * num).reshape(num, num)
    total = counts.sum(1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros((num, num)), where=total > 0)
    figure = new_figure(3.4 + 0.82 * num, 2.6 + 0.62 * num)
    ax = figure.subplots()
    ax.imshow(share, cmap=_SHADE, vmin=0, vmax=1, aspect="auto")
    for true in range(num):
        for predicted in range(num):
            value, count = share[true, predicted], counts[true, predicted]
            if count:
                ink = "white" if value > 0.55 else INK
                at = (predicted, true)
                ax.annotate(
                    f"{value:.0%}", at, xytext=(0, 4), textcoords="offset points", ha="center",
                    va="center", fontsize=10, color=ink,
                    weight="bold" if true == predicted else "normal",
                )  # fmt: skip
                ax.annotate(
                    f"{count:,}", at, xytext=(0, -8), textcoords="offset points", ha="center",
                    va="center", fontsize=7, color=ink,
                )  # fmt: skip
        if not total[true, 0]:
            ax.text((num - 1) / 2, true, "no photos", ha="center", va="center", color=MUTED)
    labels = [f"{name}\n{count:,} photos" for name, count in zip(names, total[:, 0], strict=True)]
    ax.set_yticks(range(num), labels, fontsize=8, color=INK)
    ax.set_xticks(range(num), names, fontsize=8, color=INK, rotation=30, ha="right")
    ax.set_xticks(np.arange(num - 1) + 0.5, minor=True)
    ax.set_yticks(np.arange(num - 1) + 0.5, minor=True)
    ax.grid(which="minor", color="white", linewidth=2)
    ax.tick_params(which="both", length=0)
    ax.set_xlabel("predicted province", fontsize=9, color=INK)
    ax.set_ylabel("true province", fontsize=9, color=INK)
    for spine in ax.spines.values():
        spine.set_color(GRID)
    set_title(ax, "Province: true against predicted, rows sum to 100%")
    save_figure(figure, path)
