"""What one rank does for all, or each for all others; if it refuses, it says so and all ranks end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hpctrack.errors import EXIT_INPUT, EXIT_MACHINE, InputError, MachineError
from hpctrack.parallel.collectives import broadcast, gather
from hpctrack.parallel.env import Env

T = TypeVar("T")


@contextlib.contextmanager
def on_main(enter: Callable[[], contextlib.AbstractContextManager[T]], env: Env) -> Iterator[T | None]:
    """Hold a context on rank 0 while all ranks work; its value there, None on the others."""
    held: list[T] = []
    with contextlib.ExitStack() as stack:
        run_on_main(lambda: held.append(stack.enter_context(enter())), env)
        yield held[0] if held else None


def run_on_main(action: Callable[[], Any], env: Env) -> Any:
    """What `action` returns on rank 0, on all ranks; what it raises is raised there, and the others end in silence."""
    result, refusal = _attempt(action) if env.is_main else (None, None)
    result, code = broadcast((result, _code(refusal)), env)
    _end_together(refusal, code)
    return result


def run_on_all(action: Callable[[], Any], env: Env) -> list[Any]:
    """What `action` returns on each rank, in order, on all ranks; what it raises is raised there, the others end."""
    result, refusal = _attempt(action)
    results, codes = zip(*gather((result, _code(refusal)), env), strict=True)
    _end_together(refusal, max(codes))
    return list(results)


def _attempt(action: Callable[[], Any]) -> tuple[Any, Exception | None]:
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
