"""The picture of one prediction: photo, probabilities of provinces, hypotheses on the map."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from PIL import Image

from geopak.data.images import upright_rgb
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.report.maps import draw_circles_km, draw_provinces, province_colors
from geopak.report.photo_figures import draw_photo
from geopak.report.style import (
    INK,
    MUTED,
    PREDICTED_COLOR,
    new_figure,
    save_figure,
    set_title,
    tidy_axes,
)

# Hypotheses below this would be drawn as if they mattered.
VISIBLE_PROBABILITY = 0.005


def draw_prediction(
    path: str | Path,
    result: Mapping[str, Any],
    region: Region,
    outlines: Outlines,
    photo: str | Path | Image.Image | None = None,
) -> None:
    """Draws one prediction: the photo, province probabilities, and hypotheses on the map.

    Args:
        path: image file to write; its suffix chooses the format (png, svg, jpg, webp, pdf).
        result: ``province, province_probabilities`` (name -> probability), ``lat, lon,
            confidence, confidence_km`` and ``hypotheses``, each with ``lat, lon, probability,
            province, radius_km``.
        region: names the provinces.
        outlines: province outlines.
        photo: image or its file, shown upright; ``None`` leaves the place to the probabilities.
    """
    small = None
    # As the model sees it, with 16 bits a pixel or without a ground, too.
    if isinstance(photo, (str, Path)):
        with Image.open(photo) as opened:
            small = upright_rgb(opened)
    elif photo is not None:
        small = upright_rgb(photo).copy()
    figure = new_figure(12.5, 6.9)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.45))[0]
    if small is None:
        bars = left.subplots()
    else:
        top, bottom = left.subfigures(2, 1, height_ratios=(1.35, 1))
        view, bars = top.subplots(), bottom.subplots()
        small.thumbnail((1000, 1000))
        draw_photo(view, small)
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
