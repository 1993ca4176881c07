"""The accuracies of trained models on planes on events that were neither trained on nor chosen by.

    python -m tests.campaigns.planes_accuracy RUN … --data DATASET

prints, of each run's newest checkpoint, the four accuracies of the loss `seeded` (docs/how-to/planes.md) as Markdown,
with standard errors over groups of events.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.campaigns.planes import measure

NAMES = ("pixel_accuracy", "hit_accuracy", "pixel_accuracy_behind", "hit_accuracy_behind")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    p = argparse.ArgumentParser(prog="python -m tests.campaigns.planes_accuracy", description=__doc__.split("\n\n")[0])
    p.add_argument("runs", type=Path, nargs="+", help="folders of runs")
    p.add_argument("--data", type=Path, required=True, help="the dataset")
    args = p.parse_args(argv)
    titles = [name.replace("_accuracy", "").replace("_", ", ") for name in NAMES]
    print(f"| run | weights | step | events | {' | '.join(titles)} |")
    print("|---" * (4 + len(NAMES)) + "|")
    for run in args.runs:
        found = measure(run, args.data, NAMES)
        cells = [f"{right / of:.4f} ± {error:.4f}" for right, of, error in (found[name] for name in NAMES)]
        print(f"| {run.name} | {found['weights']:,} | {found['step']} | {found['events']} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
