"""Building candidates: radius search on influencers against greedy condensation, up to full events."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hpctrack.benchmarks.measure import HITS_PER_TRACK, Figure, Page, embeddings, ratio, slopes, time_in_turn, tracks
from hpctrack.config import Named
from hpctrack.tracking.builder import Builder
from hpctrack.tracking.builders import build_builder

SIZES = [1000, 3000, 10_000, 30_000, 100_000]
TRACKS = 500
RADIUS = 0.5  # what tuning finds for such scatter
BUILDERS = {"radius": {}, "greedy": {}, "condensation": {"beta_min": 0.1}}


def run(quick: bool) -> Page:
    """Ratios at 500 tracks, no noise; seconds and their slope on events with 15 % noise."""
    sizes, repeats, rounds = (SIZES[:4], 5, 2) if quick else (SIZES, 25, 3)
    at_500 = time_in_turn(work(event(TRACKS * HITS_PER_TRACK, noise=0.0)), repeats)
    grown = {n: time_in_turn(work(event(n, noise=0.15)), rounds) for n in sizes}
    rows = {
        kind: [list(row) for row in zip(*(grown[n][kind] for n in sizes), strict=True)]
        for kind in ("radius", "radius, exclusive")
    }
    at = f"{TRACKS} tracks"
    figures = [
        Figure("build_over_greedy", ratio(at_500["greedy"], at_500["radius"]), "x", f"greedy s / radius s, {at}"),
        Figure(
            "build_over_paper",
            ratio(at_500["greedy, scan"], at_500["radius"]),
            "x",
            f"greedy with a scan of all free hits for each candidate / radius s, {at}",
        ),
        Figure(
            "exclusive_over_greedy",
            ratio(at_500["greedy"], at_500["radius, exclusive"]),
            "x",
            f"the same as the first with duplicate removal, {at}",
        ),
        Figure(
            "build_slope", slopes(rows["radius"], sizes), "power of hits", f"radius, {sizes[0]} to {sizes[-1]} hits"
        ),
        Figure("exclusive_slope", slopes(rows["radius, exclusive"], sizes), "power of hits", "with duplicate removal"),
        Figure("build_s", at_500["radius"], "s", at),
        Figure("build_largest_s", grown[sizes[-1]]["radius"], "s", f"{sizes[-1]} hits"),
        Figure("exclusive_largest_s", grown[sizes[-1]]["radius, exclusive"], "s", f"{sizes[-1]} hits"),
    ]
    return Page(figures, table({f"{at}, no noise": at_500} | {f"{n:,} hits": grown[n] for n in sizes}))


def event(n_hits: int, noise: float) -> dict[str, np.ndarray]:
    """Outputs as those of trained models: user and influencer, embedding and beta."""
    track = tracks(n_hits, noise)
    user, influencer = embeddings(track, 8, copies=2)
    beta = np.random.default_rng(0).normal(0, 2, (n_hits, 1)).astype(np.float32)
    return {"user": user, "influencer": influencer, "embedding": user, "beta": beta}


def swept(builder: Builder, outputs: dict[str, np.ndarray]) -> list[Any]:
    """The candidates of one setting, as tuning makes them."""
    return list(type(builder).sweep([builder], outputs))


def work(outputs: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """What is timed: candidates alone, with their exclusive reading, and the baseline as a scan."""
    n_hits = len(outputs["user"])
    builders = {name: build_builder(Named(name=name, radius=RADIUS, **more)) for name, more in BUILDERS.items()}
    calls: dict[str, Callable[[], Any]] = {name: partial(swept, builder, outputs) for name, builder in builders.items()}
    calls["radius, exclusive"] = lambda: builders["radius"].build(outputs, np.arange(n_hits), n_hits, 0)
    if n_hits <= 10_000:
        calls["greedy, scan"] = lambda: scan(outputs["embedding"], RADIUS)
    return calls


def scan(x_NE: np.ndarray, radius: float) -> list[np.ndarray]:
    """Greedy random condensation as it is told: each seed is compared with all hits that are still free."""
    free = np.random.default_rng(0).permutation(len(x_NE))
    groups = []
    while len(free):
        near = ((x_NE[free] - x_NE[free[0]]) ** 2).sum(1) <= radius**2
        groups.append(free[near])
        free = free[~near]
    return groups


def table(seconds: dict[str, dict[str, list[float]]]) -> str:
    """Median milliseconds, as Markdown."""
    kinds = ["radius", "radius, exclusive", "greedy", "greedy, scan", "condensation"]
    rows = [
        f"| {size} | " + " | ".join(f"{1e3 * np.median(of[k]):.1f}" if k in of else "" for k in kinds) + " |"
        for size, of in seconds.items()
    ]
    return "\n".join(
        [
            f"Milliseconds of one event, radius {RADIUS}, on synthetic embeddings in 8 dimensions "
            "(benchmarks/measure.py): candidates without post-processing, as in the paper; `exclusive`: with their "
            "duplicates removed. `greedy` asks a tree for each seed; `greedy, scan` compares it with all free hits.",
            "",
            "| event | " + " | ".join(kinds) + " |",
            "|---" * (len(kinds) + 1) + "|",
            *rows,
            "",
        ]
    )
