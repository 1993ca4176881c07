"""What the networks on segments are made of.

The original has batch norm before each linear layer, whose statistics would make an event depend on those beside it.
Here raw inputs are standardised by fixed numbers of the recipe (buffers, no weights) with a scale and shift that are
learned, as batch norm has them; inside, layer norm takes its place. So the number of weights is the original's.

Legend: N rows, D inputs, H hidden width, T pairs of segments, K waves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpctrack.errors import InputError
from hpctrack.models.hit_geometry import Geometry
from hpctrack.models.perceptron import LayerNorm
from hpctrack.numerics import at_least_fp32

CARTESIAN = ("x", "y", "z")


class Standardised(nn.Module):
    """(x - mean) / std with numbers that are given, of the features of a hit."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], n_features: int, key: str = "model") -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (0, n_features):
                raise InputError(f"key '{key}.{name}': {len(values)} numbers for {n_features} features of a hit")
        if any(value <= 0 for value in std):
            raise InputError(f"key '{key}.std': must be above 0, got {list(std)}")
        self.register_buffer("mean", torch.tensor(list(mean) or [0.0] * n_features))
        self.register_buffer("std", torch.tensor(list(std) or [1.0] * n_features))

    def forward(self, x_NF: Tensor) -> Tensor:
        """[N, F] -> [N, F], in fp32 at least."""
        x_NF = at_least_fp32(x_NF)
        return (x_NF - self.mean.to(x_NF.dtype)) / self.std.to(x_NF.dtype)


class Places(nn.Module):
    """Picks x, y and z (m) [N, 3] out of features [N, F], by these or by r, cos_phi, sin_phi and z."""

    def __init__(self, features: Sequence[str], who: str) -> None:
        super().__init__()
        names = list(features)
        self.cartesian = [names.index(name) for name in CARTESIAN] if set(CARTESIAN) <= set(names) else None
        self.geometry = None if self.cartesian else Geometry(features, f"{who}, without {', '.join(CARTESIAN)},")

    def forward(self, x_NF: Tensor) -> Tensor:
        """In fp32 at least, without gradient."""
        if self.geometry is None:
            return at_least_fp32(x_NF.detach())[:, self.cartesian]
        r_N, phi_N, z_N, _ = self.geometry(x_NF).unbind(1)
        return torch.stack([r_N * phi_N.cos(), r_N * phi_N.sin(), z_N], dim=1)


class FoldedLinear(nn.Module):
    """A scale and a shift of each input, then a linear layer; on parts of the input one by one: W (a x + b) is a sum.

    2 D + D H + H weights, as batch norm and a linear layer have.
    """

    def __init__(self, widths: Sequence[int], out: int) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.scale, self.shift = nn.Parameter(torch.ones(sum(widths))), nn.Parameter(torch.zeros(sum(widths)))
        self.linear = nn.Linear(sum(widths), out)

    def part(self, index: int, x_ND: Tensor) -> Tensor:
        """Share [N, H] of one part; that of the bias, and of all shifts, is in part 0."""
        begin = sum(self.widths[:index])
        own = slice(begin, begin + self.widths[index])
        weight = self.linear.weight[:, own] * self.scale[own]
        bias = self.linear.bias + self.linear.weight @ self.shift if index == 0 else None
        return F.linear(x_ND.to(weight.dtype), weight, bias)


class Rest(nn.Sequential):
    """After a first linear layer: activation, norm, linear, twice; `normed`: activation and norm at the end, too."""

    def __init__(self, hidden: int, out: int, normed: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in (hidden, out):
            layers += [nn.LeakyReLU(), LayerNorm(hidden), nn.Linear(hidden, width)]
        super().__init__(*layers, *([nn.LeakyReLU(), LayerNorm(out)] if normed else []))


class Normed(nn.Sequential):
    """Layer norm, a linear layer and the rest: a read-out."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(LayerNorm(width), nn.Linear(width, hidden), *Rest(hidden, out))


def waves(angle_T: Tensor, k: int = 64, base: float = 1000.0) -> Tensor:
    """Sines and cosines of sqrt(angle), interleaved, [T, 2 K]: wave k has the frequency base^(1 - k / K).

    That is a transformer's encoding of the place 1000 sqrt(angle) with base 1000.
    """
    frequency_K = base ** (1 - torch.arange(k, dtype=angle_T.dtype, device=angle_T.device) / k)
    phase_TK = angle_T.sqrt()[:, None] * frequency_K
    return torch.stack([phase_TK.sin(), phase_TK.cos()], dim=2).flatten(1)


MOST = math.sqrt(math.pi)  # the largest sqrt(angle)


def on_grid(steps: int, like: Tensor) -> Tensor:
    """Angles whose roots are `steps` + 1 equal steps from 0 to that of pi."""
    return torch.linspace(0, MOST, steps + 1, dtype=like.dtype, device=like.device).square()


def between(table_GH: Tensor, angle_T: Tensor) -> Tensor:
    """Rows [T, H] of a table over `on_grid`, linear between its steps."""
    place_T = (angle_T.sqrt() * ((len(table_GH) - 1) / MOST)).clamp(max=len(table_GH) - 1 - 1e-3)
    low_T = place_T.long()
    share_T1 = (place_T - low_T)[:, None]
    return torch.lerp(table_GH[low_T], table_GH[low_T + 1], share_T1)


def angles(a_T3: Tensor, b_T3: Tensor) -> Tensor:
    """Angle between vectors [T, 3], 0 to pi; of a vector of length 0, 0."""
    across = torch.linalg.cross(a_T3, b_T3).norm(dim=1)
    return torch.atan2(across, (a_T3 * b_T3).sum(dim=1))
