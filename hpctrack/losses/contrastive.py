"""Contrastive hinge embedding: the naive baseline of D. Murnane, "Influencer Loss" (CHEP 2023).

Legend: N hits in the batch, E embedding dimensions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.losses.pairs import Points, SpaceWeight, hits_of_events, neighbours
from hpctrack.losses.term import BaseLoss, Tracks, parameter_groups, with_hit, with_track


class ContrastiveLoss(BaseLoss):
    """Pull hits of a track together, push others out of a margin: hinge embedding loss on one embedding x.

    Terms, each the mean over the events that have it:
    - `attraction`  |x_i - x_j|^2, mean over all ordered pairs of a track (i = j among them), mean over tracks. That is
      twice the variance, so it needs O(N) work;
    - `repulsion`  max(0, margin - |x_i - x_j|), or its square, over pairs i != j that are of no common track: all that
      are within the margin, without a cap on neighbours, as in the influencer loss;
    - `neighbours`  trains the spaces in which a backbone looks for neighbours (losses/pairs.py).
    Noise hits belong to no track: they only repel.
    """

    class Options(Section):
        """Weights and variants."""

        attraction: float = Field(1.0, ge=0, description="weight of the term that pulls a track's hits together")
        repulsion: float = Field(1.0, ge=0, description="weight of the term that pushes other hits away")
        neighbours: SpaceWeight = 0.0
        margin: float = Field(1.0, gt=0, description="distance beyond which hits no longer repel each other")
        squared_hinge: bool = Field(False, description="square the hinge of the repulsion")
        per: Literal["pair", "hit"] = Field("pair", description="repulsion: mean over pairs, or sum over pairs per hit")

    divisible = True
    counted = {"attraction": with_track, "repulsion": with_hit, "neighbours": with_track}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `outputs` embedding [N, E] on `batch` (track [N], n_tracks [B], ptr [B + 1])."""
        x_NE = outputs["embedding"]
        terms = {
            "attraction": lambda: attraction(x_NE, batch),
            "repulsion": lambda: self.repulsion(x_NE, batch),
            "neighbours": lambda: neighbours(outputs, batch),
        }
        return {name: terms[name]() for name in self.weights}

    def repulsion(self, x_NE: Tensor, batch: Batch) -> Tensor:
        """Summed over events; an event without a pair in reach contributes 0."""
        total = x_NE.new_zeros(())
        for event in hits_of_events(batch):
            points = Points(event.every(x_NE), parameter_groups(event.track), event.weight)
            pushed, n_pairs = event.within(points, self.options.margin, self.options.squared_hinge)
            total = total + pushed / max(1, len(points.x) if self.options.per == "hit" else n_pairs)
        return total


def attraction(x_NE: Tensor, batch: Batch) -> Tensor:
    """Mean squared distance over a track's ordered pairs, mean over tracks, summed over events."""
    tracks = Tracks(batch)
    x_ME = x_NE[tracks.hits]
    centre_TE = tracks.mean(x_ME)
    return tracks.per_track(2 * tracks.mean((x_ME - centre_TE[tracks.track]).square().sum(1)))
