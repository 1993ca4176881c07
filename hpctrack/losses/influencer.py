"""The influencer loss (D. Murnane, "Influencer Loss: End-to-end Geometric Representation Learning for Track
Reconstruction", CHEP 2023), attraction in closed form.

Legend: N hits in the batch, E embedding dimensions, T tracks in the batch, B events, M hits that belong to a track.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.losses.influencer_reference import attraction_loop, attraction_scatter
from hpctrack.losses.neighbours import neighbours
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.losses.parameters import parameters
from hpctrack.losses.term import Loss, events, with_hit, with_track
from hpctrack.losses.tracks import Tracks, own_groups


class InfluencerLoss(Loss):
    """Attract users and influencers of a track, repel users and influencers of different ones, thin out influencers.

    Terms, each the mean over the events that have it:
    - `attraction`  L+(a) = exp((1/N) sum_j ln((1/N) sum_i |U_i - I_j|^2)), mean over the event's tracks;
    - `repulsion_ui`  max(0, 1 - |U_i - I_j|) over pairs of different tracks within radius 1;
    - `repulsion_ii`  max(0, margin - |I_i - I_j|) over pairs i != j within the margin;
    - `compactness`  mean squared distance of a track's users from their mean, mean over tracks (not in the paper);
    - `neighbours`  trains the spaces in which a backbone looks for neighbours (losses/neighbours.py; not in the paper);
    - `parameters`  likelihood of the track parameters, mean over tracks (losses/parameters.py; not in the paper).
    Noise hits belong to no track: they only repel. Memory is O(N E), however many pairs repel each other.
    """

    class Options(Section):
        """Weights and variants; the defaults are the paper's."""

        attraction: float = Field(1.0, ge=0, description="weight of L+")
        repulsion_ui: float = Field(1.0, ge=0, description="weight a: efficiency against purity")
        repulsion_ii: float = Field(1.0, ge=0, description="weight b: efficiency against duplicates")
        compactness: float = Field(0.0, ge=0, description="weight of the users' variance")
        neighbours: float = Field(0.0, ge=0, description="weight of the loss on the backbone's `space_0`, `space_1`, …")
        parameters: float = Field(
            0.0, ge=0, description="weight of the track parameters' likelihood (model.parameters)"
        )
        attraction_form: Literal["closed", "scatter", "loop"] = Field(
            "closed", description="how L+ is computed: the same value at other costs; the paper's is scatter"
        )
        influencer_margin: float = Field(1.0, gt=0, description="distance beyond which influencers no longer repel")
        squared_hinge_ui: bool = Field(False, description="square the user-influencer hinge")
        influencer_pairs: Literal["all", "other_tracks"] = Field(
            "all", description="which influencers repel each other: those of one track, too, or of different ones alone"
        )
        per: Literal["pair", "hit"] = Field("pair", description="repulsion: mean over pairs, or sum over pairs per hit")
        log_floor: float = Field(1e-6, gt=0, description="added inside the logarithm, bounds its slope")

    counted = {
        "attraction": with_track,
        "repulsion_ui": with_hit,
        "repulsion_ii": with_hit,
        "compactness": with_track,
        "neighbours": with_track,
        "parameters": with_track,
    }

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `outputs` user and influencer [N, E] on `batch` (track [N], n_tracks [B], ptr [B + 1]).

        `neighbours` takes the outputs `space_0`, `space_1`, … [N, D], `parameters` the output of that name [N, 20] and
        the batch's truth of that name [T, 5]; InputError if an output is missing.
        """
        user, influencer = outputs["user"], outputs["influencer"]
        sums = {}
        if {"attraction", "compactness"} & self.weights.keys():
            sums["attraction"], sums["compactness"] = attraction(user, influencer, batch, self.options.log_floor)
        if self.options.attraction_form in REFERENCE and "attraction" in self.weights:
            form = REFERENCE[self.options.attraction_form]
            sums["attraction"] = form(user, influencer, batch, self.options.log_floor)
        if {"repulsion_ui", "repulsion_ii"} & self.weights.keys():
            sums["repulsion_ui"], sums["repulsion_ii"] = self.repulsion(user, influencer, batch)
        if "neighbours" in self.weights:
            sums["neighbours"] = neighbours(outputs, batch)
        if "parameters" in self.weights:
            sums["parameters"] = parameters(outputs, batch)
        return sums

    def repulsion(self, user: Tensor, influencer: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both repulsive terms, summed over events; an event without a pair in reach contributes 0."""
        options = self.options
        ui, ii = user.new_zeros(()), user.new_zeros(())
        for rows in events(batch):
            u, v, track = user[rows], influencer[rows], batch.track[rows]
            own = own_groups(track)
            if options.repulsion_ui:
                other = torch.where(track < 0, own - len(own), own)  # a hit of no track repels its own influencer, too
                sum_and_pairs = hinge_sum(Points(u, own), Points(v, other), 1.0, options.squared_hinge_ui)
                ui = ui + self.average(*sum_and_pairs, len(own))
            if options.repulsion_ii:
                group = own if options.influencer_pairs == "other_tracks" else torch.arange(len(own), device=own.device)
                ii = ii + self.average(*hinge_sum(Points(v, group), None, options.influencer_margin), len(own))
        return ui, ii

    def average(self, total: Tensor, n_pairs: int, n_hits: int) -> Tensor:
        """Mean over pairs, or sum over pairs per hit, of one event."""
        return total / max(1, n_hits if self.options.per == "hit" else n_pairs)


REFERENCE = {"scatter": attraction_scatter, "loop": attraction_loop}


def attraction(user: Tensor, influencer: Tensor, batch: Batch, log_floor: float) -> tuple[Tensor, Tensor]:
    """L+ and the users' variance, averaged over each event's tracks and summed over events, in O(N) work and memory.

    Closed form: (1/N) sum_i |U_i - I_j|^2 = |I_j - ubar|^2 + (1/N) sum_i |U_i - ubar|^2, ubar the track's mean user.
    """
    tracks = Tracks(batch)
    u, v = user[tracks.hits], influencer[tracks.hits]
    centre = tracks.mean(u)[tracks.track]
    spread = tracks.mean((u - centre).square().sum(1))
    mean_square = (v - centre).square().sum(1) + spread[tracks.track]
    return tracks.per_track(tracks.mean((mean_square + log_floor).log()).exp()), tracks.per_track(spread)
