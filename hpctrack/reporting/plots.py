"""Figures of the report but the event display: one look for all, each a self-contained image (a data URI)."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

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


# a decorator: everything the function draws and saves looks alike
styled = matplotlib.rc_context(SETTINGS)  # type: ignore[arg-type]  # the stub wants a dict of named keys alone


def new_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one pair of axes, in inches; no pyplot, so nothing stays open and no display is needed."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def grid(axes: Axes, axis: Literal["both", "x", "y"] = "y") -> None:
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


# ------------------------------------------------------------------------------------------------ figures


SIZE = (4.3, 3.15)  # inches of a small figure
SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (VIOLET, "^"), (INK, "v"), (MUTED, "P"))  # colour, marker
LOW_IS_GOOD = ("fake_rate", "duplicate_rate")
FEW = 10  # bins with fewer entries do not set the range of the axis
VARIABLES = {  # variable -> axis label of (efficiency, fake rate)
    "pt": ("true transverse momentum (GeV)", "candidate's own transverse momentum (GeV)"),
    "eta": ("true pseudorapidity", "candidate's own pseudorapidity"),
    "n_tracks": ("target particles in the event", "target particles in the event"),
}
LOWEST_PT_GEV = 0.1  # where a bin from 0 begins on the logarithmic axis


@styled
def rate_figure(metric: str, variable: str, series: Sequence[Sequence[dict]], title: str) -> str:
    """A rate (efficiency or fake rate) in bins, with its 68 % intervals, for one or several series of bins."""
    figure, axes = new_figure(*SIZE)
    rows = within(series[0])
    columns_behind(axes, *bin_edges(rows, variable), [row["denominator"] for row in rows])
    for number, table in enumerate(series):
        low, high = bin_edges(table, variable)
        filled = [k for k, row in enumerate(table) if row["denominator"]]
        left, right = low[filled], high[filled]
        middle = np.sqrt(left * right) if variable == "pt" else (left + right) / 2
        if variable == "n_tracks":
            middle = np.array([table[k]["mean"] for k in filled], dtype=float)
        shift = (number - (len(series) - 1) / 2) * 0.16
        shifted = middle * (right / left) ** (shift / 2) if variable == "pt" else middle + shift * (right - left) / 2
        shifted = np.clip(shifted, left, right)
        points(axes, number, shifted, [table[k] for k in filled], xerr=[shifted - left, right - shifted])
    rate_axis(axes, metric, [row for table in series for row in table])
    scale_axis(axes, variable, *bin_edges(rows, variable))
    axes.set_xlabel(VARIABLES[variable][metric == "fake_rate"])
    axes.set_title(title)
    return svg(figure)


def within(rows: Sequence[dict]) -> Sequence[dict]:
    """The bins without the empty ones at both ends; all if there is nothing in any."""
    filled = [k for k, row in enumerate(rows) if row["denominator"]]
    return rows[filled[0] : filled[-1] + 1] if filled else rows


def points(
    axes: Axes, number: int, at: np.ndarray, rows: Sequence[dict], xerr: Sequence[np.ndarray] | None = None
) -> None:
    """A series of rates with their 68 % intervals at the places `at`; the first series is filled."""
    value, low, high = (np.array([row[key] for row in rows], dtype=float) for key in ("value", "lo", "hi"))
    colour, marker = SERIES[number % len(SERIES)]
    axes.errorbar(
        at, value, yerr=[value - low, high - value], xerr=xerr, fmt=marker, color=colour, ms=4.5, lw=1.3,
        markerfacecolor=colour if number == 0 else "white", zorder=3 + 1 / (1 + number),
    )  # fmt: skip


def symbol(number: int) -> str:
    """A point with its error bars in the colour of the series, for a key; the first one is filled."""
    colour = SERIES[number % len(SERIES)][0]
    fill = colour if number == 0 else "#fff"
    lines = f'<path d="M4 7H26M15 0V14" stroke="{colour}" stroke-width="1.5"/>'
    return lines + f'<circle cx="15" cy="7" r="3.2" fill="{fill}" stroke="{colour}" stroke-width="1.3"/>'


def bin_edges(rows: Sequence[dict], variable: str) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends of the bins as drawn: open ends get the width of their neighbour."""
    begins, ends = [row["from"] for row in rows], [row["to"] for row in rows]
    if rows and begins[0] is None:
        begins[0] = 2 * ends[0] - ends[1]
    if rows and ends[-1] is None:
        ends[-1] = begins[-1] * 2 if variable == "pt" else 2 * begins[-1] - begins[-2]
    low, high = np.array(begins, dtype=float), np.array(ends, dtype=float)
    if variable == "pt":
        low = np.maximum(low, LOWEST_PT_GEV)
        high = np.maximum(high, low * 1.5)
    if variable == "n_tracks":  # whole numbers from, …, to - 1
        low, high = low - 0.5, high - 0.5
    return low, high


def columns_behind(axes: Axes, low: np.ndarray, high: np.ndarray, counts: Sequence[int]) -> None:
    """What the rate is a fraction of, as grey columns without a scale, up to a third of the height."""
    behind = axes.twinx()
    behind.bar(low, counts, width=high - low, align="edge", color="#eef1f5", linewidth=0)
    behind.set_ylim(0, 3 * max([*counts, 1]))
    behind.set_yticks([])
    behind.spines[:].set_visible(False)
    axes.set_zorder(behind.get_zorder() + 1)
    axes.patch.set_visible(False)


def rate_axis(axes: Axes, metric: str, rows: Sequence[dict]) -> None:
    """The vertical axis, cut to where the points of the rows are; intervals of few entries may run out of it."""
    values = [row["value"] for row in rows if row["denominator"]]
    many = [row for row in rows if row["denominator"] >= FEW]
    if metric in LOW_IS_GOOD:
        highest = max([0.0, *values, *(row["hi"] for row in many)])
        axes.set_ylim(0, next((t for t in (0.02, 0.05, 0.1, 0.2, 0.5) if highest < 0.95 * t), 1.04))
    else:
        lowest = min([1.0, *values, *(row["lo"] for row in many)])
        bottom = next((b for b in (0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2) if lowest >= b), 0)
        axes.set_ylim(bottom, 1 + 0.04 * (1 - bottom))
        axes.axhline(1, color=FAINT, lw=0.8)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    grid(axes)


def scale_axis(axes: Axes, variable: str, low: np.ndarray, high: np.ndarray) -> None:
    """Scale and ticks of the horizontal axis for bins of the variable."""
    if variable == "pt" and len(low):
        axes.set_xscale("log")
        ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 50, 100) if low[0] <= t <= high[-1]]
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_xlim(low[0], high[-1])
    elif variable == "n_tracks":
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        if len(low) and high[-1] - low[0] < 5:
            middle = (low[0] + high[-1]) / 2
            axes.set_xlim(middle - 5, middle + 5)


def loss_terms(train: Sequence[dict]) -> list[tuple[str, str]]:
    """The logged terms `loss/…` and their colours, in the order of their names."""
    keys = sorted({key for row in train for key in row if key.startswith("loss/")})
    return [(key, (ORANGE, GREEN, VIOLET, MUTED)[number % 4]) for number, key in enumerate(keys)]


@styled
def loss_figure(train: Sequence[dict], valid: Sequence[dict]) -> str:
    """Loss against step: total and every term in training, total in validation, on a logarithmic axis."""
    figure, axes = new_figure(*SIZE)
    steps = [row["step"] for row in train]
    for key, colour in loss_terms(train):
        axes.plot(steps, [row.get(key, np.nan) for row in train], lw=1.1, color=colour)
    axes.plot(steps, [row["loss"] for row in train], lw=2, color=BLUE)
    axes.plot(
        [row["step"] for row in valid], [row["loss"] for row in valid], "o", ms=4.5, color=INK,
        markerfacecolor="white", zorder=4,
    )  # fmt: skip
    positive = [v for row in [*train, *valid] for k, v in row.items() if k.startswith("loss") and v and v > 0]
    if positive:
        axes.set_yscale("log")
    axes.set_title("Loss")
    return _against_steps(figure, axes)


@styled
def learning_rate_figure(train: Sequence[dict]) -> str:
    """Learning rate against step."""
    figure, axes = new_figure(*SIZE)
    rates = np.array([row.get("lr", np.nan) for row in train], dtype=float)
    power = int(np.floor(np.log10(np.nanmax(rates)))) if np.any(rates > 0) else 0
    axes.plot([row["step"] for row in train], rates / 10.0**power, lw=1.6, color=BLUE)
    axes.set_ylim(bottom=0)
    axes.set_title("Learning rate" + (f" ($\\times 10^{{{power}}}$)" if power else ""))
    return _against_steps(figure, axes)


@styled
def gradient_figure(train: Sequence[dict]) -> str:
    """Gradient norm before clipping against step."""
    figure, axes = new_figure(*SIZE)
    axes.plot([row["step"] for row in train], [row.get("grad_norm", np.nan) for row in train], lw=1.2, color=BLUE)
    if any(row.get("grad_norm", 0) > 0 for row in train):
        axes.set_yscale("log")
    axes.set_title("Gradient norm")
    return _against_steps(figure, axes)


@styled
def throughput_figure(train: Sequence[dict]) -> str:
    """Training speed against step, hits per second over all ranks."""
    figure, axes = new_figure(*SIZE)
    axes.plot([row["step"] for row in train], [row.get("hits_per_s", np.nan) for row in train], lw=1.4, color=BLUE)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_title("Training speed (hits/s, all ranks)")
    return _against_steps(figure, axes)


@styled
def inference_figure(timings: dict) -> str:
    """Seconds of inference against hits of the event, one point an event."""
    figure, axes = new_figure(*SIZE)
    hits, seconds = np.array(timings["per_event"], dtype=float).T
    axes.plot(hits, seconds, "o", ms=4, color=BLUE, alpha=0.6, markeredgewidth=0)
    axes.set_xlim(0, 1.05 * hits.max() if len(hits) else 1)
    axes.set_ylim(0, 1.1 * seconds.max() if len(seconds) else 1)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("hits in the event")
    axes.set_title("Inference (s per event)")
    grid(axes)
    return svg(figure)


def _against_steps(figure: Figure, axes: Axes) -> str:
    axes.set_xlabel("optimizer step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    grid(axes)
    return svg(figure)
