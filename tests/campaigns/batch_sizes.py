"""How far can the global batch grow? Steps and samples to a fixed loss, for rules of scaling the learning rate.

    python tests/campaigns/batch_sizes.py --config configs/influencer.yaml --out runs/batch-sizes \
        data.train=data/train-50 data.valid=data/valid-50

For each rule, batch size and seed one run of `hpctrack.train` over the same number of events, at a learning rate that
is constant after a warm-up of the same number of events. A step's events are the micro-batches of one process, so the
gradient is that of any number of ranks. Validation loss is taken after every so many events; the answer is the first
time that it is at or below the target, by default what AdamW at its base batch has after half of its events. Runs that
are there already are not taken again, unfinished ones go on: the same command again finishes a broken campaign.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hpctrack.config import RunConfig, load_config, parse
from hpctrack.files.atomic import write_text
from hpctrack.parallel.env import distributed
from hpctrack.training.loop import train

RULES: dict[str, dict[str, Any]] = {  # of section optim; adamw's learning rate is the recipe's, for base_batch events
    "none": {"scale_lr": "none"},
    "sqrt": {"scale_lr": "sqrt"},
    "linear": {"scale_lr": "linear"},
    "lamb": {"name": "lamb", "scale_lr": "sqrt", "lr": 1e-2},
    "lars": {"name": "lars", "scale_lr": "linear", "lr": 0.5},
}
BATCHES = (1, 2, 4, 8, 16, 32, 64)
VALIDATIONS = 32  # of a run
WARMUP = 1 / 16  # of the events
BASE = "none"  # the rule whose run at base_batch sets the target


@dataclass(frozen=True)
class Point:
    """One run of the campaign."""

    rule: str
    batch: int
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.rule}-{self.batch:03d}-{self.seed}"


def settings(recipe: RunConfig, point: Point, events: int, out: Path) -> RunConfig:
    """The recipe with a point's batch and rule, for so many events in all."""
    values = recipe.model_dump(mode="json")
    steps = max(1, events // point.batch)
    values |= {"run": str(out / point.name), "seed": point.seed}
    values["plan"] |= {"events_per_step": point.batch, "cost_per_step": None}
    values["optim"] |= {"schedule": "constant", "warmup_steps": round(WARMUP * steps)} | RULES[point.rule]
    every = max(1, steps // VALIDATIONS)
    values["train"] |= {
        "steps": steps,
        "valid_every": every,
        "log_every": every,
        "checkpoint_every": max(1, steps // 8),
    }
    return parse(RunConfig, values, f"point {point.name}")


def take(config: RunConfig) -> None:
    """Train to the end; a run that has broken off goes on, one that diverges ends where it does."""
    with distributed(config.parallel, config.train.threads) as env:
        train(config, env)


def curve(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of a run's validations."""
    path = run / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "valid"]


def reached(run: Path, target: float) -> int | None:
    """Step of the first validation at or below the target."""
    return next((step for step, loss in curve(run) if loss <= target), None)


def table(points: list[Point], out: Path, target: float) -> str:
    """Markdown: steps and events to the target for each rule and batch; of several seeds, the median."""
    batches = sorted({point.batch for point in points})
    lines = [f"Steps (events) to a validation loss of {target:.4g}; -: not reached", ""]
    lines += [f"| rule | {' | '.join(map(str, batches))} |", "|---" * (len(batches) + 1) + "|"]
    for rule in dict.fromkeys(point.rule for point in points):
        cells = []
        for batch in batches:
            steps = [reached(out / p.name, target) for p in points if (p.rule, p.batch) == (rule, batch)]
            middle = sorted(steps, key=lambda step: float("inf") if step is None else step)[len(steps) // 2]
            cells.append("-" if middle is None else f"{middle} ({middle * batch})")
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def campaign(recipe: RunConfig, points: list[Point], events: int, out: Path, target: float | None = None) -> str:
    """Take every point that is not there yet, write `results.json` and `results.md` in `out`; the table."""
    out.mkdir(parents=True, exist_ok=True)
    base = Point(BASE, round(recipe.optim.base_batch), points[0].seed)
    failed: dict[str, str] = {}
    for point in [base, *(p for p in points if p != base)] if target is None else points:
        config = settings(recipe, point, events, out)
        finished = curve(out / point.name)
        if finished and finished[-1][0] == config.train.steps:
            continue
        try:
            take(config)
        except RuntimeError as error:  # MachineError: it has diverged, which is an answer, too
            failed[point.name] = " ".join(str(error).split())
    if target is None:
        half = curve(out / base.name)
        target = half[len(half) // 2][1]
    text = table(points, out, target)
    results = [
        vars(p) | {"step": reached(out / p.name, target), "curve": curve(out / p.name), "error": failed.get(p.name)}
        for p in points
    ]
    about = {"command": " ".join(sys.argv), "events": events, "target": target, "rules": RULES, "runs": results}
    write_text(out / "results.json", json.dumps(about, indent=1))
    write_text(out / "results.md", text)
    return text


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--events", type=int, default=2048, help="consumed by each run (default 2048)")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--target", type=float, help="validation loss; default: see above")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_args()
    recipe = load_config(args.config, args.overrides)
    points = [Point(rule, batch, seed) for seed in args.seeds for batch in args.batches for rule in args.rules]
    print(campaign(recipe, points, args.events, args.out, args.target))


if __name__ == "__main__":
    main()
