"""How good candidates are: every definition once, with its source. Long form: docs/reference/metrics.md.

Each metric maps a Match (see matching.py; C candidates, P particles, H hits) and the targets (bool [P]) to what it
counts: entries of the numerator and of the denominator, one for each particle; for the fake rate one for each
candidate. They are added up, over all or over those of a kind, and over events, before they are divided. A candidate
counts if it has at least MIN_CANDIDATE_HITS hits; it is *matched* to its majority particle if more than 50 % of its
hits belong to that one. Noise is never matched. A candidate matched to a particle that is no target (low transverse
momentum) is neither a fake nor a match to a target.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hpctrack.evaluation.matching import Match, exclusive_lists, match

MIN_CANDIDATE_HITS = 3
Counts = tuple[int, int]
Entries = tuple[np.ndarray, np.ndarray]  # of numerator and denominator, bool or int [P] (or [C])


def counted(found: Match) -> np.ndarray:
    """Candidates that are looked at, bool [C]: at least 3 hits (Murnane 2024, Eq. 3)."""
    return found.size >= MIN_CANDIDATE_HITS


def matched(found: Match) -> np.ndarray:
    """Candidates matched to their majority particle, bool [C]: MORE than 50 % of their hits (Murnane 2024, Eq. 3)."""
    return counted(found) & (found.majority >= 0) & (2 * found.majority_hits > found.size)


def double_matched(found: Match) -> np.ndarray:
    """Matched candidates that also hold MORE than 50 % of the particle's hits, bool [C] (double majority)."""
    return matched(found) & (2 * found.majority_hits > hits_of_majority(found))


def perfectly_matched(found: Match) -> np.ndarray:
    """Candidates with all hits of one particle and no other hit, bool [C]."""
    whole = found.majority_hits == hits_of_majority(found)
    return matched(found) & whole & (found.majority_hits == found.size)


def particles_of(found: Match, chosen: np.ndarray) -> np.ndarray:
    """Majority particles of the `chosen` candidates (bool [C], noise left out), as bool [P]."""
    particles = np.zeros(len(found.particle_hits), dtype=bool)
    particles[found.majority[chosen & (found.majority >= 0)]] = True
    return particles


def efficiency(found: Match, target: np.ndarray) -> Entries:
    """Target particles with a matched candidate / target particles (Murnane 2024, Eq. 3)."""
    return target & particles_of(found, matched(found)), target


def fake_rate(found: Match, target: np.ndarray) -> Entries:
    """Candidates matched to no particle at all / candidates of at least 3 hits (Murnane 2024, Eq. 3)."""
    return counted(found) & ~matched(found), counted(found)


def duplicate_rate(found: Match, target: np.ndarray) -> Entries:
    """Candidates beyond the first of their target / candidates matched to a target (InfluencerNet)."""
    candidates = number_of(found, matched(found) & majority_in(found, target))
    return np.maximum(candidates - 1, 0), candidates


def perfect_efficiency(found: Match, target: np.ndarray) -> Entries:
    """Target particles with a perfectly matched candidate / target particles (Lieret and DeZoort 2023)."""
    return target & particles_of(found, perfectly_matched(found)), target


def double_majority_efficiency(found: Match, target: np.ndarray) -> Entries:
    """Target particles with a double-majority candidate / target particles (Lieret and DeZoort 2023)."""
    return target & particles_of(found, double_matched(found)), target


def lhc_efficiency(found: Match, target: np.ndarray) -> Entries:
    """Candidates with AT LEAST 75 % of their hits from one target / candidates whose majority is a target (ibid.).

    Normalised to candidates, not to particles. gnn_tracking's code asks for more than 75 %.
    """
    of_target = counted(found) & majority_in(found, target)
    good = of_target & (4 * found.majority_hits >= 3 * found.size)
    return number_of(found, good), number_of(found, of_target)


def trackml_score(
    track_ids: np.ndarray, particle_row: np.ndarray, weight: np.ndarray, n_particles: int
) -> float | None:
    """TrackML score of one event: weight of the majority's hits in double-majority tracks / weight of all hits.

    `track_ids`, `particle_row`, `weight` [H]. Follows `score_event` of LAL/trackml-library (Amrouche et al. 2019):
    majorities by hit counts, any track size. Noise never scores (its weight is 0 in TrackML); `track_id` 0 is no track,
    where the reference gives 0 no meaning of its own. None if the event has no weight.
    """
    total = weight.sum(dtype=np.float64)
    if total <= 0:
        return None
    offsets, rows = exclusive_lists(track_ids)
    tracks = match(offsets, rows, particle_row, n_particles)
    good = (2 * tracks.majority_hits > tracks.size) & (2 * tracks.majority_hits > hits_of_majority(tracks))
    scored = particle_row[rows] == np.repeat(np.where(good, tracks.majority, -2), tracks.size)
    in_score = np.zeros(len(weight), dtype=bool)
    in_score[rows[scored]] = True
    return float(
        np.where(in_score, weight, 0).sum(dtype=np.float64) / total
    )  # same order of summation: truth gives 1.0


@dataclass(frozen=True)
class Definition:
    """A metric by counts: its function, its name for people, what it is a fraction of, and of what its entries are."""

    entries: Callable[[Match, np.ndarray], Entries]
    title: str
    numerator: str
    denominator: str
    source: str
    of_candidates: bool = False

    def count(self, found: Match, target: np.ndarray) -> Counts:
        """Numerator and denominator in all."""
        return total(self.entries(found, target))


def total(entries: Entries) -> Counts:
    """Numerator and denominator in all."""
    numerator, denominator = entries
    return int(numerator.sum()), int(denominator.sum())


_PAPER = "D. Murnane, Influencer Loss, EPJ Web Conf. 295 (2024) 09016, Eq. 3"
_LIERET = "K. Lieret, G. DeZoort et al., arXiv:2309.16754 and arXiv:2312.03823; gnn_tracking, cluster_metrics.py"
_TARGETS = "target particles"
METRICS: dict[str, Definition] = {
    "efficiency": Definition(
        efficiency, "Efficiency", f"{_TARGETS} with a candidate of which they own > 50 %", _TARGETS, _PAPER
    ),
    "fake_rate": Definition(
        fake_rate,
        "Fake rate",
        "candidates matched to no particle",
        "candidates of >= 3 hits",
        _PAPER,
        of_candidates=True,
    ),
    "duplicate_rate": Definition(
        duplicate_rate,
        "Duplicate rate",
        "candidates beyond the first of their target",
        "candidates matched to a target",
        "D. Murnane, InfluencerNet, get_tracking_metrics",
    ),
    "double_majority_efficiency": Definition(
        double_majority_efficiency,
        "Double-majority efficiency",
        f"{_TARGETS} with a candidate holding > 50 % of their hits, of which they own > 50 %",
        _TARGETS,
        _LIERET,
    ),
    "lhc_efficiency": Definition(
        lhc_efficiency,
        "LHC efficiency",
        "candidates with >= 75 % of their hits from one target",
        "candidates whose majority particle is a target",
        _LIERET,
    ),
    "perfect_efficiency": Definition(
        perfect_efficiency,
        "Perfect efficiency",
        f"{_TARGETS} with a candidate of all their hits and no other",
        _TARGETS,
        _LIERET,
    ),
}
SCORE_SOURCE = "S. Amrouche et al., arXiv:1904.06778; LAL/trackml-library, score_event"


def census(found: Match, target: np.ndarray) -> dict[str, int]:
    """Where every candidate goes, once: the parts after `counted` add up to it, `counted` and `short` to all."""
    of_particle, look = matched(found), counted(found)
    of_target = of_particle & majority_in(found, target)
    first = np.count_nonzero(particles_of(found, of_target))
    return {
        "candidates": len(found.size),
        "short": int(np.count_nonzero(~look)),
        "counted": int(np.count_nonzero(look)),
        "first_of_target": int(first),
        "duplicates_of_target": int(np.count_nonzero(of_target) - first),
        "of_other_particles": int(np.count_nonzero(of_particle & ~of_target)),
        "fakes": int(np.count_nonzero(look & ~of_particle)),
    }


def wilson(numerator: int, denominator: int, z: float = 1.0) -> tuple[float, float]:
    """Wilson score interval of a binomial fraction at z standard deviations (E. B. Wilson, JASA 22 (1927) 209)."""
    p, n = numerator / denominator, denominator
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    low = 0.0 if numerator == 0 else max(0.0, middle - half)
    return low, 1.0 if numerator == denominator else min(1.0, middle + half)


def fraction(numerator: int, denominator: int) -> dict[str, float | int | None]:
    """A binomial fraction: value, lo and hi (68 % Wilson), error (half of hi - lo), counts; None without counts."""
    number: dict = {"value": None, "error": None, "lo": None, "hi": None}
    if denominator:
        low, high = wilson(numerator, denominator)
        number = {"value": numerator / denominator, "error": (high - low) / 2, "lo": low, "hi": high}
    return number | {"numerator": int(numerator), "denominator": int(denominator)}


def mean_score(scores: list[float | None]) -> dict[str, float | int | None]:
    """Mean over events as in the challenge: numerator the sum of scores, denominator the events that have one.

    The error is the standard error from the spread between events, s / sqrt(n); None for a single event.
    """
    have = np.array([score for score in scores if score is not None], dtype=np.float64)
    n = len(have)
    value = float(have.sum() / n) if n else None
    error = float(have.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    low, high = (None, None) if value is None or error is None else (max(0.0, value - error), min(1.0, value + error))
    return {
        "value": value, "error": error, "lo": low, "hi": high, "numerator": float(have.sum()), "denominator": n
    }  # fmt: skip


def hits_of_majority(found: Match) -> np.ndarray:
    """Hits in the event of each candidate's majority particle [C]; 0 for noise."""
    hits = np.append(found.particle_hits, 0)  # row -1 (noise) reads the appended 0
    return hits[found.majority]


def majority_in(found: Match, target: np.ndarray) -> np.ndarray:
    """Whether each candidate's majority particle is one of `target` (bool [P]), bool [C]."""
    return np.append(target, False)[found.majority]


def number_of(found: Match, chosen: np.ndarray) -> np.ndarray:
    """How many of the `chosen` candidates, whose majority is a particle, each particle is the majority of; int [P]."""
    return np.bincount(found.majority[chosen], minlength=len(found.particle_hits))
