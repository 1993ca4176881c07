"""Ranks end with their launcher: one that went on without it would meet the ranks of whoever uses its port next.

No torch in here, since the watch begins before the imports, which take seconds.
"""

from __future__ import annotations

import os
import select
import threading
import time
from pathlib import Path

from hpctrack.errors import EXIT_MACHINE, InputError
from hpctrack.parallel.launchers import find_place

EVERY_S = 1.0
BY_HAND = "environment"  # source of a place that no launcher gave: the parent may be a shell, and may end
PYTHON_LAUNCHERS = ("torchrun", "deepspeed")
STDERR = 2
_watched_in = 0  # the process that has its watch; a forked one has none yet


def end_with_launcher() -> None:
    """From now on this process ends, with a line and exit code 1, when the launcher that started it has gone.

    Without a launcher nothing is watched. A second call does nothing.
    """
    global _watched_in
    try:
        place = find_place(os.environ)
    except InputError:  # said where ranks are to meet
        return
    if place is None or place.source == BY_HAND or _watched_in == os.getpid():
        return
    _watched_in, parent = os.getpid(), os.getppid()
    if parent == 1 and place.source in PYTHON_LAUNCHERS and not is_python(parent):
        end(place.rank, f"{place.source} had gone before this rank began")
    text = f"{place.source} (process {parent}), which started this rank, has gone, so it ends"
    threading.Thread(target=_watch, args=(parent, place.rank, text), name="launcher", daemon=True).start()


def _watch(parent: int, rank: int, text: str) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    end(rank, text)


def is_python(pid: int) -> bool:
    """Whether a process runs Python, as far as the system says."""
    try:
        return Path(f"/proc/{pid}/exe").readlink().name.startswith("python")
    except OSError:
        return True  # no /proc, or another user's process: taken for the launcher


def end(rank: int, text: str) -> None:
    """End this process at once, wherever it is, with a line."""
    say(f"hpctrack [rank {rank}]: error: {text}")
    os._exit(EXIT_MACHINE)


def say(line: str) -> None:
    """A line to standard error from any thread; not if nobody takes it."""
    if select.select([], [STDERR], [], 1.0)[1]:  # a full pipe whose reader is frozen would keep this process for ever
        try:
            os.write(STDERR, f"{line}\n".encode())
        except OSError:
            return
