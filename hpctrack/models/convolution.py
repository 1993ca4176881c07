"""Graph convolution: nodes take the mean of their neighbours, edges are scored at the end.

    x' = x + activation(norm(W x + V mean of the neighbours' x))

W. Hamilton et al., "Inductive Representation Learning on Large Graphs" (2017), mean aggregator, with residual; without
the W x it is the convolution of T. Kipf and M. Welling (2017) with row normalisation.

Legend: N hits, c edges of a chunk, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from hpctrack.models.graph_network import GraphNetwork
from hpctrack.models.layers import Layers
from hpctrack.models.perceptron import ACTIVATIONS, LayerNorm, Sizes, SplitPerceptron
from hpctrack.models.sweeps import OnEdges
from hpctrack.numerics import without_autocast


class ConvolutionNetwork(GraphNetwork):
    """Scores edges from both ends' states, after T convolutions over neighbours in both directions."""

    class Options(GraphNetwork.Options):
        """Sizes."""

        width: int = Field(64, ge=1, description="of node states and hidden layers")
        iterations: int = Field(4, ge=1, description="of message passing")
        layers: int = Field(2, ge=1, description="linear layers of the perceptron that scores edges")
        recurrent: bool = Field(False, description="all iterations share their weights")

    edge_start = None

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options.iterations, options.chunk)
        self.start = nn.Linear(len(features), options.width)
        own = 1 if options.recurrent else options.iterations
        self.iterations = Layers(Convolution(options.width, options.norm, options.activation) for _ in range(own))
        self.read_from(options, options.width)


class Convolution(nn.Module):
    """One iteration."""

    def __init__(self, width: int, norm: str, activation: str) -> None:
        super().__init__()
        self.linear = SplitPerceptron([width] * 2, width, width, Sizes(1, norm, activation))
        self.after = nn.Sequential(LayerNorm(width) if norm == "layer" else nn.Identity(), ACTIVATIONS[activation]())

    def project(self, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """Edges gather states."""
        return x_NH, x_NH

    def edge(self, source_cH: Tensor, target_cH: Tensor, _: Tensor | None) -> OnEdges:
        """Each end's state to the other."""
        return None, source_cH, target_cH

    def update(self, x_NH: Tensor, inward_NH: Tensor, outward_NH: Tensor, degree_N1: Tensor) -> Tensor:
        """x'."""
        with without_autocast(x_NH):
            return x_NH + self.after(self.linear(x_NH, (inward_NH + outward_NH) / degree_N1.clamp(min=1)))
