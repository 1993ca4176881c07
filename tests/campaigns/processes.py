"""Verbs as processes of their own, several at a time, of which none outlives the study."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TypeVar

from hpctrack.runtime.preempt import Preemption

T = TypeVar("T")


class VerbError(RuntimeError):
    """A verb that has failed: its exit code and last words."""


class Processes:
    """Starts verbs, one thread each, and ends those that run when it is told to."""

    def __init__(self) -> None:
        self.lock, self.running, self.ending = threading.Lock(), set(), False

    def verb(self, log: Path, name: str, *words: object) -> None:
        """Run `hpctrack NAME WORDS…`; what it says is added to `log`. VerbError if it fails."""
        command = [sys.executable, "-m", f"hpctrack.{name}", *map(str, words)]
        with open(log, "a") as file:
            with self.lock:
                if self.ending:
                    raise CancelledError
                file.write(f"$ hpctrack {name} {' '.join(map(str, words))}\n")
                file.flush()
                env = os.environ | {"OMP_NUM_THREADS": "1"}
                child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env)
                self.running.add(child)
            code = child.wait()
            with self.lock:
                self.running.remove(child)
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
