"""How good the edges of a stage are: counts of one event, which are added over events before they are divided.

Truth is graph truth (data/truth.py) among the hits that the stage saw. An edge is `target` if it is true and of a
target particle, `other` if true and of another particle, `false` if not true; other edges are neither asked for nor
held against a graph, unless a number says so. Scores are counted in bins of their logit, so that every cut, and the
area under the ROC curve, can be read off the counts.

Legend: N hits, M edges, B bins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.data.truth import is_true

CLASSES = ("target", "other", "false")
EDGE = 16.0  # largest logit that is told from larger ones
BINS = 6400  # 0.005 each
CUTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)


@dataclass
class EdgeTally:
    """Integer counts of some events; `+` adds them up."""

    events: int
    hits: int
    true_target: int  # edges of graph truth, of target particles
    true_other: int
    same_particle: int  # edges between any two hits of one particle
    scores: np.ndarray  # int64 [3, B + 2]: CLASSES by bin of the logit; the first and last bin are open

    def __add__(self, more: EdgeTally) -> EdgeTally:
        return EdgeTally(**{name: value + getattr(more, name) for name, value in vars(self).items()})


def tally_edges(
    edge_2M: np.ndarray, score_M: np.ndarray, truth_2T: np.ndarray, particle_N: np.ndarray, target_P: np.ndarray
) -> EdgeTally:
    """Counts of one event: its edges and scores (0 to 1), graph truth, each hit's particle (-1: noise), the targets."""
    particle = particle_N[edge_2M[0]]
    true = is_true(edge_2M, truth_2T, len(particle_N))
    of_target = np.append(target_P, False)[particle]  # of noise: the last place
    kind = np.where(true, np.where(of_target, 0, 1), 2)
    of_truth = np.append(target_P, False)[particle_N[truth_2T[0]]]
    flat = np.bincount(kind * (BINS + 2) + score_bin(score_M), minlength=3 * (BINS + 2))
    return EdgeTally(
        events=1,
        hits=len(particle_N),
        true_target=int(of_truth.sum()),
        true_other=int((~of_truth).sum()),
        same_particle=int(((particle == particle_N[edge_2M[1]]) & (particle >= 0)).sum()),
        scores=flat.reshape(3, BINS + 2),
    )


def score_bin(score: np.ndarray) -> np.ndarray:
    """Number of the bin of each score, 0..B + 1; a score on a bin's lower edge belongs to it."""
    with np.errstate(divide="ignore"):
        logit = np.log(score.astype(np.float64)) - np.log1p(-score.astype(np.float64))
    return np.clip(np.floor((logit + EDGE) * BINS / (2 * EDGE) + 1e-6) + 1, 0, BINS + 1).astype(np.int64)


def at_cut(tally: EdgeTally, cut: float) -> dict[str, tuple[int, int]]:
    """Numerator and denominator of every metric, of the edges with a score of at least `cut` (to a bin's width)."""
    first = int(score_bin(np.array([cut]))[0])
    target, other, false = (int(n) for n in tally.scores[:, first:].sum(axis=1))
    all_target, _, all_false = (int(n) for n in tally.scores.sum(axis=1))
    return {
        "efficiency": (target, tally.true_target),  # of true edges of targets
        "efficiency_all": (target + other, tally.true_target + tally.true_other),  # of all true edges
        "kept_true": (target, all_target),  # of true edges of targets that the graph has: the classifier's efficiency
        "purity": (target, target + false),  # other edges left out
        "purity_all": (target + other, target + other + false),  # true edges of any particle among all edges
        "accuracy": (target + all_false - false, all_target + all_false),  # other edges left out
        "edges_per_event": (target + other + false, tally.events),
    }


def auc(tally: EdgeTally) -> float | None:
    """Area under the ROC curve of target against false edges: how often a true one scores higher, ties half."""
    target, false = tally.scores[0].astype(np.float64), tally.scores[2].astype(np.float64)
    if not target.sum() or not false.sum():
        return None
    below = np.cumsum(false) - false
    return float((target * (below + false / 2)).sum() / target.sum() / false.sum())


def cut_that_keeps(tally: EdgeTally, share: float) -> float:
    """The highest cut, to a bin's width, that `share` of the true edges of targets pass; 0 if there are none."""
    from_above = np.cumsum(tally.scores[0, ::-1])[::-1]
    passed = np.flatnonzero(from_above >= share * from_above[0])
    first = int(passed[-1]) if from_above[0] else 0
    return 0.0 if first == 0 else float(1 / (1 + np.exp(EDGE - (first - 1) * 2 * EDGE / BINS)))
