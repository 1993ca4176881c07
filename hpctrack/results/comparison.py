"""Results by kind of track, and several results beside each other: as tables of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.evaluation.kinds import KINDS
from hpctrack.evaluation.metrics import METRICS
from hpctrack.process.arguments import named_path
from hpctrack.results.content import HEADINGS, load_results, value_text

VARIABLES = ("hits", "vertex_r", "vertex_z", "pt", "abs_eta", "distance")  # that are shown, in this order
WHOLE = ("hits", "n_tracks")  # variables that count
READING = "exclusive"  # the one that is shown by kind; results.json has both
SHORT = {  # metrics in the heads of columns
    "efficiency": "efficiency",
    "double_majority_efficiency": "double majority",
    "lhc_efficiency": "LHC",
    "perfect_efficiency": "perfect",
    "duplicate_rate": "duplicates",
    "fake_rate": "fakes",
}
SHOWN = ("double_majority_efficiency", "fake_rate")  # of several results by kind
SHARE = "share of targets"  # a column that is no metric


@dataclass(frozen=True)
class Named:
    """Results with the name that they are shown under."""

    name: str
    path: Path
    results: dict

    def bins(self, metric: str, variable: str) -> list[dict]:
        """The metric's rows in the bins of a variable; none if the results have none."""
        metric = "efficiency" if metric == SHARE else metric  # its denominators are the targets
        return self.results[READING]["binned"].get(metric, {}).get(variable, [])


@dataclass(frozen=True)
class Table:
    """Cells of text: a title, a head, rows that begin with their label."""

    title: str
    head: list[str]
    rows: list[list[str]]


def load(texts: Sequence[str]) -> list[Named]:
    """Results named as NAME=FILE or FILE, which is named as the file; files of one name by their folders, too."""
    pairs = [named_path(text) for text in texts]
    stems = [path.stem for _, path in pairs]
    found = []
    for name, path in pairs:
        short = path.stem if stems.count(path.stem) == 1 else f"{path.absolute().parent.name}/{path.stem}"
        found.append(Named(name or short, path, load_results(path)))
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"two results are named '{name}'; name them: NAME=FILE")
    return found


def variables_of(named: Sequence[Named]) -> list[str]:
    """The variables by which any of the results are given."""
    told = [one for one in named if one.bins(SHARE, "hits")]  # 0.1.0 had tables by momentum and direction alone
    return [v for v in VARIABLES if any(one.bins(metric, v) for one in told for metric in METRICS)]


def not_told(one: Named) -> str | None:
    """What cannot be told of these results by kind, in one line; None if there is nothing."""
    if not variables_of([one]):
        return "no tables by kind of track: made by an older hpctrack; evaluate again"
    hidden = {variable: why for variable, why in one.results.get("not_told", {}).items() if variable in VARIABLES}
    if not hidden:
        return None
    parts = ", ".join(dict.fromkeys(part for why in hidden.values() for part in why.split(", ")))
    titles = ", ".join(KINDS[variable].title for variable in hidden)
    return f"not told by {titles}: the dataset has no {parts}"


def bin_text(row: dict, variable: str) -> str:
    """A bin in words: `3`, `5–6`, `9+`, `1–5`, `< 1`, `≥ 100`."""
    low, high = row["from"], row["to"]
    if variable in WHOLE:
        if high is None:
            return f"{low:g}+"
        return f"{low:g}" if high - low == 1 else f"{low:g}–{high - 1:g}"
    if high is None:
        return "all" if low is None else f"≥ {low:g}"
    return f"< {high:g}" if not low else f"{low:g}–{high:g}"


def aligned(tables: Sequence[Sequence[dict]]) -> list[list[dict | None]]:
    """The rows of several tables bin by bin, in the order of the bins; None where a table has no such bin."""
    by_bin = [{(row["from"], row["to"]): row for row in table} for table in tables]
    low, high = float("-inf"), float("inf")
    bins = {bounds for table in by_bin for bounds in table}
    order = sorted(
        bins, key=lambda bounds: tuple(b if b is not None else end for b, end in zip(bounds, (low, high), strict=True))
    )
    return [[table.get(bounds) for table in by_bin] for bounds in order]


# ------------------------------------------------------------------------------------------------ tables


def by_kind(one: Named) -> list[Table]:
    """For each variable: every metric in its bins, and the share of the targets that are of this kind."""
    columns = [(SHARE, one, SHARE), *((metric, one, SHORT[metric]) for metric in SHORT)]
    return [_in_bins(variable, columns) for variable in variables_of([one])]


def beside(named: Sequence[Named]) -> list[Table]:
    """All metrics of several results, those by rules, then for each variable those SHOWN, and shares of the targets."""
    rows = []
    for metric in [*METRICS, "trackml_score"]:
        numbers = [one.results[READING]["metrics"][metric] for one in named]
        rows.append([numbers[0]["title"], *map(value_text, numbers)])
    for label, key in (("Targets", "target_particles"), ("Events", "events"), ("Hits", "hits")):
        rows.append([label, *(f"{one.results[key]:,}" for one in named)])
    rows.append(["Targets are", *(one.results["selection"]["text"] for one in named)])
    columns = [(SHARE, one, f"{one.name}: {SHARE}") for one in named]
    columns += [(metric, one, f"{one.name}: {SHORT[metric]}") for metric in SHOWN for one in named]
    first = Table(HEADINGS[READING].capitalize(), ["", *(one.name for one in named)], rows)
    return [first, *by_rule(named), *(_in_bins(variable, columns) for variable in variables_of(named))]


def by_rule(named: Sequence[Named]) -> list[Table]:
    """For each rule that any of the results were counted by: its metrics of each."""
    rules = dict.fromkeys(rule for one in named for rule in one.results.get("rules", {}))
    tables = []
    for rule in rules:
        found = [one.results.get("rules", {}).get(rule, {}).get(READING, {}) for one in named]
        titles = {key: number["title"] for numbers in found for key, number in numbers.items()}
        cells = [[value_text(numbers[key]) if key in numbers else "–" for numbers in found] for key in titles]
        rows = [[title, *row] for title, row in zip(titles.values(), cells, strict=True)]
        tables.append(Table(f"By rule {rule}", ["", *(one.name for one in named)], rows))
    return tables


def _in_bins(variable: str, columns: Sequence[tuple[str, Named, str]]) -> Table:
    """Columns (metric or SHARE, results, head) in the bins of a variable in which anything was counted."""
    columns = [(metric, one, head) for metric, one, head in columns if one.bins(metric, variable)]
    rows = []
    for line in aligned([one.bins(metric, variable) for metric, one, _ in columns]):
        filled = [row for row in line if row and row["denominator"]]
        if filled:
            cells = [
                (share(one, row) if metric == SHARE else value_text(row)) if row else "–"
                for (metric, one, _), row in zip(columns, line, strict=True)
            ]
            rows.append([bin_text(filled[0], variable), *cells])
    label = KINDS[variable].label
    return Table(label[0].upper() + label[1:], ["", *(head for _, _, head in columns)], rows)


def share(one: Named, row: dict) -> str:
    """Which part of all targets the bin's are."""
    total = one.results["target_particles"]
    return f"{row['denominator'] / total:.2%}" if total else "–"


def text(tables: Sequence[Table]) -> str:
    """The tables one below the other, columns as wide as they must be."""
    lines = []
    for table in tables:
        width = [max(map(len, column)) for column in zip(table.head, *table.rows, strict=True)]
        width[0] = max(width[0], len(table.title))
        for number, row in enumerate([[table.title, *table.head[1:]], *table.rows]):
            label = row[0] if number == 0 else f"  {row[0]}"
            cells = (f"{cell:>{w}s}" for cell, w in zip(row[1:], width[1:], strict=True))
            lines.append("  ".join([f"{label:<{width[0] + 2}s}", *cells]))
        lines.append("")
    return "\n".join(lines[:-1])
