"""Worker processes of a verb: they end with their parent, leave signals to it, and one that dies is named.

A worker takes one item at a time from its parent. Whatever ends the parent ends the workers: the kernel kills them with
it (Linux), and a thread in each looks whether it is still there. Ctrl-C and other signals to the whole group are the
parent's, which ends its workers.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, SpawnContext
from typing import Any, Generic, Literal, NamedTuple, TypeVar, cast

from hpctrack.errors import MachineError
from hpctrack.process import signals
from hpctrack.process.ends import out_of

Item = TypeVar("Item")
Result = TypeVar("Result")
StartMethod = Literal["spawn", "fork"]
END_S = 5.0  # for a worker that is told to end; it has nothing to do


class WorkerDied(MachineError):
    """A worker process has ended amid an item; `killed`: from outside, so that the item need not be to blame."""

    def __init__(self, words: str, killed: bool) -> None:
        super().__init__(words)
        self.killed = killed


@dataclass(frozen=True)
class Outcome(Generic[Result]):
    """What became of the item number `place`."""

    place: int
    value: Result | None = None
    error: BaseException | None = None

    def result(self) -> Result:
        """What the function returned; raises what it raised, or WorkerDied."""
        if self.error is not None:
            raise self.error
        return cast("Result", self.value)


class Answer(NamedTuple):
    """What a worker sends back: what the function returned, or the error that it raised and where."""

    value: Any
    error: Exception | None = None
    trace: str = ""


class WorkerTraceback(Exception):
    """Where in a worker an error was raised, as the cause of that error."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def run(
    function: Callable[[Item], Result],
    items: Iterable[tuple[int, Item]],
    jobs: int,
    method: StartMethod = "spawn",
    named: Callable[[Item], str] = str,
) -> Iterator[Outcome[Result]]:
    """`function(item)` of each (place, item) in `jobs` processes, in the order in which they end.

    `items` are taken when a process is free, so what they are may depend on outcomes so far. `named(item)` is how an
    item is called if its worker dies; another worker goes on with those that are left. `function` goes to a worker once
    (by pickle where `method` is spawn), so what it holds may be large.
    """
    left = iter(items)
    workers: list[Worker[Item, Result]] = []
    try:
        for item in left:
            workers.append(Worker(function, method))
            workers[-1].send(item)
            if len(workers) == jobs:
                break
        while ends := {end: worker for worker in workers if worker.item for end in worker.ends}:
            ready = wait(list(ends))
            for worker in dict.fromkeys(worker for end, worker in ends.items() if end in ready):
                outcome = worker.receive(named)
                yield outcome
                if (following := next(left, None)) is not None:
                    worker.send(following)
        for worker in workers:
            worker.end()
    finally:
        for worker in workers:
            worker.kill()


class Worker(Generic[Item, Result]):
    """A worker process, another one if it died; `item` is what it has to do, with its place."""

    def __init__(self, function: Callable[[Item], Result], method: StartMethod) -> None:
        self.function = function
        self.context: SpawnContext | ForkContext = (
            multiprocessing.get_context("fork") if method == "fork" else multiprocessing.get_context("spawn")
        )
        self.item: tuple[int, Item] | None = None
        self.start()

    def start(self) -> None:
        """Begin the process."""
        self.pipe, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_serve, args=(theirs, self.function, os.getpid()), daemon=True)
        with signals.blocked_signals():
            self.process.start()
        theirs.close()
        self.ends = (self.pipe, self.process.sentinel)  # one of them is ready when it has answered or died

    def send(self, item: tuple[int, Item]) -> None:
        """Let it begin with an item."""
        if self.process.exitcode is not None:
            self.kill()
            self.start()
        self.item = item
        try:
            self.pipe.send(item[1])
        except OSError:  # it has died meanwhile, which `receive` will find
            return

    def receive(self, named: Callable[[Item], str]) -> Outcome[Result]:
        """What became of its item."""
        assert self.item is not None
        (place, item), self.item = self.item, None
        try:
            value, error, text = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(END_S)
            return Outcome(place, error=self.exit_reason(named(item)))
        if error is not None and text:
            error.__cause__ = WorkerTraceback(text)
        return Outcome(place, value, error)

    def exit_reason(self, item: str) -> WorkerDied:
        """How it has ended."""
        code = self.process.exitcode or 0
        if code == -signal.SIGKILL:
            how = "was killed (SIGKILL, by hand or by the machine because memory ran out)"
        elif code < 0:
            how = f"was ended by {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code}"
        return WorkerDied(f"worker process {self.process.pid} {how} at {item}", code == -signal.SIGKILL)

    def end(self) -> None:
        """Let it end by itself."""
        try:
            self.pipe.send(None)
        except OSError:
            return
        self.process.join(END_S)

    def kill(self) -> None:
        """End it, whatever it is at."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(pipe: Connection, function: Callable[[Any], Any], parent: int) -> None:
    """A worker's life; its signals were blocked when it began, and stay so."""
    signals.die_with_parent(parent)
    while (item := pipe.recv()) is not None:
        try:
            answer = Answer(function(item))
        except Exception as error:  # noqa: BLE001 - whatever it is goes to the parent
            answer = Answer(None, _portable(error), traceback.format_exc())
        pipe.send(answer)


def _portable(error: Exception) -> Exception:
    """The error, or one like it that can go to the parent; lack of memory and the like say where they were met."""
    if words := out_of(error):
        return MachineError(words)
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - whatever its class does
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
