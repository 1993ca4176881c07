"""The few things ranks tell each other; with one process each is the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from hpctrack.parallel.env import Env


def all_sum(values: Sequence[float], env: Env) -> list[float]:
    """Element-wise sum over ranks, in float64."""
    return _reduce(values, dist.ReduceOp.SUM, env)


def all_max(values: Sequence[float], env: Env) -> list[float]:
    """Element-wise maximum over ranks, in float64."""
    return _reduce(values, dist.ReduceOp.MAX, env)


def broadcast(value: Any, env: Env) -> Any:
    """Rank 0's value, a picklable object, on every rank."""
    if env.backend is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=env.device)
    return box[0]


def gather(value: Any, env: Env) -> list[Any]:
    """Every rank's value, a picklable object, on every rank."""
    if env.backend is None:
        return [value]
    box: list[Any] = [None] * env.world
    dist.all_gather_object(box, value)
    return box


def barrier(env: Env) -> None:
    """Return when every rank has come here."""
    if env.backend is not None:
        dist.barrier()


def _reduce(values: Sequence[float], operation: Any, env: Env) -> list[float]:
    if env.backend is None:
        return [float(value) for value in values]
    tensor = torch.tensor(values, dtype=torch.float64, device=env.device)
    dist.all_reduce(tensor, operation)
    return tensor.tolist()
