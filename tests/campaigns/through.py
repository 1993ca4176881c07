"""Edges of collisions: does training through the assignment find more perfect tracks than cross-entropy?

    python -m tests.campaigns.through --out FOLDER --train DATASET --valid DATASET --test DATASET \
        [--seeds 3] [--tracks 60] [--steps 300] [--more 100]

Recipe pipeline/segments, small. Each seed is trained by cross-entropy for --steps, and from there --more steps in two
ways: by cross-entropy again, and through the assignment. Both are read with the builder `assignment` on the test
events. What is there is not made again. Prints Markdown: mean and standard deviation over seeds, and of the difference
its mean, seed by seed, with its standard error.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hpctrack import evaluate, infer
from hpctrack.files.atomic import write_text
from tests.campaigns import seeds
from tests.campaigns.assignment import done, is_trained, run_training

SHOWN = {
    "perfect_efficiency": "Perfect efficiency",
    "double_majority_efficiency": "Double-majority efficiency",
    "fake_rate": "Fake rate",
}
SMALL = ("model.width=16", "model.iterations=3", "optim.warmup_steps=20", "builder={name: assignment, cut: 0.5}")
BARREL = ("--pt-min-gev", "1", "--eta-max", "1")  # the recipe sees no endcaps
WAYS = {
    "cross-entropy": (),
    "through the assignment": ("loss.name=assignment", "loss.strength=0.2", "loss.margin=0.1"),
}


@dataclass(frozen=True)
class Study:
    """The command line's."""

    out: Path
    data: dict[str, Path]
    tracks: int
    steps: int
    more: int

    def train(self, run: Path, seed: int, *words: str) -> Path:
        """A run of the recipe, unless it is finished."""
        if not is_trained(run):
            own = [f"run={run}", f"seed={seed}", f"data.selection.tracks={self.tracks}"]
            own += [f"data.{part}={self.data[part]}" for part in ("train", "valid")]
            run_training(run, "pipeline/segments", [*own, *SMALL, *words])
        return run

    def found(self, way: str, seed: int) -> dict[str, float]:
        """Metrics of one of WAYS on the test events."""
        name = f"{way.replace(' ', '-')}-{seed}"
        path = self.out / "results" / f"{name}.json"
        if not path.exists():
            first = self.train(
                self.out / "runs" / f"first-{seed}", seed, f"train.steps={self.steps}", "optim.lr=5.0e-3"
            )
            words = [f"train.steps={self.more}", "optim.lr=5.0e-4", "optim.warmup_steps=10", *WAYS[way]]
            run = self.train(self.out / "runs" / name, 10 + seed, f"train.start_from={first}", *words)
            path.parent.mkdir(parents=True, exist_ok=True)
            test, found = str(self.data["test"]), str(self.out / "candidates" / name)
            done(infer.main(["--checkpoint", str(run), "--data", test, "--out", found]))
            done(evaluate.main([found, "--data", test, "--out", str(path), *BARREL]))
        metrics = json.loads(path.read_text())["exclusive"]["metrics"]
        return {metric: metrics[metric]["value"] for metric in SHOWN}


def table(study: Study, n: int) -> str:
    """Markdown: a row a metric."""
    found = {way: {seed: study.found(way, seed) for seed in range(1, n + 1)} for way in WAYS}
    lines = [f"| exclusive tracks, {n} seeds | {' | '.join(WAYS)} | difference |", "|---" * (len(WAYS) + 2) + "|"]
    for metric, title in SHOWN.items():
        values = [{seed: numbers[metric] for seed, numbers in runs.items()} for runs in found.values()]
        texts = [seeds.text(*seeds.mean_and_spread(list(of.values()))) for of in values]
        away = seeds.difference(values[1], values[0])
        lines.append(f"| {title} | {' | '.join(texts)} | {seeds.text(*away, '+') if away else ''} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the study."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True)
    for part in ("train", "valid", "test"):
        p.add_argument(f"--{part}", type=Path, required=True, metavar="DATASET")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--tracks", type=int, default=60, help="of each event")
    p.add_argument("--steps", type=int, default=300)
    p.add_argument("--more", type=int, default=100)
    args = p.parse_args(argv)
    data = {part: getattr(args, part) for part in ("train", "valid", "test")}
    text = table(Study(args.out, data, args.tracks, args.steps, args.more), args.seeds)
    write_text(args.out / "table.md", text + "\n")
    print(text)


if __name__ == "__main__":
    main()
