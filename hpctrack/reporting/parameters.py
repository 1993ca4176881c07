"""The report's section on track parameters: widths of residuals and pulls, in all and by momentum and direction."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hpctrack.reporting import page
from hpctrack.reporting.plots import SIZE, VARIABLES, bin_edges, scale_axis
from hpctrack.reporting.style import BLUE, FAINT, ORANGE, grid, new_figure, styled, svg

NAMES = {"q_over_pt": "q / p_T", "phi": "φ", "theta": "θ", "d0": "d0", "z0": "z0"}


def section(results: dict) -> list[str]:
    """The section, if the candidates have track parameters."""
    summed = results.get("resolutions")
    if not summed:
        return []
    head = ["Parameter", "Matched", "Median deviation", "Width", "Pull mean", "Pull width", "Pulls beyond 5 widths"]
    rows = [[_name(name), *_cells(number)] for name, number in summed["parameters"].items()]
    pictures = [
        (figure(number[variable], variable, NAMES[name].replace("p_T", "$p_T$"), number["unit"]), f"{name}, {variable}")
        for variable in ("pt", "eta")
        for name, number in summed["parameters"].items()
    ]
    caption = (
        "Width of the deviations (blue, left axis) and of the pulls (orange, right axis; 1: the estimated covariance "
        "is right). Width: half of the central 68 %. Vertical bars: one standard deviation. The outermost bins take in "
        "everything beyond; bins with few entries are left out."
    )
    note = f"{summed['selection']}. {summed['error_is']}.".replace("pT >=", "p_T ≥").replace(">=", "≥")
    parts = (page.table(head, rows), page.figures("three", pictures, caption), page.paragraph(note, "note"))
    return [page.section("How well track parameters are estimated", *parts)]


def _name(name: str) -> str:
    return page.prose(NAMES[name])


def _cells(number: dict) -> list[str]:
    if number["width"] is None:
        return [f"{number['n']:,}", *["–"] * 5]
    unit = escape(number["unit"])
    pulls = [f"{number[key]:.3f} ± {number[key + '_error']:.3f}" for key in ("pull_mean", "pull_width")]
    width = f"{number['width']:.3g} ± {number['width_error']:.1g} {unit}"
    return [f"{number['n']:,}", f"{number['bias']:.2g} {unit}", width, *pulls, f"{number['pull_outliers']:,}"]


@styled
def figure(rows: Sequence[dict], variable: str, name: str, unit: str) -> str:
    """Widths of residuals and pulls of one parameter in bins."""
    canvas, axes = new_figure(*SIZE)
    low, high = bin_edges(rows, variable)
    filled = [k for k, row in enumerate(rows) if row["width"] is not None]
    middle = np.sqrt(low * high) if variable == "pt" else (low + high) / 2
    beside = axes.twinx()
    for on, key, colour, marker in ((axes, "width", BLUE, "o"), (beside, "pull_width", ORANGE, "s")):
        value, error = (np.array([rows[k][of] for k in filled], dtype=float) for of in (key, f"{key}_error"))
        style = {"color": colour, "ms": 4, "lw": 1.2, "markerfacecolor": colour if on is axes else "white"}
        on.errorbar(middle[filled], value, error, fmt=marker, **style)
        on.set_ylim(bottom=0)
    beside.axhline(1, color=FAINT, lw=0.8, zorder=0)
    scale_axis(axes, variable, low, high)
    axes.set(xlabel=VARIABLES[variable][0], ylabel=f"width ({unit})", title=name)
    grid(axes)
    return svg(canvas)
