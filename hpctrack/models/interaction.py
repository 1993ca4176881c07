"""Interaction network: edge and node states that update each other (Exa.TrkX, Eur. Phys. J. C 81, 876 (2021)).

    e' = e + MLP [x_source, x_target, e]        x' = x + MLP [x, sum of e' at targets, sum of e' at sources]

P. Battaglia et al., "Interaction Networks" (2016); sizes by default as in acorn's InteractionGNN. No concatenation is
made: nodes are multiplied before they are gathered (models/perceptron.py).

Legend: N hits, M edges, c edges of a chunk, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from hpctrack.models.graph_network import GraphNetwork, PairFeatures
from hpctrack.models.hit_geometry import PAIR_FEATURES, Geometry
from hpctrack.models.layers import Layers
from hpctrack.models.perceptron import Activation, Sizes, SplitPerceptron
from hpctrack.models.sweeps import OnEdges, output
from hpctrack.numerics import without_autocast


class InteractionNetwork(GraphNetwork):
    """Scores edges from both ends' states and the edge's own, after T interactions."""

    class Options(GraphNetwork.Options):
        """Sizes."""

        width: int = Field(128, ge=1, description="of node and edge states, and of hidden layers")
        iterations: int = Field(8, ge=1, description="of message passing")
        layers: int = Field(3, ge=1, description="linear layers of each perceptron")
        activation: Activation = "silu"
        recurrent: bool = Field(False, description="all iterations share their weights")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options.iterations, options.chunk)
        width, sizes = options.width, options.sizes
        self.geometry = Geometry(features, "the interaction network")
        self.start = SplitPerceptron([len(features)], width, width, sizes)
        self.edge_start = PairStart(width, sizes)
        own = 1 if options.recurrent else options.iterations
        self.iterations = Layers(Interaction(width, sizes) for _ in range(own))
        self.read_from(options, width, width)


class PairStart(PairFeatures):
    """First edge state, a perceptron on what the pair of hits says."""

    def __init__(self, width: int, sizes: Sizes) -> None:
        super().__init__()
        self.perceptron = SplitPerceptron([PAIR_FEATURES], width, width, sizes)

    def edge(self, source_c4: Tensor, target_c4: Tensor, _: Tensor | None) -> OnEdges:
        """e_0 [c, H]."""
        pair_cP = output(super().edge(source_c4, target_c4, None))
        return self.perceptron(pair_cP).to(source_c4.dtype), None, None


class Interaction(nn.Module):
    """One iteration."""

    def __init__(self, width: int, sizes: Sizes) -> None:
        super().__init__()
        self.edges = SplitPerceptron([width] * 3, width, width, sizes)
        self.nodes = SplitPerceptron([width] * 3, width, width, sizes)

    def project(self, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes' shares in the first layer of the edges' perceptron."""
        return self.edges.part(0, x_NH), self.edges.part(1, x_NH)

    def edge(self, source_cH: Tensor, target_cH: Tensor, e_cH: Tensor | None) -> OnEdges:
        """e', which is the message to both ends."""
        assert e_cH is not None  # edges begin with a state, that of PairStart
        e_cH = e_cH + self.edges.rest(source_cH + target_cH + self.edges.part(2, e_cH))
        return e_cH, e_cH, e_cH

    def update(self, x_NH: Tensor, inward_NH: Tensor, outward_NH: Tensor, degree_N1: Tensor) -> Tensor:
        """x'."""
        with without_autocast(x_NH):
            return x_NH + self.nodes(x_NH, inward_NH, outward_NH)
