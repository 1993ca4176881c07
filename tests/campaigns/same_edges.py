"""Several builders on the same scores of edges: how many tracks each finds, perfectly, and how many fakes it makes.

    python -m tests.campaigns.same_edges --checkpoints pipeline-embedding pipeline-filter pipeline-gnn --data DATASET \
        --events 20 --builders 'components,cut=0.5' 'walk,cut=0.5' 'assignment,cut=0.5,join=0.5' --out FILE.json

The stages see each event once. Exclusive tracks are counted, over all events; errors are binomial. FILE.json is written
after each event, and the same command goes on from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpctrack.config import Named
from hpctrack.evaluation.matching import match_exclusive
from hpctrack.evaluation.metrics import METRICS, fraction
from hpctrack.evaluation.tally import Cuts
from hpctrack.files.atomic import write_json
from hpctrack.inference.stages import Chain, stages
from hpctrack.process.ends import verb
from hpctrack.recipes import apply_overrides
from hpctrack.storage.schema import Candidates
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builder import BaseBuilder, Outputs
from hpctrack.tracking.builders import build_builder

SHOWN = ("double_majority_efficiency", "perfect_efficiency", "fake_rate")


class Several(BaseBuilder):
    """Builds nothing but keeps what each of `builders` finds, by name."""

    def __init__(self, builders: dict[str, BaseBuilder]) -> None:
        self.builders = builders
        self.found: dict[str, Candidates] = {}

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """The last one's candidates."""
        self.found = {name: b.build(outputs, hit_rows, n_hits, event_id) for name, b in self.builders.items()}
        return self.found[next(reversed(self.found))]


def named(text: str) -> Named:
    """`walk,cut=0.5` as a section `builder`."""
    name, *options = text.split(",")
    return Named(**apply_overrides({"builder": {"name": name}}, [f"builder.{o}" for o in options], text)["builder"])


def table(events: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a builder."""
    lines = ["| builder | " + " | ".join(METRICS[m].title for m in SHOWN) + " |", "|---|" + "---|" * len(SHOWN)]
    for name in events[0]["counts"]:
        cells = []
        for metric in SHOWN:
            numbers = [sum(event["counts"][name][metric][k] for event in events) for k in (0, 1)]
            value = fraction(*numbers)
            cells.append(f"{value['value']:.4f} ± {value['error']:.4f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


@verb("same_edges")
def main(argv: Sequence[str] | None = None) -> None:
    """Count and print."""
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--checkpoints", nargs="+", required=True, type=Path)
    p.add_argument("--data", type=Path, required=True)
    p.add_argument("--events", type=int, default=20)
    p.add_argument("--builders", nargs="+", required=True, metavar="NAME,KEY=VALUE,…")
    p.add_argument("--out", type=Path, required=True)
    args = p.parse_args(argv)
    several = Several({text: build_builder(named(text)) for text in args.builders})
    data, cuts = Dataset(args.data), Cuts(1.0, 3)
    paths, configs = stages(args.checkpoints, [])
    chain = Chain(configs, paths, data, torch.device("cpu"))
    chain._stages[-1]._builder = several
    about = {
        "checkpoints": [str(path) for path in args.checkpoints],
        "data": data.fingerprint,
        "builders": args.builders,
    }
    done = json.loads(args.out.read_text()) if args.out.exists() else about | {"events": []}
    for row in range(len(done["events"]), min(args.events, len(data))):
        chain(row)
        event = data.read(row, ["truth.particle_row", "particles.px", "particles.py", "particles.pz"])
        owner, target = event.column("truth.particle_row"), cuts.targets(event)
        counts = {}
        for name, found in several.found.items():
            matched = match_exclusive(found, owner, len(target))
            counts[name] = {metric: [int(n) for n in METRICS[metric].count(matched, target)] for metric in SHOWN}
        done["events"].append({"event_id": int(data.event_ids[row]), "counts": counts})
        write_json(args.out, done)
    print(table(done["events"]))


if __name__ == "__main__":
    raise SystemExit(main())
