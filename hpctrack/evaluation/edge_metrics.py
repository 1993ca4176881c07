"""How good the edges of a stage are: counts of one event, which are added over events before they are divided.

Truth is graph truth (events/truth.py) among the hits that the stage saw. An edge is `target` if it is true and of a
target particle, `other` if true and of another particle, `false` if not true; other edges are neither asked for nor
held against a graph, unless a number says so. Scores are counted in bins, so that every cut, and the area under the
ROC curve, can be read off the counts.

Legend: N hits, M edges, B bins of scores (evaluation/stage_scores.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.config import KeptConfig, SelectionConfig
from hpctrack.errors import InputError
from hpctrack.evaluation.stage_scores import (
    BINS,
    EDGE,
    Added,
    at_cuts,
    frame,
    opened,
    score_bin,
    table_of,
    tallied,
)
from hpctrack.evaluation.tally import COLUMNS as TALLY_COLUMNS
from hpctrack.evaluation.tally import Cuts
from hpctrack.events import selection as selecting
from hpctrack.events.kept_hits import HITS_DIGEST, PASSED_ON, KeptHits, StoredHits
from hpctrack.events.truth import COLUMNS as TRUTH_COLUMNS
from hpctrack.events.truth import graph_truth, is_true
from hpctrack.requirements.needs import Need, check
from hpctrack.storage.edges import Edges, EdgeStore
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

CLASSES = ("target", "other", "false")
CUTS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)


@dataclass
class EdgeTally(Added):
    """Integer counts of some events."""

    events: int
    hits: int
    true_target: int  # edges of graph truth, of target particles
    true_other: int
    same_particle: int  # edges between any two hits of one particle
    scores: np.ndarray  # int64 [3, B + 2]: CLASSES by bin of the logit; the first and last bin are open


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


# ------------------------------------------- evaluation of a stage that makes edges: counts over events, results, table


COLUMNS = list(dict.fromkeys([*TALLY_COLUMNS, *selecting.COLUMNS, *TRUTH_COLUMNS]))
COLUMNS.remove("truth.weight")
FORMAT = "hpctrack-edge-results"


def evaluate_edges(folder: Path, data: Path, cuts: Cuts, command: list[str]) -> dict[str, Any]:
    """Results of the edges in `folder` against the truth of their dataset, among the hits that the stage saw.

    InputError if they were made from another dataset, or from hits that were drawn at random, or are not known.
    """
    store, dataset = EdgeStore(folder), Dataset(data, verify=True)
    check(dataset, [*cuts.needs(), Need("evaluation of edges", COLUMNS)])
    selection = opened(store, dataset)
    kept = hits_of(store, dataset)

    def tally(event: Event, found: Edges) -> EdgeTally:
        return tally_event(event, found, selection, cuts, kept)

    tallies, total = tallied(store, dataset, COLUMNS, tally)
    cuts.check(total.true_target, dataset)
    return frame(FORMAT, store, dataset, cuts, command) | {
        "events": total.events,
        "hits": total.hits,
        "true_edges": {"target": total.true_target, "other": total.true_other},
        "same_particle": total.same_particle,
        "auc": auc(total),
        "cuts": at_cuts({cut: at_cut(total, cut) for cut in CUTS}),
        "per_event": [{"hits": t.hits, "edges": int(t.scores.sum())} for t in tallies],
    }


def hits_of(store: EdgeStore, dataset: Dataset) -> KeptHits | None:
    """The kept hits that edges were made among, None for all; InputError if they are no longer there."""
    digest = store.attributes.get(HITS_DIGEST)
    if digest is None:
        return None
    if digest == PASSED_ON:
        raise InputError(
            f"{store.folder}: made among the hits that a filter passed on, which are not stored; let the filter write "
            "them, and this stage read them, by a call each"
        )
    kept = StoredHits(KeptConfig(**store.attributes["hits"]), dataset.folder, dataset)
    if kept.store.digest != digest:
        raise InputError(f"{store.folder}: made among other hits than {kept.store.folder} holds now; make them again")
    return kept


def tally_event(
    event: Event, found: Edges, selection: SelectionConfig, cuts: Cuts, kept: KeptHits | None = None
) -> EdgeTally:
    """Counts of an event with `COLUMNS`: its edges, among the `kept` hits that `selection` leaves, which draws none."""
    rows = selecting.select(event, selection, np.random.default_rng(0), None, kept).rows
    number = np.zeros(event.n_hits, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    edge_2M = number[np.stack([found.sender, found.receiver])]
    particle_N = event.column("truth.particle_row")[rows]
    return tally_edges(edge_2M, found.score, graph_truth(event, rows), particle_N, cuts.targets(event))


def table(results: dict[str, Any]) -> str:
    """The results as text: a line for each cut on the score."""
    area = "none" if results["auc"] is None else f"{results['auc']:.5f}"
    true = results["true_edges"]
    head = (
        f"{results['events']:,} events, {results['hits']:,} hits, true edges: {true['target']:,} of targets "
        f"({results['selection']['text']}), {true['other']:,} others; AUC {area}"
    )
    return table_of(head, results["cuts"])
