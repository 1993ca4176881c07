"""What training and candidate building cost against the number of tracks (Fig. 3 of D. Murnane, "Influencer Loss").

    python -m tests.campaigns.costs --data DATASET --points 10,20,50,100,200,300,400,500,all --events 5 --out FOLDER

Ratios to the baseline (contrastive embedding, greedy condensation) in the same process, event by event: seconds of a
training step of one event, its peak memory, seconds of candidate building; the influencer loss in closed form, as the
paper's pair scatter and as a loop over tracks (these two with the closed form beside them, for the compactness). The
models are the default backbone with weights as initialised; what losses and builders see has the geometry of a trained
model's outputs (benchmarks/embeddings.py). Finished events stand in FOLDER/costs.jsonl and are not measured again;
costs.md and costs.png are made from them.
"""

from __future__ import annotations

import argparse
import functools
import resource
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch_geometric.data import Batch

from hpctrack.benchmarks.embeddings import FEATURES
from hpctrack.benchmarks.inference import RADIUS
from hpctrack.benchmarks.loss import FORMS, SYSTEMS, as_trained, step
from hpctrack.benchmarks.measure import time_in_turn
from hpctrack.config import AugmentConfig, Named, SelectionConfig
from hpctrack.data.loader import EventLoader
from hpctrack.data.store import Dataset
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.tracking.builders import build_builder
from tests.campaigns.points import Points

ALL = "all"
BASELINE = "baseline"
VARIANTS = (BASELINE, *FORMS)
FIGURES = {
    "step_s": "training step, s / s",
    "peak_mib": "peak memory of a step, MiB / MiB",
    "build_s": "candidate building, s / s",
}


def variant(name: str, batch: Batch) -> Callable[[], None]:
    """A training step of the baseline, or of the influencer system with its attraction in the form `name`."""
    model_config, loss_config = SYSTEMS[BASELINE if name == BASELINE else "influencer"]
    if name != BASELINE:
        loss_config = Named(name=loss_config.name, **loss_config.options, attraction_form=name)
    torch.manual_seed(0)
    model, loss = build_model(model_config, FEATURES), build_loss(loss_config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    with torch.no_grad():
        trained = as_trained(model(batch), batch)

    return functools.partial(step, model, loss, optimizer, batch, trained)


def event(data: Path, row: int, tracks: str) -> Batch:
    """An event with so many tracks of pT > 1 GeV, without other hits."""
    n = None if tracks == ALL else int(tracks)
    selection = SelectionConfig(pt_min_gev=1.0, noise=False, other_hits=False, tracks=n)
    return Batch.from_data_list([EventLoader(Dataset(data), FEATURES, selection, AugmentConfig(), (1, 0))(row, 0)])


def peak_mib(name: str, data: Path, row: int, tracks: str) -> float:
    """What a step adds to the greatest memory of this process, which a step of a small event has warmed up."""
    torch.set_num_threads(1)
    variant(name, event(data, row, "10"))()
    call = variant(name, event(data, row, tracks))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10


def measure(data: Path, row: int, tracks: str, repeats: int) -> dict[str, Any]:
    """One event: medians of seconds, taken in turn, and peaks, each in a process of its own."""
    batch = event(data, row, tracks)
    seconds = time_in_turn({name: variant(name, batch) for name in VARIANTS}, repeats)
    values = {"user": torch.empty(0), "influencer": torch.empty(0), "embedding": torch.empty(0)}
    outputs = {name: value.numpy() for name, value in as_trained(values, batch).items()}
    builders = {name: build_builder(Named(name=name, radius=RADIUS)) for name in ("greedy", "radius")}
    sweeps = {name: functools.partial(lambda b: list(type(b).sweep([b], outputs)), b) for name, b in builders.items()}
    built = time_in_turn(sweeps, repeats)
    peaks = {}
    for name in VARIANTS:
        with ProcessPoolExecutor(1, get_context("spawn")) as alone:
            peaks[name] = alone.submit(peak_mib, name, data, row, tracks).result()
    return {
        "n_tracks": int(batch.n_tracks),
        "n_hits": batch.num_nodes,
        "step_s": {name: median(values) for name, values in seconds.items()},
        "peak_mib": peaks,
        "build_s": {BASELINE: median(built["greedy"]), "radius": median(built["radius"])},
    }


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
    lines = ["![cost over the baseline's](costs.png)", ""]
    lines += ["| figure | influencer | tracks | hits | ratio to the baseline | range | baseline |", "|---" * 7 + "|"]
    for row in sorted(rows, key=lambda row: (row["figure"], row["curve"], row["n_tracks"])):
        lines.append(
            f"| {FIGURES[row['figure']]} | {row['curve']} | {row['n_tracks']:.0f} | {row['n_hits']:.0f} | "
            f"{row['median']:.2f} | {row['min']:.2f} – {row['max']:.2f} | {row['baseline']:.3g} |"
        )
    return "\n".join([*lines, ""])


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Three panels of ratios against tracks."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(13, 4), layout="constrained")
    for axes, (figure, title) in zip(canvas.subplots(1, 3), FIGURES.items(), strict=True):
        for name in dict.fromkeys(row["curve"] for row in rows if row["figure"] == figure):
            mine = [row for row in rows if (row["figure"], row["curve"]) == (figure, name)]
            middle = [row["median"] for row in mine]
            bars = [[abs(row[end] - row["median"]) for row in mine] for end in ("min", "max")]
            axes.errorbar([row["n_tracks"] for row in mine], middle, bars, fmt="o-", ms=4, capsize=2, label=name)
        axes.axhline(1.0, color="0.6", lw=0.8)
        axes.set(xlabel="tracks", ylabel=f"{title}, influencer / baseline", xscale="log", yscale="log")
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
