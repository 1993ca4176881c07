"""A time limit on what cannot be interrupted, such as a wait inside a library: a thread ends the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hpctrack.parallel.orphans import end, say

WORD_S = 10.0  # a wait that is longer is said


@contextmanager
def deadline(limit_s: float, rank: int, waits: Callable[[], str] | str, otherwise: str) -> Iterator[None]:
    """Say `waits` after WORD_S (not if that is empty); after `limit_s` seconds end this process, saying `otherwise`."""

    def word() -> None:
        if text := waits if isinstance(waits, str) else waits():
            say(f"hpctrack [rank {rank}]: {text}")

    timers = [threading.Timer(min(limit_s, threading.TIMEOUT_MAX), end, (rank, otherwise))]
    if limit_s > WORD_S:
        timers.append(threading.Timer(WORD_S, word))
    for timer in timers:
        timer.daemon = True
        timer.start()
    try:
        yield
    finally:
        for timer in timers:
            timer.cancel()
