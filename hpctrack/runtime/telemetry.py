"""What a run says of itself: JSON lines, TensorBoard and one console line per logged step, all from rank 0."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from hpctrack.data.files import write_text
from hpctrack.data.jsonlines import METRICS, Lines, Mark, read_metrics


class Metrics:
    """`metrics.jsonl` and TensorBoard files of a run; after a resume, lines beyond the resumed step are taken back.

    `mark`: how far the file was at the resumed step; without one, the lines of later steps are looked for.
    """

    def __init__(self, run: Path, resumed_step: int, mark: Mark | None = None) -> None:
        path = run / METRICS
        if mark is None:
            kept = [entry for entry in read_metrics(run) if entry["step"] <= resumed_step] if path.exists() else []
            write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.lines = Lines(path, mark and mark["bytes"])
        self.board = SummaryWriter(run / "tensorboard", purge_step=resumed_step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line, flushed; numbers also go to TensorBoard as `kind/name`."""
        self.lines.append({"kind": kind, "step": step, **values})
        for name, value in values.items():
            if isinstance(value, (int, float)):
                self.board.add_scalar(f"{kind}/{name}", value, step)

    def close(self) -> None:
        """Close both."""
        self.lines.close()
        self.board.close()


class Window:
    """Means over the steps since the last logged one; the sums are in checkpoints, so that a resume logs the same."""

    def __init__(self, sums: dict[str, float] | None = None) -> None:
        self.sums = dict(sums or {})
        self.timing: dict[str, float] = {}

    def add(self, values: dict[str, float], timing: dict[str, float]) -> None:
        """Take in one step."""
        for target, source in ((self.sums, values), (self.timing, timing)):
            for name, value in {"steps": 1.0, **source}.items():
                target[name] = target.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """Mean of every value per step; timings over the steps that this process ran."""
        out = {name: value / self.sums["steps"] for name, value in self.sums.items() if name != "steps"}
        return out | {name: value / self.timing["steps"] for name, value in self.timing.items() if name != "steps"}


class Progress:
    """The console line: losses, hits/s, memory, time to go."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds = 0.0  # per step, smoothed

    def line(self, step: int, values: dict[str, Any]) -> str:
        """Text for a logged step; `values` as in metrics.jsonl."""
        self.seconds = values["step_s"] if not self.seconds else 0.8 * self.seconds + 0.2 * values["step_s"]
        terms = "  ".join(f"{k.removeprefix('loss/')} {v:.4f}" for k, v in values.items() if k.startswith("loss/"))
        to_go = time.strftime("%H:%M:%S", time.gmtime(self.seconds * (self.steps - step)))
        return (
            f"step {step:>{len(str(self.steps))}}/{self.steps}  epoch {values['epoch']:.0f}  "
            f"loss {values['loss']:.4f}  ({terms})  "
            f"lr {values['lr']:.1e}  |grad| {values['grad_norm']:.2f}  {values['hits_per_s']:,.0f} hits/s  "
            f"data {100 * values['data_s'] / values['step_s']:.0f} %  {values['peak_gib']:.2f} GiB  ETA {to_go}"
        )


def peak_gib(device: torch.device) -> float:
    """Largest memory of this process so far, GiB: device memory on GPUs, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synchronize(device: torch.device) -> float:
    """Wall-clock seconds after the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
