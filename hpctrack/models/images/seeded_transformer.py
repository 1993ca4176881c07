"""A transformer on the hits that a seed may go on with, in place of an image: attention among the hits of each seed.

The talk's models (models/images/planes.py) see 1,024 pixels a plane, nearly all of them off; this one sees the hits.
Each knows its plane, its place, and where it is as seen from the seed: how far a straight track from the seed to it
goes across all planes, as waves of several lengths. Hits of one straight track have the same waves, so attention (A.
Vaswani et al., arXiv 1706.03762) can compare directions. Scores are a softmax over the hits of each plane.

Legend: N hits, M edges from seeds to hits, K of them whose hit is in a plane, L planes, A axes of a plane, F inputs,
H width, S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.events.images import places
from hpctrack.models.graph_network import edges_of
from hpctrack.models.images.planes import AZIMUTH, PlanesModel
from hpctrack.models.images.sequences import NOWHERE
from hpctrack.models.memory_modes import run_layers
from hpctrack.models.perceptron import Exact, LayerNorm, two_layers, width_splits_into_heads
from hpctrack.models.transformer import Block
from hpctrack.numerics import best_other, group_log_softmax


class SeededTransformer(PlanesModel):
    """Outputs as those of models on images; a pixel without a hit has the probability 0."""

    memory_modes = ("plain", "recompute", "nested", "chunks")

    class Options(PlanesModel.Options):
        """The planes, and the network."""

        width: int = Field(64, ge=1, description="of a hit's state")
        layers: int = Field(4, ge=1, description="of attention")
        heads: int = Field(4, ge=1, description="attention heads; width is a multiple of them")
        expansion: int = Field(2, ge=1, description="hidden width of the feed-forward part, in widths")
        waves: int = Field(
            6, ge=1, description="lengths of waves, each half of the one before; the first: four widths of a plane"
        )

        _width_splits_into_heads = model_validator(mode="after")(width_splits_into_heads)

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        self.sizes = options
        axes = len(options.axes)
        inputs = options.planes + axes * (3 + 2 * options.waves)
        self.encode = Exact(*two_layers(inputs, options.width, options.width))
        self.blocks = nn.ModuleList(
            Block(options.width, options.heads, options.expansion) for _ in range(options.layers)
        )
        self.read = Exact(LayerNorm(options.width), nn.Linear(options.width, 1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`edge_score`, `edge_best`, `edge_plane` [M]: see PlanesModel."""
        edge_2M, where_NA = edges_of(batch), self.coordinates(batch.x)
        pixel_NA, inside_N = places(where_NA, self.shape)
        edge_K = inside_N[edge_2M[1]].nonzero().squeeze(1)
        edge_K = edge_K[edge_2M[0, edge_K].argsort(stable=True)]  # seed by seed
        seed_K, hit_K = edge_2M[:, edge_K]
        _, number_K, size_S = torch.unique_consecutive(seed_K, return_inverse=True, return_counts=True)
        plane_K = pixel_NA[hit_K, 0]
        h_KH = self.encode(self.inputs(where_NA[seed_K], where_NA[hit_K], plane_K))
        h_KH = run_layers(list(self.blocks), h_KH, self.memory, size_S.tolist(), self.memory == "chunks")
        group_K, n_groups = number_K * self.options.planes + plane_K, len(size_S) * self.options.planes
        score_K = group_log_softmax(self.read(h_KH).squeeze(1), group_K, n_groups)
        best_K = best_other(score_K, group_K, n_groups, NOWHERE)
        even_M = score_K.new_full((edge_2M.shape[1],), -math.log(self.n_pixels))
        return {
            "edge_score": even_M.index_put((edge_K,), score_K),
            "edge_best": torch.zeros_like(even_M).index_put((edge_K,), best_K),
            "edge_plane": torch.full_like(even_M, -1).index_put((edge_K,), plane_K.to(even_M.dtype)),
        }

    def inputs(self, seed_KA: Tensor, hit_KA: Tensor, plane_K: Tensor) -> Tensor:
        """What a hit is told of itself and of its seed, [K, F]; lengths in widths of a plane."""
        planes, width = self.options.planes, self.options.pixels
        apart_KA = hit_KA[:, 1:] - seed_KA[:, 1:]
        turns = torch.tensor([name == AZIMUTH for name in self.options.axes], device=seed_KA.device)
        apart_KA = torch.where(turns, (apart_KA + width / 2).remainder(width) - width / 2, apart_KA) / width
        behind_K1 = hit_KA[:, :1].floor() - seed_KA[:, :1].floor()
        slope_KA = apart_KA / torch.where(behind_K1 == 0, 1.0, behind_K1) * (planes - 1)
        waves = math.pi / 2 * 2.0 ** torch.arange(self.sizes.waves, device=seed_KA.device)
        phase_KW = (slope_KA.unsqueeze(2) * waves).flatten(1).to(hit_KA.dtype)
        plane_KL = F.one_hot(plane_K, planes).to(hit_KA.dtype)
        return torch.cat([plane_KL, hit_KA[:, 1:] / width, apart_KA, slope_KA, phase_KW.sin(), phase_KW.cos()], dim=1)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Multiplications of a forward pass: linear layers go with the edges, attention with these times the hits.

        Without numbers of edges an event has one seed.
        """
        o, edges = self.sizes, hits if edges is None else edges
        return 1.0 * o.layers * o.width * edges * ((4 + 2 * o.expansion) * o.width + 2.0 * hits)
