"""What training and candidate building cost against the number of tracks (Fig. 3 of D. Murnane, "Influencer Loss").

    python -m tests.campaigns.costs --data DATASET --points 10,20,50,100,200,300,400,500,all --events 5 --out FOLDER

Ratios to the baseline (contrastive embedding, greedy condensation) in the same process, event by event: seconds and
peak memory of a training step of one event, and of the loss alone; seconds of candidate building. The influencer loss
in closed form, as the paper's pair scatter and as a loop over tracks. Memory is that of tensors alive at once, counted
exactly; of a step most is the backbone's. Models are the default backbone with weights as initialised; what losses and
builders see has the geometry of a trained model's outputs (benchmarks/measure.py). Finished events stand in
FOLDER/costs.jsonl and are not measured again; costs.md and costs.png are made from them.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch_geometric.data import Batch

from hpctrack.benchmarks.inference import RADIUS
from hpctrack.benchmarks.loss import FORMS, SYSTEMS, as_trained, step, weighted
from hpctrack.benchmarks.measure import FEATURES, time_in_turn
from hpctrack.config import AugmentConfig, Named, SelectionConfig
from hpctrack.events.loader import EventLoader
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.resources.calibration import MemoryMeter
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builders import build_builder
from tests.campaigns.points import Points

ALL = "all"
BASELINE = "baseline"
VARIANTS = (BASELINE, *FORMS)
FIGURES = {
    "step_s": "training step, s",
    "step_mib": "peak memory of a step, MiB",
    "loss_s": "loss alone, s",
    "loss_mib": "peak memory of the loss, MiB",
    "build_s": "candidate building, s",
}


def variant(name: str, batch: Batch) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step of the baseline, or of the influencer system with its attraction in the form `name`.

    Also its loss alone, forward and backward.
    """
    model_config, loss_config = SYSTEMS[BASELINE if name == BASELINE else "influencer"]
    if name != BASELINE:
        loss_config = Named(name=loss_config.name, **loss_config.options, attraction_form=name)
    torch.manual_seed(0)
    model, loss = build_model(model_config, FEATURES), build_loss(loss_config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with torch.no_grad():
        trained = as_trained(model(batch), batch)
    leaves = {key: value.clone().requires_grad_() for key, value in trained.items()}
    whole = functools.partial(step, model, loss, optimizer, batch, trained)
    return whole, lambda: weighted(loss, leaves, batch).backward()


def event(data: Path, row: int, tracks: str) -> Batch:
    """An event with so many tracks of pT > 1 GeV, without other hits."""
    n = None if tracks == ALL else int(tracks)
    selection = SelectionConfig(pt_min_gev=1.0, noise=False, other_hits=False, tracks=n)
    return Batch.from_data_list([EventLoader(Dataset(data), FEATURES, selection, AugmentConfig(), (1, 0))(row, 0)])


def peak_mib(call: Callable[[], None]) -> float:
    """Tensors alive at once in a step, beyond the weights and the batch."""
    with MemoryMeter(torch.device("cpu")) as meter:
        call()
    return meter.peak / 2**20


def measure(data: Path, row: int, tracks: str, repeats: int) -> dict[str, Any]:
    """One event: medians of seconds, taken in turn, and peaks of memory."""
    batch = event(data, row, tracks)
    pairs = {name: variant(name, batch) for name in VARIANTS}
    found: dict[str, Any] = {"n_tracks": int(batch.n_tracks), "n_hits": batch.num_nodes}
    for k, what in enumerate(("step", "loss")):
        calls = {name: pair[k] for name, pair in pairs.items()}
        found[f"{what}_s"] = {name: median(values) for name, values in time_in_turn(calls, repeats).items()}
        found[f"{what}_mib"] = {name: peak_mib(call) for name, call in calls.items()}
    values = {"user": torch.empty(0), "influencer": torch.empty(0), "embedding": torch.empty(0)}
    outputs = {name: value.numpy() for name, value in as_trained(values, batch).items()}
    builders = {name: build_builder(Named(name=name, radius=RADIUS)) for name in ("greedy", "radius")}
    sweeps = {name: functools.partial(lambda b: list(type(b).sweep([b], outputs)), b) for name, b in builders.items()}
    built = time_in_turn(sweeps, repeats)
    return found | {"build_s": {BASELINE: median(built["greedy"]), "radius": median(built["radius"])}}


def ratios(rows: Sequence[dict[str, Any]], points: Sequence[str]) -> list[dict[str, Any]]:
    """Of each point and curve: median, least and greatest ratio to the baseline over its events."""
    out = []
    for tracks in points:
        mine = [row for row in rows if row["tracks"] == tracks]
        for figure in FIGURES if mine else ():
            for name in [key for key in mine[0][figure] if key != BASELINE]:
                values = [row[figure][name] / max(row[figure][BASELINE], 1e-9) for row in mine]
                spread = {"median": median(values), "min": min(values), "max": max(values), "events": len(values)}
                sizes = {key: sum(row[key] for row in mine) / len(mine) for key in ("n_tracks", "n_hits")}
                base = median(row[figure][BASELINE] for row in mine)
                out.append({"figure": figure, "curve": name, "baseline": base, **sizes, **spread})
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    lines = ["![costs over the baseline's, against tracks](costs.png)", ""]
    lines += ["| figure | influencer | tracks | hits | ratio to the baseline | range | baseline |", "|---" * 7 + "|"]
    for row in sorted(rows, key=lambda row: (row["figure"], row["curve"], row["n_tracks"])):
        lines.append(
            f"| {FIGURES[row['figure']]} | {row['curve']} | {row['n_tracks']:.0f} | {row['n_hits']:.0f} | "
            f"{row['median']:.2f} | {row['min']:.2f} – {row['max']:.2f} | {row['baseline']:.3g} |"
        )
    return "\n".join([*lines, ""])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A panel of ratios against tracks for each figure."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(13, 7.5), layout="constrained")
    panels = canvas.subplots(2, 3).ravel()
    panels[-1].set_axis_off()
    for axes, (figure, title) in zip(panels, FIGURES.items(), strict=False):
        for name in dict.fromkeys(row["curve"] for row in rows if row["figure"] == figure):
            mine = [row for row in rows if (row["figure"], row["curve"]) == (figure, name)]
            middle = [row["median"] for row in mine]
            bars = [[abs(row[end] - row["median"]) for row in mine] for end in ("min", "max")]
            axes.errorbar([row["n_tracks"] for row in mine], middle, bars, fmt="o-", ms=4, capsize=2, label=name)
        axes.axhline(1.0, color="0.6", lw=0.8)
        axes.set(title=title.split(",")[0], xlabel="tracks", ylabel="influencer / baseline", xscale="log")
        axes.set_ylim(0, 1.15 * max(row["max"] for row in rows if row["figure"] == figure))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    canvas.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--points", type=lambda t: t.split(","), default="10,20,50,100,200,300,400,500,all")
    parser.add_argument("--events", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    points, wanted, events = Points(args.out / "costs.jsonl", ("tracks", "event_id")), set(), Dataset(args.data)
    for row in range(min(args.events, len(events))):
        for tracks in args.points:
            key = {"tracks": tracks, "event_id": int(events.event_ids[row])}
            wanted.add(points.key(key))
            if points.key(key) not in points.done:
                points.add(key | measure(args.data, row, tracks, args.repeats))
        print(f"event {events.event_ids[row]}: done", flush=True)
    found = ratios([row for row in points.rows if points.key(row) in wanted], args.points)
    (args.out / "costs.md").write_text(table(found))
    plot(found, args.out / "costs.png")
    print(table(found))


if __name__ == "__main__":
    main()
