"""What rank 0 does alone while the others wait for its word; if it refuses, it says so and all ranks end."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from hpctrack.errors import EXIT_INPUT, EXIT_MACHINE, InputError, MachineError
from hpctrack.parallel.collectives import broadcast
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
    result, refusal = None, None
    if env.is_main:
        try:
            result = action()
        except (InputError, MachineError, OSError) as error:
            refusal = error
    code = 0 if refusal is None else EXIT_INPUT if isinstance(refusal, InputError) else EXIT_MACHINE
    result, code = broadcast((result, code), env)
    if refusal is not None:
        raise refusal
    if code:
        raise SystemExit(code)
    return result
