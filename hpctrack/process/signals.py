"""Signals: what a verb does that is told to end, by hand (Ctrl-C, a closed terminal) or by a batch system.

A verb that has nothing to save ends where it stands: a handler raises Interrupted, files that are half written go, and
one line says so. Training and inference, once they run, look at `Preemption` (parallel/preemption.py) instead. While
the libraries of a verb are imported nothing has begun, so a signal ends the process at once. A signal that is ignored
when the verb starts (`nohup` ignores SIGHUP) stays ignored.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from hpctrack.errors import EXIT_PREEMPTED

STDERR = 2
Handler = Callable[[int, FrameType | None], Any] | int | None  # as Python has them; None: of a library in C
BY_HAND = (signal.SIGINT, signal.SIGHUP)
BY_SYSTEM = (signal.SIGTERM, signal.SIGUSR1)
ALL = (*BY_SYSTEM, *BY_HAND)
SAVING = ("train", "infer")  # verbs that save what they have when they are told to end
GOES_ON = ("simulate", "convert", "landscape", *SAVING)  # verbs that the same command takes up where they ended
LOOK_S = 1.0  # how often a worker looks for its parent where the kernel does not tell it
PR_SET_PDEATHSIG = 1


class Interrupted(KeyboardInterrupt):
    """A signal that ends a verb."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def handled_signals(name: str) -> tuple[signal.Signals, ...]:
    """The signals that verb `name` answers; SIGUSR1 is for those that save, and ends others as it ends any process."""
    return BY_HAND + (BY_SYSTEM if name in SAVING else (signal.SIGTERM,))


def exit_code(name: str, number: int) -> int:
    """What verb `name` ends with: 128 + the signal's number, as shells say it; 85 if it was preempted."""
    return EXIT_PREEMPTED if name in SAVING and number in BY_SYSTEM else 128 + number


def last_words(name: str, number: int) -> str:
    """The line with which verb `name` ends where it stands."""
    how = "preempted" if exit_code(name, number) == EXIT_PREEMPTED else "interrupted"
    goes_on = "; the same command goes on" if name in GOES_ON else ""
    return f"{line_prefix(name)}: {how} ({signal.Signals(number).name}){goes_on}"


def line_prefix(name: str) -> str:
    """`hpctrack VERB`, with the rank where there are several: the beginning of lines on standard error."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")  # which need not be numbers
    of_rank = f" [rank {rank}]" if rank and world.strip() not in ("", "1") else ""
    return f"hpctrack {name}".rstrip() + of_rank


def end_now(name: str, number: int) -> None:
    """Say so and end the process, whatever it is at."""
    with contextlib.suppress(OSError):
        os.write(STDERR, f"{last_words(name, number)}\n".encode())
    os._exit(exit_code(name, number))


def _set(handlers: Mapping[signal.Signals, Handler]) -> dict[signal.Signals, Handler]:
    """Set handlers, but not of ignored signals; what was before. Elsewhere than in the main thread Python has none."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    heard = {number: handler for number, handler in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    return {number: signal.signal(number, handler) for number, handler in heard.items()}


def end_at_once(name: str) -> None:
    """From now on a signal ends the process: for the time in which a verb's libraries are imported."""
    _set(dict.fromkeys(handled_signals(name), lambda number, _: end_now(name, number)))


@contextlib.contextmanager
def raising(name: str) -> Iterator[None]:
    """While it is entered, the first signal raises Interrupted, and another one ends the process at once."""
    told, over = False, False

    def handle(number: int, _: FrameType | None) -> None:
        nonlocal told
        if told or over:
            end_now(name, number)
        told = True
        raise Interrupted(number)

    before = _set(dict.fromkeys(handled_signals(name), handle))
    try:
        yield
    finally:
        over = True
        for number, handler in before.items():
            if signal.getsignal(number) is handle:  # not if preemption has decided that it is to be ignored
                signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------ processes of a verb


@contextlib.contextmanager
def blocked_signals(numbers: tuple[int, ...] = ALL) -> Iterator[None]:
    """Signals wait until the end of this; processes that are started meanwhile have them blocked from their birth."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent(parent: int) -> None:
    """In a worker process: leave all signals to process `parent`, but end with it, or when it tells this one to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ALL)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before the kernel was told
        os._exit(1)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """Python sends SIGTERM to the processes that are left at its end, and waits; from others it says nothing here."""
    while os.getppid() == parent:
        told = signal.sigtimedwait((signal.SIGTERM,), LOOK_S)
        if told is not None and told.si_pid == parent:
            os._exit(0)
    os._exit(1)
