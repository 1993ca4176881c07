"""Verbs as processes of their own, several at a time, of which none outlives the study.

A verb's libraries take seconds to import, as long as a hundred steps on small events. So the processes are forked from
one that has them.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

from hpctrack.parallel.preemption import Preemption

T = TypeVar("T")
VERBS = ("train", "infer", "evaluate")  # what is imported once


class VerbError(RuntimeError):
    """A verb that has failed: its exit code and last words."""


class Processes:
    """Starts verbs, one thread each, and ends those that run when it is told to."""

    def __init__(self) -> None:
        self.lock, self.running, self.ending = threading.Lock(), set(), False
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload([f"hpctrack.{verb}" for verb in VERBS])

    def verb(self, log: Path, name: str, *words: object) -> None:
        """Run `hpctrack NAME WORDS…`; what it says is added to `log`. VerbError if it fails."""
        words = tuple(map(str, words))
        with self.lock:
            if self.ending:
                raise CancelledError
            with open(log, "a") as file:
                file.write(f"$ hpctrack {name} {' '.join(words)}\n")
            child = self.context.Process(target=_run, args=(log, name, words))
            with patch.dict(os.environ, OMP_NUM_THREADS="1"):  # of the process they are forked from, so of all of them
                child.start()
            self.running.add(child)
        child.join()
        with self.lock:
            self.running.remove(child)
        code = child.exitcode
        if code:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1]
            raise VerbError(f"{name}: exit code {code}: {last}")

    def end(self) -> None:
        """Ask what runs to end, and start nothing more; training saves first."""
        with self.lock:
            self.ending = True
            for child in self.running:
                child.terminate()

    def each(
        self, items: Sequence[T], take: Callable[[T], object], jobs: int
    ) -> Iterator[tuple[T, object | VerbError]]:
        """`take(item)` of all items, `jobs` at a time, as they end: its result, or the VerbError it ended with.

        SIGTERM and SIGUSR1 end it early, without the items that are left.
        """
        with Preemption() as preemption, ThreadPoolExecutor(jobs) as pool:
            left = {pool.submit(take, item): item for item in items}
            try:
                while left and not preemption.noticed:
                    for future in wait(left, timeout=1.0, return_when=FIRST_COMPLETED).done:
                        item, error = left.pop(future), future.exception()
                        if error is not None and preemption.noticed:  # it was told to end, too
                            continue
                        if error is not None and not isinstance(error, VerbError):
                            raise error
                        yield item, error or future.result()
            finally:
                self.end()
                pool.shutdown(cancel_futures=True)


def _run(log: Path, name: str, words: Sequence[str]) -> None:
    """The verb, in a process of its own that speaks into `log`."""
    with open(log, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    raise SystemExit(importlib.import_module(f"hpctrack.{name}").main(words))
