"""Where a run's time went: computing, waiting for the slowest rank, for data, summing gradients, checkpoints."""

from __future__ import annotations

from hpctrack.parallel.collectives import all_sum
from hpctrack.parallel.env import Env

PARTS = ("compute_s", "wait_s", "communicate_s")


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
        """Parts of a probed step."""
        for name in PARTS:
            self.probed[name] += parts[name]
        self.probes += 1

    def report(self, env: Env) -> dict[str, float]:
        """Shares of the run's time, mean over ranks; empty if this process ran no probed step."""
        names = ["steps", "probes", *self.total, *self.probed]
        values = [self.steps, self.probes, *self.total.values(), *self.probed.values()]
        mean = {k: v / env.world for k, v in zip(names, all_sum(values, env), strict=True)}
        if not mean["probes"]:
            return {}
        per_step = {name: mean[name] / mean["probes"] for name in PARTS}
        per_step |= {name: mean[name] / max(1.0, mean["steps"]) for name in ("data_s", "checkpoint_s")}
        total = sum(per_step.values())
        return {f"share/{name.removesuffix('_s')}": value / total for name, value in per_step.items()} | {
            "step_s": mean["step_s"] / max(1.0, mean["steps"])
        }


def waste_lines(report: dict[str, float], counterfactual: dict[str, float]) -> list[str]:
    """The report as people read it, and what other ways of planning would have reached on the same costs."""
    shares = ", ".join(f"{k.removeprefix('share/')} {100 * v:.1f} %" for k, v in report.items() if "share/" in k)
    others = ", ".join(f"{name} {value:.3f}" for name, value in counterfactual.items())
    return [
        f"time of a step ({report['step_s']:.3f} s): {shares}",
        f"balance (mean / slowest rank), predicted: {others}",
    ]
