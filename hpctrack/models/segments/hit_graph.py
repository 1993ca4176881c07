"""Network `hit_graph`: the interaction network of T. Kortus et al. on the graph of hits, which sees one hop.

One interaction with width 64 has the 39,839 weights of the paper. Inputs are standardised, and its output is a logit.

Legend: N hits, M edges, m of a chunk, F features of a hit, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.models.contracts import Model
from hpctrack.models.graph_network import edges_of, expected_edges
from hpctrack.models.memory_modes import MemoryModes, recompute
from hpctrack.models.segments.blocks import FoldedLinear, Places, Rest, Standardised
from hpctrack.numerics import at_least_fp32, without_autocast

OF_EDGE = 3  # length, azimuth and polar angle


class HitGraphNetwork(MemoryModes, Model):
    """Scores edges by their hits, and by what the hits have of their edges."""

    memory_modes = ("plain", "recompute")

    class Options(Section):
        """Size, and the fixed numbers that inputs are standardised by."""

        width: int = Field(64, ge=1, description="of messages and hidden layers")
        mean: list[float] = Field([], description="of each feature of a hit, over training events; []: 0")
        std: list[float] = Field([], description="standard deviation of each; []: 1")
        edge_mean: list[float] = Field([], description="of an edge's length (units of z), azimuth and polar angle")
        edge_std: list[float] = Field([], description="standard deviation of each; []: 1")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        n, h = len(features), options.width
        self.n_features, self.options = n, options
        self.places = Places(features, "the model 'hit_graph'")
        self.standardised = Standardised(options.mean, options.std, n)
        self.of_edge = Standardised(options.edge_mean, options.edge_std, OF_EDGE, "model.edge")
        self.relation, self.message = FoldedLinear([n, n, OF_EDGE], h), Rest(h, h)
        self.object, self.next = FoldedLinear([n, h], h), Rest(h, h, normed=True)
        self.readout, self.score = FoldedLinear([h, h, h], h), Rest(h, 1)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`edge_score` [M], logits of `batch.edge_index`; in fp32 at least."""
        edge_2M = edges_of(batch)
        x_NF = self.standardised(batch.x)
        edge_M3 = self.of_edge(polar(self.places(batch.x), edge_2M))
        work = self.scores if self.memory == "plain" else lambda *args: recompute(self.scores, *args)
        with without_autocast(x_NF):  # largest messages, which half precision would exchange
            return {"edge_score": at_least_fp32(work(x_NF, edge_M3, edge_2M)).squeeze(1)}

    def scores(self, x_NF: Tensor, edge_M3: Tensor, edge_2M: Tensor) -> Tensor:
        """[M, 1]; a message goes along its edge and back."""
        source_M, target_M = edge_2M
        sent_NH, had_NH = self.relation.part(0, x_NF), self.relation.part(1, x_NF)
        message_MH = self.message(sent_NH[source_M] + had_NH[target_M] + self.relation.part(2, edge_M3))
        largest_NH = torch.zeros(len(x_NF), message_MH.shape[1], dtype=message_MH.dtype, device=x_NF.device)
        into = torch.cat([source_M, target_M])[:, None].expand(-1, message_MH.shape[1])
        largest_NH = largest_NH.scatter_reduce(0, into, message_MH.repeat(2, 1), "amax", include_self=False)
        h_NH = self.next(self.object.part(0, x_NF) + self.object.part(1, largest_NH))
        first_NH, second_NH = self.readout.part(0, h_NH), self.readout.part(1, h_NH)
        return self.score(first_NH[source_M] + second_NH[target_M] + self.readout.part(2, message_MH))

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass by event size."""
        edges = expected_edges(hits) if edges is None else edges
        h = self.options.width
        return edges * 5 * h * h + hits * 7 * h * h


def polar(place_N3: Tensor, edge_2M: Tensor) -> Tensor:
    """[M, 3] length, azimuth and angle to the z axis of edges between hits at `place_N3`."""
    along_M3 = place_N3[edge_2M[1]] - place_N3[edge_2M[0]]
    across_M = torch.hypot(along_M3[:, 0], along_M3[:, 1])
    azimuth_M = torch.atan2(along_M3[:, 1], along_M3[:, 0])
    return torch.stack([along_M3.norm(dim=1), azimuth_M, torch.atan2(across_M, along_M3[:, 2])], dim=1)
