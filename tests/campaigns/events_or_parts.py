"""More events a step, or more ranks an event? Time to a fixed validation efficiency against ranks.

    python tests/campaigns/events_or_parts.py --train data/train-gev --valid data/valid-gev --out runs/events-or-parts

With P ranks a step takes either (a) P events, one a rank, or (b) one event, which the ranks hold together. The gradient
of a step does not depend on ranks, so the steps to the target are those of runs on one rank, with P events a step or
with one. Their seconds are measured on 1 and 2 ranks of one thread, on events of TIMED_TRACKS tracks: take them where
two cores are idle (`--seconds`). Runs that are there are not taken again.

The model is a small one of the recipe influencer-500's kind, on sub-events of TRACKS tracks, at a learning rate that
is constant after a warm-up, and the same for every batch; efficiency (double majority) is that of the builder's best
radius on validation events. The target is what runs of one event a step have after half of their events, by the
median of seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hpctrack.config import RunConfig, load_config, parse
from hpctrack.files.atomic import write_text
from hpctrack.files.jsonlines import read_metrics
from hpctrack.named_recipes import path_of
from hpctrack.parallel.env import distributed
from hpctrack.testing.ranks import run_ranks
from hpctrack.tracking.builder import to_numpy
from hpctrack.tracking.builders import choose, settings, tuning_counts
from hpctrack.training.loop import train
from hpctrack.training.trainer import Trainer

TRACKS, TIMED_TRACKS = 60, 500
SEEN = 512  # events of a run of one event a step; GROWTH times as many for each doubling
GROWTH = 1.5
EVERY = 32  # events between two validations
RATE = 2e-3
TIMED = 12  # steps of a run that measures seconds
LIMIT_S = 3600.0
BACKBONE = {"name": "neighbours", "width": 32, "stages": 2, "steps": 2, "neighbours": 12, "space": 4}


def recipe(args: argparse.Namespace, name: str, batch: int, seed: int, **more: dict[str, Any]) -> RunConfig:
    """A run of the study; `more`: keys of sections that are others."""
    values = load_config(path_of("influencer-500")).model_dump(mode="json")
    steps = math.ceil(SEEN * GROWTH ** math.log2(batch) / batch)
    values |= {"run": str(args.out / name), "seed": seed}
    values["data"] |= {"train": args.train, "valid": args.valid, "curriculum": [], "emphasis": {}, "in_memory": True}
    values["data"]["selection"]["tracks"] = TRACKS
    values["model"]["backbone"] = BACKBONE
    values["plan"] |= {"events_per_step": batch}
    values["optim"] |= {"lr": RATE, "schedule": "constant", "warmup_steps": max(1, steps // 16)}
    every = max(1, EVERY // batch)
    values["train"] |= {"steps": steps, "valid_every": every, "log_every": every, "checkpoint_every": steps}
    values["train"] |= {"start_from": None}
    for section, keys in more.items():
        values[section] |= keys
    return parse(RunConfig, values, f"run {name}")


def with_efficiency(trainer: Trainer) -> None:
    """In place of the validation loss: the best setting's efficiency on the validation events, into the metrics."""
    events = (
        (to_numpy(trainer.engine.predict(b), b), *trainer.particles(b)) for b in trainer.valid_batches(whole=True)
    )
    counts = tuning_counts(trainer.builder, events)
    best = counts[settings(trainer.builder).index(choose(trainer.builder, counts))]
    trainer.metrics.write("efficiency", trainer.step, {"found": int(best[0]), "targets": int(best[1])})


def take(config: RunConfig) -> None:
    """Train on the ranks that there are."""
    with distributed(config.parallel, 1) as env:
        train(config, env)


def take_with_efficiency(config: RunConfig) -> None:
    """The same on one rank, with efficiencies on the way."""
    Trainer.validate = with_efficiency  # in a process of its own
    take(config)


def reached(run: Path, target: float) -> int | None:
    """The first step whose efficiency is at the target or above."""
    rows = [row for row in read_metrics(run) if row["kind"] == "efficiency"]
    return next((row["step"] for row in rows if row["found"] >= target * row["targets"]), None)


def seconds(run: Path) -> list[float]:
    """Of each step but the first two."""
    return [row["step_s"] for row in read_metrics(run) if row["kind"] == "train" and row["step"] > 2]


def finished(config: RunConfig) -> bool:
    """Whether a run is there whole."""
    run = Path(config.run)
    return (run / "metrics.jsonl").exists() and any(row["step"] == config.train.steps for row in read_metrics(run))


def timed(args: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds a step: of one event on one rank, of an event on each of two, and of one event on both."""
    found = {}
    selection = load_config(path_of("influencer-500")).data.selection.model_copy(update={"tracks": TIMED_TRACKS})
    data = {"train": args.train, "valid": None, "selection": selection.model_dump(mode="json")}
    train = {"steps": TIMED, "log_every": 1, "valid_every": TIMED, "checkpoint_every": TIMED}
    for name, ranks, batch, together in (("one", 1, 1, 1), ("events", 2, 2, 1), ("parts", 2, 1, 2)):
        more = {"data": data, "train": train, "parallel": {"ranks_per_event": together}, "builder": {"radius": 0.1}}
        config = recipe(args, f"timed-{name}", batch, 1, **more)
        if not finished(config):
            run_ranks(ranks, take, config, timeout=LIMIT_S)
        found[name] = seconds(Path(config.run))
    return found


def campaign(args: argparse.Namespace) -> str:
    """Take the runs that are not there; the table, also in `results.md` and `results.json`."""
    args.out.mkdir(parents=True, exist_ok=True)
    runs: dict[int, list[Path]] = {}
    for seed in args.seeds:
        for batch in args.batches:
            config = recipe(args, f"batch-{batch}-seed-{seed}", batch, seed)
            if not finished(config):
                run_ranks(1, take_with_efficiency, config, timeout=LIMIT_S)
            runs.setdefault(batch, []).append(Path(config.run))
    target = args.target or half_way(runs[min(runs)])
    steps = {batch: [reached(run, target) for run in found] for batch, found in runs.items()}
    text = table(steps, target)
    times = timed(args) if args.seconds else {}
    text += "\n" + "".join(f"- {name}: {statistics.median(s):.3f} s a step\n" for name, s in times.items())
    write_text(args.out / "results.json", json.dumps({"target": target, "steps": steps, "seconds": times}, indent=1))
    write_text(args.out / "results.md", text)
    return text


def half_way(runs: list[Path]) -> float:
    """The median efficiency of runs after half of their steps."""
    found = []
    for run in runs:
        rows = [row for row in read_metrics(run) if row["kind"] == "efficiency"]
        row = rows[len(rows) // 2 - 1]
        found.append(row["found"] / row["targets"])
    return statistics.median(found)


def table(steps: dict[int, list[int | None]], target: float) -> str:
    """Steps to the target by events a step: median, range, and how many seeds got there."""
    lines = [f"| events a step | steps to an efficiency of {target:.3f}, median | range | seeds |", "|---|---|---|---|"]
    for batch, found in steps.items():
        there = sorted(step for step in found if step is not None)
        middle = f"{statistics.median(there):g} | {there[0]} – {there[-1]}" if there else "- | -"
        lines.append(f"| {batch} | {middle} | {len(there)} of {len(found)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", required=True, help="dataset of tracks of pT > 1 GeV")
    parser.add_argument("--valid", required=True)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--target", type=float, help="double-majority efficiency (default: see above)")
    parser.add_argument("--seconds", action="store_true", help="measure seconds of steps, too")
    print(campaign(parser.parse_args()))


if __name__ == "__main__":
    main()
