"""Candidates as lists of hits, and their exclusive reading: one track a hit.

Legend: C candidates, P (candidate, hit) pairs in all, H hits of the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hpctrack.data.schema import Candidates


class Lists(NamedTuple):
    """Candidate c has the hits `rows[offsets[c]:offsets[c + 1]]`, ascending, and `scores[c]`."""

    offsets: np.ndarray  # int64 [C + 1]
    rows: np.ndarray  # [P]
    scores: np.ndarray  # [C]

    def at(self, hit_rows: np.ndarray) -> Lists:
        """The same candidates, with `hit_rows[row]` in the place of each row; ascending, as rows are."""
        return self._replace(rows=hit_rows[self.rows])

    def candidates(self, n_hits: int, event_id: int, min_hits: int) -> Candidates:
        """The event's candidates, with their exclusive reading."""
        rows, scores = self.rows.astype(np.int32), self.scores.astype(np.float32)
        return Candidates(event_id, self.offsets, rows, scores, exclusive(self.offsets, rows, scores, n_hits, min_hits))


def from_lists(
    lists: Sequence[np.ndarray], scores: Sequence[float], n_hits: int, event_id: int, min_hits: int
) -> Candidates:
    """Candidates from their hit rows, each ascending and without repetition, and scores."""
    return joined(lists, scores).candidates(n_hits, event_id, min_hits)


def joined(lists: Sequence[np.ndarray], scores: Sequence[float]) -> Lists:
    """Lists one behind the other."""
    offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in lists])]).astype(np.int64)
    rows = np.concatenate(lists) if len(lists) else np.zeros(0, dtype=np.int64)
    return Lists(offsets, rows, np.asarray(scores, dtype=np.float64))


def exclusive(offsets: np.ndarray, rows: np.ndarray, scores: np.ndarray, n_hits: int, min_hits: int) -> np.ndarray:
    """One track id per hit, int32 [n_hits], 0 = none: the best first, each kept if most of its hits are free.

    Best is the highest score, then the most hits, then the lowest first hit. A candidate's fate depends on none but the
    better ones it shares hits with. So candidates are decided in rounds, all at a time: who has too few free hits is
    out, for these only get fewer; who is the best at each of its free hits takes them. The result is that of one
    candidate after the other, whatever their order in the lists, in a few vectorised rounds.
    """
    size = np.diff(offsets)
    order = np.lexsort((rows[offsets[:-1]] if len(size) else size, -size, -scores))
    size = size[order]  # from here on a candidate is named by its rank, 0 is the best
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = np.arange(len(order))
    of_pair = np.repeat(rank, np.diff(offsets))
    worst_first = np.argsort(-of_pair, kind="stable")
    of_pair, hit = of_pair[worst_first], rows[worst_first]
    owner = np.full(n_hits, -1, dtype=np.int64)
    best = np.empty(n_hits, dtype=np.int64)
    while len(hit):
        free = np.bincount(of_pair, minlength=len(size))
        alive = ((free >= min_hits) & (2 * free > size))[of_pair]
        of_pair, hit = of_pair[alive], hit[alive]
        best[hit] = of_pair  # of several values the last stays, which is the best
        leads = best[hit] == of_pair
        takes = (np.bincount(of_pair[leads], minlength=len(size)) == free)[of_pair]
        owner[hit[takes]] = of_pair[takes]
        left = owner[hit] < 0
        of_pair, hit = of_pair[left], hit[left]
    track_ids = np.zeros(n_hits, dtype=np.int32)
    owned = owner >= 0
    track_ids[owned] = np.unique(owner[owned], return_inverse=True)[1] + 1
    return track_ids
