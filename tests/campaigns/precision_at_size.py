"""Does a full event train in fp16 and bf16? One step of every recipe's loss on one event, in three precisions.

    hpctrack simulate work/csv --source acts --mu 200 --pileup fixed --events 1 --seed 1
    hpctrack convert work/csv work/data
    python -m tests.campaigns.precision_at_size --data work/data --out work/precision.json

The event is taken whole, whatever the recipe selects. Weights are those that a training begins with or, with
`--shipped`, those of the package's models, whose losses are so small that rounding inside of the models counts. What a
stage of the pipeline would read of the stage before it is doublets of the barrel (|dphi / dr| below 0.2 rad/m), and the
transformer, whose work goes with the square of the hits, is replaced by the default backbone: the losses are the
recipes' own. Exit code 1 if a step is not finite, or its loss is not within 1 % of fp32's.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named, RunConfig, load_config
from hpctrack.events.loader import EventLoader
from hpctrack.files.atomic import write_text
from hpctrack.graphs import build_graph
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.process.versions import versions
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint
from hpctrack.training.step import train_step

ROOT = Path(__file__).parents[2]
PRECISIONS = ("fp32", "bf16", "fp16")
WEIGHTS = {
    "condensation": "condensation-500",
    "greedy": "greedy-500",
    "influencer-500": "influencer-500",
    "influencer-every-hit": "influencer-every-hit",
    "influencer-full": "influencer-full",
    "embedding": "pipeline-embedding",
    "filter": "pipeline-filter",
    "gnn": "pipeline-gnn",
}
TOLERANCE = 0.01
TRIES = 20  # of a step in fp16, each with half the loss scale


def event(config: RunConfig, folder: Path) -> Batch:
    """The dataset's first event, whole, as the recipe's model sees it."""
    data = config.data
    selection = data.selection.model_copy(
        update={"tracks": None, "noise": True, "other_hits": True, "noise_share": None, "volumes": None}
    )
    kind = data.graph and ("truth" if data.graph.name == "truth" else "doublets")
    options = {"phi_slope_max_per_mm": 2e-4} if kind == "doublets" else {}
    graph = build_graph(Named(name=kind, **options) if kind else None, str(folder))
    load = EventLoader(Dataset(folder), data.features, selection, AugmentConfig(), (config.seed, 0), graph=graph)
    return Batch.from_data_list([load(0, 0)])


def step(config: RunConfig, shipped: str | None, batch: Batch, precision: str) -> dict[str, Any]:
    """Loss and gradient norm of one step, and what it took; with the weights of the `shipped` model, if any."""
    torch.manual_seed(config.seed)
    section = config.model
    if section.options.get("backbone", {}).get("name") == "transformer":
        section = Named(**(section.model_dump() | {"backbone": {"name": "neighbours"}}))
    model = build_model(section, config.data.features)
    if shipped:
        checkpoint.begin_from(model, checkpoint.find(Path(shipped)), config.data.features)
    device = torch.device("cpu")
    engine = DDPEngine(
        model,
        lambda m: torch.optim.SGD(m.parameters(), 1e-6),
        Env(0, 1, 0, device, None, "campaign"),
        Precision(precision, device),
        config.parallel,
    )
    begin = time.perf_counter()
    loss, modes = build_loss(config.loss), [model.memory_modes[-1]]
    result = train_step(engine, loss, [batch], None, modes)
    while result.skipped and engine.precision.skipped_steps < TRIES:
        result = train_step(engine, loss, [batch], None, modes)
    return {
        "loss": result.loss,
        "grad_norm": result.grad_norm,
        "skipped": engine.precision.skipped_steps,
        "scale": engine.precision.loss_scale,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def main() -> int:
    """The campaign."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipes", nargs="*", help="names; default: all of configs/")
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, help="beside fp32; default: all")
    parser.add_argument("--shipped", action="store_true", help="the weights of the package's models")
    args = parser.parse_args()
    found: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"versions": versions()}
    good = True
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        if path.stem not in (args.recipes or [path.stem]) or (args.shipped and path.stem not in WEIGHTS):
            continue
        config = load_config(path)
        batch = event(config, args.data)
        row = found.setdefault(path.stem, {"hits": batch.num_nodes, "edges": batch.num_edges})
        for precision in dict.fromkeys(["fp32", *args.precisions]):
            if precision not in row:
                row[precision] = step(config, WEIGHTS[path.stem] if args.shipped else None, batch, precision)
                write_text(args.out, json.dumps(found, indent=1) + "\n")
                gc.collect()
            value = row[precision]["loss"]
            off = value / row["fp32"]["loss"] - 1
            good &= abs(off) < TOLERANCE
            print(f"{path.stem:22s} {precision} {batch.num_nodes} hits  loss {value:.6g}  {off:+.2%}", flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
