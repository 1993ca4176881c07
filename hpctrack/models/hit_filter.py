"""Hit filter: whether each hit is a target's, so that what comes behind need not see the others.

After the filter of S. Van Stroud et al., "Transformers for charged particle track reconstruction in high energy
physics" (arXiv 2411.07149).

Legend: N hits, H hidden dimensions, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from hpctrack.models.backbones import HeadModel


class HitFilter(HeadModel):
    """Output `hit_score` [N], a logit, of every hit: whether it is a target's."""

    def __init__(self, features: Sequence[str], options: HeadModel.Options) -> None:
        super().__init__(features, options, {"hit_score": 1})

    def read(self, h_NH: Tensor, x_NF: Tensor) -> dict[str, Tensor]:
        """`hit_score`."""
        return {"hit_score": super().read(h_NH, x_NF)["hit_score"].squeeze(1)}
