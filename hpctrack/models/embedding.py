"""Models that embed each hit once: for contrastive learning, and for object condensation."""

from __future__ import annotations

from collections.abc import Sequence

from hpctrack.models.backbones import BackboneModel


class EmbeddingModel(BackboneModel):
    """Output `embedding` [N, E] of every hit: the baseline of D. Murnane, "Influencer Loss" (CHEP 2023)."""

    def __init__(self, features: Sequence[str], options: BackboneModel.Options) -> None:
        super().__init__(features, options, ("embedding",))


class CondensationModel(BackboneModel):
    """Outputs `embedding` [N, E] and `beta` [N, 1], as a logit, of every hit (J. Kieseler, arXiv 2002.03329)."""

    def __init__(self, features: Sequence[str], options: BackboneModel.Options) -> None:
        super().__init__(features, options, ("embedding",), {"beta": 1})
