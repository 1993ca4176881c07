"""What a model says of a whole event: how many tracks there are, or which bins of line parameters have one.

Legend: B events, T tracks in the batch, Q bins.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.events import lines as true_lines
from hpctrack.losses.term import BaseLoss, every, finite_lines, needed, real


class CountLoss(BaseLoss):
    """Term `count`: cross-entropy of an event's number of tracks."""

    class Options(Section):
        """The weight."""

        count: float = Field(1.0, ge=0, description="weight of the term")

    counted = {"count": every}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The term for `event_count` [B, most + 1], logits; InputError for an event with more tracks."""
        score = needed(outputs, "event_count", "the model 'track_counting'")
        if int(batch.n_tracks.max()) >= score.shape[1]:
            k = int(batch.n_tracks.argmax())
            raise InputError(
                f"event {int(batch.event_id[k])} has {int(batch.n_tracks[k])} tracks, but the model counts to "
                f"{score.shape[1] - 1}; raise model.most"
            )
        return {"count": (F.cross_entropy(score, batch.n_tracks, reduction="none") * real(batch)).sum()}


class LineBinsLoss(BaseLoss):
    """Term `bins`: cross-entropy of whether a bin of intercept and slope has a track, mean over an event's bins."""

    class Options(Section):
        """The weight, and what bins are of."""

        bins: float = Field(1.0, ge=0, description="weight of the term")
        columns: int = Field(64, ge=1, description="pixels; intercepts are from 0 to it")
        planes: int = Field(64, ge=1, description="slopes are within columns / planes of 0")

    COLUMNS = {"bins": tuple(true_lines.COLUMNS)}
    counted = {"bins": every}
    of_tracks = ("lines",)

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The term for `event_bins` [B, Q], logits, slopes fastest; lines beyond the range are in the last bins."""
        score_BQ = needed(outputs, "event_bins", "the model 'line_bins'")
        true_BQ = self.true_bins(batch, math.isqrt(score_BQ.shape[1])).to(score_BQ.dtype)
        loss_B = F.binary_cross_entropy_with_logits(score_BQ, true_BQ, reduction="none").mean(1)
        return {"bins": (loss_B * real(batch)).sum()}

    def true_bins(self, batch: Batch, bins: int) -> Tensor:
        """Which bins have a track, bool [B, Q]."""
        steepest = self.options.columns / self.options.planes
        line_T4 = finite_lines(batch)
        share_T2 = torch.stack([line_T4[:, 0] / self.options.columns, (line_T4[:, 2] / steepest + 1) / 2], dim=1)
        bin_T2 = (share_T2 * bins).long().clamp(0, bins - 1)
        event_T = torch.repeat_interleave(torch.arange(batch.num_graphs, device=bin_T2.device), batch.n_tracks)
        true_BQ = torch.zeros(batch.num_graphs, bins**2, dtype=torch.bool, device=bin_T2.device)
        true_BQ[event_T, bin_T2[:, 0] * bins + bin_T2[:, 1]] = True
        return true_BQ
