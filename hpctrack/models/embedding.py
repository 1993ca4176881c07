"""Models that embed each hit: a backbone and heads.

`influencer`: each hit as a user and as an influencer, and, if wanted, a score that it is on a target at all, and an
estimate of the track's parameters at the perigee with their covariance. `embedding`: once, for contrastive learning.
`condensation`: for object condensation.

Legend: N hits, F features, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from hpctrack.events.perigee import SCALES
from hpctrack.models.backbones import BackboneModel
from hpctrack.models.hit_geometry import Geometry
from hpctrack.models.perceptron import Exact, two_layers
from hpctrack.numerics import group_mean
from hpctrack.storage.schema import ESTIMATE

LOG_BOUND = 7.0  # of the logarithm of an uncertainty in units of SCALES: between 1/1100 and 1100 of them


class ParameterHead(nn.Module):
    """Mean and covariance of a Gaussian in (q/pT, phi, theta, d0, z0), [N, 5 + 5 + 10] at least in fp32.

    The mean, in 1/GeV, rad, rad, mm, mm, is what the hit alone says (its own phi, the theta of a line from the origin,
    and zeros) plus SCALES times the network's output, so that turning an event turns the estimate. The covariance is
    given by what makes deviations r / SCALES white, diag(exp(l)) (1 + A): 5 logarithms l, bounded smoothly, and 10
    elements of the strictly lower triangular A, row by row (modified Cholesky: M. Pourahmadi, Biometrika 86 (1999)).
    """

    def __init__(self, features: Sequence[str], width: int) -> None:
        super().__init__()
        self.geometry = Geometry(features, "model.parameters")
        self.network = Exact(*two_layers(width, width, len(ESTIMATE)))

    def forward(self, h_NH: Tensor, x_NF: Tensor) -> Tensor:
        """The estimate [N, 20] of hits with hidden states `h_NH` and features `x_NF`."""
        r, phi, z, _ = self.geometry(x_NF).unbind(1)
        raw = self.network(h_NH).to(r.dtype)
        zero = torch.zeros_like(r)
        guess = torch.stack([zero, phi, torch.atan2(r, z), zero, zero], dim=1)
        mean = guess + raw.new_tensor(SCALES) * raw[:, :5]
        return torch.cat([mean, LOG_BOUND * torch.tanh(raw[:, 5:10] / LOG_BOUND), raw[:, 10:]], dim=1)


def representatives(user: Tensor, influencer: Tensor, group: Tensor, size: Tensor) -> Tensor:
    """Of each of G groups of hits (tracks, candidates), which hit stands for it: rows among M, [G].

    It is the first one whose influencer [M, E] is nearest to the mean of the group's users [M, E]. A track's parameters
    are those estimated at this hit, in training as in inference. `group` [M]; `size` [G], at least one hit each.
    """
    square_M = (influencer - group_mean(user, group, size)[group]).square().sum(1)
    nearest_first = square_M.argsort(stable=True)
    by_group = nearest_first[group[nearest_first].argsort(stable=True)]
    return by_group[size.cumsum(0) - size]


# ------------------------------------------------------------------------------------------------ one embedding


class EmbeddingModel(BackboneModel):
    """Output `embedding` [N, E] of every hit: the baseline of D. Murnane, "Influencer Loss" (CHEP 2023)."""

    def __init__(self, features: Sequence[str], options: BackboneModel.Options) -> None:
        super().__init__(features, options, ("embedding",))


class CondensationModel(BackboneModel):
    """Outputs `embedding` [N, E] and `beta` [N, 1], as a logit, of every hit (J. Kieseler, arXiv 2002.03329)."""

    def __init__(self, features: Sequence[str], options: BackboneModel.Options) -> None:
        super().__init__(features, options, ("embedding",), {"beta": 1})


# ------------------------------------------------------------------------------------------------ users and influencers


class InfluencerModel(BackboneModel):
    """Outputs `user` and `influencer` [N, E] of every hit (D. Murnane, "Influencer Loss", CHEP 2023).

    With `hit_score`, besides `hit_score` [N], a logit: whether the hit is on a target. With `parameters`, besides
    `parameters` [N, 20]: track parameters and their covariance (models/embedding.py).
    """

    class Options(BackboneModel.Options):
        """The space in which users and influencers meet, and what is estimated besides."""

        hit_score: bool = Field(False, description="score whether a hit is on a target, which loss.hits trains")
        parameters: bool = Field(False, description="estimate track parameters, which loss.parameters trains")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options, ("user", "influencer"), {"hit_score": 1} if options.hit_score else None)
        self.parameter_head = ParameterHead(features, self.backbone.width) if options.parameters else None

    def read(self, h_NH: Tensor, x_NF: Tensor) -> dict[str, Tensor]:
        """`user`, `influencer` and, if wanted, `hit_score` and `parameters`."""
        outputs = super().read(h_NH, x_NF)
        if "hit_score" in outputs:
            outputs["hit_score"] = outputs["hit_score"].squeeze(1)
        if self.parameter_head is not None:
            outputs["parameters"] = self.parameter_head(h_NH, x_NF)
        return outputs
