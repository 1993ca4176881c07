"""No hang: a run in which nothing has finished for `parallel.timeout_s` says where each of its ranks stands, and ends.

A rank that waits for ever (for a peer, a disk, a lock) cannot say so itself; a thread beside it does.
"""

from __future__ import annotations

import faulthandler
import math
import os
import threading
import time

from hpctrack.errors import EXIT_MACHINE
from hpctrack.parallel.env import Env
from hpctrack.process.signals import STDERR

LAST_RESORT_S = 5.0  # after the timeout; for code that never lets go of the interpreter
OTHERS_S = 2.0  # the other ranks say where they are before the loss of this one ends them


class Watchdog:
    """`feed(at)` says that the run goes on, and where; the first call arms it, the end of the context disarms it.

    After `timeout_s` seconds without a call, the stacks of all threads go to standard error and the process ends with
    exit code 1. All ranks wait for the one that hangs, so all of them do so, at about the same time. `key` sets it.
    """

    def __init__(self, timeout_s: float, env: Env, key: str = "parallel.timeout_s") -> None:
        self.timeout_s, self.rank, self.key = timeout_s, env.rank, key
        self.at, self.fed = "", time.monotonic()
        self.ended = threading.Event()
        self.thread: threading.Thread | None = None

    def feed(self, at: str) -> None:
        """The run has come to `at`, e.g. "step 12"."""
        self.at, self.fed = at, time.monotonic()
        faulthandler.dump_traceback_later(self.timeout_s + LAST_RESORT_S, exit=True, file=STDERR)
        if self.thread is None:
            self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self.thread.start()

    def rest(self) -> None:
        """From here to the next `feed` others may keep this rank waiting."""
        self.fed = math.inf
        if self.thread is not None:
            faulthandler.cancel_dump_traceback_later()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.rest()

    def _watch(self) -> None:
        while not self.ended.wait(min(self.timeout_s, max(0.0, self.fed + self.timeout_s - time.monotonic()))):
            if time.monotonic() >= self.fed + self.timeout_s:
                self._end()

    def _end(self) -> None:
        line = (
            f"hpctrack [rank {self.rank}]: error: {self.at} has not finished within {self.key}={self.timeout_s:g} s: "
            "a rank hangs, or that is too short; the stacks of this rank:\n"
        )
        say_stacks(line)
        time.sleep(OTHERS_S)
        os._exit(EXIT_MACHINE)


def say_stacks(line: str) -> None:
    """Write a line and the stacks of all threads in one go: ranks that end together would mix theirs.

    Where there is no file number left for that, they are written piece by piece.
    """
    try:
        kept = os.memfd_create("stacks")
    except OSError:
        kept = STDERR
    os.write(kept, line.encode())
    faulthandler.dump_traceback(kept, all_threads=True)
    if kept != STDERR:
        os.write(STDERR, os.pread(kept, os.fstat(kept).st_size, 0))
