"""The two other forms of the influencer loss's attraction: slow, plain, for tests and the benchmark.

Both give L+ of `influencer.attraction` (D. Murnane, "Influencer Loss", CHEP 2023), averaged over an event's tracks and
summed over events, on N hits with E embedding dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.losses.tracks import Tracks


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
