"""Tables and picture of the ablation, from the counts of whatever runs are there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hpctrack.evaluation.metrics import fraction
from hpctrack.files.atomic import write_text
from tests.campaigns import seeds
from tests.campaigns.points import Points
from tests.campaigns.readings import READINGS, TITLES, heading
from tests.campaigns.variants import BASE

SHOWN = ("double_majority_efficiency", "fake_rate", "perfect_efficiency", "duplicate_rate")
OTHERS = {"radius": "{:.2f}", "train_s": "{:.0f}", "infer_s": "{:.4f}"}
OTHER_HEADS = ("radius", "training, s", "an event, s")
NOTE = (
    "Mean ± standard deviation over seeds; in brackets the difference to the base, seed by seed, ± the standard error "
    "of its mean. –: nothing was counted. Seconds are wall-clock time of one thread, whatever else the machine did."
)
Values = dict[int, float]  # by seed


def values(rows: Sequence[dict[str, Any]], variant: str, reading: str, name: str) -> Values:
    """A metric of a variant's runs, without those in which its denominator is 0."""
    mine = {row["seed"]: fraction(*row[reading][name])["value"] for row in rows if row["variant"] == variant}
    return {seed: value for seed, value in mine.items() if value is not None}


def cell(mine: Values, base: Values | None, runs: int) -> str:
    """`0.9812 ± 0.0031 (+0.0010 ± 0.0004)`; without `base`, no difference; says if it is not of all `runs`."""
    if not mine:
        return "–"
    away = seeds.difference(mine, base) if base is not None else None
    text = seeds.text(*seeds.mean_and_spread(list(mine.values()))) + (f" ({seeds.text(*away, '+')})" if away else "")
    return text if len(mine) == runs else f"{text}, {len(mine)} of {runs} runs"


def other(rows: Sequence[dict[str, Any]], key: str) -> str:
    """Mean of a figure that has no error worth a column."""
    known = [row[key] for row in rows if row[key] is not None]
    return OTHERS[key].format(sum(known) / len(known)) if known else "–"


def table(rows: Sequence[dict[str, Any]], missing: Sequence[str], about: str) -> str:
    """Markdown: a table for each reading, the base first; what is missing is named."""
    events = sorted({row["events"] for row in rows})
    lines = ["![the ablation: metrics of the base and its variants](ablation.png)", ""]
    lines.append(f"Base: `{about}`. {' or '.join(map(str, events)) or 'No'} events. {NOTE}")
    if missing:
        lines += ["", f"Not there (yet): {', '.join(missing)}."]
    names = list(dict.fromkeys(row["variant"] for row in rows))
    for reading in READINGS:
        lines += heading(reading)
        heads = ["variant", "seeds", *(name.replace("_", " ") for name in SHOWN), *OTHER_HEADS]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for variant in names:
            mine = [row for row in rows if row["variant"] == variant]
            cells = [variant, str(len(mine))]
            for name in SHOWN:
                base = None if variant == BASE else values(rows, BASE, reading, name)
                cells.append(cell(values(rows, variant, reading, name), base, len(mine)))
            cells += [other(mine, key) for key in OTHERS]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel of each metric: a line for each variant, mean and standard deviation of both readings.

    A variant that finds nothing has a line without points, so that the others can be told apart.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["variant"] for row in rows))[::-1]
    empty = {name for name in names if not any(values(rows, name, next(iter(READINGS)), SHOWN[0]).values())}
    labels = [f"{name} (finds nothing)" if name in empty else name for name in names]
    figure = Figure(figsize=(14, 1.8 + 0.26 * len(names)), layout="constrained")
    panels = figure.subplots(1, len(SHOWN), sharey=True)
    for axes, name in zip(panels, SHOWN, strict=True):
        for i, (reading, marker) in enumerate(zip(READINGS, "os", strict=True)):
            found = [{} if variant in empty else values(rows, variant, reading, name) for variant in names]
            have = [at for at, mine in enumerate(found) if mine]
            means = [seeds.mean_and_spread(list(found[at].values())) for at in have]
            bars = [0.0 if spread != spread else spread for _, spread in means]
            x, y = [mean for mean, _ in means], [at + 0.15 - 0.3 * i for at in have]
            axes.errorbar(x, y, xerr=bars, fmt=marker, ms=4, capsize=2, color=f"C{i}", label=TITLES[reading])
            if BASE in names and found[names.index(BASE)]:
                axes.axvline(x[have.index(names.index(BASE))], color=f"C{i}", lw=0.7, ls=":")
        axes.set(xlabel=name.replace("_", " "), yticks=range(len(names)), yticklabels=labels)
        axes.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=8)
    figure.savefig(path, dpi=110, format="png")


def write(points: Points, wanted: Sequence[tuple], about: str, out: Path) -> str:
    """Write ablation.md and ablation.png of the `wanted` points that are there, in their order; the Markdown."""
    found = {points.key(row): row for row in points.rows}
    order = sorted(wanted, key=lambda key: key[0] != BASE)
    rows = [found[key] for key in order if key in found]
    text = table(rows, [f"{key[0]}-{key[1]}" for key in order if key not in found], about)
    temporary = out / ".ablation.png.tmp"
    plot(rows, temporary)
    os.replace(temporary, out / "ablation.png")
    write_text(out / "ablation.md", text)
    return text
