"""What ranks tell each other, and what one rank does for all; with one process each is the identity."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from hpctrack.errors import EXIT_INPUT, EXIT_MACHINE, InputError, MachineError
from hpctrack.parallel.env import Env

T = TypeVar("T")


def all_sum(values: Sequence[float], env: Env) -> list[float]:
    """Element-wise sum over ranks, in float64."""
    return _reduce(values, dist.ReduceOp.SUM, env)


def all_max(values: Sequence[float], env: Env) -> list[float]:
    """Element-wise maximum over ranks, in float64."""
    return _reduce(values, dist.ReduceOp.MAX, env)


def broadcast(value: T, env: Env) -> T:
    """Rank 0's value, a picklable object, on every rank."""
    if env.backend is None:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=env.device)
    return box[0]


def broadcast_tensor(value: torch.Tensor, source: int, env: Env) -> torch.Tensor:
    """The tensor that rank `source` has; those of the other ranks are of the same shape and type."""
    if env.backend is None:
        return value
    box = value.clone()
    dist.broadcast(box, src=source)
    return box


def gather(value: T, env: Env) -> list[T]:
    """Every rank's value, a picklable object, on every rank."""
    if env.backend is None:
        return [value]
    box: list[T] = [value] * env.world
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


# ---------------------------------------------- what one rank does for all: if it refuses, it says so and all ranks end


@contextlib.contextmanager
def on_main(enter: Callable[[], contextlib.AbstractContextManager[T]], env: Env) -> Iterator[T | None]:
    """Hold a context on rank 0 while all ranks work; its value there, None on the others."""
    held: list[T] = []
    with contextlib.ExitStack() as stack:
        run_on_main(lambda: held.append(stack.enter_context(enter())), env)
        yield held[0] if held else None


def run_on_main(action: Callable[[], T], env: Env) -> T:
    """What `action` returns on rank 0, on all ranks; what it raises is raised there, and the others end in silence."""
    result, refusal = _result_or_error(action) if env.is_main else (None, None)
    result, code = broadcast((result, _code(refusal)), env)
    _end_together(refusal, code)
    return cast("T", result)  # without one, all have ended


def run_on_all(action: Callable[[], T], env: Env) -> list[T]:
    """What `action` returns on each rank, in order, on all ranks; what it raises is raised there, the others end."""
    result, refusal = _result_or_error(action)
    results, codes = zip(*gather((result, _code(refusal)), env), strict=True)
    _end_together(refusal, max(codes))
    return list(results)


def _result_or_error(action: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return action(), None
    except (InputError, MachineError, OSError) as error:
        return None, error


def _code(refusal: Exception | None) -> int:
    return 0 if refusal is None else EXIT_INPUT if isinstance(refusal, InputError) else EXIT_MACHINE


def _end_together(refusal: Exception | None, code: int) -> None:
    if refusal is not None:
        raise refusal
    if code:
        raise SystemExit(code)
