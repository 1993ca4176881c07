"""Start N real ranks for a test: forked processes that meet through a file, no ports.

A process that has used CUDA must not be forked.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hpctrack.parallel.launchers import INIT_METHOD


def run_ranks(n: int, target: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
    """`target(*args)` on n ranks; the ranks' results in order. Fails with the first rank's traceback."""
    processes, pipes = start_ranks(n, target, *args)
    results: list[Any] = []
    failures: list[str] = []
    for rank, pipe in enumerate(pipes):
        if not pipe.poll(timeout):
            failures.append(f"rank {rank} said nothing for {timeout} s")
            break
        try:
            ok, value = pipe.recv()
        except EOFError:
            ok, value = False, f"rank {rank} died"
        (results if ok else failures).append(value)
    for process in processes:
        process.join(5 if not failures else 1)
        if process.is_alive():
            process.kill()
    assert not failures, "\n".join(failures)
    return results


def start_ranks(n: int, target: Callable[..., Any], *args: Any) -> tuple[list[Any], list[Any]]:
    """Fork n ranks that run `target(*args)`; their processes, and pipes that give (ok, result or traceback)."""
    context = multiprocessing.get_context("fork")
    meeting = Path(tempfile.mkdtemp()) / "store"
    processes, pipes = [], []
    for rank in range(n):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(rank, n, meeting, send, partial(target, *args)))
        process.start()
        send.close()
        processes.append(process)
        pipes.append(receive)
    return processes, pipes


def _rank(rank: int, n: int, meeting: Path, send: Any, work: Callable[[], Any]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n), INIT_METHOD: f"file://{meeting}"}
    try:
        result = (True, work())
    except BaseException:  # noqa: BLE001 - whatever it is goes to the test
        result = (False, f"rank {rank}:\n{traceback.format_exc()}")
    send.send(result)
    send.close()
    os._exit(0 if result[0] else 1)
