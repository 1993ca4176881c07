"""Which hits of a batch belong to which track, and means over tracks and over events.

Legend: N hits in the batch, M hits that belong to a track, T tracks in the batch, B events.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch


class Tracks:
    """`hits` [M]: rows of the hits on tracks; `track` [M]: their tracks; `size` [T]: hits; `event` [T]: its event."""

    def __init__(self, batch: Batch) -> None:
        self.n_tracks = batch.n_tracks
        first_track = self.n_tracks.cumsum(0) - self.n_tracks
        self.hits = (batch.track >= 0).nonzero().squeeze(1)
        self.track = (batch.track + first_track[batch.batch])[self.hits]
        self.event = torch.repeat_interleave(torch.arange(len(self.n_tracks), device=self.track.device), self.n_tracks)
        self.size = torch.bincount(self.track, minlength=len(self.event))

    def mean(self, values: Tensor) -> Tensor:
        """Mean of values [M, …] over each track, [T, …], added up in fp64."""
        total = values.new_zeros((len(self.size), *values.shape[1:]), dtype=torch.float64)
        total = total.index_add(0, self.track, values.double())
        return (total / self.size.view(-1, *[1] * (values.dim() - 1))).to(values.dtype)

    def per_track(self, values_T: Tensor) -> Tensor:
        """Values of tracks, averaged over each event's tracks and summed over events."""
        return (values_T / self.n_tracks[self.event]).sum()

    def per_hit(self, values_M: Tensor) -> Tensor:
        """Values of hits on tracks, averaged over each event's such hits and summed over events."""
        event = self.event[self.track]
        return (values_M / torch.bincount(event, minlength=len(self.n_tracks))[event]).sum()


def own_groups(track_N: Tensor) -> Tensor:
    """The tracks [N] of an event's hits, where each hit of no track is a group of its own, numbered from -1 down."""
    return torch.where(track_N < 0, -1 - torch.arange(len(track_N), device=track_N.device), track_N)
