"""Photos side by side, each above a map of its true and its predicted place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageOps

from geopak.data.images import upright_rgb
from geopak.geo.boundaries import Outlines
from geopak.geo.region import Region
from geopak.report.maps import draw_provinces
from geopak.report.style import (
    GRID,
    INK,
    MUTED,
    PREDICTED_COLOR,
    TRUTH_COLOR,
    new_figure,
    save_figure,
)
from geopak.report.wording import format_km

log = logging.getLogger(__name__)


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
    draw_photo(above, thumbnail(card.path))
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


def draw_photo(ax: Axes, photo: Image.Image | None) -> None:
    """Draws a photo in a frame; ``None``: says that it cannot be read."""
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
            upright = upright_rgb(opened)
        return ImageOps.fit(upright, size)
    except (OSError, ValueError) as error:
        log.warning("Left out of the figure: %s cannot be read (%s).", path, error)
        return None
