"""Binary cross-entropy of scores against graph truth: of edges (filters, edge classifiers) and of triplets.

Legend: M edges in the batch, T triplets, N hits, B events.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.graphs.triplets import per_event, triplets
from hpctrack.losses.term import BaseLoss, needed
from hpctrack.numerics import group_sum


def edges_per_event(batch: Batch) -> Tensor:
    """Number of edges of each event, [B]; InputError if hits have no graph."""
    if batch.edge_index is None:
        if batch.num_nodes:
            raise InputError("section 'loss': this loss is for edges, and the events have none; give data.graph")
        return batch.ptr.new_zeros(batch.num_graphs)
    return torch.bincount(batch.batch[batch.edge_index[0]], minlength=batch.num_graphs)


def with_edge(batch: Batch) -> int:
    """Events that have an edge."""
    return int((edges_per_event(batch) > 0).sum())


class EdgeLoss(BaseLoss):
    """Term `edges`: weighted mean of the cross-entropy over an event's edges, mean over the events that have edges.

    An edge is true if graph truth has it (events/truth.py). True edges of particles that are no targets count as
    `others` says; an event with no other edge contributes 0.
    """

    class Options(Section):
        """How edges count beside each other."""

        edges: float = Field(1.0, ge=0, description="weight of the term")
        balance: bool = Field(False, description="true and false edges of an event have the same weight in all")
        true_weight: float = Field(1.0, gt=0, description="weight of a true edge, of a false one 1; after balance")
        others: Literal["ignore", "true", "false"] = Field(
            "ignore", description="true edges of particles that are no targets: left out, or of one class"
        )

    counted = {"edges": with_edge}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The term for `edge_score` [M], logits of the batch's edges with `edge_truth` [M] and `track` [N]."""
        score_M = needed(outputs, "edge_score", "a model that scores edges")
        if not len(score_M):
            return {"edges": score_M.sum()}
        return {"edges": self.cross_entropy(score_M, batch.edge_truth, batch.edge_index[0], batch)}

    def cross_entropy(self, score_M: Tensor, truth_M: Tensor, hit_M: Tensor, batch: Batch) -> Tensor:
        """Weighted mean over each event's scores [M], summed over events.

        `truth_M`: which are in the truth; `hit_M`: a hit of each, which says the event, and the particle of a true one.
        """
        event_M = batch.batch[hit_M]
        true_M, weight_M = self.classes(truth_M, truth_M & (batch.track[hit_M] < 0), score_M.dtype)
        if self.options.balance:
            weight_M = balanced(weight_M, 2 * event_M + true_M.long())
        weight_M = torch.where(true_M, self.options.true_weight * weight_M, weight_M)
        loss_M = weight_M * F.binary_cross_entropy_with_logits(score_M, true_M.to(score_M.dtype), reduction="none")
        total_B, norm_B = (group_sum(values, event_M, batch.num_graphs) for values in (loss_M, weight_M))
        return (total_B / torch.where(norm_B > 0, norm_B, 1)).sum()

    def classes(self, truth_M: Tensor, other_M: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Which are to be scored high, bool [M], and weights 0 or 1 [M]; `other_M`: true, of particles not sought."""
        true_M = truth_M & ~other_M if self.options.others == "false" else truth_M
        counts_M = ~other_M if self.options.others == "ignore" else torch.ones_like(other_M)
        return true_M, counts_M.to(dtype)


def balanced(weight_M: Tensor, group_M: Tensor) -> Tensor:
    """Weights divided by their group's sum."""
    total = group_sum(weight_M, group_M, int(group_M.max()) + 1)[group_M]
    return weight_M / torch.where(total > 0, total, 1)


# ------------------------------------------------------------------------------------------------ triplets


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
