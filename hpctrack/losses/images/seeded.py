"""How well a seed is followed through planes of pixels: cross-entropy of each plane's pixels, and two accuracies.

As in the notebooks of HEPTrkX/heptrkx-ctd: categorical cross-entropy over the pixels of a plane, averaged over planes.

Legend: N hits, M edges from seeds to hits, K of them true, B events.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.losses.term import BaseLoss, LossTerm, needed
from hpctrack.numerics import group_mean

MODEL = "a model on planes"


def true_edges(batch: Batch) -> Tensor:
    """Edges [K] whose hit is of the seed's track; InputError if hits have no graph."""
    if batch.edge_index is None:
        if batch.num_nodes:
            raise InputError("section 'loss': this loss is for edges from seeds; give data.graph: {name: seeds}")
        return batch.ptr.new_zeros(0)
    seed_M, hit_M = batch.edge_index
    return ((batch.track[seed_M] >= 0) & (batch.track[seed_M] == batch.track[hit_M])).nonzero().squeeze(1)


def with_true_edge(batch: Batch) -> int:
    """Events in which a seed's track has another hit."""
    edge_K = true_edges(batch)
    return len(torch.unique(batch.batch[batch.edge_index[0, edge_K]])) if len(edge_K) else 0


class SeededLoss(BaseLoss):
    """Term `planes`: - log of the probability of the pixel where the track is, mean over the true hits of an event's
    seeds (the plane of the seed left out), mean over events.

    Behind the seed are the planes from `seed_planes` on: accuracies are given there, and of all planes.
    """

    class Options(Section):
        """The term, and where metrics begin."""

        planes: float = Field(1.0, ge=0, description="weight of the term")
        seed_planes: int = Field(1, ge=1, description="first planes, where the track is alone: of metrics only")

    counted = {"planes": with_true_edge}
    edge_labels = False

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The term for `edge_score` [M], log-probabilities."""
        score_M, edge_K = needed(outputs, "edge_score", MODEL), true_edges(batch)
        if not len(edge_K):
            return {"planes": score_M.sum() * 0}
        event_K = batch.batch[batch.edge_index[0, edge_K]]
        size_B = torch.bincount(event_K, minlength=batch.num_graphs)
        return {"planes": -group_mean(score_M[edge_K], event_K, size_B.clamp(min=1)).sum()}

    def metrics(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Shares of true hits: `pixel_accuracy`, `hit_accuracy`, and both `_behind` the seed.

        A hit counts if its pixel is better than all others of its plane, or if it is the best of those that are on;
        hits that are equally good share what they count.
        """
        edge_K = true_edges(batch)
        score_M, best_M, plane_M = (needed(outputs, f"edge_{name}", MODEL) for name in ("score", "best", "plane"))
        right = {"pixel_accuracy": score_M > best_M, "hit_accuracy": best_of_hits(score_M, plane_M, batch)}
        behind_K = plane_M[edge_K].round() >= self.options.seed_planes
        found = {}
        for name, right_M in right.items():
            right_K = right_M[edge_K].double()
            found[name] = LossTerm(right_K.sum(), len(edge_K))
            found[f"{name}_behind"] = LossTerm(right_K[behind_K].sum(), int(behind_K.sum()))
        return found


def best_of_hits(score_M: Tensor, plane_M: Tensor, batch: Batch) -> Tensor:
    """1 where no hit of the same plane has as high a score for the same seed, 1 / n where n have, else 0, [M]."""
    if not len(score_M):
        return score_M
    key_M2 = torch.stack([batch.edge_index[0], plane_M.round().long()], dim=1)
    group_M = torch.unique(key_M2, dim=0, return_inverse=True)[1]
    most_G = score_M.new_full((int(group_M.max()) + 1,), -torch.inf)
    top_M = (score_M >= most_G.scatter_reduce(0, group_M, score_M, "amax")[group_M]).to(score_M.dtype)
    return top_M / torch.zeros_like(most_G).index_add_(0, group_M, top_M).clamp(min=1)[group_M]
