"""Does grouping like-sized events hurt? The influencer model trained with several windows, several seeds each.

    python -m tests.campaigns.windows --work FOLDER [--windows 1 8 epoch] [--seeds 1 2 3] [--steps 400]

Simulates low pile-up ACTS events, whose numbers of tracks differ widely, trains on all tracks with pT > 1 GeV of each,
and prints final validation loss and test efficiency of every window, with differences to the first and their errors
over seeds. What FOLDER holds already is used again, so it may be stopped and continued.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from tests.campaigns.seeds import error

ROOT = Path(__file__).parents[2]
EVENTS = {"train": (320, 1), "valid": (60, 2), "test": (120, 3)}  # number, simulation seed
SELECTION = ["selection.pt_min_gev=1", "selection.noise=false", "selection.other_hits=false"]
FIGURES = ("validation loss", "efficiency", "double majority", "fake rate")


def verb(name: str, *words: object) -> None:
    """Run a verb; its output goes to standard error."""
    command = [sys.executable, "-m", f"hpctrack.{name}", *map(str, words)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=sys.stderr, cwd=ROOT, env=env)


def prepare(work: Path, mu: float) -> None:
    """Events of the three parts, as datasets."""
    for part, (events, seed) in EVENTS.items():
        if not (work / part / "index.h5").exists():
            verb("simulate", work / f"csv-{part}", "--events", events, "--seed", seed, "--mu", mu)
            verb("convert", work / f"csv-{part}", work / part, "--events-per-shard", 64, "--skip-bad")


def one(work: Path, window: str, seed: int, steps: int) -> dict[str, float]:
    """Train, infer and evaluate one window and seed."""
    run = work / f"run-{window}-{seed}"
    data = [f"data.train={work / 'train'}", f"data.valid={work / 'valid'}", "data.selection.tracks=null"]
    keys = [f"run={run}", *data, f"seed={seed}", f"plan.window={window}", f"train.steps={steps}"]
    verb("train", ROOT / "configs/influencer.yaml", *keys, "train.valid_every=100000")
    verb("infer", "--checkpoint", run, "--data", work / "test", "--out", run / "candidates", *SELECTION)
    verb("evaluate", run / "candidates", "--data", work / "test", "--out", run / "results.json", "--pt-min-gev", 1)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((run / "results.json").read_text())["candidates"]["metrics"]
    values = [metrics[name]["value"] for name in ("efficiency", "double_majority_efficiency", "fake_rate")]
    loss = next(line["loss"] for line in reversed(lines) if line["kind"] == "valid")
    return dict(zip(FIGURES, [loss, *values], strict=True))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--windows", nargs="+", default=["1", "8", "epoch"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--mu", type=float, default=8.0)
    args = parser.parse_args()
    args.work = args.work.absolute()
    prepare(args.work, args.mu)
    results = {w: [] for w in args.windows}
    for seed in args.seeds:
        for window in args.windows:
            results[window].append(one(args.work, window, seed, args.steps))
            print(f"window {window}, seed {seed}: {results[window][-1]}", flush=True)
    first = args.windows[0]
    print(f"\n| window | {' | '.join(FIGURES)} |\n|---|{'---|' * len(FIGURES)}")
    for window, rows in results.items():
        cells = []
        for figure in FIGURES:
            values = [row[figure] for row in rows]
            text = f"{statistics.mean(values):.4f} ± {error(values):.4f}"
            if window != first:  # seeds are paired: the same weights and draws to begin with
                differences = [a[figure] - b[figure] for a, b in zip(rows, results[first], strict=True)]
                text += f" ({statistics.mean(differences):+.4f} ± {error(differences):.4f})"
            cells.append(text)
        print(f"| {window} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
