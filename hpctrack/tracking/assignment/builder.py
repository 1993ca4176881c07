"""Builder `assignment`: the exact assignment of hits to the next ones makes chains, and these are candidates.

T. Kortus et al., arXiv:2407.13420, for any scored edges: graphs/assignment.py says what is solved. Edges below `cut`
are left out before. Where modules overlap a track has two hits on a layer; a hit beside the chains may join one, as in
builder `walk`.

Legend: N hits, M edges that pass the cut.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from hpctrack.errors import MachineError
from hpctrack.graphs.assignment import Assignment
from hpctrack.tracking.builder import TooManyPairs
from hpctrack.tracking.edge_clustering import EdgeBuilder, beside, components


class AssignmentBuilder(EdgeBuilder):
    """Chains of the assignment."""

    class Options(EdgeBuilder.Options):
        """The cut, what is best, and what joins a chain."""

        cut: float | None = Field(None, ge=0, lt=1, description="edges must be as probable; null: tuned after training")
        best: Literal["edges", "sum"] = Field(
            "edges",
            description="the most edges, and of those the largest sum of probabilities; or the largest sum at once",
        )
        join: float | None = Field(
            None, gt=0, le=1, description="probability of an edge by which a hit beside a chain joins it; null: none"
        )
        threads: int = Field(1, ge=1, le=256, description="problems solved at a time")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        return [{"cut": 0.0}, *EdgeBuilder.grid()]

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit: its chain."""
        n = int(edge_2M.max()) + 1
        chosen_M = assigned(edge_2M, probability_M, n, self.options.best, self.options.threads)
        label_N = chains(edge_2M[:, chosen_M], n)
        if self.options.join is not None:
            weight_M = np.rint(probability_M * 2**40).astype(np.int64) + 1
            value_N = np.zeros(n, dtype=np.int64)  # of equal sums the lowest chain
            hit, label = beside(label_N, value_N, edge_2M, weight_M, probability_M >= self.options.join)
            label_N[hit] = label
        return label_N


def chains(edge_2M: np.ndarray, n: int) -> np.ndarray:
    """Number of the chain of each of `n` hits [n], -1 for one without an edge."""
    label_N, alone_N = components(edge_2M, n), np.ones(n, dtype=bool)
    alone_N[edge_2M] = False
    label_N[alone_N] = -1
    return label_N


def assigned(edge_2M: np.ndarray, probability_M: np.ndarray, n: int, best: str, threads: int = 1) -> np.ndarray:
    """The chosen edges, bool [M]; TooManyPairs for a problem that is too large."""
    try:
        if best == "edges":
            return Assignment(edge_2M, n, threads)(1.0 - probability_M)
        # A pair of hits that stays apart costs nothing, an edge costs less: with as many spare columns as rows, all are
        # matched, so the most edges of the larger problem are the largest sum of the smaller one.
        first = np.unique(edge_2M[0])
        whole = Assignment(np.concatenate([edge_2M, [first, n + first]], axis=1), 2 * n, threads)
    except MachineError as error:
        raise TooManyPairs(f"builder 'assignment': {error} (builder.cut)") from error
    return whole(np.concatenate([1.0 - probability_M, np.ones(len(first))]))[: edge_2M.shape[1]]
