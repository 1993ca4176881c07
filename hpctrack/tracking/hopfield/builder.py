"""Builder `hopfield`: the network as a layer on learned scores of edges.

A model says of each edge alone how probable it is; the network lets edges decide together. It starts from the
probabilities, their logits are the biases, edges that go on in each other support each other, and edges that leave or
enter a hit compete. Nothing is learned here.

Competition is weak by default: where modules overlap a track has two hits of a layer, and edges of both are right. A
strong one makes V exclusive, but breaks such tracks.

Legend: N hits, M edges that pass the cut.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from hpctrack.tracking.edge_clustering import EdgeBuilder, WalkBuilder
from hpctrack.tracking.hopfield.couplings import supports
from hpctrack.tracking.hopfield.network import Cooling, OfStrongest, relax

DIGITS = 9  # of V that walks see


class HopfieldBuilder(EdgeBuilder):
    """Walks along the edges that the network leaves on, with V in the place of the probability."""

    class Options(EdgeBuilder.Options):
        """The cut, which edges are neurons at all, and the network."""

        support: float = Field(2.0, ge=0, le=1e6, description="of an edge by the strongest before and behind it")
        competition: float = Field(1.0, ge=0, le=1e6, description="between edges that leave or enter a hit")
        bias_scale: float = Field(0.5, ge=0, le=1e6, description="times the logit of the probability: an edge's bias")
        t_begin: float = Field(4.0, gt=0, le=1e6, description="temperature of the first step")
        t_end: float = Field(1.0, gt=0, le=1e6, description="and of the last; in between geometric")
        steps: int = Field(30, ge=1, le=100_000, description="cooling steps")
        damping: float = Field(0.5, gt=0, le=1, description="share of the new V in a step")
        threshold: float = Field(0.1, ge=0, le=1, description="edges of a smaller V are off")
        triplets_max: int = Field(50_000_000, ge=1, description="an event with more is refused: memory")
        join: float | None = Field(
            0.5, gt=0, le=1, description="V of an edge by which a hit beside a walk joins it; null: walks alone"
        )

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit: the last hit of its walk."""
        o = self.options
        value_M = relax(self.network(edge_2M, probability_M), probability_M, self.cooling)
        value_M = np.round(value_M, DIGITS)  # the order of edges is that of sums, which is not to decide
        on = value_M >= o.threshold
        label_N = np.full(int(edge_2M.max()) + 1, -1, dtype=np.int64)
        if on.any():
            walks = WalkBuilder(WalkBuilder.Options(cut=0.5, join=o.join)).groups(edge_2M[:, on], value_M[on])
            label_N[: len(walks)] = walks
        return label_N

    @property
    def cooling(self) -> Cooling:
        """How the network relaxes."""
        return Cooling(self.options.t_begin, self.options.t_end, self.options.steps, damping=self.options.damping)

    def network(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> OfStrongest:
        """The network of these edges: all that go on in each other are coupled alike."""
        o, n_hits = self.options, int(edge_2M.max()) + 1
        support = supports(edge_2M, n_hits, lambda a, b, c: np.ones(len(a)), scale=o.support, most=o.triplets_max)
        inside = np.clip(probability_M, 1e-9, 1 - 1e-9)
        return OfStrongest(edge_2M, n_hits, support, o.competition, o.bias_scale * np.log(inside / (1 - inside)))
