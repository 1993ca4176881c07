"""Directions in the space of weights along which a loss is looked at: those of the largest curvature, or random ones.

Filter-normalised as in H. Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, here tensor by
tensor: a tensor of the direction is as long as that of the weights. P: number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hpctrack.parallel.collectives import broadcast_tensor
from hpctrack.parallel.env import Env


@dataclass(frozen=True)
class Leading:
    """An eigenvector [P] of length 1, its eigenvalue, and how the iteration ended."""

    vector_P: Tensor
    value: float
    iterations: int
    converged: bool


def leading_directions(
    product: Callable[[Tensor], Tensor], starts: Sequence[Tensor], iterations: int, tolerance: float
) -> list[Leading]:
    """Eigenvectors of the symmetric matrix that `product` multiplies with, of the largest absolute eigenvalues.

    By power iteration, each orthogonal to those before it, from `starts` [P]. It ends when the eigenvalue changes by no
    more than `tolerance` of itself, or after so many `iterations`.
    """
    found: list[Leading] = []
    for start in starts:
        found.append(_leading(product, start, [one.vector_P for one in found], iterations, tolerance=tolerance))
    return found


def _leading(
    product: Callable[[Tensor], Tensor], start: Tensor, others: Sequence[Tensor], iterations: int, *, tolerance: float
) -> Leading:
    vector = unit(beside(start, others))
    value, before = 0.0, None
    for done in range(1, iterations + 1):
        image = beside(product(vector), others)
        value = float(vector @ image)
        if not bool(image.any()):  # flat: every vector is as good
            return Leading(vector, 0.0, done, True)
        vector = unit(image)
        if before is not None and abs(value - before) <= tolerance * abs(value):
            return Leading(vector, value, done, True)
        before = value
    return Leading(vector, value, iterations, False)


def beside(vector: Tensor, others: Sequence[Tensor]) -> Tensor:
    """What is orthogonal to unit vectors; twice, for what rounding leaves."""
    for other in [*others, *others]:
        vector = vector - (vector @ other) * other
    return vector


def unit(vector: Tensor) -> Tensor:
    """The vector with length 1; zeros stay zeros."""
    return vector / vector.norm().clamp(min=torch.finfo(vector.dtype).tiny)


def random_vector(like: Tensor, seed: int, number: int) -> Tensor:
    """Normal numbers, the same on every device and in every precision."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + number) % 2**63)
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def normalised(direction_P: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """The direction, each tensor of it as long as that of the weights; none where the weights are zero."""
    parts = []
    for part, weight in zip(direction_P.split([one.numel() for one in parameters]), parameters, strict=True):
        parts.append(unit(part) * weight.detach().norm())
    return torch.cat(parts)


def sum_in_order(pieces: int, compute: Callable[[int], Tensor], like: Tensor, env: Env) -> Tensor:
    """Sum of `compute(k)` [P] over all pieces in their order, on every rank: each computes its share.

    The sum is the same, bit for bit, on any number of ranks.
    """
    total = torch.zeros_like(like)
    for first in range(0, pieces, env.world):
        k = first + env.rank
        own = compute(k) if k < pieces else torch.zeros_like(like)
        for rank in range(min(env.world, pieces - first)):
            total = total + broadcast_tensor(own, rank, env)
    return total
