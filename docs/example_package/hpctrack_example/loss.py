"""Pull hits to the centre of their track, push centres apart (B. De Brabandere et al., arXiv:1708.02551).

Legend: N hits in the batch; n hits of an event that belong to a track, t its tracks; E embedding dimensions.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch
from torch_geometric.nn import global_mean_pool

from hpctrack.config import Section
from hpctrack.losses.term import BaseLoss, events, with_track


class PullPushLoss(BaseLoss):
    """Terms `pull` and `push`, of every event that has a track. A term is the sum over events, never a mean."""

    class Options(Section):
        """The keys of the section `loss`: a weight for each term, and the margin."""

        pull: float = Field(1.0, ge=0, description="weight of the term that pulls hits to their track's centre")
        push: float = Field(1.0, ge=0, description="weight of the term that pushes centres apart")
        margin: float = Field(1.0, gt=0, description="centres further apart are not pushed")

    counted = {"pull": with_track, "push": with_track}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Both terms of `outputs` embedding [N, E], summed over events."""
        zero = outputs["embedding"].new_zeros(())
        pull, push = [zero], [zero]
        for rows in events(batch):
            x_nE, track_n = self.on_tracks(outputs["embedding"][rows], batch.track[rows])
            if len(x_nE):
                centre_tE = global_mean_pool(x_nE, track_n)
                pull.append((x_nE - centre_tE[track_n]).square().sum(dim=1).mean())
                if len(centre_tE) > 1:
                    push.append((self.options.margin - torch.pdist(centre_tE)).clamp(min=0).square().mean())
        return {"pull": torch.stack(pull).sum(), "push": torch.stack(push).sum()}

    @staticmethod
    def on_tracks(x: Tensor, track: Tensor) -> tuple[Tensor, Tensor]:
        """The hits that belong to a track (the others have -1), and their tracks, from 0."""
        return x[track >= 0], track[track >= 0]
