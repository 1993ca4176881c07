"""Builders `greedy` and `condensation`: one hit after the other takes the free hits around it.

Legend: N hits of the event, E embedding dimensions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from scipy.spatial import cKDTree

from hpctrack.storage.schema import Candidates
from hpctrack.tracking.builder import BaseBuilder, Lists, Outputs, joined, radii


class GreedyBuilder(BaseBuilder):
    """Greedy random condensation, the baseline of D. Murnane, "Influencer Loss", CHEP 2023.

    A random free hit takes all free hits within the radius, until no hit is free; candidates do not overlap. The order
    is drawn from the event id, so a repetition gives the same. A candidate's score is 1 - mean distance / radius.
    """

    class Options(BaseBuilder.Options):
        """The radius, and the smallest candidate that counts."""

        radius: float | None = Field(
            None, gt=0, description="within which hits belong together; null: tuned on validation events"
        )

    grid = staticmethod(radii)

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event from `embedding` [N, E] of its hits `hit_rows` [N], ascending."""
        order = np.argsort(np.random.default_rng(event_id).permutation(n_hits)[hit_rows])
        return self.lists(outputs, order).at(hit_rows).candidates(n_hits, event_id, self.options.min_hits)

    def lists(self, outputs: Outputs, order: np.ndarray | None = None) -> Lists:
        """Candidates, given the order [N] in which hits get their turn; by default always the same."""
        radius = self.options.radius
        x_NE = outputs["embedding"].astype(np.float64)
        if order is None:
            order = np.random.default_rng(0).permutation(len(x_NE))
        groups = condense(x_NE, order, radius, self.options.min_hits)
        scores = [1 - np.linalg.norm(x_NE[rows] - x_NE[seed], axis=1).mean() / radius for seed, rows in groups]
        return joined([rows for _, rows in groups], scores)


class CondensationBuilder(BaseBuilder):
    """Object condensation's inference (J. Kieseler, arXiv 2002.03329, section 2).

    Hits with beta above `beta_min` get their turn by falling beta (then the lowest row); one that is still free takes
    all free hits within the radius. Candidates do not overlap; a candidate's score is the beta of its hit.
    """

    class Options(BaseBuilder.Options):
        """Threshold, radius, and the smallest candidate that counts."""

        beta_min: float | None = Field(None, ge=0, lt=1, description="t_beta; null: tuned on validation events")
        radius: float | None = Field(None, gt=0, description="t_d; null: tuned on validation events")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries: every threshold with every radius."""
        return [{"beta_min": b, "radius": round(0.1 * k, 1)} for b in (0.05, 0.1, 0.2, 0.4, 0.6) for k in range(2, 10)]

    def lists(self, outputs: Outputs) -> Lists:
        """Candidates from `embedding` [N, E] and `beta` [N, 1], in logits, by falling beta of their points."""
        beta = 1 / (1 + np.exp(-outputs["beta"].astype(np.float64).ravel()))
        order = np.argsort(-beta, kind="stable")
        order = order[: np.count_nonzero(beta > self.options.beta_min)]
        x_NE = outputs["embedding"].astype(np.float64)
        groups = condense(x_NE, order, self.options.radius, self.options.min_hits)
        return joined([rows for _, rows in groups], [beta[seed] for seed, _ in groups])


def condense(x_NE: np.ndarray, order: np.ndarray, radius: float, min_hits: int) -> list[tuple[int, np.ndarray]]:
    """Groups (seed, rows ascending): in their order, hits that are still free take all free hits within the radius."""
    if not len(order):
        return []
    tree = cKDTree(x_NE)
    free = np.ones(len(x_NE), dtype=bool)
    groups = []
    for seed in order.tolist():
        if free[seed]:
            near = np.array(tree.query_ball_point(x_NE[seed], radius))
            rows = near[free[near]]
            free[rows] = False
            if len(rows) >= min_hits:
                groups.append((seed, np.sort(rows)))
    return groups
