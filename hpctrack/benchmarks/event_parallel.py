"""One event over several ranks: speed-up, memory, and what passes between the ranks, of whole training steps on it.

Two models on every hit of a mu = 200 event: the influencer model with its shipped weights and loss, backbone
`neighbours`; and an interaction network of width 128 and 8 iterations on doublets of the whole detector, about EDGES of
them. A rank has one thread. Numbers of ranks take turns, round by round: one rank, two, and as many as there are cores.
Then one step on PARTS ranks, whatever the cores, says what so many parts are like: what each computes (processor
seconds) and receives. Of that the figures and lines named `projected` are made, which are not measured:

    step = processor seconds of the slowest rank / speed of a GPU + calls * latency + bytes received / bandwidth
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.benchmarks.event_pass import one_rank
from hpctrack.benchmarks.measure import Figure, Page, helix_dataset
from hpctrack.benchmarks.measured_gpu import Speed, speed
from hpctrack.benchmarks.scaling import PERLMUTTER_LIKE, Machine, core_flops
from hpctrack.division.sectors import cost_of_hits, sectors
from hpctrack.errors import InputError, MachineError
from hpctrack.graphs.doublets import Doublets
from hpctrack.storage.detector import TRACKML
from hpctrack.storage.store import Dataset
from hpctrack.testing.ranks import run_ranks
from hpctrack.training import checkpoint
from hpctrack.training.run_settings import run_config

SHIPPED = "influencer-every-hit"
PARTS = 8
EDGES = 1_000_000
SLOPES = {"1 GeV": 0.0003, "0.5 GeV": 0.0006}  # |dphi / dr| in rad per mm of a track of this pT in 2 T
GRAPH = "0.5 GeV"  # of the interaction network
QUICK_RAD = 0.25  # sector of the event
ROUNDS = {"neighbours": 2, "interaction": 1}
LIMIT_S = 3600.0
FEATURES = ["r", "cos_phi", "sin_phi", "z", "eta", "cell_count", "cell_charge"]
DISCS = {  # volume: its layers from the innermost disc on, and the barrel inside of it with its layers
    7: (range(14, 0, -2), 8, range(2, 10, 2)),
    9: (range(2, 16, 2), 8, range(2, 10, 2)),
    12: (range(12, 0, -2), 13, range(2, 10, 2)),
    14: (range(2, 14, 2), 13, range(2, 10, 2)),
    16: (range(12, 0, -2), 17, range(2, 6, 2)),
    18: (range(2, 14, 2), 17, range(2, 6, 2)),
}
Pass = list[dict[str, Any]]  # what each rank found (benchmarks/event_pass.py)
Runs = dict[int, list[Pass]]  # by number of ranks, round by round


def run(quick: bool, data: Path | None = None) -> Page:
    """Figures and tables on the largest event of `data`, or a helix event; `quick`: on a sector of it, one round."""
    with tempfile.TemporaryDirectory(prefix="hpctrack-bench-") as folder:
        given, data = data, data or helix_dataset(Path(folder), 1, 11000)
        dataset = Dataset(data)
        row = int(np.argmax(dataset.n_hits))
        graphs = {name: doublets(dataset, row, slope) for name, slope in SLOPES.items()}
        cuts = {name: partition(dataset, row, graph) for name, graph in graphs.items()}
        what = {"data": str(data.resolve()), "row": row, "sector_rad": QUICK_RAD if quick else None, "steps": 1}
        found = {name: turns(what | task, 1 if quick else ROUNDS[name]) for name, task in tasks(graphs[GRAPH]).items()}
    hits = sum(rank["hits"] for rank in found["neighbours"][1][0])
    about = f"The largest event of {given}" if given else "A helix event made for this run"
    return page(found, cuts, f"{about}, {hits:,} of its hits{' (a sector)' if quick else ''}.")


def tasks(graph: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What steps are made of, by name: model, loss, features, selection and, if there is one, graph."""
    source = checkpoint.find(Path(SHIPPED))
    shipped = run_config(checkpoint.read_meta(source), source)
    return {
        "neighbours": {
            "model": shipped.model.model_dump(),
            "loss": shipped.loss.model_dump(),
            "features": shipped.data.features,
            "selection": shipped.data.selection.model_dump(),
            "weights": SHIPPED,
            "graph": None,
            "mode": "plain",
        },
        "interaction": {
            "model": {"name": "interaction", "width": 128, "iterations": 8},
            "loss": {"name": "edges"},
            "features": FEATURES,
            "selection": {},
            "weights": None,
            "graph": graph,
            "mode": "chunks",
        },
    }


def turns(asked: dict[str, Any], rounds: int) -> Runs:
    """Steps on 1, 2 and as many ranks as there are cores, in turn, and one on PARTS."""
    ranks = sorted({1, 2, os.cpu_count() or 1})
    found: Runs = {}
    for n in ranks * rounds + [PARTS] * (PARTS not in ranks):
        one = passes(asked, n)
        found.setdefault(n, []).append(one)
        told = f"{asked['model']['name']} on {n} ranks: {wall_s(one):.1f} s a step, {peak_gib(one):.2f} GiB"
        print(told, file=sys.stderr, flush=True)
    return found


def passes(asked: dict[str, Any], ranks: int) -> Pass:
    """What each of so many ranks found, processes that are forked from this one; MachineError if one fails."""
    try:
        return run_ranks(ranks, one_rank, asked, timeout=LIMIT_S)
    except AssertionError as error:
        raise MachineError(
            f"{asked['model']['name']} on {ranks} ranks: {' '.join(str(error).split())[-300:]}"
        ) from None


# ------------------------------------------------------------------------------------------------ graphs and their cuts


def layer_pairs() -> list[tuple[int, int, int, int]]:
    """Neighbouring layers of TrackML's detector: of the barrel, of discs, and of barrel and first disc."""
    found = [(*a, *b) for a, b in pairwise(TRACKML.neighbours)]
    for volume, (layers, barrel, inside) in DISCS.items():
        discs = list(layers)
        found += [(volume, a, volume, b) for a, b in pairwise(discs)]
        found += [(barrel, layer, volume, discs[0]) for layer in inside]
    return found


def edges_of(dataset: Dataset, row: int, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Edges int64 [2, M] among all hits of an event, and the hits' phi [N]."""
    event = dataset.read(row, Doublets.COLUMNS)
    graph = Doublets(Doublets.Options(**{name: value for name, value in options.items() if name != "name"}))
    return graph(event, np.arange(event.n_hits)), event.column("hits.phi")


def doublets(dataset: Dataset, row: int, slope: float) -> dict[str, Any]:
    """Section `data.graph` that gives the event about EDGES doublets, by the cut on z0; InputError without any."""
    options: dict[str, Any] = {
        "name": "doublets",
        "phi_slope_max_per_mm": slope,
        "z0_max_mm": 100.0,
        "pairs": layer_pairs(),
    }
    for _ in range(2):  # their number goes about linearly with the cut
        n_edges = edges_of(dataset, row, options)[0].shape[1]
        if not n_edges:
            raise InputError(f"{dataset.folder}: no doublets in volumes and layers as TrackML's; give another --data")
        options["z0_max_mm"] = round(options["z0_max_mm"] * EDGES / n_edges, 1)
    return options


def partition(dataset: Dataset, row: int, graph: dict[str, Any]) -> dict[str, Any]:
    """The graph's edges, and for 2, 4 and PARTS parts: share of edges that are cut, largest load, halo over hits."""
    edge_2M, phi_N = edges_of(dataset, row, graph)
    found: dict[str, Any] = {"edges": edge_2M.shape[1], "z0": graph["z0_max_mm"], "parts": {}}
    for parts in (2, 4, PARTS):
        owner_N = sectors(phi_N, cost_of_hits(len(phi_N), edge_2M), parts)
        owner_2M, loads, halo = owner_N[edge_2M], [], 0
        for part in range(parts):
            inside = (owner_2M == part).any(axis=0)
            loads.append(int(inside.sum()))
            ends = np.unique(edge_2M[:, inside])
            halo += int((owner_N[ends] != part).sum())
        cut = float((owner_2M[0] != owner_2M[1]).mean())
        found["parts"][parts] = (cut, max(loads) / (edge_2M.shape[1] / parts), halo / len(phi_N))
    return found


# ------------------------------------------------------------------------------------------------ figures


def wall_s(found: Pass) -> float:
    """Seconds of a step: those of the slowest rank."""
    return max(statistics.median(step[0] for step in rank["steps"]) for rank in found)


def cpu_s(found: Pass) -> float:
    """Processor seconds of a step on the rank that has most to do."""
    return max(statistics.median(step[1] for step in rank["steps"]) for rank in found)


def exchange_share(found: Pass) -> float:
    """Share of a step that ranks exchange rows, or wait for others to, mean over ranks."""
    return statistics.mean(step[2] / step[0] for rank in found for step in rank["steps"])


def peak_gib(found: Pass) -> float:
    """Peak memory of the rank with most, beyond what it held before the event."""
    return max(rank["peak"] for rank in found)


def received(volumes: dict[str, list[int]]) -> int:
    """Bytes in all."""
    return sum(size for _, size in volumes.values())


def page(found: dict[str, Runs], cuts: dict[str, Any], about: str) -> Page:
    """Everything that was found, and the projection."""
    gpu = speed(PERLMUTTER_LIKE.flops / core_flops())
    figures, memory = [], []
    for name, runs in found.items():
        for n in sorted(set(runs) - {1, PARTS} | ({PARTS} & {os.cpu_count()})):
            values = [wall_s(one) / wall_s(many) for one, many in zip(runs[1], runs[n], strict=True)]
            label = f"event_speedup_{name}" + ("" if n == 2 else f"_{n}")
            figures.append(Figure(label, values, "x", f"s a step on 1 rank / on {n} ranks, one event, {name}"))
        memory.append([peak_gib(many) / peak_gib(one) for one, many in zip(runs[1], runs[2], strict=True)])
        figures.append(Figure(f"event_memory_{name}", memory[-1], "x", f"peak of a rank of 2 / of 1 rank, {name}"))
        shares = [exchange_share(many) for many in runs[2]]
        figures.append(Figure(f"event_exchange_{name}", shares, "of the step", f"exchange on 2 ranks, {name}"))
    worst = max(value for values in memory for value in values)  # models may have had different numbers of rounds
    figures.append(Figure("event_memory", [worst], "x", "peak of a rank of 2 / of 1 rank, the larger of both models"))
    for name, cut in cuts.items():
        what = f"of edges between {PARTS} sectors, {cut['edges']:,} doublets, |dphi/dr| of {name}, z0 {cut['z0']} mm"
        label = f"cut_{PARTS}" + ("" if name == GRAPH else "_1gev")
        figures.append(Figure(label, [cut["parts"][PARTS][0]], "of edges", f"share {what}"))
    for name, runs in found.items():
        seconds = project(runs, gpu.ratio, PERLMUTTER_LIKE)
        said = f"PROJECTION, not measured, GPU speed {gpu.word}"
        what = f"{said}: speed-up of one event on {PARTS} GPUs, {PERLMUTTER_LIKE.name}, {name}"
        figures.append(Figure(f"projected_{PARTS}_{name}", [seconds["one"] / seconds["step"]], "x", what))
    return Page(figures, "\n".join([about, "", *measured(found), *parts(cuts), *projected(found, gpu), ""]))


def measured(found: dict[str, Runs]) -> list[str]:
    """Table of steps by model and ranks."""
    lines = [
        "## Measured",
        "",
        f"Steps on {PARTS} ranks share the cores; their seconds are not those of {PARTS} cores, the rest is as there."
        if (os.cpu_count() or 1) < PARTS
        else "",
        "Edges: of the rank with most, those cut counted; halo: rows that a rank fetches at once, most of all. CPU s: "
        "of the rank with most. Build: processor seconds to read the event and make its edges. Peak: beyond libraries.",
        "",
        "| model | ranks | s | CPU s | exchange | build CPU s | peak GiB | hits | edges | halo | received MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        for n, rounds in sorted(runs.items()):
            ranks = rounds[0]
            wall, cpu, share, peak = (
                statistics.median(map(f, rounds)) for f in (wall_s, cpu_s, exchange_share, peak_gib)
            )
            most = {key: max(rank[key] for rank in ranks) for key in ("hits", "edges", "halo", "build_s")}
            megabytes = max(received(rank["volumes"]) for rank in ranks) / 1e6
            lines.append(
                f"| {name} | {n} | {wall:.1f} | {cpu:.1f} | {100 * share:.1f} % | {most['build_s']:.2f} | {peak:.2f} | "
                f"{most['hits']:,} | {most['edges']:,} | {most['halo']:,} | {megabytes:.1f} |"
            )
    return lines


def parts(cuts: dict[str, Any]) -> list[str]:
    """Table of partitions."""
    lines = [
        "",
        "## Sectors of doublet graphs",
        "",
        "Load: edges of the fullest sector, those cut counted, over an equal share. Halo: rows that all sectors fetch, "
        "over hits.",
        "",
        "| slope of | z0 mm | edges | sectors | cut | load | halo |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, cut in cuts.items():
        for n, (share, load, halo) in cut["parts"].items():
            lines.append(f"| {name} | {cut['z0']} | {cut['edges']:,} | {n} | {share:.4f} | {load:.3f} | {halo:.3f} |")
    return lines


# ------------------------------------------------------------------------------------------- projection, no measurement


def project(runs: Runs, speed: float, machine: Machine) -> dict[str, float]:
    """Seconds on one GPU, and on PARTS of them: the step, what it computes, and what the exchange takes.

    What ranks compute is what they do here, `speed` times faster; each call waits for the messages of one rank behind
    the other's, and bytes come over the slower links, as if all came from another node.
    """
    compute = cpu_s(runs[PARTS][0]) / speed
    latency = machine.base_latency + (PARTS - 1) * machine.net_latency
    exchange = 0.0
    volumes = max(
        (rank["volumes"] for rank in runs[PARTS][0]), key=lambda kinds: sum(size for _, size in kinds.values())
    )
    for kind, (calls, size) in volumes.items():
        if kind == "all_sum":
            exchange += calls * machine.all_reduce(size / max(1, calls), PARTS)
        else:
            exchange += calls * latency + size / machine.net_bandwidth
    exchange += machine.all_reduce(4.0 * runs[PARTS][0][0]["parameters"], PARTS)
    one = statistics.median(map(cpu_s, runs[1])) / speed
    return {"one": one, "compute": compute, "exchange": exchange, "step": compute + exchange}


def projected(found: dict[str, Runs], gpu: Speed) -> Sequence[str]:
    """Table of the projection."""
    lines = [
        "",
        f"## Projected, not measured: the speed of a GPU is {gpu.word}",
        "",
        f"To {PARTS} GPUs, {PERLMUTTER_LIKE.name}. {gpu.source} That is taken to hold for what is small, too; calls "
        f"and bytes are those found on {PARTS} ranks, one after the other and not overlapped; parameters of the "
        "machine as in scaling.md.",
        "",
        "| model | 1 GPU, s | computing, s | exchange, s | speed-up of 8 | without exchange |",
        "|---|---|---|---|---|---|",
    ]
    for name, runs in found.items():
        s = project(runs, gpu.ratio, PERLMUTTER_LIKE)
        lines.append(
            f"| {name} | {s['one']:.4f} | {s['compute']:.4f} | {s['exchange']:.4f} | {s['one'] / s['step']:.2f} | "
            f"{s['one'] / s['compute']:.2f} |"
        )
    return lines
