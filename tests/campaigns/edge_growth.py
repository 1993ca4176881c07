"""How an event's edges grow with its hits: the exponent of a power law, over events of different pile-up.

    python -m tests.campaigns.edge_growth --config configs/pipeline/segments.yaml --data DATASET … --out FOLDER \
        [data.graph.skips=1 …]

The recipe's graph is made of each event's hits that its selection leaves, as in training; for a stage of the pipeline
give a recipe whose graph is `stored`. Edges and CPU seconds of each event stand in FOLDER/edges.jsonl and are not
measured again; edges.md and edges.png are made from them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hpctrack.config import RunConfig, load_config
from hpctrack.errors import InputError
from hpctrack.events import selection as selecting
from hpctrack.events.loader import columns_read
from hpctrack.files.atomic import write_text
from hpctrack.graphs import build_graph, graph_columns
from hpctrack.process.ends import verb
from hpctrack.storage.store import open_dataset
from tests.campaigns.points import Points


def measure(config: RunConfig, folders: list[str], points: Points) -> None:
    """Add what is missing: one row an event."""
    for folder in folders:
        dataset, graph = open_dataset(folder), build_graph(config.data.graph, folder)
        columns = columns_read([], graph=graph_columns(config.data.graph))
        for row, event_id in enumerate(dataset.event_ids.tolist()):
            if (folder, event_id) in points.done:
                continue
            event = dataset.read(row, columns)
            chosen = selecting.select(event, config.data.selection, np.random.default_rng([config.seed, event_id]))
            begin = time.process_time()
            edge_2M = graph(event, chosen.rows)
            points.add(
                {
                    "data": folder,
                    "event": event_id,
                    "hits": len(chosen.rows),
                    "edges": edge_2M.shape[1],
                    "cpu_s": time.process_time() - begin,
                }
            )


def exponent(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """(p, its standard error, c) of y = c x^p, by least squares of the logarithms."""
    coefficients, covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    return float(coefficients[0]), float(np.sqrt(covariance[0, 0])), float(np.exp(coefficients[1]))


def summary(points: Points, out: Path) -> str:
    """Write edges.md and edges.png; the text of the first."""
    rows = [row for row in points.rows if row["edges"] > 0]
    hits, edges, seconds = (np.array([row[key] for row in rows], float) for key in ("hits", "edges", "cpu_s"))
    if len(rows) < 3 or hits.min() == hits.max():
        raise InputError("an exponent needs three events with edges, not all of one size; give more datasets")
    of_edges, of_seconds = exponent(hits, edges), exponent(hits, np.maximum(seconds, 1e-4))
    lines = [
        f"{len(rows)} events of {hits.min():,.0f} to {hits.max():,.0f} hits: edges ~ hits^({of_edges[0]:.3f} ± "
        f"{of_edges[1]:.3f}), CPU seconds ~ hits^({of_seconds[0]:.2f} ± {of_seconds[1]:.2f})",
        "",
        "| dataset | events | hits, mean | edges, mean | edges a hit | CPU ms, mean |",
        "|---|---|---|---|---|---|",
    ]
    for folder in dict.fromkeys(row["data"] for row in rows):
        own = np.array([row["data"] == folder for row in rows])
        means = f"{hits[own].mean():,.0f} | {edges[own].mean():,.0f} | {edges[own].sum() / hits[own].sum():.2f}"
        lines.append(f"| {Path(folder).name} | {own.sum()} | {means} | {1000 * seconds[own].mean():.1f} |")
    write_text(out / "edges.md", text := "\n".join(lines) + "\n")
    plot(out / "edges.png", hits, edges, of_edges)
    return text


def plot(path: Path, hits: np.ndarray, edges: np.ndarray, fit: tuple[float, float, float]) -> None:
    """Events and the fitted line, both axes logarithmic."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    line = np.sort(hits)
    axes.loglog(hits, edges, ".", label="events")
    axes.loglog(line, fit[2] * line ** fit[0], "-", label=f"hits^{fit[0]:.2f}")
    axes.set(xlabel="hits", ylabel="edges")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


@verb("edge_growth")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True)
    parser.add_argument("--data", required=True, nargs="+")
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    args = parser.parse_intermixed_args(argv)
    config = load_config(args.config, args.overrides)
    points = Points(args.out / "edges.jsonl", ("data", "event"))
    measure(config, args.data, points)
    print(summary(points, args.out))


if __name__ == "__main__":
    raise SystemExit(main())
