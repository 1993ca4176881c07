"""A loss for the spaces in which a backbone looks for each hit's neighbours, since the search itself has no gradient.

Legend: N hits in the batch, D dimensions of a space, M hits that belong to a track.
"""

from __future__ import annotations

from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.errors import InputError
from hpctrack.losses.pairs import Points, hinge_sum
from hpctrack.losses.term import events
from hpctrack.losses.tracks import Tracks

TRACK_RADIUS = 0.25  # within it a hit is not pulled: hits of a track then are nearer (0.5) than those of others (1)


def neighbours(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Metric-learning loss on `space_0`, `space_1`, … [N, D], per hit of a track, summed over events and spaces.

    Each hit x of a track with mean m is pulled by max(0, |x - m|^2 - TRACK_RADIUS^2) and pushes every hit y of no or
    another track by max(0, 1 - |x - y|)^2. At zero all hits of a track are nearer to each other than to any other hit,
    so that a search for k neighbours finds them all if the track has up to k + 1. The mean, not the next hit on the
    track, is what all of them can meet at; it costs O(N). Hits of no track do not push each other: no search starts
    from the hope to find them, and there may be many. InputError if there is no such output.
    """
    spaces = [outputs[name] for name in sorted(outputs) if name.startswith("space_")]
    if not spaces:
        raise InputError(
            "loss.neighbours: the model has no outputs space_0, space_1, …; set the weight to 0, or take a "
            "backbone that looks for neighbours in a space it learns"
        )
    tracks = Tracks(batch)
    total = spaces[0].new_zeros(())
    for space_ND in spaces:
        x_MD = space_ND[tracks.hits]
        square_M = (x_MD - tracks.mean(x_MD)[tracks.track]).square().sum(1)
        pull = tracks.per_hit((square_M - TRACK_RADIUS**2).clamp(min=0))
        total = total + pull + push_others(space_ND, batch)
    return total


def push_others(space_ND: Tensor, batch: Batch) -> Tensor:
    """Squared hinge from hits on tracks to all hits of other tracks or none, per hit on a track, summed over events."""
    total = space_ND.new_zeros(())
    for rows in events(batch):
        x_nD, track = space_ND[rows], batch.track[rows]
        member = track >= 0
        on_tracks, others = Points(x_nD[member], track[member]), Points(x_nD[~member], track[~member])
        push = sum(hinge_sum(on_tracks, points, 1.0, squared=True)[0] for points in (None, others))
        total = total + push / max(1, len(on_tracks.x))
    return total
