"""Accuracy against the number of tracks, of all models that follow a seed through squares of pixels.

    python -m tests.campaigns.planes --out FOLDER

makes the events (training: 0 to 11 tracks besides the seed's, as many events of each; tests: 1, 2, 3, 5, 8, 12 tracks
in all), trains each recipe with each seed on the same events, and measures each model on each number of tracks, and
beside them a straight line through the seed's hits. Killed and run again, it goes on where it was. FOLDER/planes.md is
the table, FOLDER/planes.png the curves, FOLDER/points.jsonl every point with its counts. Test events have other seeds
than training, and choose nothing.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack import simulate, train
from hpctrack.config import AugmentConfig, load_config
from hpctrack.events.loader import EventLoader
from hpctrack.files.atomic import write_text
from hpctrack.graphs import build_graph
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint, run_settings
from tests.campaigns.points import Points

mpl.use("Agg")

RECIPES = ("lstm", "lstm-deep", "lstm-both-ways", "lstm-next-plane", "convolution", "autoencoder", "seeded-hits")
TRACKS = (1, 2, 3, 5, 8, 12)
METRICS = {"pixel_accuracy_behind": "pixel", "hit_accuracy_behind": "hit"}
AT_A_TIME = 50  # events
STRAIGHT = "straight line"  # the row of the extrapolation, which learns nothing


def make_events(args: argparse.Namespace) -> None:
    """Datasets of training and of each number of tracks, unless they are there."""
    most = max(args.tracks) - 1
    sets = {"train": (args.events, 1, most, "uniform"), "valid": (args.test_events, 2, most, "uniform")}
    sets |= {f"test-{n}": (args.test_events, 100 + n, n - 1, "fixed") for n in args.tracks}
    for name, (events, seed, tracks, number) in sets.items():
        options = (
            f"--preset planes-3d --dataset --events {events} --seed {seed} --tracks {tracks} --tracks-number {number}"
        )
        if code := simulate.main([str(args.out / name), *options.split(), *args.simulate.split()]):
            sys.exit(code)


def train_one(recipe: str, seed: int, args: argparse.Namespace) -> Path:
    """The folder of the run, trained to its last step."""
    run = args.out / "runs" / f"{recipe}-{seed}"
    sets = {"run": run, "seed": seed, "data.train": args.out / "train", "data.valid": args.out / "valid"}
    options = [f"heptrkx/{recipe}", *(f"{key}={value}" for key, value in sets.items()), *args.set]
    if args.steps:
        options.append(f"train.steps={args.steps}")
    if (
        code := train.main(options)
        if args.here
        else subprocess.call([sys.executable, "-m", "hpctrack.train", *options])
    ):
        sys.exit(code)
    return run


def measure(run: Path, folder: Path, names: Collection[str] = METRICS) -> dict[str, Any]:
    """Of a run's newest checkpoint on a dataset, for each accuracy: numerator, denominator, and the standard error.

    The error is that over groups of AT_A_TIME events, for hits of one track are right or wrong together.
    """
    path = checkpoint.find(run)
    meta = checkpoint.read_meta(path)
    config = run_settings.run_config(meta, path)
    model = build_model(config.model, config.data.features)
    checkpoint.load_model(model, checkpoint.read_state(path, mapped=True)["model"], path)
    data, loss = Dataset(folder), build_loss(config.loss)
    graph = build_graph(config.data.graph, folder, data)
    load = EventLoader(data, config.data.features, config.data.selection, AugmentConfig(), (0, 1), graph=graph)
    counts: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    with torch.no_grad():
        for first in range(0, len(data), AT_A_TIME):
            batch = Batch.from_data_list([load(row, 0) for row in range(first, min(first + AT_A_TIME, len(data)))])
            for name, term in loss.metrics(model.eval()(batch), batch).items():
                if name in counts:
                    counts[name].append((term.sum.item(), term.count))
    n = sum(parameter.numel() for parameter in model.parameters())
    return {"step": meta["step"], "weights": n, "events": len(data), **{k: added_up(v) for k, v in counts.items()}}


def extrapolate(folder: Path, seed_planes: int) -> dict[str, Any]:
    """The same of a straight line through the hits of the first planes, by least squares: nothing is learned.

    Its pixel is where it crosses a plane, its hit the nearest one.
    """
    data, counts = Dataset(folder), dict[str, list[tuple[float, int]]]()
    for first in range(0, len(data), AT_A_TIME):
        right = [straight(data, row, seed_planes) for row in range(first, min(first + AT_A_TIME, len(data)))]
        *numbers, of = np.sum(right, axis=0)
        for name, number in zip(METRICS, numbers, strict=True):
            counts.setdefault(name, []).append((float(number), int(of)))
    return {"step": 0, "weights": 0, "events": len(data), **{name: added_up(found) for name, found in counts.items()}}


def straight(data: Dataset, row: int, seed_planes: int) -> np.ndarray:
    """Right pixels, right hits and planes behind the seed of an event, [3]."""
    event = data.read(row, ["hits.layer_id", "hits.x", "hits.y", "truth.particle_row"])
    plane_N, of_track = event.column("hits.layer_id").astype(int), event.column("truth.particle_row") == 0
    place_N2 = np.stack([event.column("hits.x"), event.column("hits.y")], axis=1)
    seed = of_track & (plane_N < seed_planes)
    slope_2, start_2 = np.polyfit(plane_N[seed], place_N2[seed], 1)
    found = np.zeros(3)
    for hit in np.flatnonzero(of_track & (plane_N >= seed_planes)):
        there = np.flatnonzero(plane_N == plane_N[hit])
        crossed_2 = start_2 + slope_2 * plane_N[hit]
        nearest = there[np.argmin(((place_N2[there] - crossed_2) ** 2).sum(axis=1))]
        found += (np.array_equal(np.floor(crossed_2), np.floor(place_N2[hit])), nearest == hit, 1)
    return found


def added_up(counts: Sequence[tuple[float, int]]) -> list[float]:
    """Numerator, denominator, and the standard error of their ratio, of these of groups of events (0 of one group)."""
    right, of = np.array(counts).T
    apart = right - of * right.sum() / of.sum()
    error = np.sqrt((apart**2).sum() * len(of) / max(1, len(of) - 1)) / of.sum() if len(of) > 1 else 0.0
    return [float(right.sum()), int(of.sum()), float(error)]


def summary(rows: Sequence[dict[str, Any]], recipe: str, tracks: int, metric: str) -> tuple[float, float, int] | None:
    """Mean over seeds, standard deviation over them (of one: its error) and their number; None without a point."""
    found = [row[metric] for row in rows if (row["recipe"], row["tracks"]) == (recipe, tracks)]
    if not found:
        return None
    values = [right / of for right, of, *_ in found]
    error = float(np.std(values, ddof=1)) if len(found) > 1 else found[0][2] if len(found[0]) > 2 else 0.0
    return float(np.mean(values)), error, len(found)


def table(rows: Sequence[dict[str, Any]], args: argparse.Namespace, command: str) -> str:
    """The points as Markdown, a table for each accuracy."""
    lines = ["# Accuracy against the number of tracks", "", "![accuracy against tracks](planes.png)"]
    for metric, name in METRICS.items():
        lines += ["", f"| {name} accuracy behind the seed | {' | '.join(map(str, args.tracks))} | steps | seeds |"]
        lines += ["|---" * (len(args.tracks) + 3) + "|"]
        for recipe in [*args.models, STRAIGHT]:
            found = [summary(rows, recipe, n, metric) for n in args.tracks]
            cells = [f"{f[0]:.4f} ± {f[1]:.4f}" if f else "" for f in found]
            steps = sorted({row["step"] for row in rows if row["recipe"] == recipe})
            seeds = max((f[2] for f in found if f), default=0)
            lines.append(f"| {recipe} | {' | '.join(cells)} | {', '.join(map(str, steps))} | {seeds} |")
    return "\n".join([*lines, "", f"`{command}`"]) + "\n"


def plot(rows: Sequence[dict[str, Any]], args: argparse.Namespace, path: Path) -> None:
    """Both accuracies against the number of tracks, a curve a recipe."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4), sharey=True)
    for axis, (metric, name) in zip(axes, METRICS.items(), strict=True):
        for recipe in [*args.models, STRAIGHT]:
            points = [(n, found) for n in args.tracks if (found := summary(rows, recipe, n, metric))]
            if points:
                x, y = [n for n, _ in points], [found[0] for _, found in points]
                axis.errorbar(x, y, [found[1] for _, found in points], marker="o", capsize=3, label=recipe)
        axis.set(xlabel="tracks", ylabel=f"{name} accuracy behind the seed")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def parser() -> argparse.ArgumentParser:
    """The study's options."""
    p = argparse.ArgumentParser(prog="python -m tests.campaigns.planes", description=__doc__.split("\n\n")[0])
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--models", type=lambda text: text.split(","), default=list(RECIPES))
    p.add_argument("--tracks", type=lambda text: [int(n) for n in text.split(",")], default=list(TRACKS))
    p.add_argument("--seeds", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 3])
    p.add_argument("--events", type=int, default=20000, help="of training")
    p.add_argument("--test-events", type=int, default=2000, help="of validation, and of each number of tracks")
    p.add_argument("--steps", type=int, help="default: the recipes'")
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of all recipes")
    p.add_argument("--simulate", default="", metavar="OPTIONS", help="of hpctrack simulate besides, as '--sagitta 4'")
    p.add_argument("--here", action="store_true", help="train in this process")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Make, train, measure; then the table and the plot."""
    args = parser().parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    for recipe in args.models:
        load_config(f"heptrkx/{recipe}")  # a wrong name is said before hours of work
    make_events(args)
    points = Points(args.out / "points.jsonl", ("recipe", "seed", "tracks"))
    seed_planes = build_loss(load_config(f"heptrkx/{args.models[0]}", args.set).loss).options.seed_planes
    for n in args.tracks:
        if (STRAIGHT, 0, n) not in points.done:
            points.add({"recipe": STRAIGHT, "seed": 0, "tracks": n} | extrapolate(args.out / f"test-{n}", seed_planes))
    for seed in args.seeds:
        for recipe in args.models:
            if all((recipe, seed, n) in points.done for n in args.tracks):
                continue
            run = train_one(recipe, seed, args)
            for n in args.tracks:
                if (recipe, seed, n) not in points.done:
                    found = measure(run, args.out / f"test-{n}")
                    points.add({"recipe": recipe, "seed": seed, "tracks": n, **found})
    command = "python -m tests.campaigns.planes " + " ".join(sys.argv[1:] if argv is None else argv)
    write_text(args.out / "planes.md", table(points.rows, args, command))
    plot(points.rows, args, args.out / "planes.png")
    print(table(points.rows, args, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
