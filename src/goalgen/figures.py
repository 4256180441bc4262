"""Charts of one style: sizes, colours, text and pictures at a point."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

# Okabe and Ito's colours, which the colour-blind tell apart; so is the scale of brightness in the heat maps.
BLUE, SKY, ORANGE, VERMILION = "#0072B2", "#56B4E9", "#E69F00", "#D55E00"
HEAT, DPI, WIDTH = "viridis", 100, 1000


def new_figure(height: int, width: int = WIDTH, arranged: bool = False) -> Figure:
    """An empty figure on white, sizes in pixels; ``arranged`` leaves room for labels by itself."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1) if arranged else None
    figure = Figure((width / DPI, height / DPI), DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def write(figure: Figure, x: float, y: float, text: str, **options: Any) -> None:
    """Centre text at a point counted in pixels from the upper left corner."""
    figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, text, ha="center", va="center", **options)


def place(figure: Figure, picture: Image.Image, left: float, top: float, factor: float) -> Axes:
    """Show a picture, ``factor`` times enlarged, at a point counted in pixels from the upper left corner."""
    across, down = figure.bbox.width, figure.bbox.height
    width, height = picture.width * factor, picture.height * factor
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255, aspect="auto")
    axes.set(xticks=[], yticks=[])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def heat_figure(horizon: int) -> tuple[Figure, Axes, Axes]:
    """A figure with room for a map over the steps of an episode, the first on top, and bars beside it."""
    figure = new_figure(450 if horizon <= 18 else min(100 + 20 * horizon, 1200), arranged=True)
    left, right = figure.subplots(1, 2, width_ratios=(5, 2), sharey=True)
    left.set(yticks=range(0, horizon, -(-horizon // 50)), ylim=(horizon - 0.5, -0.5), ylabel="step h of the episode")
    right.spines[["top", "right"]].set_visible(False)
    return figure, left, right
