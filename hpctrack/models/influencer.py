"""The influencer model: a backbone and two heads that embed each hit as a user and as an influencer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Named, Section, lookup, parse
from hpctrack.models.transformer import TransformerBackbone

BACKBONES: dict[str, Any] = {"transformer": TransformerBackbone}


class InfluencerModel(nn.Module):
    """User and influencer embedding of every hit (D. Murnane, "Influencer Loss", CHEP 2023)."""

    class Options(Section):
        """Embedding and backbone; `backbone` takes a name and that backbone's own options."""

        embedding: int = Field(8, ge=1, description="dimensions of the space in which users and influencers meet")
        backbone: dict[str, Any] = {"name": "transformer"}

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.n_features = len(features)
        named = parse(Named, options.backbone, "model", "model.backbone")
        backbone = lookup(BACKBONES, named.name, "model.backbone")
        self.backbone = backbone(features, parse(backbone.Options, named.options, "model", "model.backbone"))
        width = self.backbone.width
        self.user = head(width, options.embedding)
        self.influencer = head(width, options.embedding)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`user` and `influencer`, both [N, E], from `batch.x` [N, F] and the events' bounds `batch.ptr` [B + 1]."""
        h_NH = self.backbone(batch.x, batch.ptr.diff().tolist())
        return {"user": self.user(h_NH), "influencer": self.influencer(h_NH)}

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """The backbone's memory modes (models/memory.py)."""
        return self.backbone.memory_modes

    def set_memory(self, mode: str) -> None:
        """Memory mode of the following forward passes."""
        self.backbone.set_memory(mode)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of events by their numbers of hits, up to a factor; edges play no part."""
        return self.backbone.relative_cost(hits)


def head(width: int, out: int) -> nn.Sequential:
    """Two-layer perceptron [N, width] -> [N, out]."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, out))
