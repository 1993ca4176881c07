"""Preemption: SIGUSR1 or SIGTERM asks a run to save what it has and to end; the same command goes on from there.

Batch systems send them before a walltime ends or a job of higher priority takes the nodes. A handler only remembers the
signal, wherever the process is; ranks act on it where they meet anyway, all or none, so that none is ever alone in a
collective operation. A run that ended so has the exit code EXIT_PREEMPTED.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Preemption:
    """Remembers the first signal while it is entered; after one, later ones are ignored to the process's end.

    Outside of the main thread, where Python allows no handlers, it never notices anything.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    @property
    def noticed(self) -> bool:
        """Whether this rank was asked to end."""
        return self.signal is not None

    def said(self) -> str:
        """The reason as people read it; another rank may have been told alone."""
        return f"preempted ({self.signal.name if self.signal else 'another rank was told'})"

    def __enter__(self) -> Preemption:
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._notice) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self.before.items():
                signal.signal(number, signal.SIG_IGN if self.noticed else handler)

    def _notice(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
