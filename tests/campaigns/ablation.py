"""What each part of the influencer system is worth: the base recipe with one thing changed at a time, several seeds.

    python -m tests.campaigns.ablation --config configs/influencer-500.yaml --out FOLDER --jobs 2 \
        [--seeds 1,2,3] [--variants base,attraction-off,…] [--data DATASET] data.train=… data.valid=… [key.sub=value …]

Variants: weights of the terms off, halved and doubled; the paper's weights, over pairs; options of the loss; auxiliary
losses off; embedding sizes; backbones (variants.py; --list names them). Each run is `hpctrack train` in a folder of its
own, FOLDER/runs/VARIANT-SEED, then `hpctrack infer` and `hpctrack evaluate`; runs of a seed see the same events. The
radius is tuned on half of the validation events, the tables are of the other half (or of --data), in sub-events of the
recipe's number of tracks. Counts of each run stand in FOLDER/ablation.jsonl and are not taken again; ablation.md and
ablation.png are made from what is there, after each run. The same command again goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpctrack.config import RunConfig, load_config
from hpctrack.errors import EXIT_MACHINE, EXIT_PREEMPTED, InputError
from hpctrack.process.ends import verb
from hpctrack.results.content import load_results
from hpctrack.storage.store import open_dataset
from hpctrack.training.run_folder import Run
from hpctrack.training.run_settings import settings
from tests.campaigns import halves
from tests.campaigns.ablation_tables import SHOWN, write
from tests.campaigns.points import Points
from tests.campaigns.processes import Processes, VerbError
from tests.campaigns.readings import READINGS
from tests.campaigns.variants import Variant, variants

KEYS = ("variant", "seed", "settings")


class Study:
    """The base recipe, the events, and the folder; knows how to take one run."""

    def __init__(self, args: argparse.Namespace, recipe: RunConfig) -> None:
        self.args, self.recipe, self.out = args, recipe, args.out
        self.tune, self.measured = halves.parts(recipe.data, args.data, args.draws, args.out / "data")
        self.fingerprints = [data.fingerprint for data in (open_dataset(recipe.data.train), self.tune, self.measured)]
        self.processes = Processes()

    def overrides(self, variant: Variant, seed: int) -> list[str]:
        """What a run changes in the recipe of --config."""
        own = [f"seed={seed}", f"run={self.folder(variant, seed)}", f"data.valid={self.tune.folder}", "train.threads=1"]
        return [*self.args.overrides, *variant.overrides, *own]

    def folder(self, variant: Variant, seed: int) -> Path:
        """Of a run."""
        return self.out / "runs" / f"{variant.name}-{seed}"

    def key(self, variant: Variant, seed: int) -> dict[str, Any]:
        """What tells a run from others, also of other recipes or events. InputError for a value that is refused."""
        config = load_config(self.args.config, self.overrides(variant, seed))
        values = settings(config) | {"train.steps": config.train.steps}
        text = json.dumps([self.fingerprints, values], sort_keys=True)
        return {"variant": variant.name, "seed": seed, "settings": hashlib.sha256(text.encode()).hexdigest()[:16]}

    def take(self, run: tuple[Variant, int]) -> dict[str, Any]:
        """Train, infer and evaluate; the run's counts. VerbError if a verb fails."""
        folder, cuts = self.folder(*run), self.recipe.data.selection
        folder.mkdir(parents=True, exist_ok=True)
        tell = partial(self.processes.verb, folder / "log.txt")
        found, results, data = folder / "candidates", folder / "results.json", self.measured.folder
        tell("train", self.args.config, *self.overrides(*run))
        seen = [f"selection.{k}={json.dumps(v)}" for k, v in cuts.model_dump(mode="json").items() if k != "tracks"]
        tell("infer", "--checkpoint", folder, "--data", data, "--out", found, *seen)
        targets = ("--pt-min-gev", cuts.pt_min_gev, "--min-hits", cuts.min_hits)
        tell("evaluate", found, "--data", data, "--out", results, *targets)
        return figures(load_results(results), Run(folder))


def figures(results: dict[str, Any], run: Run) -> dict[str, Any]:
    """What the tables need: counts of both readings, the tuned radius, seconds of training and of an event."""
    counts = {
        reading: {name: [results[reading]["metrics"][name][k] for k in ("numerator", "denominator")] for name in SHOWN}
        for reading in READINGS
    }
    steps = [0, *(row["step"] for row in run.train)]
    train_s = sum((end - begin) * row["step_s"] for begin, end, row in zip(steps, steps[1:], run.train, strict=False))
    infer_s = results["timings"]["steps"]["total_s"]["median"]
    radius = results["source"]["attributes"]["builder"].get("radius")
    return {**counts, "events": results["events"], "radius": radius, "train_s": train_s, "infer_s": infer_s}


def chosen(names: Sequence[str] | None, every: dict[str, Variant]) -> list[Variant]:
    """The variants asked for, default all; InputError for one that is none."""
    for name in names or ():
        if name not in every:
            raise InputError(f"--variants: no variant '{name}'; there are {', '.join(every)}")
    return [every[name] for name in dict.fromkeys(names or every)]


def run(study: Study, wanted: list[Variant], points: Points) -> int:
    """Take what is missing, writing the tables after each run; the exit code."""
    args = study.args
    keys = {(v, seed): study.key(v, seed) for seed in args.seeds for v in wanted}
    about = f"{args.config} {' '.join(args.overrides)}".strip()
    todo = [at for at, key in keys.items() if points.key(key) not in points.done]
    tables = partial(write, points, [points.key(key) for key in keys.values()], about, args.out)
    text, failed, left = tables(), {}, len(todo)
    for at, found in study.processes.each(todo, study.take, args.jobs):
        name, left = study.folder(*at).name, left - 1
        if isinstance(found, VerbError):
            failed[name] = str(found)
            print(f"{name}: failed: {found}", flush=True)
            continue
        points.add(keys[at] | found)
        text = tables()
        print(f"{name}: done, {found['train_s']:.0f} s of training; {left} runs left", flush=True)
    print(text)
    for name, words in failed.items():
        print(f"{name}: failed: {words}")
    if left:
        print(f"told to end: {left} runs are left, the same command goes on with them")
    return EXIT_MACHINE if failed else EXIT_PREEMPTED if left else 0


def whole_numbers(text: str) -> list[int]:
    """`1,2,3`; for argparse."""
    return [int(part) for part in text.split(",")]


@verb("ablation")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="the base recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="measure on these events instead of half of data.valid's")
    parser.add_argument("--draws", type=int, default=20, help="sub-events of an event, at most (default 20)")
    parser.add_argument("--seeds", type=whole_numbers, default="1,2,3")
    parser.add_argument("--variants", type=lambda t: t.split(","), help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, of one thread each (default 1)")
    parser.add_argument("--list", action="store_true", help="name the variants and what they change, and end")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of the base recipe")
    args = parser.parse_intermixed_args(argv)
    recipe = load_config(args.config, args.overrides)
    wanted = chosen(args.variants, variants(recipe))
    if args.list:
        for variant in wanted:
            print(variant.name, *variant.overrides)
        return 0
    if args.jobs < 1 or args.draws < 1:
        raise InputError(f"--jobs {args.jobs} --draws {args.draws}: must be 1 or more")
    return run(Study(args, recipe), wanted, Points(args.out / "ablation.jsonl", KEYS))


if __name__ == "__main__":
    raise SystemExit(main())
