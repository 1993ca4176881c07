"""Metric learning and classification of edges together: for graph networks that embed hits or edges.

After the public code of Exa.TrkX's GNNNodeEmbedding and GNNEdgeEmbedding, which adds the hinge loss of an embedding to
the cross-entropy of the edges' scores. An embedding of edges is trained on triplets: pairs of edges, the second of
which goes on where the first ends, meet if both are true, and are kept apart if not.

Legend: M edges in the batch, E embedding dimensions, T triplets, t triplets of a chunk, B events.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.graphs.triplets import CHUNK, per_event, triplet_chunks, true_triplets
from hpctrack.losses.classification import EdgeLoss, edges_per_event
from hpctrack.losses.metric_learning import MetricLoss
from hpctrack.losses.term import BaseLoss, needed
from hpctrack.models.memory_modes import recompute


def true_pairs(batch: Batch, targets: bool) -> tuple[Tensor, Tensor]:
    """Pairs [2, T] of true edges that follow each other, of targets or of all, and their number in each event [B]."""
    if not int(edges_per_event(batch).sum()):
        return batch.track.new_zeros(2, 0), batch.ptr.new_zeros(batch.num_graphs)
    of_target_M = batch.track[batch.edge_index[0]] >= 0
    pair_2T = true_triplets(batch, of_target_M if targets else torch.ones_like(of_target_M))
    return pair_2T, torch.bincount(batch.batch[batch.edge_index[0, pair_2T[0]]], minlength=batch.num_graphs)


def false_pairs(batch: Batch) -> Tensor:
    """Number of triplets of which not both edges are true, in each event [B]."""
    _, true_B = true_pairs(batch, targets=False)
    return per_event(batch) - true_B if int(edges_per_event(batch).sum()) else true_B


def with_true_pair(batch: Batch) -> int:
    """Events that have two true edges of a target that follow each other."""
    return int((true_pairs(batch, targets=True)[1] > 0).sum())


def with_false_pair(batch: Batch) -> int:
    """Events that have a triplet of which not both edges are true."""
    return int((false_pairs(batch) > 0).sum())


class EdgeMetricLoss(BaseLoss):
    """Terms on the embedding x of edges, each the mean over the events that have it:

    - `positives`  |x_a - x_b|^2, mean over the event's triplets of true edges of targets;
    - `negatives`  max(0, margin - |x_a - x_b|)^2, mean over its triplets of which not both edges are true.
    """

    class Options(Section):
        """Weights and the margin."""

        positives: float = Field(1.0, ge=0, description="weight of the term that pulls true pairs together")
        negatives: float = Field(1.0, ge=0, description="weight of the term that pushes false pairs apart")
        margin: float = Field(1.0, gt=0, description="distance beyond which false pairs are left alone")

    counted = {"positives": with_true_pair, "negatives": with_false_pair}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `edge_embedding` [M, E] on `batch` (track [N], edge_index and edge_truth [M])."""
        x_ME = needed(outputs, "edge_embedding", "model.embed_edges")
        terms = {"positives": self.pull, "negatives": self.push}
        return {name: terms[name](x_ME, batch) for name in self.weights}

    def pull(self, x_ME: Tensor, batch: Batch) -> Tensor:
        """Mean over each event's true triplets, summed over events."""
        (a, b), number_B = true_pairs(batch, targets=True)
        event_T = batch.batch[batch.edge_index[0, a]] if len(a) else a
        return ((x_ME[a] - x_ME[b]).square().sum(1) / number_B[event_T]).sum()

    def push(self, x_ME: Tensor, batch: Batch) -> Tensor:
        """Mean over each event's false triplets, summed over events, a chunk at a time."""
        total, number_B = x_ME.sum() * 0, false_pairs(batch)
        if not int(number_B.sum()):
            return total
        for pair_2t in triplet_chunks(batch.edge_index, batch.num_nodes, CHUNK):
            a, b = pair_2t[:, ~batch.edge_truth[pair_2t].all(dim=0)]
            event_t = batch.batch[batch.edge_index[0, a]]
            total = total + recompute(self.hinge, x_ME, a, b, number_B[event_t]).sum()
        return total

    def hinge(self, x_ME: Tensor, a: Tensor, b: Tensor, number_t: Tensor) -> Tensor:
        """Hinge of each pair, divided by `number_t`; [t]."""
        distance_t = ((x_ME[a] - x_ME[b]).square().sum(1) + 1e-12).sqrt()
        return (self.options.margin - distance_t).clamp(min=0).square() / number_t


METRICS = {"hits": MetricLoss, "edges": EdgeMetricLoss}


class HybridLoss(BaseLoss):
    """Term `edges` of EdgeLoss, `positives` and `negatives` of an embedding `of` hits (MetricLoss) or of edges.

    In a graph that is given, positives of hits are the true edges that it has.
    """

    class Options(EdgeLoss.Options, MetricLoss.Options):
        """Of all its parts; a weight of 0 leaves a term out."""

        of: Literal["hits", "edges"] = Field("edges", description="what the model embeds")

        @model_validator(mode="after")
        def _mined_are_hits(self) -> HybridLoss.Options:
            if self.of == "edges" and self.mined is not None:
                raise ValueError("mined is for an embedding of hits; of edges all triplets are taken")
            return self

    def __init__(self, options: Options) -> None:
        parts = [EdgeLoss, METRICS[options.of]]
        self.counted = {name: count for part in parts for name, count in part.counted.items()}
        super().__init__(options)
        self.parts = [part(options) for part in parts]

    @property
    def divisible(self) -> bool:  # type: ignore[override]  # by its options
        """Whether it can take a rank's part of an event: with an embedding of hits; edges meet beyond their ends."""
        return all(part.divisible for part in self.parts)

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms of the parts that have a weight."""
        return {name: term for part in self.parts if part.weights for name, term in part.terms(outputs, batch).items()}
