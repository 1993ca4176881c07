"""Where hits are, read back from model inputs, and what two hits say together about a track through both.

Legend: N hits in the batch, M pairs, P pair features.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hpctrack.errors import InputError
from hpctrack.numerics import at_least_fp32

NEEDED = ("r", "cos_phi", "sin_phi", "z")  # features, scaled as events/features.py does: r and z in m
PAIR_FEATURES = 10
NEAR_M = 0.01  # slopes over less than this are damped


class Geometry(nn.Module):
    """Picks the coordinates [N, 4] (r, phi, z, eta) out of features [N, F]; InputError if a feature is missing."""

    def __init__(self, features: Sequence[str], who: str) -> None:
        super().__init__()
        missing = [name for name in NEEDED if name not in features]
        if missing:
            raise InputError(f"key 'data.features': {who} needs {', '.join(NEEDED)}; missing: {', '.join(missing)}")
        self.columns = [list(features).index(name) for name in NEEDED]

    def forward(self, x_NF: Tensor) -> Tensor:
        """(r in m, phi, z in m, eta), at least fp32, without gradient."""
        x = at_least_fp32(x_NF.detach())
        r, cos, sin, z = (x[:, column] for column in self.columns)
        return torch.stack([r, torch.atan2(sin, cos), z, torch.asinh(z / r.clamp(min=1e-3))], dim=1)


def on_circle(place_N4: Tensor, radius: float) -> Tensor:
    """radius (cos phi, sin phi) [N, 2] of hits at `place_N4`: hits of far azimuths are apart, without learning."""
    phi_N = place_N4[:, 1]
    return radius * torch.stack([phi_N.cos(), phi_N.sin()], dim=1)


def pair_features(a: Tensor, b: Tensor) -> Tensor:
    """[..., P] of pairs of hits with coordinates `a` and `b` [..., 4] as of Geometry, all of order one.

    Differences in r, phi, z, eta; distance; slopes dphi/dr (half the curvature of a track from the beam line, per m),
    dphi/dz, dz/dr and dr/dz; the intercept z0 of the line through both hits with the beam line.
    """
    r, z = a[..., 0], a[..., 2]
    dr, turn, dz, deta = (b - a).unbind(-1)
    dphi = wrapped(turn)
    over_dr = dr / (dr.square() + NEAR_M**2)
    over_dz = dz / (dz.square() + NEAR_M**2)
    z0 = z - r * dz * over_dr
    transverse = dr.square() + 4 * r * b[..., 0] * (dphi / 2).sin().square()
    slopes = torch.stack([2 * dphi * over_dr, 2 * dphi * over_dz, dz * over_dr, dr * over_dz, 10 * z0], dim=-1)
    distance = 4 * (transverse + dz.square() + 1e-12).sqrt()
    differences = torch.stack([4 * dr, 8 * dphi, 2 * dz, deta, distance], dim=-1)
    return torch.cat([differences, inverse_sinh(slopes)], dim=-1)


def wrapped(angle: Tensor) -> Tensor:
    """Angles in [-pi, pi)."""
    return torch.remainder(angle + torch.pi, 2 * torch.pi) - torch.pi


def inverse_sinh(x: Tensor) -> Tensor:
    """asinh(x), with operations that are vectorised on CPUs and that ONNX has."""
    size = x.abs()
    return (size + (size.square() + 1).sqrt()).log() * x.sign()
