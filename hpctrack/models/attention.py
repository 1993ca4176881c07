"""Attention GNN, the segment classifier of HEP.TrkX (S. Farrell et al., arXiv:1810.06111) and Exa.TrkX.

    w = sigmoid(MLP [x_source, x_target])
    x' = MLP [x, sum of w x_source at targets, sum of w x_target at sources]

As there, every iteration sees the input features again beside the state (`inputs`), weights are shared and the edge
scores come from the same perceptron as the attention. Width 32, 4 iterations, 2 layers, no norm, tanh on 3 features is
the original classifier of 6,881 parameters.

Legend: N hits, c edges of a chunk, F features, H width, S width of a node's state (H, or H + F with inputs).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from hpctrack.models.graph_network import GraphNetwork
from hpctrack.models.perceptron import ACTIVATIONS, Activation, Sizes, SplitPerceptron
from hpctrack.models.sweeps import OnEdges


class AttentionNetwork(GraphNetwork):
    """Scores edges from both ends' states, after T rounds of messages weighted with the edges' scores."""

    class Options(GraphNetwork.Options):
        """Sizes."""

        width: int = Field(64, ge=1, description="of node states and hidden layers")
        iterations: int = Field(4, ge=1)
        activation: Activation = "tanh"
        inputs: bool = Field(True, description="each iteration sees the input features again")
        residual: bool = Field(False, description="node states are added to, as in Exa.TrkX")
        recurrent: bool = Field(True, description="all iterations share their weights")

    edge_start = None

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options.iterations, options.chunk)
        self.inputs = options.inputs
        self.encode = nn.Sequential(nn.Linear(len(features), options.width), ACTIVATIONS[options.activation]())
        state = options.width + (len(features) if options.inputs else 0)

        def attention() -> SplitPerceptron:
            return SplitPerceptron([state] * 2, options.width, 1, *options.sizes)

        own = 1 if options.recurrent else options.iterations
        self.iterations = nn.ModuleList(
            Attention(attention(), state, options.width, options.sizes, options.residual) for _ in range(own)
        )
        self.read_from(options, state, scores=self.iterations[0].edges if options.recurrent else None)

    def start(self, x_NF: Tensor) -> Tensor:
        """x_0 [N, S]."""
        h_NH = self.encode(x_NF).to(x_NF.dtype)
        return torch.cat([h_NH, x_NF], dim=1) if self.inputs else h_NH


class Attention(nn.Module):
    """One iteration; `edges` gives the attention's logits."""

    def __init__(self, edges: SplitPerceptron, state: int, width: int, sizes: Sizes, residual: bool) -> None:
        super().__init__()
        self.edges, self.width, self.residual = edges, width, residual
        self.nodes = SplitPerceptron([state] * 3, width, width, *sizes)
        self.activation = ACTIVATIONS[sizes[2]]()

    def project(self, x_NS: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes' shares in the first layer of the attention and their states, [N, H + S]."""
        return torch.cat([self.edges.part(0, x_NS), x_NS], 1), torch.cat([self.edges.part(1, x_NS), x_NS], 1)

    def edge(self, source: Tensor, target: Tensor, _: None) -> OnEdges:
        """Messages: each end's state to the other, weighted."""
        shares = self.edges.first.out_features
        weight_c1 = self.edges.rest(source[:, :shares] + target[:, :shares]).sigmoid()
        return None, weight_c1 * source[:, shares:], weight_c1 * target[:, shares:]

    def update(self, x_NS: Tensor, inward_NS: Tensor, outward_NS: Tensor, degree_N1: Tensor) -> Tensor:
        """x' [N, S]: a new state, and the inputs as they are."""
        h_NH = self.activation(self.nodes(x_NS, inward_NS, outward_NS)).to(x_NS.dtype)
        old_NH, inputs_NF = x_NS[:, : self.width], x_NS[:, self.width :]
        return torch.cat([old_NH + h_NH if self.residual else h_NH, inputs_NF], dim=1)
