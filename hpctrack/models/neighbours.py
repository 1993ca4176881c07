"""The default backbone: attention on nearest neighbours in a learned space, linear in the hits of an event.

Legend: N hits in the batch, H width, K neighbours, P pair features, D dimensions of a neighbour space, A heads.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hpctrack.config import Section
from hpctrack.graphs.knn import nearest
from hpctrack.models.geometry import PAIR_FEATURES, Geometry, pair_features
from hpctrack.models.memory import MemoryModes, again, run_layers

CHUNK_HITS = 16384  # large: the backward pass of each chunk adds to a gradient [N, H]


class NeighbourBackbone(MemoryModes, nn.Module):
    """Stages of: embed hits in a small space, find each hit's nearest neighbours there, exchange messages with them.

    The search sees the embedding without its gradient; the loss trains the spaces (outputs `space_0`, ...) so that hits
    of a track come to lie together. Messages attend over the K neighbours with features of the pair (slope,
    extrapolated z0, ...), so one pass costs O(N K) in time and memory.
    """

    class Options(Section):
        """Sizes."""

        width: int = Field(64, ge=1)
        stages: int = Field(2, ge=1, description="neighbour searches, each in a space of its own")
        steps: int = Field(3, ge=1, description="message steps after each search")
        neighbours: int = Field(16, ge=1, description="of each hit, itself included")
        space: int = Field(4, ge=1, description="dimensions of the spaces; a tree search is fast in few")
        heads: int = Field(4, ge=1)
        expansion: int = Field(2, ge=1, description="hidden width of the feed-forward part, in widths")

        @model_validator(mode="after")
        def _width_splits_into_heads(self) -> NeighbourBackbone.Options:
            if self.width % self.heads:
                raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
            return self

    memory_modes = ("plain", "recompute", "nested", "chunks")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.options = options
        self.width = options.width
        self.geometry = Geometry(features, "backbone 'neighbours'")
        self.encode = nn.Sequential(
            nn.Linear(len(features), options.width), nn.GELU(), nn.Linear(options.width, options.width)
        )
        self.stages = nn.ModuleList(Stage(options) for _ in range(options.stages))
        self.norm = nn.LayerNorm(options.width)

    def forward(self, x_NF: Tensor, sizes: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden state [N, H] of hits with features `x_NF`, and spaces {space_k: [N, D]}; `sizes`: the events' hits."""
        place_N4 = self.geometry(x_NF)
        h_NH = self.encode(x_NF)
        spaces = {}
        for number, stage in enumerate(self.stages):
            space_ND = spaces[f"space_{number}"] = stage.embed(h_NH)
            row_NK, exists_NK = nearest(at_least_fp32(space_ND.detach()), sizes, self.options.neighbours)
            if self.memory == "chunks":
                for step in stage.steps:
                    h_NH = step.by_chunks(h_NH, place_N4, row_NK, exists_NK)
            else:
                pair_NKP = pairs(place_N4, place_N4, row_NK, h_NH.dtype)
                h_NH = run_layers(stage.steps, h_NH, self.memory, pair_NKP, row_NK, exists_NK)
        return self.norm(h_NH), spaces

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """Cost of events by their numbers of hits: linear."""
        return np.asarray(hits, dtype=np.float64)


class Stage(nn.Module):
    """An embedding in which neighbours are searched, and the message steps on what was found."""

    def __init__(self, options: NeighbourBackbone.Options) -> None:
        super().__init__()
        width = options.width
        self.embed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, options.space)
        )
        self.steps = nn.ModuleList(Step(width, options.heads, options.expansion) for _ in range(options.steps))


class Step(nn.Module):
    """Attention over neighbours, then a feed-forward part, both residual and normalised first.

    The hidden value of a pair, gelu(A h_i + B h_j + C p_ij), is both what is weighted and what the weights are made of
    (as in S. Brody et al., "How Attentive are Graph Attention Networks?", 2021).
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(PAIR_FEATURES, width, bias=False)
        self.weight = nn.Linear(width, heads)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(self, h_NH: Tensor, pair_NKP: Tensor, row_NK: Tensor, exists_NK: Tensor) -> Tensor:
        """[N, H] -> [N, H], given the hits' neighbours and what they say together with each."""
        return self.update(h_NH, pair_NKP, row_NK, exists_NK, self.say(h_NH))

    def by_chunks(self, h_NH: Tensor, place_N4: Tensor, row_NK: Tensor, exists_NK: Tensor) -> Tensor:
        """The same, keeping [N, H] twice: pairs are made chunk by chunk of hits, and again in the backward pass."""

        def update(h_nH: Tensor, place_n4: Tensor, row_nK: Tensor, exists_nK: Tensor, said_NH: Tensor) -> Tensor:
            return self.update(h_nH, pairs(place_n4, place_N4, row_nK, h_nH.dtype), row_nK, exists_nK, said_NH)

        said_NH = again(self.say, h_NH)
        parts = zip(*(t.split(CHUNK_HITS) for t in (h_NH, place_N4, row_NK, exists_NK)), strict=True)
        return torch.cat([again(update, *part, said_NH) for part in parts])

    def say(self, h_NH: Tensor) -> Tensor:
        """What each hit tells whoever asks, [N, H]."""
        return self.other(self.norm(h_NH))

    def update(self, h_nH: Tensor, pair_nKP: Tensor, row_nK: Tensor, exists_nK: Tensor, said_NH: Tensor) -> Tensor:
        """New state of n hits that listen to their neighbours among all N."""
        said_nKH = said_NH.index_select(0, row_nK.flatten()).unflatten(0, row_nK.shape)
        asked_n1H = self.own(self.norm(h_nH)).unsqueeze(1)
        value_nKH = nn.functional.gelu(asked_n1H + said_nKH + self.pair(pair_nKP))
        score_nKA = at_least_fp32(self.weight(value_nKH)).masked_fill(~exists_nK.unsqueeze(2), -torch.inf)
        share_nAK = score_nKA.softmax(dim=1).to(value_nKH.dtype).transpose(1, 2)
        heads = share_nAK.shape[1]
        every_nAAD = torch.bmm(share_nAK, value_nKH).unflatten(2, (heads, -1))  # a head's share of all heads' values
        heard_nH = every_nAAD.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1)
        h_nH = h_nH + self.out(heard_nH)
        return h_nH + self.feed_forward(h_nH)


def pairs(place_n4: Tensor, place_N4: Tensor, row_nK: Tensor, dtype: torch.dtype) -> Tensor:
    """Pair features [n, K, P] of n hits with their neighbours, the rows `row_nK` of all N."""
    near_nK4 = place_N4.index_select(0, row_nK.flatten()).unflatten(0, row_nK.shape)
    return pair_features(place_n4.unsqueeze(1), near_nK4).to(dtype)


def at_least_fp32(x: Tensor) -> Tensor:
    """Distances and softmax sums are computed in fp32 at least."""
    return x if x.dtype == torch.float64 else x.float()
