"""Whose a candidate is, and what is counted of it, where named rules differ from metrics.py.

Each function of the second part is like those of metrics.py: from a match and the targets (bool [P]) to what it counts.
Whose definition it is says rules.py.

Shapes: H hits, P particles, C candidates as lists (offsets [C + 1], hit rows).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpctrack.evaluation.matching import Match, match
from hpctrack.evaluation.metrics import (
    MIN_CANDIDATE_HITS,
    Entries,
    counted,
    double_matched,
    hits_of_majority,
    majority_in,
    matched,
    number_of,
)

Lists = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Seen(Match):
    """A match, and `again` [C]: candidates of the very hits of an earlier one."""

    again: np.ndarray


Judge = Callable[[Lists, np.ndarray, np.ndarray], tuple[Seen, np.ndarray]]
"""Lists, particle rows [H] and targets [P] -> the match, and the targets among the particles that it knows."""


def by_majority(lists: Lists, particle_row: np.ndarray, target: np.ndarray) -> tuple[Seen, np.ndarray]:
    """A candidate is of the particle that owns most of its hits; noise counts like one that is never matched."""
    found = match(*lists, particle_row, len(target))
    return Seen(**vars(found), again=np.zeros(len(found.size), dtype=bool)), target


def with_noise(lists: Lists, particle_row: np.ndarray, target: np.ndarray) -> tuple[Seen, np.ndarray]:
    """The same, but noise is a particle: no target, but a candidate of noise alone is matched."""
    row = np.where(particle_row < 0, len(target), particle_row)
    return by_majority(lists, row, np.append(target, False))


def one_to_one(lists: Lists, particle_row: np.ndarray, target: np.ndarray) -> tuple[Seen, np.ndarray]:
    """A candidate is of the target that has most hits in it, if it has more of them than any other candidate of that.

    So each target has one candidate at most, and hits of other particles are like noise. Of equals the first counts.
    """
    offsets, rows = lists
    of_target = np.append(target, False)[particle_row]
    best = match(*restricted(lists, of_target), particle_row, len(target))
    size = np.diff(offsets)
    order = np.argsort(-best.majority_hits, kind="stable")
    order = order[((size >= MIN_CANDIDATE_HITS) & (best.majority >= 0))[order]]
    winner = order[np.unique(best.majority[order], return_index=True)[1]]
    majority, hits = np.full(len(size), -1, dtype=np.int64), np.zeros(len(size), dtype=np.int64)
    majority[winner], hits[winner] = best.majority[winner], best.majority_hits[winner]
    known: set[bytes] = set()
    again = np.zeros(len(size), dtype=bool)
    for c, own in enumerate(np.split(rows, offsets[1:-1])[: len(size)]):
        again[c] = (content := own.tobytes()) in known
        known.add(content)
    return Seen(size, majority, hits, best.particle_hits, again), target


def restricted(lists: Lists, keep: np.ndarray) -> Lists:
    """The lists with those of their hits that are kept (bool [H])."""
    offsets, rows = lists
    kept = keep[rows]
    return np.concatenate([[0], np.cumsum(kept)])[offsets], rows[kept]


# ------------------------------------------------------------------------------------------------ what is counted


def unmatched_of_targets(found: Seen, target: np.ndarray) -> Entries:
    """Candidates whose majority is a target that owns no more than 50 % of them / candidates whose majority is one."""
    of_target = counted(found) & majority_in(found, target)
    return of_target & ~matched(found), of_target


def single_of_targets(found: Seen, target: np.ndarray) -> Entries:
    """Candidates whose majority is a target, without double majority / candidates whose majority is a target."""
    of_target = counted(found) & majority_in(found, target)
    return of_target & ~double_matched(found), of_target


def duplicates_a_target(found: Seen, target: np.ndarray) -> Entries:
    """Candidates beyond the first of their target / targets that have one [P]: may exceed 1."""
    candidates = number_of(found, matched(found) & majority_in(found, target))
    return np.maximum(candidates - 1, 0), candidates > 0


def without_double_majority(found: Seen, target: np.ndarray) -> Entries:
    """Candidates without double majority with any particle of at least 3 hits / candidates."""
    return counted(found) & ~_double_of_whole(found), counted(found)


def duplicates_by_double_majority(found: Seen, target: np.ndarray) -> Entries:
    """Double-majority candidates beyond the first of their particle / double-majority candidates [P]."""
    candidates = number_of(found, _double_of_whole(found))
    return np.maximum(candidates - 1, 0), candidates


def not_of_a_target(found: Seen, target: np.ndarray) -> Entries:
    """Candidates that are not the one double-majority candidate of a target, nor again the same hits / candidates."""
    return counted(found) & ~double_matched(found) & ~found.again, counted(found)


def lost_on_targets(found: Seen, target: np.ndarray) -> Entries:
    """Of these those that are a target's one candidate / candidates."""
    return not_of_a_target(found, target)[0] & majority_in(found, target), counted(found)


def same_hits(found: Seen, target: np.ndarray) -> Entries:
    """Candidates of the very hits of an earlier one / candidates."""
    return counted(found) & found.again, counted(found)


def _double_of_whole(found: Seen) -> np.ndarray:
    return double_matched(found) & (hits_of_majority(found) >= MIN_CANDIDATE_HITS)
