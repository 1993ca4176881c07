"""A head that estimates track parameters at the perigee from every hit of the track, with their covariance.

Legend: N hits, F features, H hidden dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpctrack.data.perigee import SCALES
from hpctrack.data.schema import ESTIMATE
from hpctrack.models.geometry import Geometry
from hpctrack.models.perceptron import Exact, two_layers

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
