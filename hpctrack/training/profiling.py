"""For who wants to make steps faster: traces of chosen steps, all ranks' spans in one timeline, memory at its end.

In the run's folder `profile/`: `step-STEP-rank-RANK.json`, torch's profiler on one step; `timeline.json`, what each
rank did when, over the whole call; on a GPU `out-of-memory-RANK.pickle`, what held memory when it ran out. The first
two are Chrome traces: open them in Perfetto or chrome://tracing. The last is for PyTorch's memory viewer.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from hpctrack.files.atomic import publish, temporary_name, write_json
from hpctrack.parallel.collectives import gather
from hpctrack.parallel.env import Env

FOLDER, TIMELINE = "profile", "timeline.json"
HISTORY = 100_000  # allocations that a snapshot tells of
MICRO = 1e6


class Profiler:
    """Traces of the steps with these numbers; with none, nothing is recorded and nothing is written."""

    def __init__(self, run: Path, steps: Sequence[int], env: Env) -> None:
        self.folder, self.steps, self.env = run / FOLDER, frozenset(steps), env
        self.spans: list[tuple[str, float, float]] = []  # name, begin and length in seconds
        if self.steps and env.device.type == "cuda":
            self.watch_memory()

    def watch_memory(self) -> None:
        """Let torch write a snapshot of the GPU's memory when an allocation fails, also if the pass is taken again."""
        path = self.folder / f"out-of-memory-{self.env.rank:05d}.pickle"

        def write(device: int, alloc: int, device_alloc: int, device_free: int) -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(path))

        torch.cuda.memory._record_memory_history(max_entries=HISTORY)
        torch._C._cuda_attach_out_of_memory_observer(write)  # type: ignore[attr-defined]

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Note when the work inside was done."""
        begin = time.time()
        yield
        if self.steps:
            self.spans.append((name, begin, time.time() - begin))

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """A span of a step, and its trace if it is to have one."""
        with self.span(f"step {number}"):
            if number not in self.steps:
                yield
                return
            with torch.profiler.profile(record_shapes=True, profile_memory=True) as found:
                yield
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self.folder / f"step-{number:06d}-rank-{self.env.rank:05d}.json"
            found.export_chrome_trace(str(temporary := temporary_name(path)))
            publish(temporary, path)

    def parts(self, parts: Mapping[str, float]) -> None:
        """Of the newest span, a step's, what it was made of, one after the other: seconds by name (`compute_s`, …)."""
        if self.steps and self.spans:
            _, begin, _ = self.spans[-1]
            for name, seconds in parts.items():
                self.spans.append((name.removesuffix("_s"), begin, seconds))
                begin += seconds

    def close(self) -> None:
        """Write the spans of all ranks into one file; all ranks call this."""
        if not self.steps:
            return
        every = gather(self.spans, self.env)
        if self.env.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / TIMELINE, timeline(every))


def timeline(every: Sequence[Sequence[tuple[str, float, float]]]) -> dict[str, Any]:
    """A Chrome trace of all ranks' spans, a process each, from the first on; clocks are those of the ranks' nodes."""
    first = min((begin for spans in every for _, begin, _ in spans), default=0.0)
    names = [
        {"name": "process_name", "ph": "M", "pid": rank, "args": {"name": f"rank {rank}"}} for rank in range(len(every))
    ]
    events = [
        {"name": name, "ph": "X", "pid": rank, "tid": 0, "ts": MICRO * (begin - first), "dur": MICRO * seconds}
        for rank, spans in enumerate(every)
        for name, begin, seconds in spans
    ]
    return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}
