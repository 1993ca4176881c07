"""How good a hit filter is: counts of one event, which are added over events before they are divided.

All hits count that the selection leaves, whatever filters came before: of two filters one behind the other, the numbers
of the second are those of both.

Legend: N hits, K kept hits, B bins of scores (evaluation/stage_scores.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.evaluation.metrics import MIN_CANDIDATE_HITS
from hpctrack.evaluation.stage_scores import BINS, Added, at_cuts, frame, opened, score_bin, table_of, tallied
from hpctrack.evaluation.tally import Cuts
from hpctrack.events import selection as selecting
from hpctrack.events.truth import runs
from hpctrack.requirements.needs import check
from hpctrack.storage.hits import Hits, HitStore
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

FORMAT = "hpctrack-hit-results"
CUTS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)  # above the one by which hits were kept


@dataclass
class HitTally(Added):
    """Integer counts of some events."""

    events: int
    hits: int  # that the selection leaves
    target_hits: int  # of them, of targets
    targets: int
    scores: np.ndarray  # int64 [2, B + 2]: kept hits of targets, and others, by bin of the score
    tracks: np.ndarray  # int64 [B + 2]: targets by the bin of their third best kept hit, so far as they have one


def tally_hits(
    row_K: np.ndarray, score_K: np.ndarray, seen_N: np.ndarray, particle_N: np.ndarray, target_P: np.ndarray
) -> HitTally:
    """Counts of one event: its kept hits and scores, hits that the selection leaves, particles (-1: noise), targets."""
    wanted_N = np.append(target_P, False)[particle_N]  # of noise: the last place
    bin_K, wanted_K = score_bin(score_K), wanted_N[row_K]
    flat = np.bincount(np.where(wanted_K, 0, 1) * (BINS + 2) + bin_K, minlength=2 * (BINS + 2))
    owner, bins = particle_N[row_K[wanted_K]], bin_K[wanted_K]
    order = np.lexsort((-bins, owner))
    start, size = runs(owner[order])
    third = bins[order][start[size >= MIN_CANDIDATE_HITS] + MIN_CANDIDATE_HITS - 1]
    return HitTally(
        events=1,
        hits=int(seen_N.sum()),
        target_hits=int((wanted_N & seen_N).sum()),
        targets=int(target_P.sum()),
        scores=flat.reshape(2, BINS + 2),
        tracks=np.bincount(third, minlength=BINS + 2),
    )


def at_cut(tally: HitTally, cut: float) -> dict[str, tuple[int, int]]:
    """Numerator and denominator of every metric, of the hits with a score of at least `cut` (to a bin's width)."""
    first = int(score_bin(np.array([cut]))[0])
    target, other = (int(n) for n in tally.scores[:, first:].sum(axis=1))
    return {
        "hit_efficiency": (target, tally.target_hits),  # of the targets' hits
        "hits_kept": (target + other, tally.hits),  # of all hits
        "purity": (target, target + other),
        "targets_left": (int(tally.tracks[first:].sum()), tally.targets),  # that keep three hits
        "kept_per_event": (target + other, tally.events),
    }


def evaluate_hits(folder: Path, data: Path, cuts: Cuts, command: list[str]) -> dict[str, Any]:
    """Results of the kept hits in `folder` against the truth of their dataset: for the cut as stored, and higher ones.

    InputError if they were made from another dataset, or from hits that were drawn at random.
    """
    store, dataset = HitStore(folder), Dataset(data, verify=True)
    check(dataset, cuts.needs())
    selection = opened(store, dataset)

    def tally(event: Event, found: Hits) -> HitTally:
        particle_N, seen_N = event.column("truth.particle_row"), np.zeros(event.n_hits, dtype=bool)
        seen_N[selecting.select(event, selection, np.random.default_rng(0)).rows] = True
        return tally_hits(found.row, found.score, seen_N, particle_N, cuts.targets(event))

    tallies, total = tallied(store, dataset, selecting.readable(dataset, selecting.COLUMNS), tally)
    cuts.check(total.targets, dataset)
    stored = float(store.attributes.get("builder", {}).get("cut", 0.0))
    counts = {stored: at_cut(total, 0.0)} | {cut: at_cut(total, cut) for cut in CUTS if cut > stored}
    return frame(FORMAT, store, dataset, cuts, command) | {
        "events": total.events,
        "hits": total.hits,
        "target_hits": total.target_hits,
        "targets": total.targets,
        "cut": stored,
        "cuts": at_cuts(counts),
        "per_event": [{"hits": t.hits, "target_hits": t.target_hits, "kept": int(t.scores.sum())} for t in tallies],
    }


def table(results: dict[str, Any]) -> str:
    """The results as text: a line for each cut on the score."""
    head = (
        f"{results['events']:,} events, {results['hits']:,} hits, {results['target_hits']:,} of them of "
        f"{results['targets']:,} targets ({results['selection']['text']}); the first cut is that of the filter"
    )
    return table_of(head, results["cuts"])
