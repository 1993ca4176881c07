"""The sections of the report that say how well each kind of track is found, of one results.json or of several."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from hpctrack.evaluation.kinds import KINDS
from hpctrack.evaluation.metrics import METRICS
from hpctrack.reporting import page
from hpctrack.reporting.plots import SIZE, columns_behind, new_figure, points, rate_axis, styled, svg, symbol
from hpctrack.results import comparison
from hpctrack.results.comparison import Named, aligned, bin_text

ROWS = {  # metrics that share a picture: its title
    ("double_majority_efficiency", "efficiency"): "Found",
    ("perfect_efficiency", "lhc_efficiency"): "Whole and pure",
    ("fake_rate", "duplicate_rate"): "Fakes and duplicates",
}
Series = tuple[Named, str]  # results and a metric


def by_kind(one: Named) -> str:
    """Every metric by kind of track: the exclusive tracks of one results.json."""
    title = "How well each kind of track is found"
    note = comparison.not_told(one)
    parts = [page.missing(f"{note[0].upper()}{note[1:]}.")] if note else []
    variables = comparison.variables_of([one])
    if not variables:
        return page.section(title, *parts)
    for metrics, what in ROWS.items():
        series = [(one, metric) for metric in metrics]
        pictures = [(figure(series, v, what), f"{what} against {KINDS[v].title}") for v in variables]
        names = [METRICS[metric].title for metric in metrics]
        parts += [page.key([(symbol(k), name) for k, name in enumerate(names)]), page.figures("three", pictures, "")]
    parts += [page.paragraph(CAPTION, "note"), page.paragraph(_what_kinds_are(variables), "note")]
    table = comparison.text(comparison.by_kind(one))
    return page.section(title, *parts, page.folded("All metrics by kind of track, as a table", table))


CAPTION = (
    "Exclusive tracks. Vertical bars: 68 % intervals. Grey columns, without a scale: what the first series is a "
    "fraction of. The outermost bins take in everything beyond. LHC efficiency and duplicates are fractions of "
    "candidates: such a candidate has the kind of its target. A fake has no target: for the fake rate, a candidate's "
    "kind is what its own hits say, and there is none where the point of creation is asked for."
)


def _what_kinds_are(variables: Sequence[str]) -> str:
    texts = []
    for variable in variables:
        kind = KINDS[variable]
        own = f"; candidate: {kind.of_candidate}" if kind.of_candidate else ""
        texts.append(f"{kind.title[0].upper()}{kind.title[1:]} – target: {kind.of_target}{own}.")
    return " ".join(texts)


def beside(named: Sequence[Named]) -> str:
    """Several results beside each other: all metrics, and double majority and fakes by kind of track."""
    tables = comparison.beside(named)
    parts = [
        page.table([escape(cell) for cell in tables[0].head], [[escape(c) for c in row] for row in tables[0].rows])
    ]
    for one in named:
        if note := comparison.not_told(one):
            parts.append(page.missing(f"{one.name}: {note}."))
    if variables := comparison.variables_of(named):
        parts.append(page.key([(symbol(number), one.name) for number, one in enumerate(named)]))
        pictures = []
        for metric in comparison.SHOWN:
            series = [(one, metric) for one in named]
            shown = [v for v in variables if any(one.bins(metric, v) for one in named)]
            title = METRICS[metric].title
            pictures += [(figure(series, v, title), f"{title} against {KINDS[v].title}") for v in shown]
        parts.append(page.figures("three", pictures, "Exclusive tracks. Grey columns: of the first results."))
        parts.append(page.folded("The same as tables", comparison.text(tables[1:])))
    return page.section("Beside each other", *parts)


@styled
def figure(series: Sequence[Series], variable: str, title: str) -> str:
    """Rates in bins of a variable, one place a bin; bins in which no series counted anything are left out."""
    canvas, axes = new_figure(*SIZE)
    lines = aligned([one.bins(metric, variable) for one, metric in series])
    lines = [line for line in lines if any(row and row["denominator"] for row in line)]
    place = np.arange(len(lines))
    columns_behind(axes, place - 0.5, place + 0.5, [next(row["denominator"] for row in line if row) for line in lines])
    step = min(0.18, 0.7 / len(series))
    for number, column in enumerate(zip(*lines, strict=True)):
        filled = {k: row for k, row in enumerate(column) if row and row["denominator"]}
        at = np.array(list(filled), dtype=float) + (number - (len(series) - 1) / 2) * step
        points(axes, number, at, list(filled.values()))
    rate_axis(axes, series[0][1], [row for line in lines for row in line if row])
    labels = [bin_text(next(row for row in line if row), variable) for line in lines]
    axes.set_xticks(place, labels)
    if sum(map(len, labels)) > 30:
        axes.tick_params(axis="x", labelrotation=40)
    axes.set_xlim(-0.5, max(len(lines), 1) - 0.5)
    axes.set_xlabel(KINDS[variable].label)
    axes.set_title(title)
    return svg(canvas)
