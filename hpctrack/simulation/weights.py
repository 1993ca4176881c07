"""TrackML's truth weights: how much each hit counts in the score.

S. Amrouche et al., "The Tracking Machine Learning challenge: Accuracy phase", The NeurIPS 2018 Competition, Springer,
arXiv:1904.06778; the numbers are those of the organisers' trackml-library (trackml/weights.py). This is the first
(accuracy) phase's definition; in the second, secondaries weighed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# Importance of the hits along a track, from the first (most important: it says where the track begins) to the last;
# stretched to the number of hits.
_ALONG_TRACK = (10.0, 8.0, 6.0, 5.0, 3.0, 3.0, 3.0, 5.0, 6.0)
MIN_HITS = 4  # shorter tracks do not count
MAX_HITS = 20  # hits beyond this one do not count


def order_weights() -> np.ndarray:
    """[MAX_HITS + 1, MAX_HITS]: share of hit i (from 0) in a track of n hits; rows from MIN_HITS on sum to 1."""
    weights = np.zeros((MAX_HITS + 1, MAX_HITS))
    support = np.linspace(0.0, 1.0, len(_ALONG_TRACK))
    for n in range(MIN_HITS, MAX_HITS + 1):
        share = np.interp(np.linspace(0.0, 1.0, n), support, _ALONG_TRACK)
        weights[n, :n] = share / share.sum()
    return weights


def pt_weight(pt: np.ndarray) -> np.ndarray:
    """0.2 up to 0.5 GeV, rising linearly to 1 at 3 GeV and above."""
    return np.interp(pt, (0.5, 3.0), (0.2, 1.0))


def hit_weights(row: np.ndarray, tz: np.ndarray, particles: Mapping[str, np.ndarray]) -> np.ndarray:
    """Weights [H] of the hits, sum 1 over the event (0 where no track counts).

    row: [H] the hit's particle as a row of `particles`, -1 for noise, which weighs 0; tz: [H] mm, true z. Hits of a
    track are ordered by |tz - vz|, as the organisers do.
    """
    weight = np.zeros(len(row))
    signal = np.flatnonzero(row >= 0)
    owner = row[signal]
    nhits = np.bincount(owner, minlength=len(particles["vz"]))
    along = np.lexsort([np.abs(tz[signal] - particles["vz"][owner]), owner])
    first = np.cumsum(nhits) - nhits
    place = np.empty(len(signal), np.int64)
    place[along] = np.arange(len(signal)) - first[owner[along]]
    share = order_weights()[np.minimum(nhits[owner], MAX_HITS), np.minimum(place, MAX_HITS - 1)]
    share[place >= MAX_HITS] = 0.0
    weight[signal] = share * pt_weight(np.hypot(particles["px"], particles["py"]))[owner]
    total = weight.sum()
    return weight / total if total > 0 else weight
