"""Whether trainings are the same model, on the page: planes, paths, similarity of layers and churn (landscape.json)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from hpctrack.reporting import page
from hpctrack.reporting.plots import BLUE, GREEN, INK, MUTED, ORANGE, RED, SIZE, VIOLET, grid, new_figure, styled, svg
from hpctrack.results.landscapes import LINE, TOTAL, known, path_numbers, same_layers, text, worst_share

LEVELS = 14  # of contours
FAR = 10  # the largest over the smallest loss from which on the axis is logarithmic
WITH_NUMBERS = 10  # runs at most whose matrix has its numbers in it
CURVES = (BLUE, GREEN, VIOLET, MUTED)


def sections(results: dict[str, Any]) -> list[str]:
    """A section (HTML) for each part that was looked at, behind one that names the runs."""
    parts = results["parts"]
    makers = {"landscape": planes, "connections": paths, "similarity": similarity, "churn": churn}
    return [runs(results), *(page.section(*makers[part](results)) for part in makers if part in parts)]


def lead(results: dict[str, Any]) -> str:
    """The line under a title: what was looked at."""
    n, events = len(results["runs"]), [of["settings"].get("events", 0) for of in results["parts"].values()]
    return f"{n} run{'s' * (n > 1)}, {max(events, default=0)} events."


def runs(results: dict[str, Any]) -> str:
    """The runs, and the commands."""
    head = ["Run", "Group", "Loss", "Steps", "Seed"]
    rows = [
        [escape(run["name"]), escape(run["group"]), escape(run["loss"]), f"{run['step']:,}", str(run["seed"])]
        for run in results["runs"]
    ]
    commands = "\n".join(f"{part}: {' '.join(of['command'])}" for part, of in results["parts"].items())
    return page.section("The runs that are compared", page.table(head, rows), page.folded("Commands", commands))


def names_of(results: dict[str, Any]) -> list[str]:
    """The runs' names."""
    return [run["name"] for run in results["runs"]]


# ------------------------------------------------------------------------------------------------ planes


def planes(results: dict[str, Any]) -> Iterator[str]:
    """Title and pieces of the section on planes through runs."""
    surfaces, names = results["parts"]["landscape"]["surfaces"], names_of(results)
    yield "The loss around each run"
    head = ["Run", "Loss", "At the run", "Largest on the plane", "Two largest curvatures"]
    rows, pictures = [], []
    for loss in results["losses"]:
        values = [value for one in surfaces for row in one["losses"][loss][TOTAL] for value in known(row)]
        for one in surfaces:
            name, of = names[one["run"]], one["losses"][loss]
            largest = max((value for row in of[TOTAL] for value in known(row)), default=None)
            cells = [escape(name), escape(loss), text(one["centre"][loss][TOTAL]), text(largest)]
            rows.append([*cells, curvatures(one["directions"], loss)])
            pictures.append((plane_figure(one, loss, name, values), f"{loss} on a plane through {name}"))
    first = surfaces[0]["directions"]
    steep = "the two directions of the largest curvature (power iteration)"
    spans = steep if first["kind"] == "hessian" else "two random directions"
    caption = (
        f"Total loss on the plane spanned by {spans}. Each tensor of a direction is as long as that of the weights, so "
        "0.5 on an axis moves every tensor by half its length. The cross is the run. Contours are spaced in equal "
        "ratios, and the same for all runs of a loss. White: not finite."
    )
    yield page.table(head, rows)
    yield page.figures("three", pictures, caption)


def curvatures(about: dict[str, Any], loss: str) -> str:
    """The eigenvalues, where they are of this loss."""
    if about.get("loss") != loss:
        return "–"
    return ", ".join(f"{one['value']:.3g}{'' if one['converged'] else ' (not converged)'}" for one in about["eigen"])


@styled
def plane_figure(surface: dict[str, Any], loss: str, name: str, every: Sequence[float]) -> str:
    """Contours of a loss; `every`: all values that share the colours."""
    figure, axes = new_figure(*SIZE)
    axis = surface["axis"]
    values = np.array(
        [[np.nan if v is None else v for v in row] for row in surface["losses"][loss][TOTAL]], dtype=float
    )
    low, high = (min(every), max(every)) if every else (0.0, 1.0)
    if len(axis) < 2 or not high > low:
        axes.text(0.5, 0.5, "the same everywhere", transform=axes.transAxes, ha="center", color=MUTED)
    elif low > 0:
        levels = np.geomspace(low, high, LEVELS)
        drawn = axes.contourf(
            axis, axis, np.clip(values, low, high), levels=levels, norm=LogNorm(low, high), cmap="Blues_r"
        )
        axes.contour(axis, axis, values, levels=levels, colors="white", linewidths=0.4)
        ticks = LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,))
        shown = LogFormatterSciNotation(labelOnlyBase=False) if high / low >= 100 else "%.3g"
        figure.colorbar(drawn, ax=axes, ticks=ticks, format=shown)
    else:
        drawn = axes.contourf(
            axis, axis, values, levels=np.linspace(low, high, LEVELS), norm=Normalize(low, high), cmap="Blues_r"
        )
        figure.colorbar(drawn, ax=axes)
    axes.plot(0, 0, "+", color=RED, ms=9, mew=1.6)
    axes.set(title=f"{name}: {loss}", xlabel="first direction", ylabel="second direction")
    return svg(figure)


# ------------------------------------------------------------------------------------------------ paths


def paths(results: dict[str, Any]) -> Iterator[str]:
    """Title and pieces of the section on paths between runs."""
    part, names = results["parts"]["connections"], names_of(results)
    yield "Whether runs are connected"
    kinds = list(dict.fromkeys(kind for pair in part["pairs"] for kind in pair["paths"]))
    pictures = [(path_figure(part, loss, kinds), f"{loss} along paths between runs") for loss in results["losses"]]
    decided = dict.fromkeys(k for pair in part["pairs"] for path in pair["paths"].values() for k in path["decisions"])
    pictures += [(wrong_figure(part, kind, kinds), f"wrong {kind} along paths between runs") for kind in decided]
    colours = {kind: colour_of(kind, kinds) for kind in kinds}
    yield page.key([(f'<path d="M2 7H28" stroke="{c}" stroke-width="2"/>', title_of(k)) for k, c in colours.items()])
    caption = "Each line is a pair of runs: its ends are the runs, what lies between are weights on the way."
    yield page.figures("three", pictures, caption)
    head = ["Runs", "Path", "Loss", "At the ends", "Largest on the path", "Mean", "Wrong decisions, at most"]
    rows = []
    for pair in part["pairs"]:
        for kind, path in pair["paths"].items():
            wrong = [f"{text(worst_share(path, of, 'wrong', 'n'))} of {of}" for of in path["decisions"]]
            for loss in path["losses"]:
                n = path_numbers(path, loss)
                ratio = f" ({n['largest'] / n['ends']:.3g} x)" if n["largest"] is not None and n["ends"] else ""
                both = f"{escape(names[pair['a']])} to {escape(names[pair['b']])}"
                cells = [both, escape(title_of(kind)), escape(loss), text(n["ends"]), text(n["largest"]) + ratio]
                rows.append([*cells, text(n["mean"]), ", ".join(wrong) or "–"])
    yield page.table(head, rows)
    note = (
        "At the ends: the larger loss of the two runs. Curves are quadratic Bezier curves whose middle point was "
        "trained on events of training. A wall on the line and none on the curve: the runs are different weights in "
        "one connected region of low loss."
    )
    yield page.paragraph(note, "note")


def title_of(kind: str) -> str:
    """A path's name."""
    return "straight line" if kind == LINE else f"curve, fitted to {kind}"


def colour_of(kind: str, kinds: Sequence[str]) -> str:
    """The straight line's colour, and those of the curves."""
    return ORANGE if kind == LINE else CURVES[(kinds.index(kind) - 1) % len(CURVES)]


@styled
def path_figure(part: dict[str, Any], loss: str, kinds: Sequence[str]) -> str:
    """A loss along all paths."""
    figure, axes = new_figure(*SIZE)
    every = [path["losses"][loss][TOTAL] for pair in part["pairs"] for path in pair["paths"].values()]
    for pair in part["pairs"]:
        for kind, path in pair["paths"].items():
            values = [np.nan if v is None else v for v in path["losses"][loss][TOTAL]]
            axes.plot(part["places"], values, lw=1.2, alpha=0.8, color=colour_of(kind, kinds))
    finite = [value for values in every for value in known(values)]
    if finite and min(finite) > 0 and max(finite) > FAR * min(finite):
        axes.set_yscale("log")
    return along(axes, f"Loss: {loss}")


@styled
def wrong_figure(part: dict[str, Any], kind: str, kinds: Sequence[str]) -> str:
    """The share of wrong decisions along all paths."""
    figure, axes = new_figure(*SIZE)
    for pair in part["pairs"]:
        for of, path in pair["paths"].items():
            counts = path["decisions"].get(kind)
            if counts:
                found = zip(counts["wrong"], counts["n"], strict=True)
                shares = [np.nan if wrong is None or not n else wrong / n for wrong, n in found]
                axes.plot(part["places"], shares, lw=1.2, alpha=0.8, color=colour_of(of, kinds))
    axes.set_ylim(bottom=0)
    return along(axes, f"Wrong {kind}, share")


def along(axes: Axes, title: str) -> str:
    """A finished figure over places on a path."""
    axes.set(title=title, xlabel="place on the path", xlim=(0, 1))
    grid(axes)
    return svg(axes.figure)  # type: ignore[arg-type]  # a figure made by new_figure has no parent


# ------------------------------------------------------------------------------------------------ layers


def similarity(results: dict[str, Any]) -> Iterator[str]:
    """Title and pieces of the section on CKA."""
    part, names = results["parts"]["similarity"], names_of(results)
    yield "How alike the layers are"
    between = np.full((len(names), len(names)), np.nan)
    for pair in part["pairs"]:
        value = same_layers(pair, part["layers"])
        between[[pair["a"], pair["b"]], [pair["b"], pair["a"]]] = np.nan if value is None else value
    pictures = []
    if len(names) > 1:
        pictures.append((matrix_figure(between, names, "Same layers, mean", 0, 1), "mean CKA of the same layers"))
    for pair in part["pairs"]:
        if pair["a"] == 0 and pair["b"] < 3:
            both = (names[pair["a"]], names[pair["b"]])
            title = f"{both[0]}, itself" if pair["a"] == pair["b"] else " and ".join(both)
            pictures.append((layer_figure(pair, title), f"CKA of the layers of {title}"))
    caption = (
        "Linear CKA with the unbiased estimate of HSIC: 1 where two layers compute the same up to rotation, shift and "
        "size, 0 where what they compute is unrelated. Layers are in the order in which they compute. White: layers "
        "whose rows are of different things (hits, edges)."
    )
    yield page.figures("three", pictures, caption)
    rows = []
    for pair in part["pairs"]:
        if pair["a"] != pair["b"]:
            least = sorted((v, name) for v, name in by_name(pair, part["layers"]) if v is not None)
            where = f"{least[0][0]:.3f} in {escape(least[0][1])}" if least else "–"
            rows.append(
                [
                    f"{escape(names[pair['a']])} and {escape(names[pair['b']])}",
                    text(same_layers(pair, part["layers"])),
                    where,
                ]
            )
    if rows:
        yield page.table(["Runs", "CKA, mean of the same layers", "Least"], rows)


def by_name(pair: dict[str, Any], layers: Sequence[Sequence[str]]) -> list[tuple[float | None, str]]:
    """CKA of the layers that both runs have."""
    rows, columns = layers[pair["a"]], layers[pair["b"]]
    return [(pair["cka"][i][columns.index(name)], name) for i, name in enumerate(rows) if name in columns]


@styled
def layer_figure(pair: dict[str, Any], title: str) -> str:
    """CKA of all layers of one run with all of another one."""
    figure, axes = new_figure(*SIZE)
    values = np.array([[np.nan if v is None else v for v in row] for row in pair["cka"]], dtype=float)
    drawn = axes.imshow(np.clip(values, 0, 1), origin="lower", vmin=0, vmax=1, cmap="Blues", aspect="auto")
    figure.colorbar(drawn, ax=axes)
    axes.set(title=title, xlabel="layer", ylabel="layer")
    return svg(figure)


@styled
def matrix_figure(values: np.ndarray, names: Sequence[str], title: str, low: float, high: float) -> str:
    """Numbers between each two runs."""
    figure, axes = new_figure(*SIZE)
    drawn = axes.imshow(values, vmin=low, vmax=high, cmap="Blues")
    figure.colorbar(drawn, ax=axes)
    few = len(names) <= WITH_NUMBERS
    for i, j in np.ndindex(values.shape) if few else ():
        if np.isfinite(values[i, j]):
            dark = values[i, j] > low + 0.6 * (high - low)
            axes.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", fontsize=8, color="white" if dark else INK)
    labels = list(names) if few else [""] * len(names)
    axes.set_xticks(range(len(names)), labels, rotation=40, ha="right", fontsize=8)
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.set_title(title)
    return svg(figure)


# ------------------------------------------------------------------------------------------------ decisions


def churn(results: dict[str, Any]) -> Iterator[str]:
    """Title and pieces of the section on churn."""
    part, names = results["parts"]["churn"], names_of(results)
    yield "On how many decisions runs differ"
    pictures, pairs, groups, tests = [], [], [], []
    for kind, of in part["kinds"].items():
        values = np.full((len(names), len(names)), np.nan)
        for pair in of["pairs"]:
            a, b, norm = pair["a"], pair["b"], pair["normalised"]
            values[[a, b], [b, a]] = np.nan if norm is None else norm
            wrong = [text(of["wrong"][k] / of["n"] if of["n"] else None) for k in (a, b)]
            both = f"{escape(names[a])} and {escape(names[b])}"
            differ = f"{text(pair['churn'])}<small>{pair['differ']:,} / {of['n']:,}</small>"
            pairs.append([both, escape(kind), differ, " and ".join(wrong), text(norm)])
        pictures.append((matrix_figure(values, names, f"{kind}, normalised", 0, 1), f"normalised churn of {kind}"))
        for one in of["groups"]:
            mean = f"{text(one['mean'])} ± {text(one['std'])}"
            groups.append([escape(one["group"]), escape(kind), str(one["runs"]), str(one["pairs"]), mean])
        for one in of["tests"]:
            numbers = [text(one[key]) for key in ("t", "p_pairs", "p_runs")]
            tests.append([f"{escape(one['a'])} and {escape(one['b'])}", escape(kind), *numbers])
    yield page.figures("three", pictures, "Normalised churn of each pair of runs.")
    yield page.table(["Runs", "Decisions", "Differ", "Wrong in each", "Normalised"], pairs)
    if any(int(row[3]) for row in groups):
        yield page.table(["Group", "Decisions", "Runs", "Pairs", "Normalised, mean ± spread of pairs"], groups)
    if tests:
        yield page.table(["Groups", "Decisions", "Welch's t", "p, pairs permuted", "p, runs permuted"], tests)
    note = (
        "Normalised: 0 where two runs are as alike as their errors permit, 1 where they differ as much as they can. "
        "Pairs share runs, so the p of permuted pairs is too small; that of permuted runs is not, but cannot be small "
        "with few runs."
    )
    yield page.paragraph(note, "note")
