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
TORCH_LAUNCHERS = ("torchrun", "deepspeed")
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
    if place.source in TORCH_LAUNCHERS and is_adopted(parent, place.rank):
        end(place.rank, f"{place.source}, which started this rank, had gone before it began, so it ends")
    text = f"{place.source} (process {parent}), which started this rank, has gone, so it ends"
    threading.Thread(target=_watch, args=(parent, place.rank, text), name="launcher", daemon=True).start()


def _watch(parent: int, rank: int, text: str) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY_S)
    end(rank, text)


def is_adopted(parent: int, rank: int) -> bool:
    """Whether `parent` cannot have started a rank of torch's launchers: it is none, and no wrapper in a rank's place.

    Whoever adopts the processes of one that has ended, init or a session's, has neither torch nor a rank.
    """
    try:
        variables = Path(f"/proc/{parent}/environ").read_bytes().split(b"\0")
        return f"RANK={rank}".encode() not in variables and "libtorch" not in Path(f"/proc/{parent}/maps").read_text()
    except OSError:  # no /proc, or another user's process
        return False


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
