"""The influencer model: a backbone and two heads that embed each hit as a user and as an influencer.

A third head, if wanted, estimates track parameters.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor

from hpctrack.models.backbones import BackboneModel
from hpctrack.models.parameters import ParameterHead


class InfluencerModel(BackboneModel):
    """Outputs `user` and `influencer` [N, E] of every hit (D. Murnane, "Influencer Loss", CHEP 2023).

    With `parameters`, besides `parameters` [N, 20]: track parameters and their covariance (models/parameters.py).
    """

    class Options(BackboneModel.Options):
        """The space in which users and influencers meet, and what is estimated besides."""

        parameters: bool = Field(False, description="estimate track parameters, which loss.parameters trains")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options, ("user", "influencer"))
        self.parameter_head = ParameterHead(features, self.backbone.width) if options.parameters else None

    def read(self, h_NH: Tensor, x_NF: Tensor) -> dict[str, Tensor]:
        """`user`, `influencer` and, if wanted, `parameters`."""
        outputs = super().read(h_NH, x_NF)
        if self.parameter_head is not None:
            outputs["parameters"] = self.parameter_head(h_NH, x_NF)
        return outputs
