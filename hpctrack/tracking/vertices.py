"""The second level: tracks of an event -> collisions, by the same model, loss and builder as hits -> tracks.

Here the inputs are tracks with their parameters (events/perigee.py), the targets collisions; an influencer represents a
vertex. What is particular to vertices stands in this file: inputs, truth, a baseline, and how good vertices are.

Legend: T tracks, V collisions, C clusters of tracks.
"""

from __future__ import annotations

import numpy as np

from hpctrack.evaluation.matching import exclusive_lists, match
from hpctrack.evaluation.metrics import MIN_CANDIDATE_HITS, counted, double_matched
from hpctrack.events.perigee import PHI
from hpctrack.storage.schema import ESTIMATE, PARAMETERS
from hpctrack.tracking.builder import Lists, joined

WAVES_MM = (32.0, 8.0, 2.0, 0.5)  # of z0, so that a network sees distances from a beam spot's length to a resolution
Z0_UNIT_MM = 5.0
FEATURES = (
    *("z0", "log_z0_deviation", "d0", "q_over_pt", "cos_phi", "sin_phi", "theta"),
    *(f"{wave}_{length:g}_mm" for length in WAVES_MM for wave in ("cos_z0", "sin_z0")),
)
COLLISION_BIT = 52  # of particle_id, from which on it numbers the collision (TrackML, docs/explanation/simulation.md)
PROMPT_MM = 0.1
MIN_TRACKS = MIN_CANDIDATE_HITS  # of a collision that counts, and of a cluster: the metrics of tracks apply as they are
Q_OVER_PT, THETA, D0, Z0 = (PARAMETERS.index(name) for name in ("q_over_pt", "theta", "d0", "z0"))
VARIANCE_Z0 = ESTIMATE.index("cov_z0_z0")


def features(estimate_TK: np.ndarray) -> np.ndarray:
    """Model inputs float32 [T, len(FEATURES)] of tracks with the columns schema.ESTIMATE (1/GeV, rad, mm)."""
    z0, phi = estimate_TK[:, Z0], estimate_TK[:, PHI]
    columns = [
        *(z0 / Z0_UNIT_MM, np.log(deviation_z0(estimate_TK) / 0.1), np.arcsinh(estimate_TK[:, D0] / 0.1)),
        *(estimate_TK[:, Q_OVER_PT], np.cos(phi), np.sin(phi), estimate_TK[:, THETA] - np.pi / 2),
    ]
    for length in WAVES_MM:
        columns += [np.cos(2 * np.pi * z0 / length), np.sin(2 * np.pi * z0 / length)]
    return np.stack(columns, axis=1).astype(np.float32)


def deviation_z0(estimate_TK: np.ndarray) -> np.ndarray:
    """Estimated standard deviation of z0, mm [T]."""
    return np.sqrt(np.maximum(estimate_TK[:, VARIANCE_Z0], 1e-12))


def collisions(particle_id: np.ndarray, born: np.ndarray, majority_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Collision 0 … V - 1 of each track, -1 = none [T], and z of the collisions, mm [V].

    The track's particle is row `majority_T` of `particle_id` and of `born` [P, 3], mm; -1: it has none. A collision is
    where the median of its tracks is born. Tracks born further than PROMPT_MM from it, in decays and in material,
    belong to none, as noise hits do; so do those of a collision with fewer than MIN_TRACKS.
    """
    number = np.where(majority_T >= 0, particle_id[majority_T] >> COLLISION_BIT, -1)
    out = np.full(len(number), -1)
    z: list[float] = []
    for one in np.unique(number[number >= 0]):
        tracks = np.flatnonzero(number == one)
        place = np.median(born[majority_T[tracks]], axis=0)
        prompt = tracks[np.linalg.norm(born[majority_T[tracks]] - place, axis=1) <= PROMPT_MM]
        if len(prompt) >= MIN_TRACKS:
            out[prompt] = len(z)
            z.append(place[2])
    return out, np.array(z)


def gap_clusters(z0: np.ndarray, gap_mm: float) -> Lists:
    """The baseline: tracks in the order of z0, cut wherever two neighbours are further apart than `gap_mm`."""
    order = np.argsort(z0, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(z0[order]) > gap_mm) + 1)
    groups = [np.sort(group) for group in groups if len(group) >= MIN_TRACKS]
    return joined(groups, [float(len(group)) for group in groups])


def position(z0: np.ndarray, deviation: np.ndarray) -> float:
    """z of a vertex: mean of its tracks' z0 with weights 1 / variance, mm."""
    weight = deviation**-2.0
    return float((weight * z0).sum() / weight.sum())


def judge(
    track_ids: np.ndarray, collision_T: np.ndarray, estimate_TK: np.ndarray, z_V: np.ndarray
) -> dict[str, tuple[int, int] | np.ndarray]:
    """Counts (numerator, denominator) of one event, and z residuals (mm) of found vertices, of one cluster a track.

    `track_ids` [T], 0 = none. A cluster of at least MIN_TRACKS and a collision are matched by double majority: more
    than half of the tracks of either belong to the other. `z_V`: true z of the collisions.
    - `efficiency`: matched collisions / collisions;
    - `fakes`: clusters that are matched to none / clusters;
    - `purity`: tracks of a matched cluster that are the collision's / tracks of matched clusters;
    - `assigned`: tracks of collisions that are in the cluster matched to theirs / tracks of collisions.
    """
    offsets, rows = exclusive_lists(track_ids)
    found = match(offsets, rows, collision_T, len(z_V))
    good = double_matched(found)
    residual = [
        position(estimate_TK[rows[a:b], Z0], deviation_z0(estimate_TK[rows[a:b]])) - z_V[vertex]
        for a, b, vertex in zip(offsets[:-1][good], offsets[1:][good], found.majority[good], strict=True)
    ]
    right = int(found.majority_hits[good].sum())
    clusters = int(np.count_nonzero(counted(found)))
    return {
        "efficiency": (int(good.sum()), len(z_V)),
        "fakes": (clusters - int(good.sum()), clusters),
        "purity": (right, int(found.size[good].sum())),
        "assigned": (right, int(np.count_nonzero(collision_T >= 0))),
        "residual_mm": np.array(residual),
    }
