"""The influencer loss (D. Murnane, "Influencer Loss: End-to-end Geometric Representation Learning for Track
Reconstruction", CHEP 2023), attraction in closed form.

Legend: N hits in the batch, E embedding dimensions, T tracks in the batch, B events, M hits that belong to a track.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.graphs.radius import radius_pairs
from hpctrack.losses.term import LossTerm

TINY = 1e-12  # inside square roots, whose slope at 0 is infinite


class InfluencerLoss(nn.Module):
    """Attract users and influencers of a track, repel users and influencers of different ones, thin out influencers.

    Terms, each the mean over the events that have it:
    - `attraction`  L+(a) = exp((1/N) sum_j ln((1/N) sum_i |U_i - I_j|^2)), mean over the event's tracks;
    - `repulsion_ui`  max(0, 1 - |U_i - I_j|) over pairs of different tracks within radius 1;
    - `repulsion_ii`  max(0, margin - |I_i - I_j|) over pairs i != j within the margin;
    - `compactness`  mean squared distance of a track's users from their mean, mean over tracks (not in the paper).
    Noise hits belong to no track: they only repel.
    """

    class Options(Section):
        """Weights and variants; the defaults are the paper's."""

        attraction: float = Field(1.0, ge=0, description="weight of L+")
        repulsion_ui: float = Field(1.0, ge=0, description="weight a: efficiency against purity")
        repulsion_ii: float = Field(1.0, ge=0, description="weight b: efficiency against duplicates")
        compactness: float = Field(0.0, ge=0, description="weight of the users' variance")
        influencer_margin: float = Field(1.0, gt=0)
        squared_hinge_ui: bool = Field(False, description="square the user-influencer hinge")
        influencer_pairs: Literal["all", "other_tracks"] = "all"
        per: Literal["pair", "hit"] = Field("pair", description="repulsion: mean over pairs, or sum over pairs per hit")
        log_floor: float = Field(1e-6, gt=0, description="added inside the logarithm, bounds its slope")

    def __init__(self, options: Options) -> None:
        super().__init__()
        self.options = options
        weights = {name: getattr(options, name) for name in TERMS}
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}

    def counts(self, batch: Batch) -> dict[str, int]:
        """Events that have each term, known before the forward pass: with a track, or with a hit."""
        with_track = int((batch.n_tracks > 0).sum())
        with_hit = int((batch.ptr.diff() > 0).sum())
        return {name: with_track if name in ("attraction", "compactness") else with_hit for name in self.weights}

    def forward(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """The terms for `outputs` user and influencer [N, E] on `batch` (track [N], n_tracks [B], ptr [B + 1])."""
        user, influencer = (at_least_fp32(outputs[name]) for name in ("user", "influencer"))
        count = self.counts(batch)
        zero = (user.sum() + influencer.sum()) * 0
        sums = {}
        if {"attraction", "compactness"} & count.keys():
            sums["attraction"], sums["compactness"] = attraction(user, influencer, batch, self.options.log_floor)
        if {"repulsion_ui", "repulsion_ii"} & count.keys():
            sums["repulsion_ui"], sums["repulsion_ii"] = self.repulsion(user, influencer, batch)
        return {name: LossTerm(zero + sums[name], count[name]) for name in count}

    def repulsion(self, user: Tensor, influencer: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both repulsive terms, summed over events; an event without a pair in reach contributes 0."""
        ui, ii = user.new_zeros(()), user.new_zeros(())
        margin = self.options.influencer_margin
        bounds = batch.ptr.tolist()
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
            u, v, track = user[start:stop], influencer[start:stop], batch.track[start:stop]
            if self.options.repulsion_ui:
                i, j = radius_pairs(u, v, 1.0)
                i, j = keep((track[i] != track[j]) | (track[i] < 0), i, j)
                hinge = (1.0 - distance(u[i], v[j])).clamp(min=0)
                ui = ui + self.average(hinge.square() if self.options.squared_hinge_ui else hinge, stop - start)
            if self.options.repulsion_ii:
                i, j = radius_pairs(v, v, margin)
                other = (track[i] != track[j]) | (track[i] < 0)
                i, j = keep((i != j) & other if self.options.influencer_pairs == "other_tracks" else i != j, i, j)
                ii = ii + self.average((margin - distance(v[i], v[j])).clamp(min=0), stop - start)
        return ui, ii

    def average(self, pair_values: Tensor, n_hits: int) -> Tensor:
        """Mean over pairs, or sum over pairs per hit, of one event."""
        return pair_values.sum() / max(1, n_hits if self.options.per == "hit" else len(pair_values))


TERMS = ("attraction", "repulsion_ui", "repulsion_ii", "compactness")


def attraction(user: Tensor, influencer: Tensor, batch: Batch, log_floor: float) -> tuple[Tensor, Tensor]:
    """L+ and the users' variance, averaged over each event's tracks and summed over events, in O(N) work and memory.

    Closed form: (1/N) sum_i |U_i - I_j|^2 = |I_j - ubar|^2 + (1/N) sum_i |U_i - ubar|^2, ubar the track's mean user.
    """
    n_tracks = batch.n_tracks
    member = batch.track >= 0
    first_track = n_tracks.cumsum(0) - n_tracks
    track = (batch.track + first_track[batch.batch])[member]
    total = int(n_tracks.sum())
    size = torch.bincount(track, minlength=total).to(user.dtype)

    def track_mean(values: Tensor) -> Tensor:
        out = values.new_zeros((total, *values.shape[1:])).index_add(0, track, values)
        return out / size.view(-1, *[1] * (values.dim() - 1))

    u, v = user[member], influencer[member]
    centre = track_mean(u)
    spread = track_mean((u - centre[track]).square().sum(1))
    mean_square = (v - centre[track]).square().sum(1) + spread[track]
    per_track = track_mean((mean_square + log_floor).log()).exp()
    event_of_track = torch.repeat_interleave(torch.arange(len(n_tracks), device=n_tracks.device), n_tracks)
    share = 1.0 / n_tracks[event_of_track].to(user.dtype)
    return (per_track * share).sum(), (spread * share).sum()


def distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b| row by row, with a finite slope at 0."""
    return ((a - b).square().sum(1) + TINY).sqrt()


def keep(mask: Tensor, i: Tensor, j: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs (i, j) where `mask` holds."""
    return i[mask], j[mask]


def at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32 at least, whatever precision the model runs in."""
    return x if x.dtype == torch.float64 else x.float()
