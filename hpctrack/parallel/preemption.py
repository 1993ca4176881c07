"""Preemption: a signal asks a run to save what it has and to end; the same command goes on from there.

Batch systems send SIGUSR1 or SIGTERM before a walltime ends or a job of higher priority takes the nodes; people send
SIGINT (Ctrl-C), and SIGHUP when they close the terminal. A run whose standard output is lost is asked to end, too. A
handler only remembers the signal, wherever the process is; ranks act on it where they meet anyway, all or none, so that
none is ever alone in a collective operation. Preempted runs have the exit code EXIT_PREEMPTED, others that of their
signal.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

from hpctrack.errors import EXIT_PREEMPTED
from hpctrack.parallel.collectives import all_max
from hpctrack.parallel.env import Env
from hpctrack.process import signals, streams

ECHO_S = 1.0  # launchers pass a Ctrl-C on to processes that have it from the terminal already


class Preemption:
    """Remembers the first signal while it is entered; after one, later ones are ignored to the process's end.

    Only a second Ctrl-C ends the process at once. Signals that are ignored already (`nohup`) stay so. Outside of the
    main thread, where Python allows no handlers, it never notices any.
    """

    def __init__(self, name: str = "train") -> None:
        self.name = name
        self.signal: signal.Signals | None = None
        self.by_hand: float | None = None  # when the first Ctrl-C came

    @property
    def noticed(self) -> bool:
        """Whether this rank was asked to end."""
        return self.code != 0

    @property
    def code(self) -> int:
        """The exit code of this rank if it ends now: 0 if it was not asked to."""
        if self.signal is not None:
            return signals.exit_code(self.name, self.signal)
        lost = streams.lost_output()
        return lost.code() if lost else 0

    def agree(self, env: Env) -> int:
        """One exit code for all ranks, once they agree to end; a collective operation."""
        return int(all_max([self.code], env)[0])

    def said(self, code: int) -> str:
        """The reason as people read it, of ranks that end with `code`; another rank may have been told alone."""
        lost = streams.lost_output()
        if code == EXIT_PREEMPTED:
            return f"preempted ({self.signal.name if self.signal else 'another rank was told'})"
        return lost.why() if lost and lost.code() == code else "interrupted"

    def __enter__(self) -> Preemption:
        self.before = {}
        if threading.current_thread() is threading.main_thread():
            heard = [number for number in signals.ALL if signal.getsignal(number) != signal.SIG_IGN]
            self.before = {number: signal.signal(number, self._notice) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            if not self.noticed:
                signal.signal(number, handler)
            elif number != signal.SIGINT:
                signal.signal(number, signal.SIG_IGN)

    def _notice(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.by_hand is not None and now - self.by_hand > ECHO_S:
            signals.end_now(self.name, number)
        if number == signal.SIGINT and self.by_hand is None:
            self.by_hand = now
        self.signal = self.signal or signal.Signals(number)
