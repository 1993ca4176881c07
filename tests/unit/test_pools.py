"""Worker processes: what they return and raise, and what is said of one that dies."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest

from hpctrack.errors import InputError, MachineError
from hpctrack.process import pools


class Unlike(Exception):
    """An error that cannot be sent: its class wants two words."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def work(item: object) -> object:
    if item == "bad":
        raise InputError("event 3: bad")
    if item == "unlike":
        raise Unlike("of its own", " kind")
    if item == "large":
        np.ones(1 << 48)
    if item == "die":
        os._exit(9)
    if item == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    return item, os.getpid()


def run(items: list, jobs: int = 2) -> dict:
    return {items[found.place]: found for found in pools.run(work, enumerate(items), jobs, "fork")}


def test_every_item_is_done_once_and_not_in_this_process():
    found = run(list(range(50)), jobs=3)
    assert [found[i].result()[0] for i in range(50)] == list(range(50))
    pids = {found[i].result()[1] for i in range(50)}
    assert len(pids) <= 3 and os.getpid() not in pids
    assert list(pools.run(work, [], 3, "fork")) == []


def test_errors_are_those_of_the_function():
    found = run([1, "bad", "unlike", "large", 2])
    assert found[1].result()[0] == 1 and found[2].result()[0] == 2
    with pytest.raises(InputError, match="event 3: bad") as caught:
        found["bad"].result()
    assert "in work" in str(caught.value.__cause__)
    with pytest.raises(RuntimeError, match="Unlike: of its own kind"):
        found["unlike"].result()
    with pytest.raises(MachineError, match="out of memory.*Unable to allocate"):
        found["large"].result()


@pytest.mark.parametrize(
    ("item", "how", "killed"),
    [("die", "ended with exit code 9", False), ("killed", "was killed (SIGKILL", True)],
)
def test_a_worker_that_dies_is_named_and_the_others_are_done_by_another(item, how, killed):
    found = run([1, item, *range(2, 9)], jobs=1)
    error = found.pop(item).error
    assert isinstance(error, pools.WorkerDied) and error.killed == killed
    assert how in str(error) and str(error).endswith(f"at {item}")
    assert [found[i].result()[0] for i in range(1, 9)] == list(range(1, 9))


def test_items_are_taken_when_a_process_is_free():
    taken = []

    def items():
        for i in range(10):
            taken.append(i)
            yield i, i

    for done, _ in enumerate(pools.run(work, items(), 2, "fork"), 1):
        assert len(taken) <= done + 1


def test_a_caller_that_stops_leaves_no_process():
    outcomes = pools.run(work, enumerate(range(1000)), 2, "fork")
    pids = {next(outcomes).result()[1] for _ in range(2)}
    outcomes.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
