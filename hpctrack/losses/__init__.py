"""Losses: one file a family, one line here. `loss(outputs, batch) -> {term: LossTerm(sum, count)}`, `loss.weights`."""

from __future__ import annotations

from typing import Any

from torch import nn

from hpctrack.config import Named, lookup, parse
from hpctrack.losses.classification import EdgeLoss, TripletLoss
from hpctrack.losses.condensation import CondensationLoss
from hpctrack.losses.contrastive import ContrastiveLoss
from hpctrack.losses.hybrid import HybridLoss
from hpctrack.losses.influencer import InfluencerLoss
from hpctrack.losses.metric_learning import MetricLoss
from hpctrack.losses.term import LossTerm

LOSSES: dict[str, Any] = {
    "condensation": CondensationLoss,
    "contrastive": ContrastiveLoss,
    "edges": EdgeLoss,
    "hybrid": HybridLoss,
    "influencer": InfluencerLoss,
    "metric": MetricLoss,
    "triplets": TripletLoss,
}

__all__ = ["LOSSES", "LossTerm", "build_loss"]


def build_loss(config: Named) -> nn.Module:
    """The loss that the section `loss` names, with that loss's options; InputError names a bad key."""
    loss = lookup(LOSSES, config.name, "loss")
    return loss(parse(loss.Options, config.options, "loss", "loss"))
