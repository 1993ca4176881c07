"""One look for every figure: colours, fonts, and figures as self-contained images."""

from __future__ import annotations

import base64
import io
import re
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, FAINT = "#1d2733", "#5f6b7a", "#d5dae1"
BLUE, ORANGE, GREEN, VIOLET, RED = "#2563a8", "#d9772b", "#2f8f6b", "#7d5ba6", "#c1272d"
TRACK_COLOURS = (  # neighbours differ; red and grey are kept for wrong and unused hits
    *("#2563a8", "#e08a1e", "#2f8f6b", "#8a5fb0", "#12a0b5"),
    *("#a8741a", "#d0619b", "#6a8f2a", "#4457c9", "#8d5a44"),
)
SETTINGS: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans"],
    "font.size": 10.5,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": "#9aa5b1",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "grid.color": "#e8ebef",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "svg.hashsalt": "hpctrack",  # the same figure gives the same bytes
    "svg.fonttype": "path",
}


styled = matplotlib.rc_context(SETTINGS)  # a decorator: everything the function draws and saves looks alike


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches; no pyplot, so nothing stays open and no display is needed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def grid(axes: Axes, axis: str = "y") -> None:
    """Faint lines behind the data."""
    axes.grid(True, axis=axis, which="major")


def svg(figure: Figure, dpi: int = 200) -> str:
    """The figure as an SVG data URI that refers to nothing outside; its rasterised parts have `dpi`."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None})
    text = re.sub(r"<!DOCTYPE.*?>|<metadata>.*?</metadata>|<\?xml.*?\?>", "", buffer.getvalue(), flags=re.DOTALL)
    return "data:image/svg+xml;base64," + base64.b64encode(text.strip().encode()).decode()


def png(figure: Figure, dpi: int = 160) -> bytes:
    """The figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()
