"""Maps: province outlines as a ground for points and circles."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from matplotlib.axes import Axes
from matplotlib.collections import EllipseCollection, PolyCollection
from numpy.typing import ArrayLike, NDArray

from geopak.geo.boundaries import Outlines
from geopak.geo.distance import EARTH_RADIUS_KM
from geopak.geo.region import Region
from geopak.report.style import INK

_SEA = "#f3f6f8"
_KM_PER_DEGREE = math.radians(EARTH_RADIUS_KM)
_PALETTE = (
    "#2a78b5", "#e08a1e", "#3d9a57", "#c23b4b", "#7d5ba6",
    "#a8763e", "#d45c9b", "#4fa8a8", "#8a9a2b", "#5b6b7a",
)  # fmt: skip


def province_colors(num: int) -> list[str]:
    """One colour per province in class-index order, as ``#rrggbb``; the same in every picture."""
    extra = [
        "#{:02x}{:02x}{:02x}".format(
            *(round(255 * c) for c in colorsys.hls_to_rgb((0.11 + 0.618034 * k) % 1, 0.45, 0.5))
        )
        for k in range(max(0, num - len(_PALETTE)))
    ]
    return [*_PALETTE, *extra][:num]


def draw_provinces(
    ax: Axes,
    outlines: Outlines,
    region: Region,
    *,
    alpha: float = 0.22,
    labels: bool = True,
    margin_deg: float = 0.4,
) -> None:
    """Draws the provinces as coloured areas and fits the axes to the region.

    Args:
        ax: axes to draw into; longitude to the right, latitude upwards, true to scale at the
            region's middle latitude.
        outlines: province outlines in class-index order.
        region: names the provinces.
        alpha: opacity of the areas; 0 leaves the borders alone.
        labels: write each province's name at a point inside it.
        margin_deg: space around the region, degrees.
    """
    south, west, north, east = outlines.bounds_deg
    for index, color in enumerate(province_colors(region.num_provinces)):
        rings = [ring[:, ::-1] for ring in outlines.rings_deg(index)]
        ax.add_collection(
            PolyCollection(rings, facecolors=color, alpha=alpha, edgecolors="none", zorder=1)
        )
        ax.add_collection(
            PolyCollection(rings, facecolors="none", edgecolors=INK, linewidths=0.6, zorder=1.5)
        )
    if labels:
        _label_provinces(ax, outlines, region)
    ax.set_xlim(west - margin_deg, east + margin_deg)
    ax.set_ylim(south - margin_deg, north + margin_deg)
    ax.set_aspect(1 / math.cos(math.radians((south + north) / 2)))
    ax.set_facecolor(_SEA)
    ax.tick_params(labelsize=7, colors=INK, length=2)
    ax.xaxis.set_major_formatter("{x:.0f}°")
    ax.yaxis.set_major_formatter("{x:.0f}°")
    for spine in ax.spines.values():
        spine.set_visible(False)


def _label_provinces(ax: Axes, outlines: Outlines, region: Region) -> None:
    """Names each province in its widest part, or east of the region when it is too narrow."""
    south, _, north, east = outlines.bounds_deg
    box = {"boxstyle": "round,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.55}
    style: dict[str, Any] = {"fontsize": 7, "color": INK, "va": "center", "zorder": 6, "bbox": box}
    land = shapely.union_all(np.array(outlines.polygons, object))
    narrow: list[tuple[float, float, str]] = []
    for name, polygon in zip(region.names, outlines.polygons, strict=True):
        radius = shapely.maximum_inscribed_circle(polygon, tolerance=0.05)
        lon, lat = radius.coords[0]
        if radius.length < (north - south) / 20:
            narrow.append((lat, lon, name))
        else:
            ax.annotate(name, (lon, lat), ha="center", **style)
    row_height = (north - south) / 26
    previous = north + row_height
    for lat, lon, name in sorted(narrow, reverse=True):
        row = min(lat, previous - row_height)
        previous = row
        on_land = land.intersection(shapely.LineString([(lon, row), (east, row)]))
        beside = (on_land.bounds[2] if not on_land.is_empty else lon) + row_height / 2
        arrow = {"arrowstyle": "-", "color": INK, "lw": 0.5, "shrinkA": 0, "shrinkB": 0}
        ax.annotate(name, (lon, lat), xytext=(beside, row), ha="left", arrowprops=arrow, **style)


def draw_circles_km(
    ax: Axes, latlon_deg: ArrayLike, radius_km: ArrayLike, colors: Sequence[str], alpha: float = 0.5
) -> None:
    """Draws circles of a radius in kilometres, true to scale on the map.

    Args:
        ax: axes with longitude and latitude in degrees.
        latlon_deg: (N, 2) centers, degrees, latitude first.
        radius_km: (N,) kilometres.
        colors: N colours.
        alpha: opacity.
    """
    centers = np.asarray(latlon_deg, float).reshape(-1, 2)
    height_deg: NDArray[np.float64] = 2 * np.asarray(radius_km, float) / _KM_PER_DEGREE
    width_deg = height_deg / np.cos(np.radians(centers[:, 0]))
    ax.add_collection(
        EllipseCollection(
            width_deg, height_deg, np.zeros(len(centers)), units="xy", offsets=centers[:, ::-1],
            offset_transform=ax.transData, facecolors=list(colors), edgecolors=INK, linewidths=0.3,
            alpha=alpha, zorder=3,
        )
    )  # fmt: skip
