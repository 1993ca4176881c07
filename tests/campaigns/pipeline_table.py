"""How the stages of the pipeline and their hybrids stack up: edges of each on the same events, with and without noise.

    python -m tests.campaigns.pipeline_table --checkpoints metric-learning=RUN filter=RUN,RUN gnn=RUN,RUN,RUN \
        nodes=RUN,RUN,RUN nodes-scores=RUN,RUN,RUN:edges … --data DATASET … --events 20 --keep 0.98 --out FOLDER

A system is a stage behind those before it, which hand their edges on. Each model sees the hits that it was trained on,
with noise and without; a first stage that reads stored edges takes those of the dataset, which were made with noise,
among these hits. Edges come from the last run's builder if that is on an embedding, else all are scored; `:BUILDER`
takes another. Counts of each event stand in FOLDER/edges.jsonl, and
are not taken again; pipeline.md is made from them. There each system has the cut on its score that `--keep` of the true
edges of targets in its graph pass, with noise; what is measured without noise has the same cut.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpctrack.config import Named, RunConfig, parse
from hpctrack.errors import InputError
from hpctrack.evaluation.edge_metrics import COLUMNS, EdgeTally, at_cut, auc, cut_that_keeps, tally_event
from hpctrack.evaluation.stage_scores import BINS, with_error
from hpctrack.evaluation.tally import Cuts
from hpctrack.files.atomic import write_text
from hpctrack.inference.stages import Chain, stages
from hpctrack.process.ends import verb
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builders import BUILDERS
from hpctrack.training import checkpoint
from tests.campaigns.points import Points
from tests.campaigns.tracks import text

KEYS = ("system", "data", "event_id", "noise", "model", "builder")
ALL_EDGES = {"name": "edges", "cut": 0.0}
SHOWN = ("efficiency", "kept_true", "purity", "purity_all")
HEADS = ("efficiency", "kept of its graph", "purity", "purity, others count as true")


def builder_of(run: Named, wanted: str) -> Named:
    """The builder that writes a system's edges: the `wanted` one, or the run's if it makes edges from an embedding."""
    of_edges = [name for name in BUILDERS.own if BUILDERS[name].product == "edges"]
    if wanted and wanted not in of_edges:
        raise InputError(f"--checkpoints: builder '{wanted}' makes no edges; one of: {', '.join(of_edges)}")
    name = wanted or run.name
    if name not in of_edges or name == "edges":
        return Named(**ALL_EDGES)
    return run if name == run.name else Named(name=name)


def measure(points: Points, system: str, run: str, folder: Path, args: argparse.Namespace) -> set[tuple]:
    """Add what is missing of one system on one dataset; the keys of its points."""
    runs, _, wanted = run.partition(":")
    cuts = Cuts(args.pt_min_gev, args.min_hits, None)
    paths = [checkpoint.find(Path(run)) for run in runs.split(",")]
    data, keys, metas = Dataset(folder, verify=True), set(), [checkpoint.read_meta(path) for path in paths]
    trained = [parse(RunConfig, meta["config"], str(path)) for meta, path in zip(metas, paths, strict=True)]
    builder = builder_of(Named(**(trained[-1].builder.model_dump() | metas[-1]["tuned"])), wanted)
    _, configs = stages(paths, [f"builder={builder.model_dump()}"])
    for noise in (True, False):
        selections = [run.data.selection.model_copy(update={"noise": noise, "tracks": None}) for run in trained]
        settings = [
            config.model_copy(update={"selection": own}) for config, own in zip(configs, selections, strict=True)
        ]
        reconstruct = Chain(settings, paths, data, torch.device("cpu"))
        about = {"system": system, "data": str(folder), "noise": noise, "builder": str(builder.model_dump())}
        recipes = [*reconstruct.recipe.get("stages", []), reconstruct.recipe]
        about["model"] = " ".join(recipe["model_digest"] for recipe in recipes)
        for row in range(min(args.events, len(data))):
            key = about | {"event_id": int(data.event_ids[row])}
            keys.add(points.key(key))
            if points.key(key) not in points.done:
                found, took = reconstruct(row)
                tally = tally_event(data.read(row, COLUMNS), found, selections[-1], cuts)
                points.add(key | took.entry() | to_json(tally))
        print(f"{system}, {folder}, {'with' if noise else 'without'} noise: done", flush=True)
    return keys


def to_json(tally: EdgeTally) -> dict[str, Any]:
    """Counts, of scores only the bins that have any."""
    kind, score_bin = tally.scores.nonzero()
    return vars(tally) | {"scores": [kind.tolist(), score_bin.tolist(), tally.scores[kind, score_bin].tolist()]}


def from_json(row: dict[str, Any]) -> EdgeTally:
    """Inverse of `to_json`."""
    kind, score_bin, count = (np.array(part, dtype=np.int64) for part in row["scores"])
    scores = np.zeros((3, BINS + 2), dtype=np.int64)
    scores[kind, score_bin] = count
    return EdgeTally(**{name: row[name] for name in EdgeTally.__dataclass_fields__ if name != "scores"}, scores=scores)


def numbers(rows: Sequence[dict[str, Any]], cut: float | None, keep: float) -> dict[str, Any]:
    """What a line shows of the events of one system; its cut is found if it is None."""
    tallies = [from_json(row) for row in rows]
    total = sum(tallies[1:], tallies[0])
    cut = cut_that_keeps(total, keep) if cut is None else cut
    counts = at_cut(total, cut)
    return {
        "events": total.events,
        "hits": total.hits / total.events,
        "auc": auc(total),
        "cut": cut,
        "edges": counts["edges_per_event"][0] / total.events,
        "seconds": float(np.mean([row["read_s"] + row["model_s"] + row["build_s"] for row in rows])),
        **{name: with_error(*counts[name]) for name in SHOWN},
    }


def table(rows: Sequence[dict[str, Any]], keep: float, cuts: Cuts) -> str:
    """Markdown: two lines a system, with noise and without, and how purities compare."""
    heads = ["system", "noise", "events", "hits", "edges kept", "AUC", "cut"]
    heads += [*HEADS, "purity with / without noise", "s"]
    lines = [
        f"Edges of each system at the cut that {keep:.1%} of the true edges of targets ({cuts.text()}) in its graph "
        "pass, with noise. Hits, edges and seconds (read, model, builder) are means an event; errors are binomial, of "
        "the ratio as if its two were independent.",
        "",
        "| " + " | ".join(heads) + " |",
        "|---" * len(heads) + "|",
    ]
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = {noise: [r for r in rows if (r["system"], r["noise"]) == (system, noise)] for noise in (True, False)}
        with_noise = numbers(mine[True], None, keep)
        without = numbers(mine[False], with_noise["cut"], keep)
        for noise, found, penalty in (("yes", with_noise, ratio(with_noise, without)), ("no", without, "")):
            area = "–" if found["auc"] is None else f"{found['auc']:.4f}"
            cells = [system, noise, str(found["events"]), f"{found['hits']:,.0f}", f"{found['edges']:,.0f}", area]
            cells += [f"{found['cut']:.4f}", *(text(found[name]) for name in SHOWN), penalty, f"{found['seconds']:.2f}"]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def ratio(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Purity of `a` over that of `b`, with the error of two independent fractions."""
    a, b = a["purity"], b["purity"]
    if not a["value"] or not b["value"]:
        return "–"
    value = a["value"] / b["value"]
    return f"{value:.4f} ± {value * math.hypot(a['error'] / a['value'], b['error'] / b['value']):.4f}"


@verb("pipeline_table")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", required=True, metavar="SYSTEM=RUN,…[:BUILDER]")
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--events", type=int, default=20, help="of each dataset, the first ones")
    parser.add_argument("--keep", type=float, default=0.98, help="of true edges of targets in the graph, by the cut")
    parser.add_argument("--pt-min-gev", type=float, default=1.0)
    parser.add_argument("--min-hits", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    points, wanted = Points(args.out / "edges.jsonl", KEYS), set()
    for pair in args.checkpoints:
        system, _, run = pair.partition("=")
        for folder in args.data:
            wanted |= measure(points, system, run, folder, args)
    rows = [row for row in points.rows if points.key(row) in wanted]
    shown = table(rows, args.keep, Cuts(args.pt_min_gev, args.min_hits, None))
    write_text(args.out / "pipeline.md", shown)
    print(shown)


if __name__ == "__main__":
    raise SystemExit(main())
