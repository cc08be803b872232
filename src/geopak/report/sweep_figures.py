"""The pictures of a sweep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from numpy.typing import NDArray

from geopak.report.style import (
    INK,
    MODEL_COLOR,
    MUTED,
    new_figure,
    save_figure,
    set_title,
    tidy_axes,
)

_MAX_TICKS = 12


def as_numbers(values: Sequence[str]) -> tuple[NDArray[np.float64], list[str] | None]:
    """Values of a swept key on an axis.

    Returns:
        (N,) numbers, and the names of 0, 1, … where the values are no numbers.
    """
    try:
        numbers = np.array([float(value) for value in values])
        if np.isfinite(numbers).all():
            return numbers, None
    except ValueError:
        pass
    names = list(dict.fromkeys(values))
    return np.array([names.index(value) for value in values], float), names


def draw_best_so_far(
    path: str | Path, scores: Sequence[float], pruned: Sequence[bool], metric: str, mode: str
) -> None:
    """Draws every run's score in their order, and the best of all until then."""
    figure = new_figure(8, 3.2)
    ax = figure.subplots()
    score, stopped = np.asarray(scores, float), np.asarray(pruned, bool)
    number = np.arange(1, len(score) + 1)
    best = (np.minimum if mode == "min" else np.maximum).accumulate(
        np.where(stopped, np.inf if mode == "min" else -np.inf, score)
    )
    ax.plot(number[~stopped], score[~stopped], "o", color=MUTED, markersize=4, label="a run")
    if stopped.any():
        ax.plot(number[stopped], score[stopped], "x", color=MUTED, markersize=5, label="pruned")
    known = np.isfinite(best)
    ax.step(
        number[known],
        best[known],
        where="post",
        color=MODEL_COLOR,
        linewidth=2,
        label="best so far",
    )  # fmt: skip
    ax.set_xlabel("runs so far", fontsize=8, color=INK)
    ax.legend(fontsize=8, frameon=False)
    tidy_axes(ax)
    set_title(ax, metric)
    save_figure(figure, path)


def draw_parallel_coordinates(
    path: str | Path,
    swept: Mapping[str, Sequence[str]],
    scores: Sequence[float],
    metric: str,
    mode: str,
) -> None:
    """Draws a line per run through its values, an axis per swept key, coloured by score."""
    axes = [(key, *as_numbers(values)) for key, values in swept.items()]
    axes.append((metric, np.asarray(scores, float), None))
    figure = new_figure(max(6.0, 1.9 * len(axes)), 4.2)
    ax = figure.subplots()
    norm = Normalize(min(scores), max(scores))
    colors = colormaps["viridis" if mode == "min" else "viridis_r"]
    heights = []
    for place, (_, numbers, names) in enumerate(axes):
        positive = names is None and (numbers > 0).all()
        wide = positive and numbers.max() > 30 * numbers.min()
        scaled = np.log10(numbers) if wide else numbers
        low, high = scaled.min(), scaled.max()
        span = high - low or 1.0
        heights.append((scaled - low) / span)
        ax.axvline(place, color=MUTED, linewidth=1)
        ticks = range(len(names)) if names is not None else np.linspace(low, high, 5)
        for tick in list(ticks)[:_MAX_TICKS]:
            value = 10**tick if wide else tick
            text = names[int(tick)] if names is not None else f"{value:.3g}"
            ax.text(
                place + 0.03, (tick - low) / span, text, fontsize=7, color=INK, va="center",
                bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
                zorder=3,
            )  # fmt: skip
    order = np.argsort(scores)[:: -1 if mode == "min" else 1]
    for run in order:
        ax.plot(
            range(len(axes)), [h[run] for h in heights], color=colors(norm(scores[run])),
            linewidth=1.3, alpha=0.8,
        )  # fmt: skip
    ax.set_xticks(range(len(axes)), [key for key, *_ in axes], fontsize=8, color=INK)
    ax.set_yticks([])
    ax.set_xlim(-0.1, len(axes) - 0.55)
    for side in ax.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(ScalarMappable(norm, colors), ax=ax, fraction=0.03)
    bar.ax.tick_params(labelsize=7, colors=INK)
    set_title(ax, "what every run tried, and what came of it")
    save_figure(figure, path)


def draw_importance(path: str | Path, importance: Mapping[str, float]) -> None:
    """Draws how much of the scores' spread each swept key explains."""
    figure = new_figure(7, 0.9 + 0.32 * len(importance))
    ax = figure.subplots()
    keys = sorted(importance, key=lambda key: importance[key])
    ax.barh(keys, [100 * importance[key] for key in keys], color=MODEL_COLOR, height=0.6)
    ax.set_xlabel("%", fontsize=8, color=INK)
    tidy_axes(ax)
    set_title(ax, "what the score depends on")
    save_figure(figure, path)
