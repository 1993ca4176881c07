"""Standard output and error of a verb: closed, full or unable to show a letter, they never end it in a traceback."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from hpctrack.errors import EXIT_MACHINE, EXIT_PIPE

PLAIN = {"±": "+-", "–": "-", "—": "-", "−": "-", "…": "...", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "Δ": "Delta"}


class OutputLost(OSError):
    """Standard output cannot be written."""


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Stand-ins for letters that a terminal's encoding lacks."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(PLAIN.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


codecs.register_error("hpctrack", _plain)


class Output:
    """Standard output, which raises OutputLost where it cannot be written.

    For a verb that saves (`saving`), which is to end in good order, it only remembers why in `lost`; what is said from
    then on goes to standard error.
    """

    def __init__(self, stream: TextIO, saving: bool) -> None:
        self.stream, self.saving = stream, saving
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        """As a text file's."""
        if self.lost is None:
            try:
                return self.stream.write(text)
            except OSError as error:
                self._lose(error)
        return sys.stderr.write(text)

    def flush(self) -> None:
        """As a text file's."""
        if self.lost is None:
            try:
                self.stream.flush()
            except OSError as error:
                self._lose(error)

    def code(self) -> int:
        """Exit code of a verb that had no other reason to end: 0, or why the output was lost."""
        return 0 if self.lost is None else EXIT_PIPE if self.lost.errno == errno.EPIPE else EXIT_MACHINE

    def why(self) -> str:
        """Why the output was lost, for people."""
        closed = self.code() == EXIT_PIPE
        return "standard output is closed" if closed else f"standard output: {self.lost and self.lost.strerror}"

    def give_up(self) -> None:
        """The verb has ended by something else: what it has said goes out if it can, and no word of it if it cannot."""
        self.saving = True
        self.flush()

    def _lose(self, error: OSError) -> None:
        self.lost = error
        silence(self.stream)
        if not self.saving:
            raise OutputLost(error.errno, error.strerror) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class Errors:
    """Standard error, which drops what it cannot write: nobody could be told."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """As a text file's."""
        try:
            return self.stream.write(text)
        except OSError:
            silence(self.stream)
            return len(text)

    def flush(self) -> None:
        """As a text file's."""
        try:
            self.stream.flush()
        except OSError:
            silence(self.stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def silence(stream: TextIO) -> None:
    """Let a file that cannot be written lead nowhere: what it still holds is written again when Python ends."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def lost_output() -> Output | None:
    """Standard output of this verb, if it is lost."""
    return sys.stdout if isinstance(sys.stdout, Output) and sys.stdout.lost else None


@contextlib.contextmanager
def guarded(saving: bool) -> Iterator[Output]:
    """Standard output and error of a verb for its time; the output, which knows whether it was lost."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        out, err = (stream or stack.enter_context(open(os.devnull, "w")) for stream in before)
        for stream in (out, err):
            stack.enter_context(_any_letter(stream))
        sys.stdout, sys.stderr = Output(out, saving), Errors(err)
        try:
            yield sys.stdout
        finally:
            sys.stdout, sys.stderr = before


@contextlib.contextmanager
def _any_letter(stream: TextIO) -> Iterator[None]:
    """Print letters that the stream's encoding lacks as others."""
    if not hasattr(stream, "reconfigure"):
        yield
        return
    before = stream.errors
    stream.reconfigure(errors="hpctrack")
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            stream.reconfigure(errors=before)


def open_closed() -> None:
    """Let closed standard files lead nowhere, so that no data file takes their number and what is said with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number that is free
