"""Likelihood of the true track parameters under the Gaussian that a model gives at each hit (models/parameters.py).

Legend: N hits in the batch, M hits that belong to a track, T tracks in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.data.perigee import PHI, SCALES
from hpctrack.errors import InputError
from hpctrack.losses.tracks import Tracks

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
    nll_M = gaussian(estimate, batch.parameters.to(estimate.dtype)[tracks.track])
    chosen_T = representatives(user.detach(), influencer.detach(), tracks)
    return tracks.per_track((tracks.mean(nll_M) + nll_M[chosen_T]) / 2)


def representatives(user: Tensor, influencer: Tensor, tracks: Tracks) -> Tensor:
    """Of each track, which of its M hits has its influencer [M, E] nearest to the mean of its users [M, E]; [T]."""
    square_M = (influencer - tracks.mean(user)[tracks.track]).square().sum(1)
    nearest_first = square_M.argsort(stable=True)
    by_track = nearest_first[tracks.track[nearest_first].argsort(stable=True)]
    return by_track[tracks.size.cumsum(0) - tracks.size]


def gaussian(estimate: Tensor, truth: Tensor) -> Tensor:
    """Negative log-likelihood [M], up to a constant, of `truth` [M, 5] under `estimate` [M, 20]; phi is wrapped.

    With r the deviation in units of SCALES and z = diag(exp(l)) (1 + A) r: |z|^2 / 2 - sum l, and beyond OUTLIER_SIGMA
    the straight line that continues it, so that a track from a far decay does not outweigh all others.
    """
    deviation = estimate[:, :5] - truth
    turn = torch.remainder(deviation[:, PHI] + torch.pi, 2 * torch.pi) - torch.pi
    columns = [turn if i == PHI else column for i, column in enumerate(deviation.unbind(1))]
    r = torch.stack(columns, dim=1) / deviation.new_tensor(SCALES)
    log, factor = estimate[:, 5:10], estimate.new_zeros(len(estimate), 5, 5)
    factor[:, ROWS, COLS] = estimate[:, 10:]
    square = ((r + (factor @ r.unsqueeze(2)).squeeze(2)) * log.exp()).square().sum(1)
    size = square.clamp(min=OUTLIER_SIGMA**2).sqrt()
    return torch.minimum(square, OUTLIER_SIGMA * (2 * size - OUTLIER_SIGMA)) / 2 - log.sum(1)
