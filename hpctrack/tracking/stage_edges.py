"""Builders of stages before the last: they turn outputs into edges (storage/edges.py), which the next stage reads.

No option of theirs is tuned. The device forms leave the edges where they are, for a stage behind them.

Legend: N hits of the event, E embedding dimensions, M edges, t triplets of a chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.graphs.neighbours import radius_pairs
from hpctrack.graphs.passed import EdgeTensors
from hpctrack.graphs.triplets import triplet_chunks
from hpctrack.storage.edges import Edges
from hpctrack.tracking import edge_clustering_on_device as on_device
from hpctrack.tracking.builder import Builder, Outputs, TooManyPairs, check_pairs
from hpctrack.tracking.edge_clustering import sigmoid
from hpctrack.tracking.on_device import Tensors


class OfEdges(Builder):
    """Makes edges, in torch: on the host by the same form as on a device."""

    product = "edges"

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Edges:
        """Edges of one event from a model's outputs on its hits `hit_rows` [N]."""
        tensors = {name: torch.from_numpy(values) for name, values in outputs.items()}
        return self.build_on_device(tensors, hit_rows, n_hits, event_id).stored()

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> EdgeTensors:
        """The same of tensors, where these are."""
        raise NotImplementedError


class EdgesBuilder(OfEdges):
    """The edges that a filter or a classifier scores highly enough, with their probability as score."""

    class Options(Section):
        """The cut."""

        cut: float = Field(0.01, ge=0, lt=1, description="edges must be as probable")

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Edges:
        """Edges of one event from `edge_score` [M] and `edge_index` [2, M] of its hits `hit_rows` [N]."""
        score = sigmoid(outputs["edge_score"])
        kept = score >= self.options.cut
        sender, receiver = hit_rows[outputs["edge_index"][:, kept]].astype(np.int32)
        return Edges(event_id, sender, receiver, score[kept].astype(np.float32))

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> EdgeTensors:
        """As `build`, of tensors, where these are."""
        score = on_device.sigmoid(outputs["edge_score"])
        kept = score >= self.options.cut
        return edge_tensors(event_id, outputs["edge_index"][:, kept], hit_rows, score[kept])


class RadiusGraphBuilder(OfEdges):
    """An edge between any two hits that are near in a learned embedding, scored 1 - distance / radius."""

    class Options(Section):
        """How near."""

        radius: float = Field(0.2, gt=0, description="in the embedding, where the loss has a margin of 1")

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> EdgeTensors:
        """Edges of one event from `embedding` [N, E] of its hits `hit_rows` [N], in the order of their ends."""
        x_NE = outputs["embedding"]
        n, number = len(x_NE), 0
        keys = [x_NE.new_zeros(0, dtype=torch.long)]
        for i, j in radius_pairs(x_NE, None, self.options.radius):
            keys.append(torch.minimum(i, j) * n + torch.maximum(i, j))
            number += len(i)
            try:
                check_pairs(number, n, "builder.radius", self.options.radius)
            except TooManyPairs as error:
                raise TooManyPairs(f"event {event_id}: more than {error}") from error
        key = torch.cat(keys).sort().values
        edge_2M = torch.stack([key // max(1, n), key % max(1, n)])
        distance_M = (x_NE[edge_2M[0]] - x_NE[edge_2M[1]]).norm(dim=1)
        return edge_tensors(event_id, edge_2M, hit_rows, (1 - distance_M / self.options.radius).clamp(min=0))


class RadiusEdgesBuilder(OfEdges):
    """The edges that go on in another one, or from it, that is near in an embedding: scored 1 - distance / radius."""

    class Options(Section):
        """How near."""

        radius: float = Field(0.5, gt=0, description="in the embedding, where the loss has a margin of 1")

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> EdgeTensors:
        """Edges of one event from `edge_embedding` [M, E] and `edge_index` [2, M] of its hits `hit_rows` [N]."""
        if "edge_embedding" not in outputs:
            raise InputError("section 'builder': radius_edges needs a model that embeds edges (model.embed_edges)")
        x_ME, edge_2M = outputs["edge_embedding"], outputs["edge_index"]
        nearest_M = x_ME.new_full((len(x_ME),), torch.inf)
        for pair_2t in triplet_chunks(edge_2M, len(hit_rows)):
            distance_t = (x_ME[pair_2t[0]] - x_ME[pair_2t[1]]).norm(dim=1)
            nearest_M.scatter_reduce_(0, pair_2t.flatten(), distance_t.repeat(2), "amin")
        kept_M = nearest_M < self.options.radius
        return edge_tensors(event_id, edge_2M[:, kept_M], hit_rows, 1 - nearest_M[kept_M] / self.options.radius)


def edge_tensors(event_id: int, edge_2M: Tensor, hit_rows: np.ndarray, score_M: Tensor) -> EdgeTensors:
    """Edges among hits of an event, whose rows are `hit_rows`; scores as they would be stored, fp32."""
    sender, receiver = torch.from_numpy(hit_rows).to(edge_2M.device)[edge_2M]
    return EdgeTensors(event_id, sender, receiver, score_M.float())
