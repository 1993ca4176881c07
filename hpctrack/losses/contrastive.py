"""Contrastive hinge embedding: the naive baseline of D. Murnane, "Influencer Loss" (CHEP 2023).

Legend: N hits in the batch, E embedding dimensions.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.losses.neighbours import neighbours
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.losses.term import LossTerm, at_least_fp32
from hpctrack.losses.tracks import Tracks, own_groups

TERMS = ("attraction", "repulsion", "neighbours")


class ContrastiveLoss(nn.Module):
    """Pull hits of a track together, push others out of a margin: hinge embedding loss on one embedding x.

    Terms, each the mean over the events that have it:
    - `attraction`  |x_i - x_j|^2, mean over all ordered pairs of a track (i = j among them), mean over tracks. That is
      twice the variance, so it needs O(N) work;
    - `repulsion`  max(0, margin - |x_i - x_j|), or its square, over pairs i != j that are of no common track: all that
      are within the margin, without a cap on neighbours, as in the influencer loss;
    - `neighbours`  trains the spaces in which a backbone looks for neighbours (losses/neighbours.py).
    Noise hits belong to no track: they only repel.
    """

    class Options(Section):
        """Weights and variants."""

        attraction: float = Field(1.0, ge=0)
        repulsion: float = Field(1.0, ge=0)
        neighbours: float = Field(0.0, ge=0, description="weight of the loss on the backbone's `space_0`, `space_1`, …")
        margin: float = Field(1.0, gt=0)
        squared_hinge: bool = Field(False, description="square the hinge of the repulsion")
        per: Literal["pair", "hit"] = Field("pair", description="repulsion: mean over pairs, or sum over pairs per hit")

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        weights = {name: getattr(options, name) for name in TERMS}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Events that have each term, known before the forward pass: with a hit for repulsion, else with a track."""
        with_track = int((batch.n_tracks > 0).sum())
        with_hit = int((batch.ptr.diff() > 0).sum())
        return {name: with_hit if name == "repulsion" else with_track for name in self.weights}

    def forward(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """The terms for `outputs` embedding [N, E] on `batch` (track [N], n_tracks [B], ptr [B + 1])."""
        x_NE = at_least_fp32(outputs["embedding"])
        count = self.counts(batch)
        terms = {
            "attraction": lambda: attraction(x_NE, batch),
            "repulsion": lambda: self.repulsion(x_NE, batch),
            "neighbours": lambda: neighbours(outputs, batch),
        }
        zero = sum(output.sum() for output in outputs.values()) * 0  # no output goes without a gradient
        return {name: LossTerm(zero + terms[name](), count[name]) for name in count}

    def repulsion(self, x_NE: Tensor, batch: Batch) -> Tensor:
        """Summed over events; an event without a pair in reach contributes 0."""
        total = x_NE.new_zeros(())
        bounds = batch.ptr.tolist()
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            points = Points(x_NE[start:stop], own_groups(batch.track[start:stop]))
            pushed, n_pairs = hinge_sum(points, None, self.options.margin, self.options.squared_hinge)
            total = total + pushed / max(1, stop - start if self.options.per == "hit" else n_pairs)
        return total


def attraction(x_NE: Tensor, batch: Batch) -> Tensor:
    """Mean squared distance over a track's ordered pairs, mean over tracks, summed over events."""
    tracks = Tracks(batch)
    x_ME = x_NE[tracks.hits]
    centre_TE = tracks.mean(x_ME)
    return tracks.per_track(2 * tracks.mean((x_ME - centre_TE[tracks.track]).square().sum(1)))
