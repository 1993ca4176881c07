"""The default backbone: attention on nearest neighbours in a learned space, linear in the hits of an event.

Legend: N hits in the batch, H width, K neighbours, P pair features, D dimensions of a neighbour space, A heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hpctrack.config import Section
from hpctrack.division.divided import Division
from hpctrack.division.exchange import Halo
from hpctrack.graphs.neighbours import nearest, nearest_to
from hpctrack.models.contracts import Backbone, Compiler
from hpctrack.models.hit_geometry import PAIR_FEATURES, Geometry, on_circle, pair_features
from hpctrack.models.layers import Layers
from hpctrack.models.perceptron import Exact, LayerNorm, two_layers, width_splits_into_heads
from hpctrack.models.sweeps import Autocast, GradientSums, backward_rows, chunks, forward_rows, leaf
from hpctrack.numerics import at_least_fp32

PairFunction = Callable[[Tensor, Tensor], Tensor]  # of places of hits, [n, 1, 4] and [n, K, 4], to [n, K, P]
CHUNK = {"cpu": 2048, "cuda": 16384}  # hits at a time: what is made of their pairs stays in a core's cache


class NeighbourBackbone(Backbone):
    """Stages of: embed hits in a small space, find each hit's nearest neighbours there, exchange messages with them.

    The search sees the embedding without its gradient; the loss trains the spaces (outputs `space_0`, ...) so that hits
    of a track come to lie together. With `azimuth` two more dimensions are (cos phi, sin phi) times it: so hits of far
    azimuths are no neighbours, also for a model that was trained on sectors alone and never saw them. Messages attend
    over the K neighbours with features of the pair (slope, extrapolated z0, ...), so one pass costs O(N K) in time and
    memory.
    """

    class Options(Section):
        """Sizes."""

        width: int = Field(64, ge=1, description="of a hit's state")
        stages: int = Field(2, ge=1, description="neighbour searches, each in a space of its own")
        steps: int = Field(3, ge=1, description="message steps after each search")
        neighbours: int = Field(16, ge=1, description="of each hit, itself included")
        space: int = Field(4, ge=1, description="dimensions of the spaces; a tree search is fast in few")
        azimuth: float = Field(
            0.0, ge=0, description="of the circle of hits by phi, beside a space's learned dimensions"
        )
        heads: int = Field(4, ge=1, description="attention heads; width is a multiple of them")
        expansion: int = Field(2, ge=1, description="hidden width of the feed-forward part, in widths")

        _width_splits_into_heads = model_validator(mode="after")(width_splits_into_heads)

    memory_modes = ("plain", "chunks")
    divisible = True
    row_wise = True

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.options = options
        self.width = options.width
        self.geometry = Geometry(features, "backbone 'neighbours'")
        self.encode = Exact(*two_layers(len(features), options.width, options.width))
        self.stages = Layers(Stage(options) for _ in range(options.stages))
        self.norm = LayerNorm(options.width)
        self.features: PairFunction = pair_features

    def compile_rows(self, compiler: Compiler) -> None:
        """Let message steps and pair features be compiled; the searches between them stay as they are."""
        self.features = compiler(pair_features)
        for stage in self.stages:
            for step in stage.steps:
                step.say = compiler(step.say)  # type: ignore[method-assign]
                step.update = compiler(step.update)  # type: ignore[method-assign]

    def forward(
        self, x_NF: Tensor, sizes: list[int], division: Division | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden state [N, H] of hits with features `x_NF`, and spaces {space_k: [N, D]}; `sizes`: the events' hits."""
        place_N4 = self.geometry(x_NF)
        h_NH = self.encode(x_NF)
        circle = [on_circle(place_N4, self.options.azimuth)] if self.options.azimuth else []
        spaces = {}
        for number, stage in enumerate(self.stages):
            space_ND = spaces[f"space_{number}"] = torch.cat([stage.embed(h_NH), *circle], dim=1)
            near = self.search(at_least_fp32(space_ND.detach()), place_N4, sizes, division)
            if self.memory == "plain":
                near.keep_pairs()
            for step in stage.steps:
                h_NH = NeighbourAttention.apply(step, near, h_NH, *step.parameters())
        return self.norm(h_NH), spaces

    def search(self, space_ND: Tensor, place_N4: Tensor, sizes: list[int], division: Division | None) -> Neighbours:
        """Each hit's nearest neighbours in a space, over all ranks that hold the event."""
        k = self.options.neighbours
        if division is None:
            return Neighbours(*nearest(space_ND, sizes, k), place_N4, self.chunk, features=self.features)
        row_nK, exists_nK = nearest_to(division.rows_n, division.collect(space_ND), k)
        far_h, row_nK = division.far(row_nK)
        halo = division.halo_of(far_h)
        every_N4 = torch.cat([place_N4, halo.pull(place_N4)])
        return Neighbours(row_nK, exists_nK, every_N4, self.chunk, features=self.features, halo=halo)

    @property
    def chunk(self) -> int:
        """Hits at a time."""
        return CHUNK[self.norm.weight.device.type]

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """Cost of events by their numbers of hits: linear."""
        return np.asarray(hits, dtype=np.float64)


class Stage(nn.Module):
    """An embedding in which neighbours are searched, and the message steps on what was found."""

    def __init__(self, options: NeighbourBackbone.Options) -> None:
        super().__init__()
        width = options.width
        self.embed = Exact(LayerNorm(width), *two_layers(width, width, options.space))
        self.steps = Layers(Step(width, options.heads, options.expansion) for _ in range(options.steps))


class Step(nn.Module):
    """Attention over neighbours, then a feed-forward part, both residual and normalised first.

    The hidden value of a pair, gelu(A h_i + B h_j + C p_ij), is both what is weighted and what the weights are made of
    (as in S. Brody et al., "How Attentive are Graph Attention Networks?", 2021).
    """

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.own = nn.Linear(width, width)
        self.other = nn.Linear(width, width, bias=False)
        self.pair = nn.Linear(PAIR_FEATURES, width, bias=False)
        self.weight = nn.Linear(width, heads)
        self.out = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(LayerNorm(width), *two_layers(width, expansion * width, width))

    def forward(self, h_NH: Tensor, near: Neighbours) -> Tensor:
        """[N, H] -> [N, H] for all hits at once, as autograd would have it; what `NeighbourAttention` computes."""
        everyone = slice(None)
        heard_NKH = near.gather(self.say(h_NH), everyone)
        return self.update(h_NH, heard_NKH, near.pairs(everyone, h_NH.dtype), near.exists_NK)

    def say(self, h_NH: Tensor) -> Tensor:
        """What each hit tells whoever asks, [N, H]."""
        return self.other(self.norm(h_NH))

    def update(self, h_nH: Tensor, said_nKH: Tensor, pair_nKP: Tensor, exists_nK: Tensor) -> Tensor:
        """New state of n hits, given what their neighbours say and what they say together with each."""
        sum_nKH = self.pair(pair_nKP)
        sum_nKH += said_nKH
        sum_nKH += self.own(self.norm(h_nH)).unsqueeze(1)
        value_nKH = nn.functional.gelu(sum_nKH)
        score_nKA = at_least_fp32(self.weight(value_nKH)).masked_fill(~exists_nK.unsqueeze(2), -torch.inf)
        share_nAK = score_nKA.softmax(dim=1).to(value_nKH.dtype).transpose(1, 2)
        heads = share_nAK.shape[1]
        every_nAAD = torch.bmm(share_nAK, value_nKH).unflatten(2, (heads, -1))  # a head's share of all heads' values
        heard_nH = every_nAAD.diagonal(dim1=1, dim2=2).transpose(1, 2).flatten(1)
        h_nH = h_nH + self.out(heard_nH)
        return h_nH + self.feed_forward(h_nH)


@dataclass
class Neighbours:
    """Who listens to whom: hit i to hits `row_NK[i]`, as far as they exist; `place_N4`: where all are.

    Steps go through `chunk` hits at a time; `features` are those of pairs. With a `halo` the hits are a rank's own ones
    of an event, and rows beyond them, in `place_N4` too, are those of the halo.
    """

    row_NK: Tensor
    exists_NK: Tensor
    place_N4: Tensor
    chunk: int
    kept_NKP: Tensor | None = None
    features: PairFunction = pair_features
    halo: Halo | None = None

    def keep_pairs(self) -> None:
        """Compute the pair features of all hits once and keep them, instead of for every chunk and step again."""
        own_N4 = self.place_N4[: len(self.row_NK)]
        self.kept_NKP = forward_rows(self.pair_features, self.chunk, own_N4, self.row_NK)[0]

    def pairs(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Pair features [n, K, P] of a chunk's hits with their neighbours."""
        if self.kept_NKP is not None:
            return self.kept_NKP[rows].to(dtype)
        return self.pair_features(self.place_N4[rows], self.row_NK[rows]).to(dtype)

    def pair_features(self, place_n4: Tensor, row_nK: Tensor) -> Tensor:
        """The same, of hits at `place_n4` with the hits `row_nK`."""
        return self.features(place_n4.unsqueeze(1), gather(self.place_N4, row_nK))

    def fetch(self, said_NH: Tensor) -> Tensor | None:
        """What hits of the halo say, [h, H], given what the own ones do; None without a halo."""
        return None if self.halo is None else self.halo.pull(said_NH)

    def give_back(self, g_NH: Tensor) -> Tensor:
        """Gradients of what the own hits say, given those of all rows: those of the halo go to their owners."""
        if self.halo is None:
            return g_NH
        n = len(self.row_NK)
        return g_NH[:n] + self.halo.push(g_NH[n:], n)

    def gather(self, x_NH: Tensor, rows: slice) -> Tensor:
        """What belongs to a chunk's neighbours, [n, K, H]."""
        return gather(x_NH, self.row_NK[rows])


class NeighbourAttention(torch.autograd.Function):
    """`Step.forward` chunk by chunk of hits; keeps its input only, and computes a chunk's inside again backward.

    Even where memory is plentiful this is faster than to keep tensors [N, K, H]: those of a chunk stay in the cache.
    """

    @staticmethod
    def forward(ctx: Any, step: Step, near: Neighbours, h_NH: Tensor, *parameters: Tensor) -> Tensor:
        """[N, H] -> [N, H]; `parameters` are the step's, in order."""
        ctx.step, ctx.near, ctx.autocast = step, near, Autocast(h_NH.device)
        with ctx.autocast.restored():
            said_NH = forward_rows(step.say, near.chunk, h_NH)[0]
            far_hH = near.fetch(said_NH)
            ctx.save_for_backward(h_NH, far_hH)  # what others say is not asked for again
            said_NH = said_NH if far_hH is None else torch.cat([said_NH, far_hH])
            out_NH = torch.empty_like(h_NH)
            for rows in chunks(len(h_NH), near.chunk):
                out_NH[rows] = NeighbourAttention.update(step, near, rows, h_NH[rows], near.gather(said_NH, rows))
        return out_NH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of hits and parameters."""
        step, near, [h_NH, far_hH] = ctx.step, ctx.near, ctx.saved_tensors
        tally = GradientSums(step.parameters())
        with ctx.autocast.restored():
            said_NH = forward_rows(step.say, near.chunk, h_NH)[0]
            said_NH = said_NH if far_hH is None else torch.cat([said_NH, far_hH])
            g_h, g_said = torch.empty_like(h_NH), torch.zeros_like(at_least_fp32(said_NH))
            for rows in chunks(len(h_NH), near.chunk):
                with torch.enable_grad():
                    leaves = [leaf(h_NH[rows]), leaf(near.gather(said_NH, rows))]
                    out_nH = NeighbourAttention.update(step, near, rows, *leaves)
                g_h[rows], g_nKH = tally.pull(step, leaves, [out_nH], [g_NH[rows]])
                g_said.index_add_(0, near.row_NK[rows].flatten(), g_nKH.flatten(0, 1).to(g_said.dtype))
            g_said = near.give_back(g_said)
            g_h += backward_rows(step.say, step, near.chunk, [h_NH], [g_said], tally=tally)[0]
        return (None, None, g_h, *tally.gradients())

    @staticmethod
    def update(step: Step, near: Neighbours, rows: slice, h_nH: Tensor, said_nKH: Tensor) -> Tensor:
        """New state of a chunk's hits."""
        return step.update(h_nH, said_nKH, near.pairs(rows, h_nH.dtype), near.exists_NK[rows])


def gather(x_NH: Tensor, row_nK: Tensor) -> Tensor:
    """Rows of x, [n, K, H]."""
    return x_NH.index_select(0, row_nK.flatten()).unflatten(0, row_nK.shape)
