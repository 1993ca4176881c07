"""Efficiency and fake rate against the number of tracks (Fig. 2 of D. Murnane, "Influencer Loss", CHEP 2023).

    python -m tests.campaigns.tracks --checkpoints influencer=RUN greedy=RUN condensation=RUN --data DATASET \
        --points 10,20,50,100,200,300,400,500,all --events 50 --out FOLDER [builder.radius=0.4 …]

From every event so many target tracks are drawn, the same for each system, and each checkpoint's model and builder,
with what was tuned on validation events, make candidates of their hits. Counts of each event stand in
FOLDER/tracks.jsonl, and are not taken again; tracks.md and tracks.png are made from them. Events with fewer tracks than
a point asks for are left out of it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpctrack.config import RunConfig, SelectionConfig, parse
from hpctrack.evaluation.metrics import METRICS, fraction
from hpctrack.events import selection as selecting
from hpctrack.inference.stages import INFER, ByModel, infer_config
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint
from tests.campaigns.points import Points
from tests.campaigns.readings import READINGS, heading

SHOWN = ("efficiency", "fake_rate", "double_majority_efficiency", "perfect_efficiency", "duplicate_rate")
ALL = "all"
Truth = tuple[np.ndarray, np.ndarray]


def truth(data: Dataset, row: int, selection: SelectionConfig, seed: int) -> Truth:
    """Particle row of each hit that the models see of the event (others: -1) [H], and the drawn targets, bool [P]."""
    event = data.read(row, selecting.COLUMNS)
    rng = np.random.default_rng([seed, INFER, 0, event.event_id])
    chosen = selecting.select(event, selection, rng)
    particle_row = np.full(event.n_hits, -1, dtype=np.int64)
    particle_row[chosen.rows] = event.column("truth.particle_row")[chosen.rows]
    target = np.zeros(len(event.column("particles.px")), dtype=bool)
    target[chosen.particles] = True
    return particle_row, target


def measure(points: Points, system: str, run: Path, args: argparse.Namespace, data: Dataset) -> set[tuple]:
    """Add what is missing of one system; the keys of all its points."""
    keys = set()
    path = checkpoint.find(run)
    meta = checkpoint.read_meta(path)
    config = infer_config(meta, args.overrides, path)
    seen = parse(RunConfig, meta["config"], str(path)).data.selection
    for tracks in args.points:
        selection = seen.model_copy(update={"tracks": None if tracks == ALL else int(tracks)})
        settings = config.model_copy(update={"seed": args.seed, "selection": selection})
        reconstruct = ByModel(settings, path, data, torch.device("cpu"))
        about = {"system": system, "tracks": tracks, "seed": args.seed, "model": reconstruct.recipe["model_digest"]}
        about["builder"] = str(settings.builder.model_dump())
        for row in range(min(args.events, len(data))):
            key = about | {"event_id": int(data.event_ids[row])}
            keys.add(points.key(key))
            if points.key(key) in points.done:
                continue
            particle_row, target = truth(data, row, selection, args.seed)
            if selection.tracks is not None and target.sum() < selection.tracks:
                continue
            found, took = reconstruct(row)
            counts: dict[str, Any] = {}
            for reading, match in READINGS.items():
                matched = match(found, particle_row, len(target))
                counts[reading] = {name: METRICS[name].count(matched, target) for name in SHOWN}
            points.add(key | {"n_tracks": int(target.sum()), **took.entry(), **counts})
        print(f"{system}, {tracks} tracks: done", flush=True)
    return keys


def sums(rows: Sequence[dict[str, Any]], points: Sequence[str]) -> list[dict[str, Any]]:
    """One row a system and point: mean tracks and hits, fractions of the counts added over events."""
    out = []
    for system in dict.fromkeys(row["system"] for row in rows):
        for tracks in points:
            mine = [row for row in rows if (row["system"], row["tracks"]) == (system, tracks)]
            if not mine:
                continue
            entry = {"system": system, "tracks": tracks, "events": len(mine)}
            entry |= {key: float(np.mean([row[key] for row in mine])) for key in ("n_tracks", "n_hits")}
            for reading in READINGS:
                entry[reading] = {
                    name: fraction(*(sum(row[reading][name][k] for row in mine) for k in (0, 1))) for name in SHOWN
                }
            out.append(entry)
    return out


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: a table for each reading, values with half of the 68 % Wilson interval."""
    lines = ["![efficiency and fake rate against tracks](tracks.png)"]
    heads = [name.replace("_", " ") for name in SHOWN]
    for reading in READINGS:
        lines += heading(reading)
        lines += ["| system | tracks | hits | events | " + " | ".join(heads) + " |", "|---" * (4 + len(SHOWN)) + "|"]
        for row in rows:
            cells = [text(row[reading][name]) for name in SHOWN]
            about = f"| {row['system']} | {row['n_tracks']:.0f} | {row['n_hits']:.0f} | {row['events']} | "
            lines.append(about + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def text(number: dict[str, Any]) -> str:
    """`0.9812 ± 0.0031`."""
    return "–" if number["value"] is None else f"{number['value']:.4f} ± {number['error']:.4f}"


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Efficiency and fake rate against tracks; full lines as in the paper, dashed after duplicate removal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("efficiency", "fake_rate"), strict=True):
        for i, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
            mine = [row for row in rows if row["system"] == system]
            for reading, style in (("candidates", "o-"), ("exclusive", "s--")):
                have = [
                    (row["n_tracks"], row[reading][name]) for row in mine if row[reading][name]["value"] is not None
                ]
                x, numbers = [tracks for tracks, _ in have], [number for _, number in have]
                y = np.array([number["value"] for number in numbers])
                bars = np.abs([[number["lo"], number["hi"]] for number in numbers] - y[:, None]).T if len(y) else None
                label = f"{system}, {'as in the paper' if reading == 'candidates' else 'duplicates removed'}"
                axes.errorbar(x, y, bars, fmt=style, color=f"C{i}", ms=4, lw=1.2, capsize=2, label=label)
        axes.set(xlabel="tracks", ylabel=f"{name.replace('_', ' ')} (paper's definition)", xscale="log")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", required=True, metavar="SYSTEM=RUN")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--points", type=lambda t: t.split(","), default="10,20,50,100,200,300,400,500,all")
    parser.add_argument("--events", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1, help="of the draws of tracks")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("overrides", nargs="*", metavar="builder.key=value", help="in place of what was tuned")
    args = parser.parse_intermixed_args(argv)
    torch.set_num_threads(1)
    data = Dataset(args.data, verify=True)
    keys = ("system", "tracks", "event_id", "seed", "model", "builder")
    points, wanted = Points(args.out / "tracks.jsonl", keys), set()
    for pair in args.checkpoints:
        system, _, run = pair.partition("=")
        wanted |= measure(points, system, Path(run), args, data)
    summed = sums([row for row in points.rows if points.key(row) in wanted], args.points)
    (args.out / "tracks.md").write_text(table(summed))
    plot(summed, args.out / "tracks.png")
    print(table(summed))


if __name__ == "__main__":
    main()
