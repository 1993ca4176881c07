"""Losses: one file a family, one line here. `loss(outputs, batch) -> {term: LossTerm(sum, count)}`, `loss.weights`."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Named, lookup, parse
from hpctrack.losses.assignment.segments import AssignmentLoss, SegmentLoss
from hpctrack.losses.classification import EdgeLoss, HitLoss, TripletLoss
from hpctrack.losses.condensation import CondensationLoss
from hpctrack.losses.contrastive import ContrastiveLoss
from hpctrack.losses.hybrid import HybridLoss
from hpctrack.losses.images.counts import CountLoss, LineBinsLoss
from hpctrack.losses.images.lines import LineLoss
from hpctrack.losses.images.seeded import SeededLoss
from hpctrack.losses.influencer import InfluencerLoss
from hpctrack.losses.metric_learning import MetricLoss
from hpctrack.losses.term import Loss, LossTerm, objective
from hpctrack.registry import Registry


class Weighted(Protocol):
    """What a forward and backward pass needs of a loss."""

    weights: dict[str, float]  # of the terms that are computed, all above 0

    def __call__(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """Each term of `weights`: its sum over the batch's events, without its weight, and their number."""


LOSSES: Registry[type[Loss]] = Registry(
    "hpctrack.losses",
    "loss",
    {
        "assignment": AssignmentLoss,
        "condensation": CondensationLoss,
        "contrastive": ContrastiveLoss,
        "count": CountLoss,
        "edges": EdgeLoss,
        "hits": HitLoss,
        "hybrid": HybridLoss,
        "influencer": InfluencerLoss,
        "line_bins": LineBinsLoss,
        "lines": LineLoss,
        "metric": MetricLoss,
        "seeded": SeededLoss,
        "segments": SegmentLoss,
        "triplets": TripletLoss,
    },
)

__all__ = ["LOSSES", "Loss", "LossTerm", "Weighted", "build_loss", "objective"]


def build_loss(config: Named) -> Loss:
    """The loss that the section `loss` names, with that loss's options; InputError names a bad key."""
    loss = lookup(LOSSES, config.name, "loss")
    return loss(parse(loss.Options, config.options, "loss", "loss"))
