"""Errors that users see, their exit codes, and what a machine has run out of; docs/explanation/errors.md lists all."""

from __future__ import annotations

import errno

EXIT_MACHINE, EXIT_INPUT, EXIT_PREEMPTED = 1, 2, 85
EXIT_PIPE = 141  # 128 + SIGPIPE: what shells say of a program whose reader has gone
MEMORY = "memory"
SHORT_OF = {  # what libraries say in errors that have no type of their own
    "can't allocate memory": MEMORY,
    "cannot allocate memory": MEMORY,
    "failed to map segment": MEMORY,
    "out of memory": MEMORY,
    "bad_alloc": MEMORY,
    "too many open files": "file numbers (ulimit -n)",
    "can't start new thread": "threads or memory",
}


class InputError(ValueError):
    """Input that cannot be used: one line that names file, event, row or key, and what would be right."""


class MachineError(RuntimeError):
    """A fault of the machine, not of the input: a full disk, a lost rank, exhausted memory."""


def lacking(error: BaseException) -> str | None:
    """What the machine has run out of, by the word of Python, torch or the loader: MEMORY, say; None if nothing."""
    if isinstance(error, MemoryError):
        return MEMORY
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        return SHORT_OF["too many open files"]
    if isinstance(error, (RuntimeError, ImportError)):
        return next((what for text, what in SHORT_OF.items() if text in words_of(error).lower()), None)
    return None


def words_of(error: BaseException) -> str:
    """What a library says in an error, or in the first cause of one that does not load."""
    return str(first_cause(error) if isinstance(error, ImportError) else error)


def first_cause(error: BaseException) -> BaseException:
    """What an error was raised from."""
    return error if error.__cause__ is None else first_cause(error.__cause__)
