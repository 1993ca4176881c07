"""The influencer loss (D. Murnane, "Influencer Loss: End-to-end Geometric Representation Learning for Track
Reconstruction", CHEP 2023), attraction in closed form; and the likelihood of track parameters that may go with it.

The attraction L+ has three forms that agree: the closed one, which training uses, and two plain, slow ones for tests
and the benchmark, averaged over an event's tracks and summed over events. The likelihood is that of the true track
parameters under the Gaussian that a model gives at each hit (models/embedding.py).

Legend: N hits in the batch, E embedding dimensions, T tracks in the batch, B events, M hits that belong to a track.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.events import perigee
from hpctrack.events.perigee import PHI, SCALES
from hpctrack.losses.classification import Classes, hits
from hpctrack.losses.pairs import Points, SpaceWeight, hits_of_events, neighbours
from hpctrack.losses.term import (
    BaseLoss,
    Tracks,
    needed,
    parameter_groups,
    with_hit,
    with_track,
)
from hpctrack.models.embedding import representatives
from hpctrack.models.hit_geometry import wrapped

OUTLIER_SIGMA = 5.0  # beyond, the loss rises linearly: a Gaussian in five dimensions does so for 1 of 7,000 tracks
ROWS, COLS = torch.tril_indices(5, 5, -1)


def parameters(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Negative log-likelihood, averaged over each event's tracks and summed over events.

    Half of a track's weight is on its representative, the hit whose influencer is nearest to the track's mean user,
    since that hit's estimate is what inference takes; half is spread evenly over its hits, so that the estimate is
    trained at every hit from the beginning, when representatives change from step to step. A choice has no slope: the
    likelihood does not pull at the embedding. InputError if the model has no output `parameters` [N, 20].
    """
    if "parameters" not in outputs:
        raise InputError("loss.parameters: the model has no output 'parameters'; set model.parameters, or weight 0")
    tracks = Tracks(batch)
    user, influencer, estimate = (outputs[name][tracks.hits] for name in ("user", "influencer", "parameters"))
    nll_M = gaussian_nll(estimate, batch.parameters.to(estimate.dtype)[tracks.track])
    division, every = tracks.division, tracks
    if division is not None:
        every = Tracks(division.whole)
        user, influencer = (division.collect(outputs[name].detach())[every.hits] for name in ("user", "influencer"))
    chosen_T = representatives(user.detach(), influencer.detach(), every.track, every.size)
    return tracks.per_track((tracks.mean(nll_M) + tracks.pick(nll_M, chosen_T)) / 2)


def gaussian_nll(estimate: Tensor, truth: Tensor) -> Tensor:
    """Negative log-likelihood [M], up to a constant, of `truth` [M, 5] under `estimate` [M, 20]; phi is wrapped.

    With r the deviation in units of SCALES and z = diag(exp(l)) (1 + A) r: |z|^2 / 2 - sum l, and beyond OUTLIER_SIGMA
    the straight line that continues it, so that a track from a far decay does not outweigh all others.
    """
    deviation = estimate[:, :5] - truth
    columns = [wrapped(column) if i == PHI else column for i, column in enumerate(deviation.unbind(1))]
    r = torch.stack(columns, dim=1) / deviation.new_tensor(SCALES)
    log, factor = estimate[:, 5:10], estimate.new_zeros(len(estimate), 5, 5)
    factor[:, ROWS, COLS] = estimate[:, 10:]
    square = ((r + (factor @ r.unsqueeze(2)).squeeze(2)) * log.exp()).square().sum(1)
    size = square.clamp(min=OUTLIER_SIGMA**2).sqrt()
    return torch.minimum(square, OUTLIER_SIGMA * (2 * size - OUTLIER_SIGMA)) / 2 - log.sum(1)


# ------------------------------------------------------------------------------------------- attraction, slow and plain


def attraction_loop(user: Tensor, influencer: Tensor, batch: Batch, log_floor: float) -> Tensor:
    """Track by track: exp((1/N) sum_j ln((1/N) sum_i |U_i - I_j|^2)) as it is written."""
    total = (user.sum() + influencer.sum()) * 0
    for event, n_tracks in enumerate(batch.n_tracks.tolist()):
        for track in range(n_tracks):
            members = (batch.batch == event) & (batch.track == track)
            square = (user[members, None] - influencer[None, members]).square().sum(2)
            total = total + (square.mean(0) + log_floor).log().mean().exp() / n_tracks
    return total


def attraction_scatter(user: Tensor, influencer: Tensor, batch: Batch, log_floor: float) -> Tensor:
    """The paper's form: all (user, influencer) pairs of a track, then sums by influencer and by track."""
    tracks = Tracks(batch)
    i, j = pairs_of_groups(tracks.track)
    square = (user[tracks.hits[i]] - influencer[tracks.hits[j]]).square().sum(1)
    mean_square = square.new_zeros(len(tracks.hits)).index_add(0, j, square) / tracks.size[tracks.track]
    return tracks.per_track(tracks.mean((mean_square + log_floor).log()).exp())


def pairs_of_groups(group: Tensor) -> tuple[Tensor, Tensor]:
    """Index vectors of all ordered pairs (i, j), i = j among them, with group[i] == group[j]."""
    order = group.argsort(stable=True)
    _, size = torch.unique_consecutive(group[order], return_counts=True)
    start = (size.cumsum(0) - size).repeat_interleave(size)  # of the group of each sorted element
    partners = size.repeat_interleave(size)
    i = torch.arange(len(group), device=group.device).repeat_interleave(partners)
    within = torch.arange(len(i), device=group.device) - (partners.cumsum(0) - partners).repeat_interleave(partners)
    return order[i], order[start[i] + within]


# ------------------------------------------------------------------------------------------------ the loss


class InfluencerLoss(BaseLoss):
    """Attract users and influencers of a track, repel users and influencers of different ones, thin out influencers.

    Terms, each the mean over the events that have it:
    - `attraction`  L+(a) = exp((1/N) sum_j ln((1/N) sum_i |U_i - I_j|^2)), mean over the event's tracks;
    - `repulsion_ui`  max(0, 1 - |U_i - I_j|) over pairs of different tracks within radius 1;
    - `repulsion_ii`  max(0, margin - |I_i - I_j|) over pairs i != j within the margin;
    - `compactness`  mean squared distance of a track's users from their mean, mean over tracks (not in the paper);
    - `neighbours`  trains the spaces in which a backbone looks for neighbours (losses/pairs.py; not in the paper);
    - `hits`  whether a hit is on a target, cross-entropy, mean over hits (losses/classification.py; not in the paper);
    - `parameters`  likelihood of the track parameters, mean over tracks (losses/influencer.py; not in the paper).
    Noise hits belong to no track: they only repel. Memory is O(N E), however many pairs repel each other.
    """

    class Options(Section):
        """Weights and variants; the defaults are the paper's."""

        attraction: float = Field(1.0, ge=0, description="weight of L+")
        repulsion_ui: float = Field(1.0, ge=0, description="weight a: efficiency against purity")
        repulsion_ii: float = Field(1.0, ge=0, description="weight b: efficiency against duplicates")
        compactness: float = Field(0.0, ge=0, description="weight of the users' variance")
        neighbours: SpaceWeight = 0.0
        hits: float = Field(0.0, ge=0, description="weight of the score that a hit is on a target (model.hit_score)")
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

    COLUMNS = {"parameters": tuple(perigee.COLUMNS)}
    counted = {
        "attraction": with_track,
        "repulsion_ui": with_hit,
        "repulsion_ii": with_hit,
        "compactness": with_track,
        "neighbours": with_track,
        "hits": with_hit,
        "parameters": with_track,
    }

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `outputs` user and influencer [N, E] on `batch` (track [N], n_tracks [B], ptr [B + 1]).

        `neighbours` takes the outputs `space_0`, `space_1`, … [N, D], `hits` the output `hit_score` [N], `parameters`
        the output of that name [N, 20] and the batch's truth of that name [T, 5]; InputError if an output is missing.
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
        if "hits" in self.weights:
            sums["hits"] = hits(needed(outputs, "hit_score", "model.hit_score"), batch, Classes())
        if "parameters" in self.weights:
            sums["parameters"] = parameters(outputs, batch)
        return sums

    @property
    def divisible(self) -> bool:  # type: ignore[override]  # by its options
        """Whether it can take a rank's part of an event: L+ in its closed form, not in those written for comparison."""
        return self.options.attraction_form not in REFERENCE or "attraction" not in self.weights

    def repulsion(self, user: Tensor, influencer: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Both repulsive terms, summed over events; an event without a pair in reach contributes 0."""
        options = self.options
        ui, ii = user.new_zeros(()), user.new_zeros(())
        for event in hits_of_events(batch):
            v, track, weight = event.every(influencer), event.track, event.weight
            own = parameter_groups(track)
            if options.repulsion_ui:
                other = torch.where(track < 0, own - len(own), own)  # a hit of no track repels its own influencer, too
                users, influencers = event.own(user, own), Points(v, other, weight)
                sum_and_pairs = event.between(users, influencers, 1.0, options.squared_hinge_ui)
                ui = ui + self.average(*sum_and_pairs, len(own))
            if options.repulsion_ii:
                group = own if options.influencer_pairs == "other_tracks" else torch.arange(len(own), device=own.device)
                sum_and_pairs = event.within(Points(v, group, weight), options.influencer_margin)
                ii = ii + self.average(*sum_and_pairs, len(own))
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
    variance = tracks.mean((u - centre).square().sum(1))
    mean_square = (v - centre).square().sum(1) + variance[tracks.track]
    return tracks.per_track(tracks.mean((mean_square + log_floor).log()).exp()), tracks.per_track(variance)
