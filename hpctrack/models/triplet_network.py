"""Triplet network: a graph network on the line graph, whose nodes are edges and whose edges are triplets of hits.

The optional last stage of Exa.TrkX (N. Choma et al., arXiv:2007.00149): doublets that an earlier stage found likely
become nodes, and two of them that share their middle hit an edge, which is classified. An edge's score is that of its
triplets, so that builders of tracks take it as any other.

Legend: N hits, M edges, T triplets, G what a segment says.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch, Data

from hpctrack.config import Named, Section, free_field, lookup, parse
from hpctrack.errors import InputError
from hpctrack.graphs.triplets import continuations, triplets
from hpctrack.models.attention import AttentionNetwork
from hpctrack.models.contracts import Model
from hpctrack.models.convolution import ConvolutionNetwork
from hpctrack.models.graph_network import edges_of, expected_edges
from hpctrack.models.hit_geometry import NEEDED, PAIR_FEATURES, Geometry, pair_features
from hpctrack.models.interaction import InteractionNetwork
from hpctrack.numerics import at_least_fp32

NETWORKS: dict[str, type[Model]] = {
    "attention": AttentionNetwork,
    "convolution": ConvolutionNetwork,
    "interaction": InteractionNetwork,
}
SEGMENT = (*NEEDED, *(f"pair_{k}" for k in range(PAIR_FEATURES)))  # of an edge: its middle, and what its hits say
CHUNK = 1 << 16  # edges at a time on the way to their features
ALONE = -16.0  # logit of an edge without a triplet, which is on no track of three hits; the metrics tell no lower one


class TripletNetwork(Model):
    """Scores triplets by a graph network on edges, and edges by their triplets."""

    class Options(Section):
        """The network, and how scores come back to edges."""

        network: dict[str, Any] = Field(
            {"name": "attention"},
            description="a model on edges, here of triplets: its name and its own options (model)",
        )
        pool: Literal["best", "mean"] = Field("best", description="of the logits of the triplets that have the edge")
        triplets_max: int = free_field(
            1 << 26, ge=1, description="a batch with more is refused; 16 bytes each, and states"
        )

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        named = parse(Named, options.network, "model", "model.network")
        kind = lookup(NETWORKS, named.name, "model.network")
        self.n_features, self.options = len(features), options
        self.geometry = Geometry(features, "the triplet network")
        self.network = kind(SEGMENT, parse(kind.Options, named.options, "model", "model.network"))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`triplet_score` [T], logits in the order of graphs/triplets.py, and `edge_score` [M] of `batch.edge_index`.

        What the network puts out on edges is on triplets here, and what it puts out on hits is on edges.
        """
        edge_2M = edges_of(batch)
        number = int(continuations(edge_2M, batch.num_nodes).sum())
        if number > self.options.triplets_max:
            raise InputError(
                f"key 'model.triplets_max': {number} triplets of {edge_2M.shape[1]} edges are more than "
                f"{self.options.triplets_max}; raise data.graph.score_min, or the cut of the stage before"
            )
        triplet_2T = triplets(edge_2M, batch.num_nodes)
        segment_MG = self.segments(batch.x, edge_2M).to(batch.x.dtype)
        found = self.network(Data(x=segment_MG, edge_index=triplet_2T, num_nodes=len(segment_MG)))
        outputs = {name_on_graph(name): value for name, value in found.items()}
        return outputs | {"edge_score": self.of_edges(outputs["triplet_score"], triplet_2T, len(segment_MG))}

    def segments(self, x_NF: Tensor, edge_2M: Tensor) -> Tensor:
        """What is known of each edge, [M, G]: the middle of its hits (r, cos phi, sin phi, z), and pair features."""
        place_N4 = self.geometry(x_NF)
        return torch.cat([segment(*place_N4[ends]) for ends in edge_2M.split(CHUNK, dim=1)])

    def of_edges(self, score_T: Tensor, triplet_2T: Tensor, n_edges: int) -> Tensor:
        """Score of each edge [M]: the best, or the mean, of the triplets on either side of it."""
        score_T = at_least_fp32(score_T)
        best = self.options.pool == "best"
        alone_M = score_T.new_full((n_edges,), ALONE)
        edge, score = triplet_2T.flatten(), score_T.repeat(2)
        return alone_M.scatter_reduce(0, edge, score, "amax" if best else "mean", include_self=best)

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """Those of the network."""
        return self.network.memory_modes

    def set_memory(self, mode: str) -> None:
        """Memory mode of the following forward passes."""
        self.network.set_memory(mode)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass by event size, with as many triplets as edges that meet evenly make."""
        edges = expected_edges(hits) if edges is None else edges
        return self.network.relative_cost(edges, edges**2 / np.maximum(hits, 1))


def segment(a_M4: Tensor, b_M4: Tensor) -> Tensor:
    """[M, G] of edges between hits at `a` and `b`, coordinates as of Geometry."""
    x, y = ((a_M4[:, 0] * f(a_M4[:, 1]) + b_M4[:, 0] * f(b_M4[:, 1])) / 2 for f in (torch.cos, torch.sin))
    r = torch.hypot(x, y)
    over_r = 1 / r.clamp(min=1e-6)
    middle = torch.stack([r, x * over_r, y * over_r, (a_M4[:, 2] + b_M4[:, 2]) / 2], dim=1)
    return torch.cat([middle, pair_features(a_M4, b_M4)], dim=1)


def name_on_graph(name: str) -> str:
    """The name on the graph of an output on the line graph: edges there are triplets here, hits there are edges."""
    return name.replace("edge_", "triplet_", 1) if name.startswith("edge_") else f"edge_{name}"
