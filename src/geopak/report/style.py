"""How every figure looks.

Figures are made without pyplot, so that drawing touches no global state and needs no display.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK = "#22303c"
MUTED = "#7b8794"
GRID = "#e3e8ec"
MODEL_COLOR = "#1f6f8b"
TRUTH_COLOR = "#1d9a6c"
PREDICTED_COLOR = "#d1495b"
_DPI = 130


def new_figure(width_in: float, height_in: float) -> Figure:
    """A figure on the Agg canvas, to be saved with :func:`save_figure`."""
    figure = Figure(figsize=(width_in, height_in), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def tidy_axes(ax: Axes, grid: bool = True) -> None:
    """Takes away what axes do not need."""
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(MUTED)
    ax.tick_params(which="both", colors=INK, labelsize=8, length=3)
    if grid:
        ax.grid(color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)


def set_title(ax: Axes, title: str, size: float = 11) -> None:
    """Writes a title above the left end of the axes."""
    ax.set_title(title, fontsize=size, color=INK, loc="left")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Writes the figure as PNG."""
    engine = figure.get_layout_engine()
    if isinstance(engine, ConstrainedLayoutEngine):
        engine.set(w_pad=0.09, h_pad=0.09)
    figure.savefig(path, dpi=_DPI)
