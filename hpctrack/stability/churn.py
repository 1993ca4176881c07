"""Churn: on how many decisions two models of the same training differ, and whether groups of runs differ in it.

With m the share of decisions on which two runs differ, and q_a, q_b the shares on which each is wrong,
(m - |q_a - q_b|) / (min(q_a + q_b, 1) - |q_a - q_b|) is 0 where the runs are as alike as their errors permit, and 1
where they differ as much as they can (the error rates bound m on both sides, since two right decisions are the same).

Decisions, of whichever kind the model makes: `edges`, both ends of an edge in one track, or the edge kept by its
builder; `hits`, the particle that a hit's track is of by double majority, or none; `kept`, a hit kept by a filter.
N: hits that the model saw, M: edges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from hpctrack.evaluation.matching import exclusive_lists, match
from hpctrack.storage.edges import Edges
from hpctrack.storage.hits import Hits
from hpctrack.storage.schema import Candidates
from hpctrack.tracking.builder import Built

Decisions = dict[str, tuple[np.ndarray, np.ndarray]]  # by kind: what was decided, and what would be right
EXACT = 20_000  # permutations that are all taken; of more, so many at random


def decisions(
    found: Built,
    hit_row_N: np.ndarray,
    track_N: np.ndarray,
    edge_2M: np.ndarray | None,
    edge_truth_M: np.ndarray | None,
) -> Decisions:
    """The decisions that are in what a builder made of an event.

    `hit_row_N`: the hits that the model saw, ascending; `track_N`: the target that each is of, or -1; edges among them.
    """
    made: Decisions = {}
    if isinstance(found, Hits):
        return {"kept": (np.isin(hit_row_N, found.row), track_N >= 0)}
    if isinstance(found, Candidates):
        id_N = found.track_ids[hit_row_N]
        made["hits"] = labels(id_N, track_N), track_N
        if edge_2M is not None and edge_truth_M is not None:
            first, second = id_N[edge_2M]
            made["edges"] = (first > 0) & (first == second), edge_truth_M
    if isinstance(found, Edges) and edge_2M is not None and edge_truth_M is not None:
        ends = np.sort(hit_row_N[edge_2M].astype(np.int64), axis=0)
        kept = np.sort(np.stack([found.sender, found.receiver]).astype(np.int64), axis=0)
        size = int(hit_row_N.max(initial=0)) + 1
        made["edges"] = np.isin(ends[0] * size + ends[1], kept[0] * size + kept[1]), edge_truth_M
    return made


def labels(id_N: np.ndarray, track_N: np.ndarray) -> np.ndarray:
    """Of each hit the target that its track (0: none) is of by double majority, or -1."""
    offsets, rows = exclusive_lists(id_N)
    n_targets = int(track_N.max(initial=-1)) + 1
    matched = match(offsets, rows, track_N, n_targets)
    sizes = np.append(matched.particle_hits, 0)[matched.majority]
    good = (2 * matched.majority_hits > matched.size) & (2 * matched.majority_hits > sizes) & (matched.majority >= 0)
    label_N = np.full(len(track_N), -1, dtype=np.int64)
    label_N[rows] = np.repeat(np.where(good, matched.majority, -1), np.diff(offsets))
    return label_N


def quality(made: Decisions) -> dict[str, dict[str, int]]:
    """Of each kind of decisions how many there are, how many are wrong; and of yes and no how many true ones, found."""
    found = {}
    for kind, (decided, right) in made.items():
        counts = {"n": len(decided), "wrong": int((decided != right).sum())}
        if decided.dtype == bool:
            counts |= {"true": int(right.sum()), "found": int((decided & right).sum())}
        found[kind] = counts
    return found


def of_event(runs: Sequence[Decisions]) -> dict[str, dict[str, Any]]:
    """Counts of an event by kind: decisions `n`, `wrong` ones of each run, and on how many each pair `differs`."""
    kinds = [kind for kind in runs[0] if all(kind in made for made in runs)]
    return {
        kind: {
            "n": len(runs[0][kind][0]),
            "wrong": [int((made[kind][0] != made[kind][1]).sum()) for made in runs],
            "differ": {
                f"{a}-{b}": int((runs[a][kind][0] != runs[b][kind][0]).sum())
                for a in range(len(runs))
                for b in range(a + 1, len(runs))
            },
        }
        for kind in kinds
    }


def normalised(m: float, q_a: float, q_b: float) -> float | None:
    """Churn between its bounds, 0 to 1; None where the error rates leave no choice."""
    low, high = abs(q_a - q_b), min(q_a + q_b, 1.0)
    return (m - low) / (high - low) if high > low else None


def summary(events: Sequence[Mapping[str, Any]], groups: Sequence[str], seed: int) -> dict[str, Any]:
    """Churn of every pair of runs over all events, and tests between groups of runs; by kind of decision."""
    found = {}
    for kind in events[0] if events else ():
        n = sum(event[kind]["n"] for event in events)
        wrong = np.sum([event[kind]["wrong"] for event in events], axis=0)
        pairs = []
        for key in events[0][kind]["differ"]:
            a, b = map(int, key.split("-"))
            differ = sum(event[kind]["differ"][key] for event in events)
            churn = differ / n if n else None
            norm = normalised(differ / n, wrong[a] / n, wrong[b] / n) if n else None
            pairs.append({"a": a, "b": b, "differ": differ, "churn": churn, "normalised": norm})
        found[kind] = {
            "n": n,
            "wrong": wrong.tolist(),
            "pairs": pairs,
            "groups": of_groups(pairs, groups),
            "tests": between_groups(pairs, groups, seed),
        }
    return found


# ------------------------------------------------------------------------------------------------ groups of runs


def inner(pairs: Sequence[Mapping[str, Any]], runs: Sequence[int]) -> np.ndarray:
    """Normalised churn of the pairs among some runs."""
    chosen = set(runs)
    found = (pair["normalised"] for pair in pairs if {pair["a"], pair["b"]} <= chosen)
    return np.array([value for value in found if value is not None])


def of_groups(pairs: Sequence[Mapping[str, Any]], groups: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation of the normalised churn within each group."""
    found = []
    for group in dict.fromkeys(groups):
        runs = [k for k, name in enumerate(groups) if name == group]
        values = inner(pairs, runs)
        spread = float(values.std(ddof=1)) if len(values) > 1 else None
        mean = float(values.mean()) if len(values) else None
        found.append({"group": group, "runs": len(runs), "pairs": len(values), "mean": mean, "std": spread})
    return found


def between_groups(pairs: Sequence[Mapping[str, Any]], groups: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Welch's t between the churn within two groups, with two-sided p-values by permutation.

    `p_pairs` permutes the pairs' values, as if they were independent (they share runs, so it is too small); `p_runs`
    permutes which runs are of which group. None where a group has fewer than two pairs.
    """
    names, found = list(dict.fromkeys(groups)), []
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            runs = [np.array([k for k, name in enumerate(groups) if name == group]) for group in (first, second)]
            x, y = (inner(pairs, of.tolist()) for of in runs)
            entry: dict[str, Any] = {"a": first, "b": second, "t": None, "p_pairs": None, "p_runs": None}
            if min(len(x), len(y)) > 1:

                def of_runs(a: np.ndarray, b: np.ndarray) -> float:
                    return welch(inner(pairs, a.tolist()), inner(pairs, b.tolist()))

                entry["t"] = finite(welch(x, y))
                entry["p_pairs"] = p_value((x, y), welch, seed)
                entry["p_runs"] = p_value((runs[0], runs[1]), of_runs, seed)
            found.append(entry)
    return found


def welch(x: np.ndarray, y: np.ndarray) -> float:
    """Welch's t of two samples; 0 where neither differs nor varies."""
    error = np.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))
    difference = float(x.mean() - y.mean())
    return 0.0 if difference == 0 else difference / float(error) if error > 0 else float(np.inf * np.sign(difference))


def p_value(samples: tuple[np.ndarray, np.ndarray], statistic: Any, seed: int) -> float:
    """Share of permutations between two samples whose |t| is at least that of the samples: all, or EXACT at random."""
    found = stats.permutation_test(
        samples,
        lambda x, y: abs(statistic(x, y)),
        alternative="greater",
        vectorized=False,
        n_resamples=EXACT,
        random_state=np.random.default_rng(seed),
    )
    return float(found.pvalue)


def finite(value: float) -> float | None:
    """The number, or None: JSON has no infinities."""
    return value if np.isfinite(value) else None
