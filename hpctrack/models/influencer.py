"""The influencer model: a backbone and two heads that embed each hit as a user and as an influencer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from hpctrack.config import Section
from hpctrack.models.backbones import BackboneModel


class InfluencerModel(BackboneModel):
    """Outputs `user` and `influencer` [N, E] of every hit (D. Murnane, "Influencer Loss", CHEP 2023)."""

    class Options(Section):
        """Embedding and backbone; `backbone` takes a name and that backbone's own options."""

        embedding: int = Field(8, ge=1, description="dimensions of the space in which users and influencers meet")
        backbone: dict[str, Any] = {"name": "neighbours"}

    def __init__(self, features: Sequence[str], options: Options) -> None:
        heads = {"user": options.embedding, "influencer": options.embedding}
        super().__init__(features, options.backbone, heads)
