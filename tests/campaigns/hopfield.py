"""Hopfield networks from a hundred tracks to a full event, beside other methods and on a model's edges.

    python -m tests.campaigns.hopfield toy --out FOLDER [--seeds 10]
    python -m tests.campaigns.hopfield events --out FOLDER --data DATASET [--tracks 100 200 500 1000]
        [--builders walk components hopfield] [--stages pipeline-embedding pipeline-filter pipeline-gnn]
    python -m tests.campaigns.hopfield tables --out FOLDER

`toy`: the cylinders (hpctrack/benchmarks/cylinders.py) with every named set. `events`: methods hopfield, ckf and
dbscan and the stages with each builder, on a dataset of noise-free targets, all tracks of an event and, hopfield alone,
so many drawn. What is done stands in FOLDER (toy.jsonl, events/NAME.json) and is not done again. `tables`: all of it as
Markdown, and FOLDER/hopfield.png.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack import evaluate, infer
from hpctrack.benchmarks import cylinders
from hpctrack.evaluation.matching import match_candidates
from hpctrack.evaluation.metrics import METRICS
from hpctrack.files.jsonlines import read_lines
from hpctrack.storage.schema import Event
from hpctrack.tracking.hopfield.method import Hopfield
from hpctrack.tracking.hopfield.sets import SETS
from tests.campaigns.points import Points

TOYS = ((100, 0.0), (200, 0.0), (500, 0.0), (1000, 0.0), (500, 0.3), (1000, 0.3))
SHOWN = ("double_majority_efficiency", "fake_rate")
METHODS = {"hopfield": (), "ckf": (), "dbscan": ("method.eps=0.05",)}
COLUMNS = ("efficiency", "double_majority_efficiency", "perfect_efficiency", "fake_rate", "duplicate_rate")
STAGES = ("pipeline-embedding", "pipeline-filter", "pipeline-gnn")


def toy(out: Path, seeds: int) -> None:
    """Every set on every toy: counts, segments, triplets, and seconds of the processor, a line each."""
    points = Points(out / "toy.jsonl", ("set", "tracks", "noise", "seed"))
    for tracks, noise in TOYS:
        for seed in range(1, seeds + 1):
            event = cylinders.event(tracks, noise, seed)
            for name in SETS:
                row = {"set": name, "tracks": tracks, "noise": noise, "seed": seed}
                if points.key(row) not in points.done:
                    points.add(row | measured(event, name, tracks))


def measured(event: Event, name: str, tracks: int) -> dict[str, Any]:
    """Counts of SHOWN, numbers of segments and couplings, and seconds of the processor, of a set on a toy."""
    method = Hopfield(Hopfield.Options(set=name, segments="barrel"))
    rows, started = np.arange(event.n_hits), time.process_time()
    found, _ = method.reconstruct(event, rows)
    seconds = time.process_time() - started
    hits, edge_2M = method.segments(event, rows)
    size = [edge_2M.shape[1], method.network(hits, edge_2M).support.nnz // 2]
    matched = match_candidates(found, event.column("truth.particle_row"), tracks)
    counts = [METRICS[metric].count(matched, np.ones(tracks, dtype=bool)) for metric in SHOWN]
    return {"counts": np.array(counts).tolist(), "size": size, "cpu_s": seconds}


def events(out: Path, data: Path, tracks: Sequence[int], builders: Sequence[str], stages: Sequence[str]) -> None:
    """Candidates and results of every method and builder, unless they are there."""
    runs = {name: ["--method", name, *more] for name, more in METHODS.items()}
    runs |= {f"hopfield-{n}": ["--method", "hopfield", f"selection.tracks={n}"] for n in tracks}
    chain = [word for stage in stages for word in ("--checkpoint", stage)]
    runs |= {f"chain-{name}": [*chain, f"builder={{name: {name}, cut: {cut_of(name)}}}"] for name in builders}
    for name, arguments in runs.items():
        result, found = out / "events" / f"{name}.json", out / "events" / name
        if not result.exists():
            result.parent.mkdir(parents=True, exist_ok=True)
            for code in (
                infer.main([*arguments, "--data", str(data), "--out", str(found)]),
                evaluate.main([str(found), "--data", str(data), "--out", str(result), "--pt-min-gev", "1"]),
            ):
                if code:
                    raise SystemExit(code)


def cut_of(builder: str) -> float:
    """The cut on an edge's probability: of builders that decide alone that of the shipped checkpoint."""
    return 0.02 if builder == "hopfield" else 0.5


def tables(out: Path) -> str:
    """What was found, as Markdown."""
    parts = [toy_table(read_lines(out / "toy.jsonl")), events_table(out / "events")]
    plot(read_lines(out / "toy.jsonl"), out / "hopfield.png")
    return "\n\n".join(parts)


def toy_table(done: Sequence[dict[str, Any]]) -> str:
    """Efficiency / fakes of each toy and set, with the standard deviation over seeds; and what they took."""
    rows = ["| tracks (noise) | segments | " + " | ".join(SETS) + " |", "|---" * (len(SETS) + 2) + "|"]
    for tracks, noise in TOYS:
        cells = []
        for name in SETS:
            mine = of_toy(done, name, tracks, noise)
            cells.append(" / ".join(f"{v.mean():.3f} ± {v.std():.3f}" for v in mine[0].T) if len(mine[0]) else "")
        size = of_toy(done, "curvature-barrel", tracks, noise)[1]
        rows.append(f"| {tracks} ({noise:.0%}) | {size[:, 0].mean():,.0f} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def of_toy(
    done: Sequence[dict[str, Any]], name: str, tracks: int, noise: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares [seeds, 2], segments and couplings [seeds, 2], seconds [seeds]."""
    mine = [row for row in done if (row["set"], row["tracks"], row["noise"]) == (name, tracks, noise)]
    counts = np.array([row["counts"] for row in mine], dtype=float).reshape(-1, 2, 2)
    size = np.array([row["size"] for row in mine], dtype=float).reshape(-1, 2)
    return counts[:, :, 0] / counts[:, :, 1], size, np.array([row["cpu_s"] for row in mine])


def events_table(folder: Path) -> str:
    """Metrics with their errors, and the median seconds an event of reading, model or method, and building."""
    rows = ["| what | " + " | ".join(name.replace("_", " ") for name in COLUMNS) + " | seconds (least, most) |"]
    rows.append("|---" * (len(COLUMNS) + 2) + "|")
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text())["candidates"]["metrics"]
        timed = read_lines(folder / path.stem / "timings.jsonl")
        took = [sum(row[part] for part in ("read_s", "model_s", "build_s")) for row in timed]
        cells = [f"{found[name]['value']:.4f} ± {found[name].get('error', 0) or 0:.4f}" for name in COLUMNS]
        seconds = f"{np.median(took):.2f} ({min(took):.2f}, {max(took):.2f})" if took else ""
        rows.append(f"| {path.stem} | " + " | ".join(cells) + f" | {seconds} |")
    return "\n".join(rows)


def plot(done: Sequence[dict[str, Any]], path: Path) -> None:
    """Efficiency, and seconds against segments and triplets, of each set on the toys without noise."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in SETS:
        points = [(n, *of_toy(done, name, n, noise)) for n, noise in TOYS if not noise]
        points = [point for point in points if len(point[3])]
        left.plot([p[0] for p in points], [p[1][:, 0].mean() for p in points], "o-", label=name)
        right.loglog([p[2].sum(1).mean() for p in points], [np.median(p[3]) for p in points], "o-", label=name)
    left.set(xlabel="tracks", ylabel="double-majority efficiency", xscale="log")
    right.set(xlabel="segments + couplings", ylabel="processor seconds")
    left.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the study."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("toy", "events", "tables"))
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--seeds", type=int, default=10)
    p.add_argument("--data", type=Path)
    p.add_argument("--tracks", type=int, nargs="*", default=[100, 200, 500, 1000])
    p.add_argument("--builders", nargs="*", default=["walk", "components", "hopfield"])
    p.add_argument("--stages", nargs="*", default=list(STAGES))
    args = p.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.what == "toy":
        toy(args.out, args.seeds)
    elif args.what == "events":
        if args.data is None:
            p.error("events needs --data DATASET")
        events(args.out, args.data, args.tracks, args.builders, args.stages)
    else:
        print(tables(args.out))


if __name__ == "__main__":
    main()
