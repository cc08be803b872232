"""The pictures of a prepared set: photos by split, geocells before and after, distributions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogFormatter
from numpy.typing import ArrayLike, NDArray

from geopak.geo.boundaries import Outlines
from geopak.geo.cells import CellTable
from geopak.geo.density import RawClusters
from geopak.geo.region import Region
from geopak.report.maps import draw_circles_km, draw_provinces, province_colors
from geopak.report.style import INK, MODEL_COLOR, new_figure, save_figure, set_title, tidy_axes

SPLIT_COLORS = {"train": "#9fb3c2", "val": "#e08a1e", "test": "#c23b4b", "buffer": "#7d5ba6"}
_NOISE_COLOR = "#c23b4b"
_BEFORE_COLOR = "#e08a1e"
# More dots than a picture has pixels for only cost time.
MAX_DOTS = 60_000


def _every(num: int) -> slice:
    """A slice that takes at most ``MAX_DOTS`` of so many, evenly."""
    return slice(None, None, max(1, math.ceil(num / MAX_DOTS)))


def draw_split_map(
    path: str | Path,
    latlon_deg: ArrayLike,
    split: Sequence[str],
    outlines: Outlines,
    region: Region,
) -> None:
    """Draws every photo at its place, coloured by its split.

    Args:
        path: PNG file to write.
        latlon_deg: (N, 2) photos, degrees, latitude first.
        split: (N,) name of each photo's split.
        outlines: province outlines.
        region: names the provinces.
    """
    points = outlines.in_frame(latlon_deg)
    of_split = np.asarray(split, object)
    figure = new_figure(9.5, 8.2)
    ax = figure.subplots()
    draw_provinces(ax, outlines, region, alpha=0.12)
    handles = []
    for name, color in SPLIT_COLORS.items():
        rows = np.flatnonzero(of_split == name)
        shown = points[rows[_every(len(rows))]]
        ax.scatter(
            shown[:, 1], shown[:, 0], s=3 if name == "train" else 5, color=color,
            linewidths=0, alpha=0.75, zorder=2 if name == "train" else 4,
        )  # fmt: skip
        handles.append(
            Line2D([], [], marker="o", ls="", ms=5, color=color, label=f"{name} {len(rows):,}")
        )
    ax.legend(handles=handles, loc="lower right", fontsize=8, frameon=False)
    save_figure(figure, path)


def draw_cells_before_and_after(
    path: str | Path,
    before: RawClusters,
    cells: CellTable,
    outlines: Outlines,
    region: Region,
) -> None:
    """Draws HDBSCAN's clusters as they are, and the geocells that the rules make of them.

    Args:
        path: PNG file to write.
        before: the clusters, each province's noise as one of them.
        cells: the geocells.
        outlines: province outlines.
        region: names the provinces.
    """
    figure = new_figure(15, 7.2)
    left, right = figure.subplots(1, 2)
    palette = np.array(province_colors(region.num_provinces), object)
    raw_deg = outlines.in_frame(before.center_latlon_deg)
    centers_deg = outlines.in_frame(cells.center_latlon_deg)
    draw_provinces(left, outlines, region, alpha=0.1, labels=False)
    dense = ~before.is_noise
    _draw_cells(
        left, raw_deg[dense], before.radius_km[dense],
        palette[before.province_id[dense]],
    )  # fmt: skip
    if before.is_noise.any():
        noise = before.is_noise
        draw_circles_km(
            left, raw_deg[noise], before.radius_km[noise],
            [_NOISE_COLOR] * int(noise.sum()), alpha=0.16,
        )  # fmt: skip
        left.legend(
            handles=[
                Line2D([], [], marker="o", ls="", ms=8, color=_NOISE_COLOR, alpha=0.4,
                       label="photos that belong to no cluster, taken for a cell"),
            ],
            loc="lower right", fontsize=8, frameon=False,
        )  # fmt: skip
    largest = float(before.radius_km.max()) if len(before.radius_km) else 0.0
    set_title(left, f"Before: {dense.sum():,} clusters, radius up to {largest:,.0f} km")
    draw_provinces(right, outlines, region, alpha=0.1, labels=False)
    _draw_cells(right, centers_deg, cells.radius_km, palette[cells.province_id])
    counts = np.bincount(cells.province_id, minlength=region.num_provinces)
    right.legend(
        handles=[
            Line2D([], [], marker="o", ls="", ms=5, color=c, label=f"{name} {count:,}")
            for name, c, count in zip(region.names, palette, counts, strict=True)
        ],
        loc="lower right", fontsize=8, frameon=False,
    )  # fmt: skip
    set_title(
        right, f"After: {cells.num_cells:,} geocells, radius up to {cells.radius_km.max():.1f} km"
    )
    save_figure(figure, path)


def _draw_cells(
    ax: Axes,
    centers_deg: NDArray[np.float64],
    radius_km: NDArray[np.float64],
    colors: NDArray[np.object_],
) -> None:
    draw_circles_km(ax, centers_deg, radius_km, list(colors))
    # The smallest are narrower than a pixel; a dot at the center keeps them visible.
    ax.scatter(centers_deg[:, 1], centers_deg[:, 0], s=3, c=list(colors), linewidths=0, zorder=4)


def draw_cell_histograms(path: str | Path, before: RawClusters, cells: CellTable) -> None:
    """Draws how large geocells are, and how many train photos they have, before and after."""
    figure = new_figure(11, 3.6)
    left, right = figure.subplots(1, 2)
    _draw_pair(left, before.radius_km, cells.radius_km, floor=0.01)
    left.set_xlabel("radius, km (logarithmic)", fontsize=9, color=INK)
    set_title(left, "Radius")
    _draw_pair(right, before.count, cells.count, floor=1)
    right.set_xlabel("train photos (logarithmic)", fontsize=9, color=INK)
    set_title(right, "Photos of a cell")
    left.set_ylabel("cells", fontsize=9, color=INK)
    left.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _draw_pair(ax: Axes, before: ArrayLike, after: ArrayLike, floor: float) -> None:
    values = [np.maximum(np.asarray(v, float), floor) for v in (before, after)]
    top = max(float(v.max()) if len(v) else floor for v in values)
    bins = np.geomspace(floor, max(top, floor * 1.01) * 1.001, 36).tolist()
    for value, label, color in zip(
        values, ("before", "after"), (_BEFORE_COLOR, MODEL_COLOR), strict=True
    ):
        ax.hist(value, bins, color=color, alpha=0.6, label=label)
    _log_axis(ax)
    tidy_axes(ax)


def _log_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    # Within one power of ten a few of the smaller steps are named too.
    ax.xaxis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(1.1, 0.4)))


def draw_quality_histograms(
    path: str | Path, measures: Mapping[str, tuple[ArrayLike, float | None]]
) -> None:
    """Draws the distribution of each quality measure with the threshold that was applied.

    Args:
        path: PNG file to write.
        measures: title -> the values of all photos that decode, and the least that is asked, or
            ``None`` where nothing is.
    """
    figure = new_figure(3.7 * len(measures), 3.3)
    for ax, (title, (values, least)) in zip(
        np.atleast_1d(figure.subplots(1, len(measures))), measures.items(), strict=True
    ):
        shown = np.maximum(np.asarray(values, float), 1e-2)
        low, high = (float(shown.min()), float(shown.max())) if len(shown) else (1.0, 10.0)
        if least is not None:
            low, high = min(low, least), max(high, least)
        bins = np.geomspace(max(low, 1e-2) * 0.95, max(high, low * 1.01) * 1.05, 40).tolist()
        ax.hist(shown, bins, color=MODEL_COLOR, alpha=0.75)
        if least is not None:
            ax.axvline(least, color=_NOISE_COLOR, linewidth=1.2)
        _log_axis(ax)
        tidy_axes(ax)
        set_title(ax, title)
    save_figure(figure, path)


def draw_nearest_train(
    path: str | Path, distance_km: Mapping[str, ArrayLike], min_distance_km: float
) -> None:
    """Draws how far held-out photos are from the nearest train photo.

    Args:
        path: PNG file to write.
        distance_km: name of a split -> (N,) kilometres of its photos.
        min_distance_km: the distance that the split was to keep.
    """
    figure = new_figure(9.5, 3.4)
    ax = figure.subplots()
    least = 1e-3
    known = {name: np.maximum(np.asarray(d, float), least) for name, d in distance_km.items()}
    known = {name: d for name, d in known.items() if len(d)}
    top = max((float(d.max()) for d in known.values()), default=1.0)
    # An edge at the distance itself, so that no bar has photos of both of its sides.
    middle = float(np.clip(min_distance_km, 2 * least, max(top, 1.0) / 2))
    bins = [
        *np.geomspace(least, middle, 20)[:-1].tolist(),
        *np.geomspace(middle, max(top, 1.0) * 1.01, 40).tolist(),
    ]
    for name, distances in known.items():
        ax.hist(distances, bins, color=SPLIT_COLORS[name], alpha=0.65, label=name)
    if min_distance_km > 0:
        ax.axvline(min_distance_km, color=INK, linewidth=1.2)
    _log_axis(ax)
    ax.set_xlabel("km to the nearest train photo (logarithmic axis)", fontsize=9, color=INK)
    ax.set_ylabel("photos", fontsize=9, color=INK)
    ax.legend(fontsize=8, frameon=False)
    tidy_axes(ax)
    save_figure(figure, path)
