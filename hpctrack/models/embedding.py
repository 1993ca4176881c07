"""Models that embed each hit once: for contrastive learning, and for object condensation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from hpctrack.config import Section
from hpctrack.models.backbones import BackboneModel


class EmbeddingModel(BackboneModel):
    """Output `embedding` [N, E] of every hit: the baseline of D. Murnane, "Influencer Loss" (CHEP 2023)."""

    class Options(Section):
        """Embedding and backbone; `backbone` takes a name and that backbone's own options."""

        embedding: int = Field(8, ge=1, description="dimensions of the space in which a track's hits meet")
        backbone: dict[str, Any] = {"name": "neighbours"}

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options.backbone, {"embedding": options.embedding})


class CondensationModel(BackboneModel):
    """Outputs `embedding` [N, E] and `beta` [N, 1], as a logit, of every hit (J. Kieseler, arXiv 2002.03329)."""

    Options = EmbeddingModel.Options

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options.backbone, {"embedding": options.embedding, "beta": 1})
