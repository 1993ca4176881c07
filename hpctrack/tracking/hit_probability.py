"""How probable it is that a hit is on a track, from a model's scores and the event's own share of such hits.

Legend: N hits of the event.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.special import expit, logit

ROUNDS, SETTLED = 200, 1e-7  # of estimating the share; least change that goes on


class Cut(NamedTuple):
    """The probability [N] that each hit is on a track, and the least mean of a candidate's."""

    probability_N: np.ndarray
    least: float


def probabilities(hit_score_N: np.ndarray, track_share: float) -> np.ndarray:
    """Probability [N] that each hit is on a track, where the event's own share of such hits is not that of training.

    The share is estimated from the scores (logits, learned with `track_share`), such that it is the mean of the
    probabilities that follow from it. So nothing is cut from events that hold hits of tracks alone. M. Saerens,
    P. Latinne, C. Decaestecker, "Adjusting the outputs of a classifier to new a priori probabilities", Neural
    Computation 14 (2002) 21, Eq. 2.6.
    """
    ratio_N = hit_score_N.astype(np.float64).ravel() - logit(track_share)
    share = track_share
    for _ in range(ROUNDS):
        probability_N = expit(ratio_N + logit(share))
        then, share = share, float(np.clip(probability_N.mean() if len(ratio_N) else share, 1e-6, 1 - 1e-6))
        if abs(share - then) < SETTLED:
            break
    return expit(ratio_N + logit(share))
