"""Builder `radius`: users within a fixed radius of each influencer.

Legend: N hits of the event, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from hpctrack.config import Section
from hpctrack.data.schema import Candidates
from hpctrack.tracking.lists import Lists

Outputs = Mapping[str, np.ndarray]


class RadiusBuilder:
    """Users within a fixed radius of each influencer (D. Murnane, "Influencer Loss", CHEP 2023, inference).

    Every influencer whose neighbourhood has at least `min_hits` users is a candidate; nothing is removed, so candidates
    may overlap. The exclusive reading takes candidates from the best score (then the largest, then lowest hit row) and
    keeps each that still has most of its hits. A candidate's score is 1 - mean distance / radius of its users.
    """

    class Options(Section):
        """The search radius, and the smallest candidate that counts."""

        radius: float | None = Field(None, gt=0, description="null: tuned on validation events after training")
        min_hits: int = Field(3, ge=1, description="smaller neighbourhoods are no candidates")

    def __init__(self, options: Options) -> None:
        self.options = options

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        return [{"radius": round(0.05 * k, 2)} for k in range(1, 21)]

    @property
    def needs_tuning(self) -> bool:
        """True while the radius is open."""
        return self.options.radius is None

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event from `user` and `influencer` [N, E] of its hits `hit_rows` [N], ascending."""
        found = self.select(neighbourhoods(outputs, self.options.radius))
        return found._replace(rows=hit_rows[found.rows]).candidates(n_hits, event_id, self.options.min_hits)

    @staticmethod
    def sweep(builders: Sequence[RadiusBuilder], outputs: Outputs) -> Iterator[Lists]:
        """Each builder's candidates of the same event: one search, with the largest radius, serves all."""
        near = neighbourhoods(outputs, max(builder.options.radius for builder in builders))
        for builder in builders:
            yield builder.select(near)

    def select(self, near: csr_matrix) -> Lists:
        """Candidates from neighbourhoods of at least the radius; their rows are the columns of `near`."""
        radius = self.options.radius
        inside = near.data <= radius
        size = np.diff(np.concatenate([[0], np.cumsum(inside)])[near.indptr])
        large = size >= self.options.min_hits
        inside &= np.repeat(large, np.diff(near.indptr))
        offsets = np.concatenate([[0], np.cumsum(size[large])]).astype(np.int64)
        distance = np.add.reduceat(near.data[inside], offsets[:-1]) if len(offsets) > 1 else np.zeros(0)
        return Lists(offsets, near.indices[inside], 1 - distance / size[large] / radius)


def neighbourhoods(outputs: Outputs, radius: float) -> csr_matrix:
    """Distances [influencers, users] of the users within `radius` of each influencer, users ascending."""
    user, influencer = (outputs[name].astype(np.float64) for name in ("user", "influencer"))
    if not len(user):
        return csr_matrix((0, 0))
    trees = [cKDTree(points, leafsize=32, balanced_tree=False) for points in (influencer, user)]
    near = trees[0].sparse_distance_matrix(trees[1], radius, output_type="coo_matrix").tocsr()
    near.sort_indices()
    return near
