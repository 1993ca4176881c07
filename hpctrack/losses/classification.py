"""Binary cross-entropy of scores: of hits (hit filters), of edges (filters, edge classifiers) and of triplets.

Legend: N hits in the batch, M edges, T triplets, B events; S of any of these.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.division.divided import Division, division_of
from hpctrack.errors import InputError
from hpctrack.graphs.triplets import per_event, triplets
from hpctrack.losses.pairs import SpaceWeight, neighbours
from hpctrack.losses.term import BaseLoss, Tracks, needed, with_hit, with_track
from hpctrack.numerics import group_sum


class Classes(Section):
    """How the two classes count beside each other."""

    balance: bool = Field(False, description="both classes of an event, true and false, have the same weight in all")
    true_weight: float = Field(1.0, gt=0, description="weight of one of the class true, of the others 1; after balance")


def weighted_cross_entropy(
    score_S: Tensor, true_S: Tensor, weight_S: Tensor, event_S: Tensor, batch: Batch, *, classes: Classes
) -> Tensor:
    """Weighted mean of the cross-entropy over each event's scores [S], logits, summed over events.

    `true_S`: which are to be scored high, bool; `weight_S`: what each counts within its class; `event_S`: their events
    in the batch. Of a divided event, a rank's own scores are given, and it is their part of the event's mean.
    """
    division, n_events = division_of(batch), batch.num_graphs
    if classes.balance:
        weight_S = balanced(weight_S, 2 * event_S + true_S.long(), n_events, division)
    weight_S = torch.where(true_S, classes.true_weight * weight_S, weight_S)
    loss_S = weight_S * F.binary_cross_entropy_with_logits(score_S, true_S.to(score_S.dtype), reduction="none")
    total_B, norm_B = (group_sum(values, event_S, n_events) for values in (loss_S, weight_S))
    norm_B = norm_B if division is None else division.others.all_sum(norm_B)
    return (total_B / torch.where(norm_B > 0, norm_B, 1)).sum()


def balanced(weight_S: Tensor, group_S: Tensor, n_events: int, division: Division | None) -> Tensor:
    """Weights divided by the sum of their group, which is a class of an event, on all ranks that hold it."""
    total_G = group_sum(weight_S, group_S, 2 * n_events)
    total_G = total_G if division is None else division.others.all_sum(total_G)
    total = total_G[group_S]
    return weight_S / torch.where(total > 0, total, 1)


# ------------------------------------------------------------------------------------------------ hits


class HitLoss(BaseLoss):
    """Term `hits`: cross-entropy of whether a hit is a target's, weighted mean over an event's hits, mean over events.

    A hit of a target counts as much as its target does (`data.emphasis`). Events without a hit have no such term. The
    term `neighbours` trains the spaces in which a backbone looks for neighbours (losses/pairs.py).
    """

    class Options(Classes):
        """How hits count beside each other."""

        hits: float = Field(1.0, ge=0, description="weight of the term")
        neighbours: SpaceWeight = 0.0

    divisible = True
    counted = {"hits": with_hit, "neighbours": with_track}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `hit_score` [N], logits, on `batch` (track [N], ptr [B + 1]).

        `neighbours` takes the outputs `space_0`, `space_1`, … [N, D].
        """
        sums = {"hits": hits(needed(outputs, "hit_score", "the model 'hit_filter'"), batch, self.options)}
        return sums | ({"neighbours": neighbours(outputs, batch)} if "neighbours" in self.weights else {})


def hits(score_N: Tensor, batch: Batch, classes: Classes) -> Tensor:
    """The term `hits` of logits [N], summed over events."""
    if not len(score_N) and division_of(batch) is None:
        return score_N.sum()
    tracks, weight_N = Tracks(batch), torch.ones_like(score_N)
    if tracks.weight is not None:
        weight_N[tracks.hits] = tracks.weight[tracks.track].to(score_N.dtype)
    return weighted_cross_entropy(score_N, batch.track >= 0, weight_N, batch.batch, batch, classes=classes)


# ------------------------------------------------------------------------------------------------ edges


def edges_per_event(batch: Batch) -> Tensor:
    """Number of edges of each event, [B]; InputError if hits have no graph."""
    if batch.edge_index is None:
        if batch.num_nodes:
            raise InputError("section 'loss': this loss is for edges, and the events have none; give data.graph")
        return batch.ptr.new_zeros(batch.num_graphs)
    number_B = torch.bincount(batch.batch[batch.edge_index[0, own_edges(batch)]], minlength=batch.num_graphs)
    return over_ranks(number_B, batch)


def own_edges(batch: Batch) -> slice | Tensor:
    """The edges that this rank counts: all, or of a divided event those from its own hits, bool [M].

    So each counts on one rank, though two have it.
    """
    return slice(None) if division_of(batch) is None else batch.edge_index[0] < batch.num_nodes


def over_ranks(number_B: Tensor, batch: Batch) -> Tensor:
    """A number for each of the batch's events; of a divided one the sum of its ranks' numbers."""
    division = division_of(batch)
    return number_B if division is None else division.others.all_sum(number_B)


def with_edge(batch: Batch) -> int:
    """Events that have an edge."""
    return int((edges_per_event(batch) > 0).sum())


class EdgeLoss(BaseLoss):
    """Term `edges`: weighted mean of the cross-entropy over an event's edges, mean over the events that have edges.

    An edge is true if graph truth has it (events/truth.py). True edges of particles that are no targets count as
    `others` says; an event with no other edge contributes 0.
    """

    class Options(Classes):
        """How edges count beside each other."""

        edges: float = Field(1.0, ge=0, description="weight of the term")
        others: Literal["ignore", "true", "false"] = Field(
            "ignore", description="true edges of particles that are no targets: left out, or of one class"
        )

    divisible = True
    counted = {"edges": with_edge}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The term for `edge_score` [M], logits of the batch's edges with `edge_truth` [M] and `track` [N]."""
        score_M, own = needed(outputs, "edge_score", "a model that scores edges"), own_edges(batch)
        if not len(score_M) and division_of(batch) is None:
            return {"edges": score_M.sum()}
        return {"edges": self.cross_entropy(score_M[own], batch.edge_truth[own], batch.edge_index[0, own], batch)}

    def cross_entropy(self, score_M: Tensor, truth_M: Tensor, hit_M: Tensor, batch: Batch) -> Tensor:
        """Weighted mean over each event's scores [M], summed over events.

        `truth_M`: which are in the truth; `hit_M`: a hit of each, which says the event, and the particle of a true one.
        """
        true_M, weight_M = self.classes(truth_M, truth_M & (batch.track[hit_M] < 0), score_M.dtype)
        event_M = batch.batch[hit_M]
        return weighted_cross_entropy(score_M, true_M, weight_M, event_M, batch, classes=self.options)

    def classes(self, truth_M: Tensor, other_M: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Which are to be scored high, bool [M], and weights 0 or 1 [M]; `other_M`: true, of particles not sought."""
        true_M = truth_M & ~other_M if self.options.others == "false" else truth_M
        counts_M = ~other_M if self.options.others == "ignore" else torch.ones_like(other_M)
        return true_M, counts_M.to(dtype)


# ------------------------------------------------------------------------------------------------ triplets


def with_triplet(batch: Batch) -> int:
    """Events that have a triplet."""
    return int((per_event(batch) > 0).sum()) if int(edges_per_event(batch).sum()) else 0


class TripletLoss(EdgeLoss):
    """Term `triplets`: as the term `edges` of EdgeLoss, of triplets; one is true if both its edges are.

    And, with a weight, the term `edges` itself, on the scores that triplets give to edges.
    """

    divisible = False

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
