"""Builder `seeded`: a candidate a seed, of the hits that a model on planes thinks most likely of its track.

Outputs: `edge_score` [M], logarithms of probabilities, and `edge_plane` [M] of `edge_index` [2, M], from seeds to hits.

Legend: N hits, M edges, K edges that are taken.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from hpctrack.errors import InputError
from hpctrack.events.truth import runs
from hpctrack.tracking.builder import BaseBuilder, Lists, Outputs


class SeededBuilder(BaseBuilder):
    """Each hit goes to the seed that scores it highest, if that is at least `cut`; a seed keeps the best of a plane.

    The challenge "ramp" of 2017 was answered so, with a cut of one over the number of bins. A candidate's score is the
    mean probability of its hits, of which the seed has 1.
    """

    class Options(BaseBuilder.Options):
        """The cut, and how many hits of a plane."""

        cut: float | None = Field(
            None, gt=0, lt=1, description="hits must be as probable in their plane; null: tuned after training"
        )
        one_a_plane: bool = Field(True, description="the best hit of each plane alone; false: all that pass")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        return [{"cut": cut} for cut in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7)]

    def lists(self, outputs: Outputs) -> Lists:
        """Seeds with their hits, of at least `min_hits`, in the order of the seeds."""
        if not {"edge_index", "edge_score", "edge_plane"} <= outputs.keys():
            raise InputError("section 'builder': 'seeded' needs a model on planes, such as plane_lstm, and graph seeds")
        (seed_M, hit_M), score_M = outputs["edge_index"], np.exp(outputs["edge_score"].astype(np.float64))
        first = best_of(hit_M, score_M, seed_M)
        first = first[score_M[first] >= self.options.cut]
        if self.options.one_a_plane:
            place = np.stack([seed_M[first], np.rint(outputs["edge_plane"][first]).astype(np.int64)])
            group = np.unique(place, axis=1, return_inverse=True)[1].ravel()
            first = first[best_of(group, score_M[first], hit_M[first])]
        seeds = np.unique(seed_M)
        rows = np.concatenate([seeds, hit_M[first]]).astype(np.int64)
        owner = np.concatenate([seeds, seed_M[first]])
        score = np.concatenate([np.ones(len(seeds)), score_M[first]])
        order = np.lexsort([rows, owner])
        start, size = runs(owner[order])
        mean = np.add.reduceat(score[order], start) / np.maximum(size, 1) if len(order) else np.zeros(0)
        enough = size >= self.options.min_hits
        kept = np.repeat(enough, size)
        offsets = np.concatenate([[0], np.cumsum(size[enough])]).astype(np.int64)
        return Lists(offsets, rows[order][kept], mean[enough])


def best_of(group_M: np.ndarray, score_M: np.ndarray, tie_M: np.ndarray) -> np.ndarray:
    """The entry of each group with the highest score, of equals that with the lowest `tie_M`; ascending by group."""
    order = np.lexsort([tie_M, -score_M, group_M])
    return order[runs(group_M[order])[0]]
