"""Method `follow`: from the deepest plane to the first, each track goes on with the hit that bends it least.

The baseline without learning of T. Kortus et al. (arXiv:2407.13420) for protons in a telescope: one assignment for each
pair of planes, whose costs are changes of direction; at a track's first step its angle to the beam.

Legend: N hits, M edges, m between two planes.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
from pydantic import Field

from hpctrack.graphs.assignment import Assignment
from hpctrack.graphs.planes import Planes
from hpctrack.storage.schema import Candidates, Event
from hpctrack.tracking.assignment.builder import chains
from hpctrack.tracking.edge_clustering import labelled


class Follower:
    """Chains of the assignments are candidates; none overlap. A candidate's score says how little it bends."""

    class Options(Planes.Options):
        """Which segments can be."""

        min_hits: int = Field(5, ge=1, description="shorter chains are no candidates")

    COLUMNS: ClassVar = Planes.COLUMNS

    def __init__(self, options: Options) -> None:
        self.options, self.graph = options, Planes(options)

    def reconstruct(self, event: Event, rows: np.ndarray) -> tuple[Candidates, dict[str, float]]:
        """Candidates from the hits `rows` [N] of an event, and the seconds of each part."""
        times = [time.perf_counter()]
        edge_2M = self.graph(event, rows)
        place_N3 = np.stack([event.column(f"hits.{axis}")[rows].astype(np.float64) for axis in "xyz"], axis=1)
        plane_N = event.column("hits.layer_id")[rows].astype(np.int64)
        times.append(time.perf_counter())
        chosen_M, bend_M = followed(edge_2M, place_N3, plane_N)
        times.append(time.perf_counter())
        straight_M = np.exp(-bend_M[chosen_M])
        label_N = chains(edge_2M[:, chosen_M], len(rows))
        found = labelled(label_N, edge_2M[:, chosen_M], straight_M, self.options.min_hits).at(rows)
        candidates = found.candidates(event.n_hits, event.event_id, self.options.min_hits)
        times.append(time.perf_counter())
        return candidates, dict(zip(("graph_s", "follow_s", "build_s"), np.diff(times).tolist(), strict=True))


def followed(edge_2M: np.ndarray, place_N3: np.ndarray, plane_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen edges, bool [M], and by how much each would bend the track that it goes on with, rad [M]."""
    chosen_M, bend_M = np.zeros(edge_2M.shape[1], dtype=bool), np.zeros(edge_2M.shape[1])
    along_N3 = np.tile([0.0, 0.0, 1.0], (len(place_N3), 1))  # the beam's direction, until a track has its own
    outer_M = plane_N[edge_2M[1]]
    for plane in np.unique(outer_M)[::-1]:
        own = np.flatnonzero(outer_M == plane)
        inner_m, outer_m = edge_2M[:, own]
        segment_m3 = place_N3[outer_m] - place_N3[inner_m]
        bend_M[own] = between(segment_m3, along_N3[outer_m])
        found = own[Assignment(edge_2M[:, own], len(place_N3))(bend_M[own])]
        chosen_M[found] = True
        along_N3[edge_2M[0, found]] = place_N3[edge_2M[1, found]] - place_N3[edge_2M[0, found]]
    return chosen_M, bend_M


def between(a_m3: np.ndarray, b_m3: np.ndarray) -> np.ndarray:
    """Angles between vectors, rad."""
    return np.arctan2(np.linalg.norm(np.cross(a_m3, b_m3), axis=1), (a_m3 * b_m3).sum(axis=1))
