"""Ranks that wait for each other for hours, as in inference, know whether the others live: each watches its neighbour.

A frozen process, or one on a frozen node, keeps its connections, so a collective operation would wait for it to its
time limit, a day. Here a thread of each rank tells that it lives, and where the rank stands, through the store in which
the ranks have met, and looks at what the next rank tells. What counts is the thread's own turns, not a clock: a job
that is suspended as a whole goes on when it is resumed.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from torch import distributed as dist

from hpctrack.parallel.env import Env
from hpctrack.parallel.orphans import end

TURNS = 5  # within the limit


class Heartbeat:
    """While it is entered, this process ends if the next rank is silent for `limit_s` seconds, which the option `key`
    sets; `at()` says what this rank is doing."""

    def __init__(self, env: Env, limit_s: float, key: str, at: Callable[[], str]) -> None:
        self.env, self.limit_s, self.key, self.at = env, limit_s, key, at
        self.next = (env.rank + 1) % env.world
        self.turns = 0  # in which the store has answered
        self.ended = threading.Event()

    def __enter__(self) -> Heartbeat:
        if self.env.world > 1 and self.env.store is not None:
            threading.Thread(target=self._beat, args=(self.env.store,), name="heartbeat", daemon=True).start()
            threading.Thread(target=self._watch, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()

    def _beat(self, store: dist.Store) -> None:
        heard, silent = "", 0
        while not self.ended.is_set():  # the first one at once
            try:
                store.set(f"heartbeat/{self.env.rank}", f"{self.turns} {socket.gethostname()} {self.at()}")
                key = f"heartbeat/{self.next}"
                now = store.get(key).decode() if store.check([key]) else ""
            except RuntimeError:  # the store has gone, with a rank that has ended: collectives fail, and say so
                return self.ended.set()
            silent = 0 if now != heard else silent + 1
            heard, self.turns = now, self.turns + 1
            if silent > TURNS:
                _, host, at = heard.split(" ", 2) if heard else ("", "", "")
                self._end(f"rank {self.next}{f' on {host}' if host else ''}", at)
            self.ended.wait(self.limit_s / TURNS)

    def _watch(self) -> None:
        """The store may be the frozen process's own; then it does not answer at all."""
        turns, silent = 0, 0
        while not self.ended.wait(self.limit_s / TURNS):
            silent = 0 if self.turns != turns else silent + 1
            turns = self.turns
            if silent > TURNS:
                self._end("rank 0 or the launcher, where the ranks have met,", "")

    def _end(self, who: str, at: str) -> None:
        if self.ended.is_set():
            return
        end(
            self.env.rank,
            f"{who} has not been heard of for {self.key}={self.limit_s:g} s{f', at {at}' if at else ''}: it is frozen, "
            "or its node is, or it has gone; what was committed stays, the same command does the rest",
        )
