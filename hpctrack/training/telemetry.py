"""What a run says of itself: JSON lines, TensorBoard, other loggers (loggers.py) and one console line per logged step,
all from rank 0; and where its time went: computing, waiting for the slowest rank, for data, summing gradients,
checkpoints.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter

from hpctrack.files.atomic import write_text
from hpctrack.files.jsonlines import METRICS, Lines, Mark, read_metrics
from hpctrack.parallel.collectives import all_sum
from hpctrack.parallel.env import Env
from hpctrack.resources.peak_memory import GIB
from hpctrack.training.loggers import Loggers

GPU = ("gpu_busy", "gpu_power_w", "energy_j_per_event")  # of training/sensors.py


class Metrics:
    """`metrics.jsonl` and TensorBoard files of a run; after a resume, lines beyond the resumed step are taken back.

    `mark`: how far the file was at the resumed step; without one, the lines of later steps are looked for.
    `loggers` are told the same.
    """

    def __init__(self, run: Path, resumed_step: int, mark: Mark | None = None, loggers: Loggers | None = None) -> None:
        self.loggers = loggers
        path = run / METRICS
        if mark is None:
            kept = [entry for entry in read_metrics(run) if entry["step"] <= resumed_step] if path.exists() else []
            write_text(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self.lines = Lines(path, None if mark is None else mark["bytes"])
        self.board = SummaryWriter(run / "tensorboard", purge_step=resumed_step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line, flushed; numbers also go to TensorBoard and loggers as `kind/name`."""
        self.lines.append({"kind": kind, "step": step, **values})
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        for name, value in numbers.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        if self.loggers:
            self.loggers.write(kind, step, numbers)

    def close(self) -> None:
        """Close all."""
        self.lines.close()
        self.board.close()
        if self.loggers:
            self.loggers.close()


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
        shares = [(name, values.get(f"{name}_s")) for name in ("data", "exchange")]
        waited = "  ".join(f"{name} {100 * s / values['step_s']:.0f} %" for name, s in shares if s is not None)
        gpu = "{:.0%} busy  {:.0f} W  {:.3g} J/event  ".format(*(values[n] for n in GPU)) if GPU[0] in values else ""
        to_go = time.strftime("%H:%M:%S", time.gmtime(self.seconds * (self.steps - step)))
        return (
            f"step {step:>{len(str(self.steps))}}/{self.steps}  epoch {values['epoch']:.0f}  "
            f"loss {values['loss']:.4f}  ({terms})  "
            f"lr {values['lr']:.1e}  |grad| {values['grad_norm']:.2f}  {values['hits_per_s']:,.0f} hits/s  "
            f"{waited}  {gpu}{values['peak_gib']:.2f} GiB  ETA {to_go}"
        )


def peak_gib(device: torch.device) -> float:
    """Largest memory of this process so far, GiB: device memory on GPUs, else resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synchronize(device: torch.device) -> float:
    """Wall-clock seconds after the device has finished what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# ------------------------------------------------------------------------------------------------ where the time went


PARTS = ("compute_s", "wait_s", "communicate_s")  # and, in runs that divide events, "exchange_s"


class Waste:
    """Seconds of this rank; the parts of a step are known from its probed steps only."""

    def __init__(self) -> None:
        self.total: dict[str, float] = {"step_s": 0.0, "data_s": 0.0, "checkpoint_s": 0.0}
        self.probed = dict.fromkeys(PARTS, 0.0)
        self.steps = self.probes = 0

    def add(self, seconds: dict[str, float]) -> None:
        """Seconds of one step, or of one checkpoint."""
        for name, value in seconds.items():
            self.total[name] += value
        self.steps += "step_s" in seconds

    def add_probe(self, parts: dict[str, float]) -> None:
        """Parts of a probed step, of the same names on all ranks."""
        for name, value in parts.items():
            self.probed[name] = self.probed.get(name, 0.0) + value
        self.probes += 1

    def report(self, env: Env) -> dict[str, float]:
        """Shares of the run's time, mean over ranks; empty if this process ran no probed step."""
        names = ["steps", "probes", *self.total, *self.probed]
        values = [self.steps, self.probes, *self.total.values(), *self.probed.values()]
        mean = {k: v / env.world for k, v in zip(names, all_sum(values, env), strict=True)}
        if not mean["probes"]:
            return {}
        per_step = {name: mean[name] / mean["probes"] for name in self.probed}
        per_step |= {name: mean[name] / max(1.0, mean["steps"]) for name in ("data_s", "checkpoint_s")}
        total = sum(per_step.values())
        return {f"share/{name.removesuffix('_s')}": value / total for name, value in per_step.items()} | {
            "step_s": mean["step_s"] / max(1.0, mean["steps"])
        }


def waste_lines(report: dict[str, float], counterfactual: dict[str, float]) -> list[str]:
    """The report as people read it, and what other ways of planning would have reached on the same costs."""
    shares = ", ".join(f"{k.removeprefix('share/')} {100 * v:.1f} %" for k, v in report.items() if "share/" in k)
    others = ", ".join(f"{name} {value:.3f}" for name, value in counterfactual.items())
    lines = [f"time of a step ({report['step_s']:.3f} s): {shares}"]
    return [*lines, f"balance (mean / slowest rank), predicted: {others}"] if others else lines
