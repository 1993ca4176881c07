"""The precision in which is computed what low precision would spoil."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32 at least, whatever precision a model runs in: for losses, distances, softmax and sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def group_sum(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    """Sum of values [M, …] over each of G groups, [G, …]; `group` [M]. Added up in fp64: fp32 would stop at 10^7."""
    return _fp64_sum(values, group, n_groups).to(values.dtype)


def group_mean(values: Tensor, group: Tensor, size: Tensor) -> Tensor:
    """Mean of values [M, …] over each of G groups, [G, …], added up in fp64; `group` [M], `size` [G]."""
    total = _fp64_sum(values, group, len(size))
    return (total / size.view(-1, *[1] * (values.dim() - 1))).to(values.dtype)


def _fp64_sum(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    total = values.new_zeros((n_groups, *values.shape[1:]), dtype=torch.float64)
    return total.index_add(0, group, values.double())


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Products in the type of their operands, on the device of `x`: for sums over hits, which fp16 cannot hold."""
    return torch.autocast(x.device.type, enabled=False)
