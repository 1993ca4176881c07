"""Binary cross-entropy of triplet scores: for the triplet network.

Legend: T triplets in the batch, M edges, N hits, B events.
"""

from __future__ import annotations

from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.graphs.triplets import per_event, triplets
from hpctrack.losses.edges import EdgeLoss, edges_per_event
from hpctrack.losses.term import needed


def with_triplet(batch: Batch) -> int:
    """Events that have a triplet."""
    return int((per_event(batch) > 0).sum()) if int(edges_per_event(batch).sum()) else 0


class TripletLoss(EdgeLoss):
    """Term `triplets`: as the term `edges` of EdgeLoss, of triplets; one is true if both its edges are.

    And, with a weight, the term `edges` itself, on the scores that triplets give to edges.
    """

    class Options(EdgeLoss.Options):
        """How triplets count beside each other."""

        triplets: float = Field(1.0, ge=0, description="weight of the term")
        edges: float = Field(0.0, ge=0, description="weight of the same on edges, scored as their triplets")

    counted = EdgeLoss.counted | {"triplets": with_triplet}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `triplet_score` [T], in the order of graphs/triplets.py, and `edge_score` [M]."""
        score_T = needed(outputs, "triplet_score", "the model 'triplets'")
        if not len(score_T):
            return super().terms(outputs, batch) | {"triplets": score_T.sum()}
        first_T, second_T = triplets(batch.edge_index, batch.num_nodes)
        true_T = batch.edge_truth[first_T] & batch.edge_truth[second_T]
        hit_T = batch.edge_index[1, first_T]
        return super().terms(outputs, batch) | {"triplets": self.cross_entropy(score_T, true_T, hit_T, batch)}
