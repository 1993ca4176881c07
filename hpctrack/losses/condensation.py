"""Object condensation (J. Kieseler, "Object condensation", arXiv 2002.03329, 2020).

Legend: N hits in the batch, n hits of one event, E embedding dimensions, K tracks of one event.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.losses.pairs import EventHits, Points, SpaceWeight, hits_of_events, neighbours
from hpctrack.losses.term import BaseLoss, labels, with_track


def with_noise(batch: Batch) -> int:
    """Events that have a hit of no track."""
    whole = labels(batch)
    return len(torch.unique(whole.batch[whole.track < 0]))


class CondensationLoss(BaseLoss):
    """Charges from beta; each track's largest charge, its condensation point, attracts its hits and repels the others.

    With q = arctanh(beta)^2 + q_min and alpha the hit with the largest charge of a track, terms, each the mean over the
    events that have it:
    - `attraction`  (1/n) sum_j q_j q_alpha |x_j - x_alpha|^2 over hits j and their track's alpha (equations 4, 6);
    - `repulsion`  (1/n) sum_j q_j q_alpha max(0, 1 - |x_j - x_alpha|) over hits j and all other tracks' alphas (5, 6);
    - `beta`  1 - beta_alpha, mean over tracks (first part of 8);
    - `noise`  beta of hits of no track, mean over them (second part of 8, there weighted by s_B);
    - `neighbours`  trains the spaces in which a backbone looks for neighbours (losses/pairs.py; not in the paper).
    """

    class Options(Section):
        """Weights; all 1 and noise s_B is the paper's loss without a payload."""

        attraction: float = Field(1.0, ge=0, description="weight of the pull towards a track's condensation point")
        repulsion: float = Field(1.0, ge=0, description="weight of the push away from other tracks' points")
        beta: float = Field(1.0, ge=0, description="weight of the term by which each track has a hit of high beta")
        noise: float = Field(1.0, ge=0, description="weight of the term that lowers the beta of noise, s_B")
        neighbours: SpaceWeight = 0.0
        q_min: float = Field(0.5, gt=0, description="charge of a hit with beta 0")

    divisible = True
    counted = {
        "attraction": with_track,
        "repulsion": with_track,
        "beta": with_track,
        "noise": with_noise,
        "neighbours": with_track,
    }

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `outputs` embedding [N, E] and beta [N, 1], a logit, on `batch` (track [N], n_tracks, ptr)."""
        x_NE, logit_N = outputs["embedding"], outputs["beta"].squeeze(1)
        sums = dict.fromkeys(("attraction", "repulsion", "beta", "noise"), x_NE.new_zeros(()))
        for event in hits_of_events(batch):
            for name, value in self.event(event.every(x_NE), event.every(logit_N), event).items():
                sums[name] = sums[name] + value
        if "neighbours" in self.weights:
            sums["neighbours"] = neighbours(outputs, batch)
        return sums

    def event(self, x_nE: Tensor, logit_n: Tensor, event: EventHits) -> dict[str, Tensor]:
        """The terms of one event; those it has. Ranks that hold it together share its pairs, one adds up the rest."""
        found, track_n = {}, event.track
        weight_n = x_nE.new_ones(len(x_nE)) if event.weight is None else event.weight.to(x_nE.dtype)
        member = track_n >= 0
        if not bool(member.all()):
            found["noise"] = event.once(logit_n[~member].sigmoid().mean())
        if bool(member.any()):
            q_n = charge(logit_n, self.options.q_min) * weight_n
            alpha_K = condensation_points(logit_n.detach(), track_n)
            at_K, q_K = x_nE[alpha_K], q_n[alpha_K]
            own = track_n[member]
            square = (x_nE[member] - at_K[own]).square().sum(1)
            found["attraction"] = event.once((q_n[member] * q_K[own] * square).sum() / len(x_nE))
            points, alphas = Points(x_nE, track_n, q_n), Points(at_K, track_n[alpha_K], q_K)
            mine = event.mine(points, torch.ones_like(member))
            found["repulsion"] = event.between(alphas, mine, 1.0)[0] / len(x_nE)
            weight_K = weight_n[alpha_K].square()
            found["beta"] = event.once((weight_K * (1 - logit_n[alpha_K].sigmoid())).sum() / weight_K.sum())
        return found


def charge(logit: Tensor, q_min: float) -> Tensor:
    """arctanh(beta)^2 + q_min for beta = sigmoid(logit), finite for all: arctanh(beta) = ln(1 + 2 e^logit) / 2."""
    return (0.5 * F.softplus(logit + math.log(2))).square() + q_min


def condensation_points(logit_n: Tensor, track_n: Tensor) -> Tensor:
    """Row [K] of the largest logit of each track 0 … K - 1; of equals the first."""
    by_logit = torch.argsort(logit_n, descending=True, stable=True)
    order = by_logit[torch.argsort(track_n[by_logit], stable=True)]
    _, size = torch.unique_consecutive(track_n[order], return_counts=True)
    first = size.cumsum(0) - size
    rows = order[first]
    return rows[track_n[rows] >= 0]
