"""Candidates against truth: each candidate's majority particle, each particle's hits.

Shapes: C candidates, P particles (rows of the event's `particles`), H hits; noise hits have particle row -1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.errors import InputError
from hpctrack.storage.schema import Candidates


@dataclass(frozen=True)
class Match:
    """What candidates hold of which particle; all metrics are functions of these four arrays.

    `size` [C]: hits of the candidate. `majority` [C]: row of the particle with most hits in it, -1 where that is noise
    or the candidate is empty. `majority_hits` [C]: how many (0 for noise). `particle_hits` [P]: its hits in the event.
    """

    size: np.ndarray
    majority: np.ndarray
    majority_hits: np.ndarray
    particle_hits: np.ndarray


def match(offsets: np.ndarray, rows: np.ndarray, particle_row: np.ndarray, n_particles: int) -> Match:
    """Count the hits of each particle in each candidate and keep the largest count.

    Candidate c has the hits `rows[offsets[c]:offsets[c + 1]]`; `particle_row` [H] is the truth. Noise is counted like
    one particle, so a candidate that is mostly noise has majority -1. Of equal counts noise comes first, then the
    lowest particle row: a tie is at most 50 % of the hits and so never decides a match.
    """
    size = np.diff(offsets)
    n_candidates = len(size)
    particle_hits = np.bincount(particle_row[particle_row >= 0], minlength=n_particles)
    majority = np.full(n_candidates, -1, dtype=np.int64)
    majority_hits = np.zeros(n_candidates, dtype=np.int64)
    if len(rows):
        base = n_particles + 1
        pair = np.repeat(np.arange(n_candidates), size) * base + (particle_row[rows] + 1)
        pair, count = np.unique(pair, return_counts=True)
        candidate, label = pair // base, pair % base - 1
        order = np.lexsort((label, -count, candidate))
        first = order[np.unique(candidate[order], return_index=True)[1]]
        majority[candidate[first]] = label[first]
        majority_hits[candidate[first]] = np.where(label[first] >= 0, count[first], 0)
    return Match(size, majority, majority_hits, particle_hits)


def match_candidates(candidates: Candidates, particle_row: np.ndarray, n_particles: int) -> Match:
    """Match the (possibly overlapping) candidate lists; InputError if they do not fit the event's hits."""
    check_candidates(candidates, len(particle_row))
    return match(candidates.hit_offsets, candidates.hit_rows, particle_row, n_particles)


def match_exclusive(candidates: Candidates, particle_row: np.ndarray, n_particles: int) -> Match:
    """Match the exclusive reading, one track per hit: candidate k is the k-th smallest `track_id` > 0 that has hits."""
    check_candidates(candidates, len(particle_row))
    return match(*exclusive_lists(candidates.track_ids), particle_row, n_particles)


def exclusive_lists(track_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Track ids per hit (0 = none) as lists: offsets [n_tracks + 1] and hit rows, tracks in the order of their ids."""
    rows = np.argsort(track_ids, kind="stable")
    rows = rows[np.count_nonzero(track_ids <= 0) :]
    size = np.unique(track_ids[rows], return_counts=True)[1]
    return np.concatenate([[0], np.cumsum(size)]).astype(np.int64), rows


def check_candidates(candidates: Candidates, n_hits: int) -> None:
    """InputError unless offsets, hit rows and track ids describe candidates of an event with `n_hits` hits."""
    where = f"candidates of event {candidates.event_id}"
    offsets, rows, track_ids = candidates.hit_offsets, candidates.hit_rows, candidates.track_ids
    if len(track_ids) != n_hits:
        raise InputError(f"{where}: {len(track_ids)} track ids for {n_hits} hits; expected one a hit")
    if (
        len(offsets) != len(candidates) + 1
        or offsets[0] != 0
        or offsets[-1] != len(rows)
        or np.any(np.diff(offsets) < 0)
    ):
        raise InputError(
            f"{where}: hit_offsets do not rise from 0 to the {len(rows)} listed hits of {len(candidates)} candidates"
        )
    bad = np.flatnonzero((rows < 0) | (rows >= n_hits))
    if len(bad):
        raise InputError(f"{where}: hit_rows[{bad[0]}] is {rows[bad[0]]}; expected 0 to {n_hits - 1}")
    inside = np.ones(max(len(rows) - 1, 0), dtype=bool)  # neighbours within one candidate
    starts = offsets[1:-1]
    inside[starts[(starts > 0) & (starts < len(rows))] - 1] = False
    bad = np.flatnonzero(inside & (np.diff(rows) <= 0))
    if len(bad):
        raise InputError(
            f"{where}: hit_rows[{bad[0] + 1}] is {rows[bad[0] + 1]}; expected ascending rows, each once a candidate"
        )
    bad = np.flatnonzero(track_ids < 0)
    if len(bad):
        raise InputError(f"{where}: track_ids[{bad[0]}] is {track_ids[bad[0]]}; expected 0 (none) or a track from 1")
