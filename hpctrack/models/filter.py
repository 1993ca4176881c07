"""Filter: a perceptron on the concatenated features of an edge's two hits, without message passing (Exa.TrkX).

With `pairs` it also sees what the two hits say together about a track through both (models/hit_geometry.py). With
`embed_edges` it embeds pairs of hits, as the PairEmbedding among the hybrids of Exa.TrkX. It is a graph network of
no iteration: the first layer's shares are computed on the hits and added on the edges, so that
the concatenation is never made, and the memory modes work through edges in chunks. Without gradients edges are always
scored chunk by chunk.

Legend: N hits, M edges, F features, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpctrack.models.graph_network import GraphNetwork, expected_edges
from hpctrack.models.layers import Layers
from hpctrack.models.sweeps import leaf


class FilterNetwork(GraphNetwork):
    """Scores edges from both ends' features."""

    class Options(GraphNetwork.Options):
        """Sizes."""

        width: int = Field(512, ge=1, description="of hidden layers")
        layers: int = Field(4, ge=2, description="linear layers")
        pairs: bool = Field(False, description="see slopes, intercepts and distances of the pair, too")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, 0, options.chunk)
        self.iterations = Layers([])
        self.read_from(options, len(features), self.see_pairs(features, options.pairs))

    def start(self, x_NF: Tensor) -> Tensor:
        """The features; sweeps give weights on hits a gradient only where hits have one."""
        return leaf(x_NF) if torch.is_grad_enabled() else x_NF

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass by event size; edges go with hits^1.9 if they are not known."""
        edges = expected_edges(hits) if edges is None else edges
        return sum(p.numel() for p in self.parameters()) * (hits + edges)
