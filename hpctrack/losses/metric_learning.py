"""Metric learning: hits that follow each other on a track meet in the embedding, others are kept apart.

The hinge loss of the Exa.TrkX pipeline (X. Ju et al., arXiv:2103.06995): positives are the true edges, negatives come
from a search in the embedding as it is, hard-negative mining.

Legend: N hits in the batch, E embedding dimensions, M edges, P pairs, k neighbours.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.division.divided import division_of, extended
from hpctrack.graphs.neighbours import nearest, nearest_to
from hpctrack.losses.classification import edges_per_event, over_ranks, own_edges
from hpctrack.losses.pairs import Points, hits_of_events
from hpctrack.losses.term import BaseLoss, labels, needed, parameter_groups, with_hit
from hpctrack.numerics import group_sum


def true_edges(batch: Batch) -> tuple[Tensor, Tensor]:
    """True edges of targets [2, P] that this rank counts, and their number in each event [B]."""
    if not int(edges_per_event(batch).sum()):
        return batch.track.new_zeros(2, 0), batch.ptr.new_zeros(batch.num_graphs)
    own = own_edges(batch)
    edge_2M = batch.edge_index[:, own]
    edge_2P = edge_2M[:, batch.edge_truth[own] & (batch.track[edge_2M[0]] >= 0)]
    return edge_2P, over_ranks(torch.bincount(batch.batch[edge_2P[0]], minlength=batch.num_graphs), batch)


def with_true_edge(batch: Batch) -> int:
    """Events that have a true edge of a target."""
    return int((true_edges(batch)[1] > 0).sum())


class MetricLoss(BaseLoss):
    """Terms on the embedding x, each the mean over the events that have it:

    - `positives`  |x_i - x_j|^2, mean over the batch's true edges on targets: data.graph {name: truth} gives them;
    - `negatives`  max(0, margin - |x_i - x_j|)^2 over pairs of different tracks within the margin, a sum per hit.

    Negatives are all pairs within the margin, or those among each hit's `mined` nearest neighbours. Random pairs, which
    the pipeline draws besides, are a sample of all pairs, of which only those within the margin have a slope: there is
    nothing left to draw from. Pairs of one track that do not follow each other are neither. Hits of no track are
    pushed from all others.
    """

    class Options(Section):
        """Weights and the search for negatives."""

        positives: float = Field(1.0, ge=0, description="weight of the term that pulls true pairs together")
        negatives: float = Field(1.0, ge=0, description="weight of the term that pushes false pairs apart")
        margin: float = Field(1.0, gt=0, description="distance beyond which false pairs are left alone")
        mined: int | None = Field(None, ge=1, description="nearest neighbours a hit is pushed from; null: all")

    divisible = True
    counted = {"positives": with_true_edge, "negatives": with_hit}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `outputs` embedding [N, E] on `batch` (track [N], edge_index and edge_truth [M])."""
        x_NE = needed(outputs, "embedding", "a model that embeds hits")
        terms = {"positives": self.pull, "negatives": self.push if self.options.mined is None else self.push_mined}
        return {name: terms[name](x_NE, batch) for name in self.weights}

    def pull(self, x_NE: Tensor, batch: Batch) -> Tensor:
        """Mean over each event's true edges, summed over events."""
        (i, j), number_B = true_edges(batch)
        event_P, division = batch.batch[i], division_of(batch)
        if division is not None and division.halo is not None:  # edges end at hits of other ranks
            x_NE = extended(x_NE, division.halo)
        return ((x_NE[i] - x_NE[j]).square().sum(1) / number_B[event_P]).sum()

    def push(self, x_NE: Tensor, batch: Batch) -> Tensor:
        """All ordered pairs within the margin, per hit of their event, summed over events."""
        total = x_NE.new_zeros(())
        for event in hits_of_events(batch):
            points = Points(event.every(x_NE), parameter_groups(event.track))
            total = total + event.within(points, self.options.margin, squared=True)[0] / max(1, len(points.x))
        return total

    def push_mined(self, x_NE: Tensor, batch: Batch) -> Tensor:
        """Pairs of hits and their nearest neighbours, per hit of their event, summed over events."""
        division, k = division_of(batch), self.options.mined + 1
        batch = labels(batch)
        sizes = batch.ptr.diff()
        if division is None:
            row_NK, exists_NK = nearest(x_NE.detach(), sizes.tolist(), k)
        else:
            x_NE = division.gather(x_NE)
            row_NK, exists_NK = nearest_to(division.rows_n, x_NE.detach(), k)
        i, column = exists_NK.nonzero(as_tuple=True)
        j, i = row_NK[i, column], i if division is None else division.rows_n[i]
        group_N = parameter_groups(batch.track)
        other = (group_N[i] != group_N[j]) & (i != j)
        i, j = i[other], j[other]
        distance_P = ((x_NE[i] - x_NE[j]).square().sum(1) + 1e-12).sqrt()
        hinge_P = (self.options.margin - distance_P).clamp(min=0).square()
        return (group_sum(hinge_P, batch.batch[i], batch.num_graphs) / sizes.clamp(min=1)).sum()
