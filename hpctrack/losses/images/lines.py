"""Straight tracks that a model gives in slots, against the true ones: lines, covariance, presence, hits.

A true track is in the slot of its rank by intercept, or in the one that a least-cost matching gives it (H. W. Kuhn,
Naval Research Logistics Quarterly 2 (1955); N. Carion et al., arXiv 2005.12872). Slots without a track count in
`presence` alone.

Legend: B events, T tracks in the batch, S slots of an event, N hits.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.events import lines as true_lines
from hpctrack.losses.term import BaseLoss, every, finite_lines, needed, real, with_hit, with_track
from hpctrack.numerics import group_mean, group_sum

GIVEN = "a model that gives lines in slots (captioning, track_queries)"
LEAST = 1e-3  # of the diagonal of a covariance's Cholesky factor, pixels
FLOOR = -30.0  # of logarithms of probabilities in the cost of a matching


class LineLoss(BaseLoss):
    """Terms of lines in slots; each is a mean over events.

    `lines`: squared deviation of (intercept, slope times `lever`), mean of the two. `likelihood`: negative
    log-likelihood of the same two under a Gaussian. Both are summed over an event's tracks, and divided by its slots,
    so that every track counts the same, or averaged over its tracks. `presence`: cross-entropy of whether a slot has a
    track, mean over slots. `hits`: cross-entropy of the slot that a hit belongs to, mean over hits.
    """

    class Options(Section):
        """Weights, and which slot a track belongs to."""

        lines: float = Field(1.0, ge=0, description="weight of the term")
        likelihood: float = Field(0.0, ge=0, description="weight of the term, which trains covariances as well")
        presence: float = Field(0.0, ge=0, description="weight of the term")
        hits: float = Field(0.0, ge=0, description="weight of the term")
        slots: Literal["sorted", "matched"] = Field(
            "sorted",
            description="a track's slot: its rank by intercept, or that of a least-cost matching",
        )
        per: Literal["track", "event"] = Field(
            "track", description="tracks of all events count alike in lines and likelihood, or events do"
        )
        lever: float = Field(25.0, gt=0, description="planes; a slope times it counts as much as an intercept")

    COLUMNS = {name: tuple(true_lines.COLUMNS) for name in ("lines", "likelihood", "presence", "hits")}
    counted = {
        "lines": with_track,
        "likelihood": with_track,
        "presence": every,
        "hits": with_hit,
    }
    of_tracks = ("lines",)

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The terms for `event_lines` [B, 2 S] and, as far as they have a weight, those of models/images.

        `event_covariance` [B, 3 S]; `event_presence` [B, S], logits; `hit_slot` [N, S + 1], logits, the last: no track.
        """
        line_BS2 = needed(outputs, "event_lines", GIVEN).unflatten(1, (-1, 2))
        tracks = TracksInSlots(batch, line_BS2.shape[1])
        found_BS2, true_T2 = self.scaled(line_BS2), self.scaled(finite_lines(batch)[:, [0, 2]].to(line_BS2.dtype))
        slot_T = tracks.by_rank(true_T2[:, 0])
        if self.options.slots == "matched":
            slot_T = tracks.matched(self.costs(outputs, found_BS2, true_T2, tracks))
        deviation_T2 = found_BS2[tracks.event, slot_T] - true_T2
        sums = {"lines": self.over_tracks(deviation_T2.square().mean(1), tracks)}
        if "likelihood" in self.weights:
            raw_BS3 = needed(outputs, "event_covariance", "model.covariance").unflatten(1, (-1, 3))
            sums["likelihood"] = self.over_tracks(gaussian_nll(deviation_T2, raw_BS3[tracks.event, slot_T]), tracks)
        if "presence" in self.weights:
            logit_BS = needed(outputs, "event_presence", "model.presence")
            there_BS = torch.zeros_like(logit_BS).index_put((tracks.event, slot_T), logit_BS.new_ones(()))
            loss_B = F.binary_cross_entropy_with_logits(logit_BS, there_BS, reduction="none").mean(1)
            sums["presence"] = (loss_B * real(batch)).sum()
        if "hits" in self.weights:
            score_ND = needed(outputs, "hit_slot", "model.hits")
            loss_N = F.cross_entropy(score_ND, tracks.slot_of_hits(slot_T, batch), reduction="none")
            size_B = batch.ptr.diff()
            sums["hits"] = group_mean(loss_N, batch.batch, size_B.clamp(min=1)).sum()
        return sums

    def scaled(self, line: Tensor) -> Tensor:
        """Intercepts and slopes [..., 2] as they are compared."""
        return line * line.new_tensor([1.0, self.options.lever])

    def over_tracks(self, values_T: Tensor, tracks: TracksInSlots) -> Tensor:
        """Values of tracks, summed over events as `per` says."""
        if self.options.per == "track":
            return values_T.sum() / tracks.slots
        return group_mean(values_T, tracks.event, tracks.number.clamp(min=1)).sum()

    @torch.no_grad()
    def costs(
        self, outputs: dict[str, Tensor], found_BS2: Tensor, true_T2: Tensor, tracks: TracksInSlots
    ) -> np.ndarray:
        """What it would cost to have each track in each slot of its event, [T, S]: the weighted terms that differ."""
        weights, event_T = self.weights, tracks.event
        cost_TS = weights.get("lines", 0.0) * (found_BS2[event_T] - true_T2[:, None]).square().mean(2)
        if "presence" in weights:
            cost_TS = cost_TS - weights["presence"] * needed(outputs, "event_presence", "model.presence")[event_T]
        if "hits" in weights:
            log_NS = needed(outputs, "hit_slot", "model.hits").log_softmax(1)[:, :-1].clamp(min=FLOOR)
            of_M = tracks.of_hits[tracks.of_hits >= 0]
            sum_TS = group_sum(log_NS[tracks.of_hits >= 0], of_M, len(event_T))
            size_T1 = torch.bincount(of_M, minlength=len(event_T)).clamp(min=1).unsqueeze(1)
            cost_TS = cost_TS - weights["hits"] * sum_TS / size_T1
        return cost_TS.cpu().double().numpy()


class TracksInSlots:
    """The true tracks of a batch: `event` [T], `number` [B] of each event, `of_hits` [N]: of T, or -1; `slots`: S.

    InputError for an event with more tracks than slots.
    """

    def __init__(self, batch: Batch, slots: int) -> None:
        self.slots, self.number = slots, batch.n_tracks
        if len(self.number) and int(self.number.max()) > slots:
            k = int(self.number.argmax())
            raise InputError(
                f"event {int(batch.event_id[k])} has {int(self.number[k])} tracks, but the model has {slots} slots; "
                "raise model.slots"
            )
        self.event = torch.repeat_interleave(torch.arange(len(self.number), device=self.number.device), self.number)
        self.first = self.number.cumsum(0) - self.number
        self.of_hits = torch.where(batch.track >= 0, batch.track + self.first[batch.batch], -1)

    def by_rank(self, value_T: Tensor) -> Tensor:
        """Place [T] of each track in its event, by increasing value."""
        order = value_T.argsort(stable=True)
        order = order[self.event[order].argsort(stable=True)]
        rank_T = torch.empty_like(order)
        rank_T[order] = torch.arange(len(order), device=order.device) - self.first[self.event]
        return rank_T

    def matched(self, cost_TS: np.ndarray) -> Tensor:
        """Slots [T] of least cost in all, each of one track at most."""
        slot_T, bounds = np.zeros(len(cost_TS), dtype=np.int64), [0, *self.number.cumsum(0).tolist()]
        for first, last in zip(bounds[:-1], bounds[1:], strict=True):
            slot_T[first:last] = linear_sum_assignment(cost_TS[first:last])[1]
        return torch.from_numpy(slot_T).to(self.event.device)

    def slot_of_hits(self, slot_T: Tensor, batch: Batch) -> Tensor:
        """The slot of each hit's track [N]; S for a hit of none."""
        slots = torch.full_like(self.of_hits, self.slots)
        on_track = self.of_hits >= 0
        slots[on_track] = slot_T[self.of_hits[on_track]]
        return slots


def cholesky(raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Lower triangular L (l11, l21, l22), each [...], with covariance L L', of three free numbers [..., 3].

    The diagonal is softplus(raw) + LEAST: no covariance is singular, and its determinant is the product of the squares.
    """
    first, below, second = raw.unbind(-1)
    return F.softplus(first) + LEAST, below, F.softplus(second) + LEAST


def whitened(deviation: Tensor, raw: Tensor) -> Tensor:
    """L^-1 times deviations [..., 2]: its square is the Mahalanobis distance, chi-square of 2 if all is right."""
    first, below, second = cholesky(raw)
    z = deviation[..., 0] / first
    return torch.stack([z, (deviation[..., 1] - below * z) / second], dim=-1)


def gaussian_nll(deviation: Tensor, raw: Tensor) -> Tensor:
    """Half of log|Sigma| + r' Sigma^-1 r, of deviations r [..., 2] and three free numbers [..., 3] that give Sigma."""
    first, _, second = cholesky(raw)
    return first.log() + second.log() + whitened(deviation, raw).square().sum(-1) / 2
