"""Models: one file a family, one line here. `forward(batch) -> dict of tensors` on a PyG Batch of whole events."""

from __future__ import annotations

from typing import Any

from torch import nn

from hpctrack.config import Named, lookup, parse
from hpctrack.models.influencer import InfluencerModel

MODELS: dict[str, Any] = {"influencer": InfluencerModel}


def build_model(config: Named, n_features: int, recompute: str = "none") -> nn.Module:
    """The model that the section `model` names, with that model's options; InputError names a bad key."""
    model = lookup(MODELS, config.name, "model")
    return model(n_features, parse(model.Options, config.options, "model", "model"), recompute)
