"""How a verb begins and ends: one clear line and the right exit code; docs/explanation/errors.md has them all."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType

from hpctrack.errors import (
    EXIT_INPUT,
    EXIT_MACHINE,
    EXIT_PIPE,
    SHORT_OF,
    InputError,
    MachineError,
    first_cause,
    lacking,
    words_of,
)
from hpctrack.process import signals, streams

LONGEST = 300  # characters of a library's words in a line of ours
Main = Callable[[Sequence[str] | None], int | None]  # of a verb: arguments (None: the process's) -> exit code


def verb(name: str) -> Callable:
    """Decorate a verb's `main(argv) -> int | None` so that it ends with one clear line and the right exit code.

    InputError -> exit 2; MachineError, OSError (full disk, no permission, I/O error) and lack of memory -> exit 1; a
    signal -> 128 + its number, or 85 (signals.py); standard output that is closed -> 141, without a line. Anything else
    is a bug and keeps its traceback.
    """

    def decorate(main: Main) -> Callable[[Sequence[str] | None], int]:
        @functools.wraps(main)
        def wrapped(argv: Sequence[str] | None = None) -> int:
            with streams.guarded(name in signals.SAVING) as output, _threads() as ended, signals.raising(name):
                try:
                    code = _flushed(main, argv, output)
                except SystemExit:
                    raise
                except BaseException as error:
                    known = exit_code_of(name, error)
                    output.give_up()
                    if known is None:
                        raise
                    code = known
                if not code:  # a verb has gone on to its end all the same
                    for words in [*ended, *([output.why()] if output.lost else [])]:
                        print(f"{signals.line_prefix(name)}: {words}", file=sys.stderr)
                return code or output.code()

        return wrapped

    return decorate


def _flushed(main: Main, argv: Sequence[str] | None, output: streams.Output) -> int:
    """The exit code of `main`, once what it has said is out."""
    try:
        code = main(argv) or 0
    except SystemExit:  # argparse has spoken
        output.flush()
        raise
    output.flush()
    return code


@contextlib.contextmanager
def _threads() -> Iterator[list[str]]:
    """What has ended a library's thread that the machine failed (TensorBoard's writer on a full disk), in words.

    They are for the end: mostly the verb fails of the same thing, and says so in its one line.
    """
    ended: list[str] = []

    def hook(about: threading.ExceptHookArgs) -> None:
        error, words = about.exc_value, None
        if error is not None:
            words = out_of(error) or (str(error) if isinstance(error, OSError) else None)
        if words is None:
            threading.__excepthook__(about)
        else:
            ended.append(f"a thread has ended: {' '.join(words.split())}")

    before, threading.excepthook = threading.excepthook, hook
    try:
        yield ended
    finally:
        threading.excepthook = before


def exit_code_of(name: str, error: BaseException) -> int | None:
    """Say in one line how verb `name` ends by `error`; its exit code, or None (and no line) for a bug."""
    if isinstance(error, streams.OutputLost):
        if error.errno == errno.EPIPE:
            return EXIT_PIPE
        return _end(name, f"standard output: {error.strerror}", EXIT_MACHINE)
    if isinstance(error, KeyboardInterrupt):
        number = error.number if isinstance(error, signals.Interrupted) else signal.SIGINT
        print(signals.last_words(name, number), file=sys.stderr, flush=True)
        return signals.exit_code(name, number)
    if isinstance(error, InputError):
        return _end(name, str(error), EXIT_INPUT)
    if isinstance(error, MachineError):
        return _end(name, str(error), EXIT_MACHINE)
    if words := out_of(error):
        return _end(name, words, EXIT_MACHINE)
    return _end(name, str(error), EXIT_MACHINE) if isinstance(error, OSError) else None


def out_of(error: BaseException) -> str | None:
    """The same as a line: what, where, and in whose words."""
    what, words = lacking(error), words_of(error)
    if what == SHORT_OF["too many open files"]:
        what += f", which is {resource.getrlimit(resource.RLIMIT_NOFILE)[0]}"
    return what and f"out of {what}{_place(error)}{f': {words[:LONGEST]}' if words else ''}"


def _place(error: BaseException) -> str:
    """The innermost function of the package that `error` went through, as ` in hpctrack.storage.store.read`."""
    place = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.startswith("hpctrack.") and module not in ("hpctrack.errors", __name__):
            place = f" in {module}.{frame.f_code.co_name}"
    return place


def _end(name: str, words: str, code: int) -> int:
    print(f"{signals.line_prefix(name)}: error: {' '.join(words.split())}", file=sys.stderr, flush=True)
    return code


def begin(name: str) -> None:
    """Until verb `name` has been imported: signals and lack of memory are one line, too."""
    streams.open_closed()
    signals.end_at_once(name)

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        begun = any(frame.f_globals.get("__name__") == __name__ for frame, _ in traceback.walk_tb(trace))
        if not begun and limit != resource.RLIM_INFINITY:  # libraries fail in many ways then
            words = f"{type(first_cause(error)).__name__}: {first_cause(error)}"[:LONGEST]
            _end(name, f"its libraries do not load within `ulimit -v {limit >> 10}` ({words})", EXIT_MACHINE)
            os._exit(EXIT_MACHINE)  # the end of Python would fail in as many
        if begun or exit_code_of(name, error) is None:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = hook
