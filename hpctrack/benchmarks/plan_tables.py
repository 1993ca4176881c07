"""The curve of balance against randomness: its points, as a table and as a plot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpctrack.data.certificate import balances, randomness
from hpctrack.data.plan import plan_epoch

PER_EPOCH = 20_480  # events: 320 steps of 64, 80 of 256, 20 of 1024
CURVES = ((64, 1), (64, 4), (256, 4))  # ranks x events a rank


@dataclass(frozen=True)
class Point:
    """A plan: `window` in steps (None: the epoch); balance with measured costs; KS and entropy of the steps' sizes."""

    world: int
    per_rank: int
    fixed: str
    window: int | None
    balance: float
    time_balance: float
    ks: float
    entropy: float


def curves(predicted: np.ndarray, measured: np.ndarray) -> list[Point]:
    """Every setting of CURVES, steps of a fixed number of events and of a fixed predicted cost, windows 1, 2, 4 …"""
    points = []
    for world, per_rank in CURVES:
        n = world * per_rank
        for fixed, length in (("count", {"events_per_step": n}), ("cost", {"size_per_step": n * predicted.mean()})):
            for window in (*(2**k for k in range(20) if 2**k < len(predicted) // n), None):
                plan = plan_epoch(predicted, world, 0, 0, window=window, **length)
                values = *balances(plan.loads(measured, world)), *randomness(predicted[plan.event], plan.step_offsets)
                points.append(Point(world, per_rank, fixed, window, *values))
    return points


def curve_rows(points: list[Point]) -> list[str]:
    """The curve as Markdown rows."""
    return [
        "| ranks x events | fixed | window | balance | by time | KS | entropy |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {p.world} x {p.per_rank} | {p.fixed} | {p.window or 'epoch'} | {p.balance:.3f} | "
            f"{p.time_balance:.3f} | {p.ks:.3f} | {p.entropy:.3f} |"
            for p in points
        ),
    ]


def curve_page(
    points: list[Point], tabulated: list[Point], source: str, cost_lines: list[str], peers: list[str]
) -> str:
    """Markdown below the figures."""
    return "\n".join(
        [
            f"Events: {source}. {' '.join(cost_lines)}.",
            "",
            "## Other people's rules",
            "",
            "On the same events, with measured seconds; budgets hold as many mean events, or the largest event.",
            "",
            *peers,
            "",
            "## Balance against randomness",
            "",
            "![balance against randomness](plan.png)",
            "",
            "Balance: mean / slowest rank's measured seconds, averaged over steps; by time: weighted by the steps' "
            "length. KS: distance of a step's sizes from the epoch's; entropy: of its sizes over the epoch's deciles.",
            "",
            *curve_rows(points),
            "",
            "The same for sizes as tabulated, costs known exactly (what a better cost model could reach):",
            "",
            *curve_rows(tabulated),
            "",
        ]
    )


def plot(points: list[Point], path: Path) -> None:
    """Balance over the entropy that is left, a line a setting, a mark a window."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (world, per_rank) in enumerate(CURVES):
        for fixed, style in (("count", "o-"), ("cost", "s--")):
            mine = [p for p in points if (p.world, p.per_rank, p.fixed) == (world, per_rank, fixed)]
            x, y = [p.entropy for p in mine], [p.balance for p in mine]
            label = f"{world} ranks x {per_rank}, fixed {fixed}"
            axes.plot(x, y, style, color=f"C{i}", ms=4, lw=1.2, label=label, alpha=1 if fixed == "count" else 0.6)
            for p in mine if (per_rank, fixed) == (1, "count") else ():
                if (p.window or 99) <= 16:
                    text, at = f"window {p.window}", (p.entropy, p.balance)
                    axes.annotate(text, at, fontsize=7, textcoords="offset points", xytext=(5, 3))
    axes.axhline(0.97, color="0.6", lw=0.8, ls=":")
    axes.set_xlim(-0.05, 1.13)
    axes.set_xlabel("entropy of a step's sizes (1: as mixed as the epoch)")
    axes.set_ylabel("balance: mean / slowest rank")
    axes.legend(fontsize=7, loc="lower left")
    axes.grid(alpha=0.25)
    figure.savefig(path, dpi=130, format="png")
