"""Builders of stages before the last: they turn outputs into edges (storage/edges.py), which the next stage reads.

No option of theirs is tuned.

Legend: N hits of the event, E embedding dimensions, M edges, t triplets of a chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.graphs.neighbours import radius_pairs
from hpctrack.graphs.triplets import triplet_chunks
from hpctrack.storage.edges import Edges
from hpctrack.tracking.builder import Builder, Outputs, TooManyPairs, check_pairs
from hpctrack.tracking.edge_clustering import sigmoid


class OfEdges(Builder):
    """Makes edges."""

    product = "edges"


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


class RadiusGraphBuilder(OfEdges):
    """An edge between any two hits that are near in a learned embedding, scored 1 - distance / radius."""

    class Options(Section):
        """How near."""

        radius: float = Field(0.2, gt=0, description="in the embedding, where the loss has a margin of 1")

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Edges:
        """Edges of one event from `embedding` [N, E] of its hits `hit_rows` [N], in the order of their ends."""
        x_NE = torch.from_numpy(outputs["embedding"])
        chunks, number = [], 0
        for pair in radius_pairs(x_NE, None, self.options.radius):
            chunks.append(torch.stack(pair))
            number += len(pair[0])
            try:
                check_pairs(number, len(x_NE), "builder.radius", self.options.radius)
            except TooManyPairs as error:
                raise TooManyPairs(f"event {event_id}: more than {error}") from error
        edge_2M = torch.cat(chunks, dim=1).sort(dim=0).values if chunks else torch.zeros(2, 0, dtype=torch.long)
        key = (edge_2M[0] * len(x_NE) + edge_2M[1]).sort().values
        i, j = key // max(1, len(x_NE)), key % max(1, len(x_NE))
        score = 1 - (x_NE[i] - x_NE[j]).norm(dim=1) / self.options.radius
        sender, receiver = hit_rows[torch.stack([i, j]).numpy()].astype(np.int32)
        return Edges(event_id, sender, receiver, score.clamp(min=0).numpy())


class RadiusEdgesBuilder(OfEdges):
    """The edges that go on in another one, or from it, that is near in an embedding: scored 1 - distance / radius."""

    class Options(Section):
        """How near."""

        radius: float = Field(0.5, gt=0, description="in the embedding, where the loss has a margin of 1")

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Edges:
        """Edges of one event from `edge_embedding` [M, E] and `edge_index` [2, M] of its hits `hit_rows` [N]."""
        if "edge_embedding" not in outputs:
            raise InputError("section 'builder': radius_edges needs a model that embeds edges (model.embed_edges)")
        x_ME, edge_2M = (torch.from_numpy(outputs[name]) for name in ("edge_embedding", "edge_index"))
        nearest_M = x_ME.new_full((len(x_ME),), torch.inf)
        for pair_2t in triplet_chunks(edge_2M, len(hit_rows)):
            distance_t = (x_ME[pair_2t[0]] - x_ME[pair_2t[1]]).norm(dim=1)
            nearest_M.scatter_reduce_(0, pair_2t.flatten(), distance_t.repeat(2), "amin")
        kept_M = nearest_M < self.options.radius
        sender, receiver = hit_rows[edge_2M[:, kept_M].numpy()].astype(np.int32)
        return Edges(event_id, sender, receiver, (1 - nearest_M[kept_M] / self.options.radius).numpy())
