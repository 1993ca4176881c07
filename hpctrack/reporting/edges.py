"""Evaluation of a stage that makes edges: counts over events, results and their table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from hpctrack import __version__
from hpctrack.config import SelectionConfig
from hpctrack.data import selection as selecting
from hpctrack.data.edges import Edges, EdgeStore
from hpctrack.data.schema import Event
from hpctrack.data.store import Dataset
from hpctrack.data.truth import COLUMNS as TRUTH_COLUMNS
from hpctrack.data.truth import graph_truth
from hpctrack.errors import InputError
from hpctrack.reporting.tally import COLUMNS as TALLY_COLUMNS
from hpctrack.reporting.tally import Cuts
from hpctrack.tracking.edge_metrics import CUTS, EdgeTally, at_cut, auc, tally_edges

COLUMNS = list(dict.fromkeys([*TALLY_COLUMNS, *selecting.COLUMNS, *TRUTH_COLUMNS]))
FORMAT = "hpctrack-edge-results"


def evaluate_edges(folder: Path, data: Path, cuts: Cuts, command: list[str]) -> dict[str, Any]:
    """Results of the edges in `folder` against the truth of their dataset, among the hits that the stage saw.

    InputError if they were made from another dataset, or from hits that were drawn at random.
    """
    store, dataset = EdgeStore(folder), Dataset(data, verify=True)
    if store.attributes["dataset_fingerprint"] != dataset.fingerprint:
        raise InputError(f"{folder}: made from another dataset than {data}; give the one that `hpctrack infer` read")
    selection = SelectionConfig(**store.attributes.get("selection", {}))
    if selection.tracks is not None:
        raise InputError(f"{folder}: made from a random draw of tracks (selection.tracks); infer on all of them")
    tallies = [tally(store, dataset, i, selection, cuts) for i in range(len(store))]
    if not tallies:
        raise InputError(f"{folder}: has no event")
    total = sum(tallies[1:], tallies[0])
    cuts.check(total.true_target, dataset)
    return {
        "format": FORMAT,
        "version": 1,
        "hpctrack": __version__,
        "command": command,
        "selection": {**vars(cuts), "text": cuts.text()},
        "source": {"edges": str(folder), "attributes": store.attributes, "dataset": str(data)},
        "events": total.events,
        "hits": total.hits,
        "true_edges": {"target": total.true_target, "other": total.true_other},
        "same_particle": total.same_particle,
        "auc": auc(total),
        "cuts": {str(cut): {name: with_error(*n) for name, n in at_cut(total, cut).items()} for cut in CUTS},
        "per_event": [{"hits": t.hits, "edges": int(t.scores.sum())} for t in tallies],
    }


def tally(store: EdgeStore, dataset: Dataset, i: int, selection: SelectionConfig, cuts: Cuts) -> EdgeTally:
    """Counts of the i-th event that has edges."""
    event = dataset.read(int(np.searchsorted(dataset.event_ids, store.event_ids[i])), COLUMNS)
    return tally_event(event, store.read(i), selection, cuts)


def tally_event(event: Event, found: Edges, selection: SelectionConfig, cuts: Cuts) -> EdgeTally:
    """Counts of an event with `COLUMNS`: its edges, among the hits that `selection` leaves, which draws none."""
    rows = selecting.select(event, selection, np.random.default_rng(0)).rows
    number = np.zeros(event.n_hits, dtype=np.int64)
    number[rows] = np.arange(len(rows))
    edge_2M = number[np.stack([found.sender, found.receiver])]
    particle_N = event.column("truth.particle_row")[rows]
    return tally_edges(edge_2M, found.score, graph_truth(event, rows), particle_N, cuts.targets(event))


def with_error(numerator: int, denominator: int) -> dict[str, Any]:
    """A fraction with its binomial error, and what it is made of; None where nothing was counted."""
    if not denominator:
        return {"value": None, "error": None, "numerator": numerator, "denominator": denominator}
    value = numerator / denominator
    error = (max(value * (1 - value), 0.0) / denominator) ** 0.5
    return {"value": value, "error": error, "numerator": numerator, "denominator": denominator}


def table(results: dict[str, Any]) -> str:
    """The results as text: a line for each cut on the score."""
    names = list(next(iter(results["cuts"].values())))
    area = "none" if results["auc"] is None else f"{results['auc']:.5f}"
    true = results["true_edges"]
    lines = [
        f"{results['events']:,} events, {results['hits']:,} hits, true edges: {true['target']:,} of targets "
        f"({results['selection']['text']}), {true['other']:,} others; AUC {area}",
        "",
        f"{'score >=':>8s}" + "".join(f"{name:>17s}" for name in names),
    ]
    for cut, numbers in results["cuts"].items():
        values = [numbers[name]["value"] for name in names]
        forms = [",.0f" if name == "edges_per_event" else ".4f" for name in names]
        shown = ["-" if value is None else format(value, form) for value, form in zip(values, forms, strict=True)]
        lines.append(f"{cut:>8s}" + "".join(f"{text:>17s}" for text in shown))
    return "\n".join(lines)
