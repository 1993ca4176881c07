"""Attention GNN, the segment classifier of HEP.TrkX (S. Farrell et al., arXiv:1810.06111) and Exa.TrkX.

    w = sigmoid(MLP [x_source, x_target])
    x' = MLP [x, sum of w x_source at targets, sum of w x_target at sources]

As there, every iteration sees the input features again beside the state (`inputs`), weights are shared and the edge
scores come from the same perceptron as the attention. Width 32, 4 iterations, 2 layers, no norm, tanh on 3 features is
the original classifier of 6,881 parameters. It saw sections of the detector, with coordinates scaled to their size.
Whole events are seen with `pairs`: attention and messages also have what the two hits say together, as in
models/hit_geometry.py, since the differences that matter are too small beside coordinates.

Legend: N hits, c edges of a chunk, F features, H width, S width of a node's state (H, or H + F with inputs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from hpctrack.models.graph_network import GraphNetwork
from hpctrack.models.layers import Layers
from hpctrack.models.perceptron import ACTIVATIONS, Activation, Sizes, SplitPerceptron
from hpctrack.models.sweeps import OnEdges
from hpctrack.numerics import without_autocast


class AttentionNetwork(GraphNetwork):
    """Scores edges from both ends' states, after T rounds of messages weighted with the edges' scores."""

    class Options(GraphNetwork.Options):
        """Sizes."""

        width: int = Field(64, ge=1, description="of node states and hidden layers")
        iterations: int = Field(4, ge=1, description="of message passing")
        activation: Activation = "tanh"
        inputs: bool = Field(True, description="each iteration sees the input features again")
        residual: bool = Field(False, description="node states are added to, as in Exa.TrkX")
        recurrent: bool = Field(True, description="all iterations share their weights")
        pairs: bool = Field(
            False, description="attention and messages see slopes, intercepts and distances of the pair"
        )

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options.iterations, options.chunk)
        self.inputs = options.inputs
        self.encode = nn.Sequential(nn.Linear(len(features), options.width), ACTIVATIONS[options.activation]())
        state = options.width + (len(features) if options.inputs else 0)

        pair = self.see_pairs(features, options.pairs)

        def attention() -> SplitPerceptron:
            widths = [state, state, pair] if pair else [state, state]
            return SplitPerceptron(widths, options.width, 1, options.sizes)

        own = 1 if options.recurrent else options.iterations
        rounds = [
            Attention(attention(), state, pair, options.width, options.sizes, residual=options.residual)
            for _ in range(own)
        ]
        self.iterations = Layers(rounds)
        self.read_from(options, state, pair, scores=rounds[0].edges if options.recurrent else None)

    def start(self, x_NF: Tensor) -> Tensor:
        """x_0 [N, S]."""
        h_NH = self.encode(x_NF).to(x_NF.dtype)
        return torch.cat([h_NH, x_NF], dim=1) if self.inputs else h_NH


class Attention(nn.Module):
    """One iteration; `edges` gives the attention's logits, `pair` is the width of the edges' own state, if any."""

    def __init__(
        self, edges: SplitPerceptron, state: int, pair: int, width: int, sizes: Sizes, *, residual: bool
    ) -> None:
        super().__init__()
        self.edges, self.width, self.residual = edges, width, residual
        self.nodes = SplitPerceptron([state, state + pair, state + pair], width, width, sizes)
        self.activation = ACTIVATIONS[sizes.activation]()

    def project(self, x_NS: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes' shares in the first layer of the attention and their states, [N, H + S]."""
        return torch.cat([self.edges.part(0, x_NS), x_NS], 1), torch.cat([self.edges.part(1, x_NS), x_NS], 1)

    def edge(self, source: Tensor, target: Tensor, pair_cP: Tensor | None) -> OnEdges:
        """The edge as it was; messages: each end's state to the other, with what the pair says, weighted."""
        shares = self.edges.first.out_features
        h_cH = source[:, :shares] + target[:, :shares]
        ends = [source[:, shares:], target[:, shares:]]
        if pair_cP is not None:
            h_cH = h_cH + self.edges.part(2, pair_cP)
            ends = [torch.cat([end_cS, pair_cP], dim=1) for end_cS in ends]
        weight_c1 = self.edges.rest(h_cH).sigmoid()
        return pair_cP, weight_c1 * ends[0], weight_c1 * ends[1]

    def update(self, x_NS: Tensor, inward_NS: Tensor, outward_NS: Tensor, degree_N1: Tensor) -> Tensor:
        """x' [N, S]: a new state, and the inputs as they are."""
        with without_autocast(x_NS):
            h_NH = self.activation(self.nodes(x_NS, inward_NS, outward_NS))
        old_NH, inputs_NF = x_NS[:, : self.width], x_NS[:, self.width :]
        return torch.cat([old_NH + h_NH if self.residual else h_NH, inputs_NF], dim=1)
