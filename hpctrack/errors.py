"""Errors that users see, and how a verb ends: 0 done, 1 fault of the machine, 2 bad input, 85 preempted."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Sequence

EXIT_MACHINE = 1
EXIT_INPUT = 2
EXIT_PREEMPTED = 85


class InputError(ValueError):
    """Input that cannot be used: one line that names file, event, row or key, and what would be right."""


class MachineError(RuntimeError):
    """A fault of the machine, not of the input: a full disk, a lost rank, exhausted memory."""


def verb(name: str) -> Callable:
    """Decorate a verb's `main(argv) -> int | None` so that it ends with one clear line and the right exit code.

    InputError -> exit 2; MachineError and OSError (full disk, no permission, I/O error) -> exit 1;
    anything else is a bug and keeps its traceback.
    """

    def decorate(main: Callable[[Sequence[str] | None], int | None]) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv) or 0
            except InputError as error:
                return _end(name, error, EXIT_INPUT)
            except (MachineError, OSError) as error:
                return _end(name, error, EXIT_MACHINE)

        return wrapped

    return decorate


def _end(name: str, error: Exception, code: int) -> int:
    rank = (
        f" [rank {os.environ['RANK']}]" if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ else ""
    )
    print(f"hpctrack {name}{rank}: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return code
