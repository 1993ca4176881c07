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


def best_other(value_M: Tensor, group_M: Tensor, n_groups: int, alone: float) -> Tensor:
    """The largest of the other values of the same group, [M]; `alone` where there is none. `group_M` [M]."""
    nothing_G = value_M.new_full((n_groups,), alone)
    best_G = nothing_G.scatter_reduce(0, group_M, value_M, "amax", include_self=False)
    is_best_M = value_M.detach() == best_G.detach()[group_M]
    number_G = torch.zeros(n_groups, dtype=torch.long, device=group_M.device).index_add_(0, group_M, is_best_M.long())
    rest_M = torch.where(is_best_M, value_M.new_full((), alone), value_M)
    second_G = nothing_G.scatter_reduce(0, group_M, rest_M, "amax", include_self=True)
    alone_best_M = is_best_M & (number_G[group_M] == 1)
    return torch.where(alone_best_M, second_G[group_M], best_G[group_M])


def group_log_softmax(logit_K: Tensor, group_K: Tensor, n_groups: int) -> Tensor:
    """Logarithm of the softmax [K] over each group's numbers, in fp32 at least; `group_K` [K]: 0 to n_groups - 1."""
    logit_K = at_least_fp32(logit_K)
    most_G = logit_K.new_full((n_groups,), -torch.inf).scatter_reduce(0, group_K, logit_K.detach(), "amax")
    above_K = logit_K - most_G[group_K]
    return above_K - group_sum(above_K.exp(), group_K, n_groups)[group_K].log()


def _fp64_sum(values: Tensor, group: Tensor, n_groups: int) -> Tensor:
    total = values.new_zeros((n_groups, *values.shape[1:]), dtype=torch.float64)
    return total.index_add(0, group, values.double())


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Products in the type of their operands, on the device of `x`: for sums over hits, which fp16 cannot hold."""
    return torch.autocast(x.device.type, enabled=False)
