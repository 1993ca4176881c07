"""Ranks end with their launcher: one that went on without it would meet the ranks of whoever uses its port next.

No torch in here, since the watch begins before the imports, which take seconds.
"""

from __future__ import annotations

import os
import select
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from hpctrack.errors import EXIT_MACHINE, InputError
from hpctrack.parallel.launchers import ENVIRONMENT, find_place
from hpctrack.process.signals import STDERR

EVERY_S = 1.0
TORCH_LAUNCHERS = ("torchrun", "deepspeed")
_watched: dict[int, Launcher] = {}  # by process: one that was forked has no watch yet


@dataclass(frozen=True)
class Launcher:
    """The process `parent` that started this one as `rank`."""

    parent: int
    rank: int
    source: str

    def look(self) -> None:
        """End this process if the launcher has gone."""
        if os.getppid() != self.parent:
            end(self.rank, f"{self.source} (process {self.parent}), which started this rank, has gone, so it ends")

    def watch(self) -> None:
        """Look for ever."""
        while True:
            self.look()
            time.sleep(EVERY_S)


def end_with_launcher() -> None:
    """From now on this process ends, with a line and exit code 1, when the launcher that started it has gone.

    Without a launcher nothing is watched. A further call looks at once.
    """
    if os.getpid() in _watched:
        return _watched[os.getpid()].look()
    try:
        place = find_place(os.environ)
    except InputError:  # said where ranks are to meet
        return
    if place is None or place.source == ENVIRONMENT or (place.source == "Slurm" and not is_stepd(os.getppid())):
        return
    _watched[os.getpid()] = launcher = Launcher(os.getppid(), place.rank, place.source)
    if place.source in TORCH_LAUNCHERS and is_reparented(launcher.parent, place.rank):
        end(place.rank, f"{place.source}, which started this rank, had gone before it began, so it ends")
    threading.Thread(target=launcher.watch, name="launcher", daemon=True).start()


def is_stepd(pid: int) -> bool:
    """Whether a process is Slurm's; else the parent is a shell of `srun --pty`, say, which may end before its jobs."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().startswith("slurmstepd")
    except OSError:
        return False


def is_reparented(parent: int, rank: int) -> bool:
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
