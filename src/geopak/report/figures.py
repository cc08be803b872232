"""The pictures of an evaluation report and of a single prediction."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.report.certainty import MeasuredRegions
from geopak.report.maps import draw_circles_km, draw_provinces, province_colors
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
from geopak.schema.training import THRESHOLDS_KM
from geopak.selective import risk_curve

log = logging.getLogger(__name__)

TRUTH_COLOR = "#1d9a6c"
PREDICTED_COLOR = "#d1495b"
_BEFORE_COLOR = "#e08a1e"
_REGION_COLORS = ("#9ecae1", "#4fa8a8", "#1f6f8b", "#22303c")
_BASELINE_STYLE = (("#e08a1e", (0, (5, 1.5))), ("#7d5ba6", (0, (1.2, 1.2))))
# From near to far: safe for red-green blindness, and still ordered when printed in grey.
_ERROR_COLORS = ("#0b5d7a", "#2f93ad", "#93c9c3", "#f2c14e", "#e76f32", "#9c1c3a")
_MIN_ERROR_KM = 0.1

_SHADE = LinearSegmentedColormap.from_list("share", ["#ffffff", "#cfe3ea", MODEL_COLOR])


_TITLES = {
    "densest_cell": "densest cell",
    "province_centroid_true": "centroid of the true province",
    "argmax": "most probable hypothesis",
    "max_within_km": "most probability nearby",
}


# Hypotheses below this would be drawn as if they mattered.
VISIBLE_PROBABILITY = 0.005


def rule_title(name: str) -> str:
    """A decoding rule or baseline in words: ``geometric_median`` -> ``geometric median``."""
    return _TITLES.get(name, name.replace("_", " "))


def format_km(distance_km: float) -> str:
    """Kilometres with the digits a reader can use: ``0.42``, ``3.1``, ``57``, ``1,204``."""
    digits = 2 if distance_km < 0.995 else 1 if distance_km < 9.95 else 0
    return f"{distance_km:,.{digits}f}"


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


@dataclass(frozen=True, eq=False)
class PhotoCard:
    """A photo with its true and its predicted place.

    Attributes:
        path: image file; one that cannot be read is drawn as an empty frame.
        latlon_deg: (2,) true degrees.
        predicted_latlon_deg: (2,) predicted degrees.
        error_km: distance between them.
        province: true province.
        predicted_province: most probable province.
    """

    path: Path
    latlon_deg: NDArray[np.float64]
    predicted_latlon_deg: NDArray[np.float64]
    error_km: float
    province: str
    predicted_province: str


def choose_rows(error_km: ArrayLike, per_row: int, seed: int) -> dict[str, NDArray[np.int64]]:
    """Which photos to show: smallest errors, drawn at random, largest errors; none twice.

    Args:
        error_km: (N,).
        per_row: photos of each kind; fewer when there are not enough.
        seed: of the draw.
    """
    order = np.argsort(np.asarray(error_km, float), kind="stable")
    each = min(per_row, max(1, len(order) // 3))
    best, worst = order[:each], order[each:][::-1][:each]
    rest = order[each : len(order) - len(worst)]
    random = np.random.default_rng(seed).permutation(rest)[:each]
    chosen = {"Smallest errors": best, "Drawn at random": random, "Largest errors": worst}
    return {title: rows for title, rows in chosen.items() if len(rows)}


def draw_photos(
    path: str | Path,
    cards: Sequence[PhotoCard],
    error_km: ArrayLike,
    region: Region,
    outlines: Outlines,
    *,
    per_row: int = 5,
    seed: int = 0,
) -> None:
    """Draws the best, some random and the worst photos, each above a map of truth and prediction.

    Args:
        path: PNG file to write.
        cards: N photos.
        error_km: (N,) of the same photos.
        region: names the provinces.
        outlines: province outlines.
        per_row: photos in a row.
        seed: of the random ones.
    """
    chosen = choose_rows(error_km, per_row, seed)
    columns = max(len(rows) for rows in chosen.values())
    figure = new_figure(max(2.35 * columns, 4.0), 3.75 * len(chosen) + 0.3)
    stripes = figure.subfigures(len(chosen), 1, squeeze=False)[:, 0]
    for stripe, (title, rows) in zip(stripes, chosen.items(), strict=True):
        stripe.suptitle(title, fontsize=12, color=INK, x=0.012, ha="left", weight="bold")
        axes = stripe.subplots(2, columns, squeeze=False, height_ratios=(1, 1.15))
        for column in range(columns):
            if column < len(rows):
                _draw_card(axes[:, column], cards[rows[column]], region, outlines)
            else:
                for ax in axes[:, column]:
                    ax.set_axis_off()
    handles = [
        Line2D([], [], marker="o", ls="", color=TRUTH_COLOR, ms=9, mec="white", label="true place"),
        Line2D([], [], marker="X", ls="", color=PREDICTED_COLOR, ms=7, mec="white",
               label="prediction"),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="upper right", fontsize=9, frameon=False, ncols=2)
    save_figure(figure, path)


def _draw_card(
    axes: NDArray[np.object_], card: PhotoCard, region: Region, outlines: Outlines
) -> None:
    above, below = axes
    _draw_photo(above, thumbnail(card.path))
    provinces = card.province
    if card.predicted_province != card.province:
        provinces += f"\ntaken for {card.predicted_province}"
    above.set_title(
        f"{format_km(card.error_km)} km", fontsize=10, color=INK, loc="left", weight="bold", pad=3
    )
    draw_provinces(below, outlines, region, alpha=0.10, labels=False)
    below.set_axis_off()
    (lat, lon), (predicted_lat, predicted_lon) = card.latlon_deg, card.predicted_latlon_deg
    below.plot((lon, predicted_lon), (lat, predicted_lat), color=INK, linewidth=1, zorder=4)
    mark: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.8, "linestyle": ""}
    # The truth is the larger mark and lies below: it shows around a prediction on top of it.
    below.plot(lon, lat, marker="o", markersize=10, color=TRUTH_COLOR, zorder=5, **mark)
    below.plot(
        predicted_lon, predicted_lat, marker="X", markersize=7, color=PREDICTED_COLOR, zorder=6,
        **mark,
    )  # fmt: skip
    below.set_title(provinces, fontsize=8, color=INK, loc="left", pad=2)


def _draw_photo(ax: Axes, photo: Image.Image | None) -> None:
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_color(GRID)
    if photo is None:
        ax.set_facecolor(GRID)
        ax.text(
            0.5, 0.5, "photo not\nreadable", ha="center", va="center", color=MUTED, fontsize=8,
            transform=ax.transAxes,
        )  # fmt: skip
        ax.set_box_aspect(3 / 4)
    else:
        ax.imshow(photo)


def thumbnail(path: Path, size: tuple[int, int] = (320, 240)) -> Image.Image | None:
    """The photo upright, cut to ``size`` (width, height); ``None`` if it cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (2 * size[0], 2 * size[1]))
            upright = ImageOps.exif_transpose(opened).convert("RGB")
        return ImageOps.fit(upright, size)
    except (OSError, ValueError) as error:
        log.warning("Left out of the figure: %s cannot be read (%s).", path, error)
        return None


def draw_prediction(
    path: str | Path,
    result: Mapping[str, Any],
    region: Region,
    outlines: Outlines,
    photo: str | Path | Image.Image | None = None,
) -> None:
    """Draws one prediction: the photo, province probabilities, and hypotheses on the map.

    Args:
        path: image file to write; its suffix chooses the format (png, pdf, svg, jpg).
        result: ``province, province_probabilities`` (name -> probability), ``lat, lon,
            confidence, confidence_km`` and ``hypotheses``, each with ``lat, lon, probability,
            province, radius_km``.
        region: names the provinces.
        outlines: province outlines.
        photo: image or its file, shown upright; ``None`` leaves the place to the probabilities.
    """
    if isinstance(photo, (str, Path)):
        with Image.open(photo) as opened:
            photo = ImageOps.exif_transpose(opened).convert("RGB")
    figure = new_figure(12.5, 6.9)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.45))[0]
    if photo is None:
        bars = left.subplots()
    else:
        top, bottom = left.subfigures(2, 1, height_ratios=(1.35, 1))
        view, bars = top.subplots(), bottom.subplots()
        small = photo.convert("RGB")
        small.thumbnail((1000, 1000))
        _draw_photo(view, small)
    _draw_probabilities(bars, result["province_probabilities"], region)
    ax = right.subplots()
    draw_provinces(ax, outlines, region, alpha=0.10)
    _draw_hypotheses(ax, result, region)
    north_south = f"{abs(result['lat']):.4f}° {'N' if result['lat'] >= 0 else 'S'}"
    east_west = f"{abs(result['lon']):.4f}° {'E' if result['lon'] >= 0 else 'W'}"
    ax.set_title(
        f"{result['province']}   {north_south}, {east_west}",
        fontsize=14, color=INK, loc="left", weight="bold", pad=22,
    )  # fmt: skip
    sure = f"{result['confidence']:.0%} probability within {result['confidence_km']:g} km"
    if not result.get("calibrated", True):
        sure += " (not calibrated)"
    if region_of := result.get("region"):
        sure += f", {region_of['coverage']:.0%} within {region_of['area_km2']:,.0f} km² of cells"
    ax.annotate(
        sure,
        (0, 1), xycoords="axes fraction", xytext=(0, 7), textcoords="offset points",
        fontsize=10, color=INK,
    )  # fmt: skip
    save_figure(figure, path)


def _draw_probabilities(ax: Axes, probabilities: Mapping[str, float], region: Region) -> None:
    colors = dict(zip(region.names, province_colors(region.num_provinces), strict=True))
    ranked = sorted(probabilities.items(), key=lambda item: item[1])
    names, values = zip(*ranked, strict=True)
    ax.barh(names, values, color=[colors.get(name, MUTED) for name in names], height=0.66)
    for place, value in enumerate(values):
        ax.annotate(
            f"{value:.1%}", (value, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=INK,
        )  # fmt: skip
    tidy_axes(ax, grid=False)
    ax.set_xlim(0, 1.12)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.tick_params(axis="y", labelsize=9, length=0)
    set_title(ax, "Province")


def _draw_hypotheses(ax: Axes, result: Mapping[str, Any], region: Region) -> None:
    colors = dict(zip(region.names, province_colors(region.num_provinces), strict=True))
    hypotheses = sorted(
        (h for h in result["hypotheses"] if h["probability"] >= VISIBLE_PROBABILITY),
        key=lambda h: -h["probability"],
    )
    if hypotheses:
        places = np.array([(h["lat"], h["lon"]) for h in hypotheses])
        tints = [colors.get(h["province"], MUTED) for h in hypotheses]
        draw_circles_km(ax, places, [h["radius_km"] for h in hypotheses], tints, alpha=0.3)
        # Area, not width, is proportional to the probability.
        ax.scatter(
            places[:, 1], places[:, 0], s=[14 + 900 * h["probability"] for h in hypotheses],
            c=tints, alpha=0.65, edgecolors="white", linewidths=0.8, zorder=7,
        )  # fmt: skip
    ax.plot(
        result["lon"], result["lat"], marker="*", markersize=17, color=PREDICTED_COLOR,
        markeredgecolor="white", markeredgewidth=1.1, linestyle="", zorder=9,
    )  # fmt: skip
    handles = [
        Line2D([], [], marker="*", ls="", ms=13, color=PREDICTED_COLOR, mec="white",
               label="prediction"),
        Line2D([], [], marker="o", ls="", ms=9, color=MUTED, alpha=0.7, mec="white",
               label="hypotheses, area by probability"),
    ]  # fmt: skip
    ax.legend(handles=handles, loc="lower right", fontsize=9, frameon=False).set_zorder(9)
