"""Peak memory and seconds of the memory modes on a full event: the interaction network and the influencer model.

Each pass (forward and backward) has a process of its own, `memory_pass`. Plain fits on a part of the event only: a
sector in phi, whose passes also say beforehand which modes the whole event has room for. The last
part says how well the memory model predicts such peaks.
"""

from __future__ import annotations

import json
import operator
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor
from torch_geometric.data import Batch, Data

from hpctrack.benchmarks.measure import FEATURES, Figure, Page
from hpctrack.benchmarks.model import event
from hpctrack.config import MemoryConfig, Named, ParallelConfig
from hpctrack.errors import MachineError
from hpctrack.losses.term import LossTerm
from hpctrack.models import build_model
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.resources.calibration import calibrate, cut_down, measure
from hpctrack.resources.peak_memory import GIB, Memory

EDGES, PART_EDGES = 1_600_000, 200_000
NEAR = 24  # candidates for edges at each hit
STEP_M = 0.005  # an edge goes outward by at least this
CAP_GIB = 16.0
MODEL_GIB = 6.0  # room of the passes that the memory model predicts
ROOM = 0.9  # of the memory that is available
INTERACTION: dict[str, Any] = {"name": "interaction", "width": 128, "iterations": 8}
INFLUENCER: dict[str, Any] = {"name": "influencer", "backbone": {"name": "neighbours"}}
Pass = dict[str, Any]  # before, peak (GiB), seconds


@dataclass(frozen=True)
class Event:
    """Hits `x_NF` and edges [2, M] in a file that passes read."""

    file: Path
    hits: int
    edges: int

    @classmethod
    def write(cls, file: Path, x_NF: Tensor, edge_2M: Tensor) -> Event:
        """Save them."""
        torch.save({"x": x_NF, "edge_index": edge_2M}, file)
        return cls(file, len(x_NF), edge_2M.shape[1])


def run(quick: bool, data: Path | None = None) -> Page:
    """Figures and tables on the largest event of `data`, or a helix event; `quick`: on a tenth of it."""
    with tempfile.TemporaryDirectory(prefix="hpctrack-bench-") as folder:
        x_NF = event(data, 1)
        edge_2M = near_pairs(x_NF, EDGES)
        if quick:
            x_NF, edge_2M = sector(x_NF, edge_2M, EDGES // 10)
        whole = Event.write(Path(folder) / "whole.pt", x_NF, edge_2M)
        part = Event.write(Path(folder) / "part.pt", *sector(x_NF, edge_2M, PART_EDGES // (10 if quick else 1)))
        interaction = climb(INTERACTION, whole, part, whole.edges / part.edges)
        influencer = climb(INFLUENCER, whole, part, whole.hits / part.hits)
        hardest = list(interaction)[-1]
        short = passes(whole, INTERACTION | {"iterations": 2}, hardest)
    models = {"interaction": INTERACTION, "influencer": INFLUENCER}
    predicted = predictions(models, FEATURES, x_NF, edge_2M, room_gib=MODEL_GIB, quick=quick)
    source = f"the largest event of {data}" if data else "a helix event made for this run"
    text = "\n".join(
        [
            f"Whole: {source}, {whole.hits:,} hits, {whole.edges:,} edges; "
            f"part: {part.hits:,} hits, {part.edges:,} edges.",
            "Peak: of the process (VmHWM); pass: beyond what it held before, that is, inputs, weights and libraries.",
            "Seconds: CPU time of one thread, forward and backward. Predicted: from the part, in proportion; not run.",
            table("Interaction network, width 128, 8 iterations", interaction),
            table("Influencer model, backbone neighbours with its defaults, without the loss", influencer),
            "",
            predicted.text,
        ]
    )
    return Page(figures(interaction, hardest, short) + predicted.figures, text)


def climb(model: dict[str, Any], whole: Event, part: Event, ratio: float) -> dict[str, tuple[Pass, Pass]]:
    """By mode: its pass on the part and on the whole event, without seconds where it is predicted to have no room."""
    found = {}
    for mode in build_model(Named(**model), FEATURES).memory_modes:
        small = passes(part, model, mode, repeats=3)
        peak = small["before"] + ratio * pass_gib(small)
        fits = peak < ROOM * available_gib()
        large = passes(whole, model, mode) if fits else {"before": small["before"], "peak": peak, "seconds": []}
        found[mode] = (small, large)
    return found


def figures(found: dict[str, tuple[Pass, Pass]], hardest: str, short: Pass) -> list[Figure]:
    """The figures that have a goal, of the interaction network (docs/results.md)."""
    plain, recompute, last = (found[mode][0] for mode in ("plain", "recompute", hardest))
    whole = {mode: large for mode, (_, large) in found.items() if large["seconds"]}
    if hardest not in whole:
        need = found[hardest][1]["peak"] / ROOM
        raise MachineError(f"mode {hardest} needs {need:.1f} GiB available for the whole event; free some, or --quick")
    easiest = next((mode for mode, large in whole.items() if large["peak"] <= CAP_GIB), hardest)

    def slower(times: Pass) -> list[float]:
        return [seconds / statistics.median(plain["seconds"]) for seconds in times["seconds"]]

    at = "whole event, forward + backward, 8 iterations"
    return [
        Figure("full_event_peak_gib", [whole[easiest]["peak"]], "GiB", f"{easiest}, the cheapest mode with room; {at}"),
        Figure("full_event_hardest_gib", [whole[hardest]["peak"]], "GiB", f"{hardest}; {at}"),
        Figure("peak_8_over_2", [pass_gib(whole[hardest]) / pass_gib(short)], "x", f"{hardest}, pass, whole event"),
        Figure("time_8_over_plain", slower(last), "x", f"{hardest} s / plain s, part of the event"),
        Figure("recompute_peak_ratio", [pass_gib(recompute) / pass_gib(plain)], "x", "pass over plain's, part"),
        Figure("recompute_time_ratio", slower(recompute), "x", "recompute s / plain s, part of the event"),
    ]


def table(title: str, found: dict[str, tuple[Pass, Pass]]) -> str:
    """Peaks and seconds by mode, as Markdown."""
    rows = []
    for mode, (small, large) in found.items():
        seconds = f"{large['seconds'][0]:.1f}" if large["seconds"] else "predicted"
        cells = [mode, *(f"{value:.2f}" for value in (pass_gib(small), statistics.median(small["seconds"])))]
        rows.append(" | ".join([*cells, f"{large['peak']:.2f}", f"{pass_gib(large):.2f}", seconds]))
    head = ["mode | part: pass GiB | part: s | whole: peak GiB | whole: pass GiB | whole: s", "|".join(["---"] * 6)]
    return "\n".join(["", f"## {title}", "", *(f"| {row} |" for row in [*head, *rows])])


# ------------------------------------------------------------------------------------------------ passes


def passes(graph: Event, model: dict[str, Any], mode: str, repeats: int = 1) -> Pass:
    """A fresh process's passes; MachineError with its last words if it fails."""
    asked = {
        "graph": str(graph.file),
        "model": model,
        "features": FEATURES,
        "mode": mode,
        "repeats": repeats,
        "cap_gib": CAP_GIB,
    }
    command = [sys.executable, "-m", "hpctrack.benchmarks.memory_pass", json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}, out of memory?"]
        raise MachineError(f"a pass of {model['name']} in mode {mode} on {graph.edges} edges failed: {words[0]}")
    return json.loads(done.stdout)


def pass_gib(found: Pass) -> float:
    """Peak beyond what was there before the pass."""
    return found["peak"] - found["before"]


def available_gib() -> float:
    """Memory that the machine can still give."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) / 2**20 for line in lines if line.startswith("MemAvailable"))


# ------------------------------------------------------------------------------------------------ graphs


def near_pairs(x_NF: Tensor, edges: int) -> Tensor:
    """Pairs of hits at different radii that are nearest in direction and radius, [2, at most `edges`].

    Outward; about as many at each hit as the doublets of a tracker's layers would be.
    """
    r, cos, sin, eta = (x_NF[:, FEATURES.index(name)].numpy() for name in ("r", "cos_phi", "sin_phi", "eta"))
    points = np.stack([cos, sin, 2 * eta, 0.2 * r], axis=1)  # eta comes divided by 4
    distance, near = cKDTree(points).query(points, k=np.arange(2, NEAR + 2))
    here, near = np.repeat(np.arange(len(r)), NEAR), near.ravel()
    inner, outer = np.where(r[here] < r[near], (here, near), (near, here))
    chosen = r[outer] - r[inner] > STEP_M
    pair, first = np.unique((inner * len(r) + outer)[chosen], return_index=True)
    nearest = np.sort(np.argsort(distance.ravel()[chosen][first], kind="stable")[:edges])
    return torch.from_numpy(np.stack(np.divmod(pair[nearest], len(r))))


def sector(x_NF: Tensor, edge_2M: Tensor, edges: int) -> tuple[Tensor, Tensor]:
    """The hits around phi = 0 that have so many edges (or a few more) among them, and these."""
    phi = x_NF[:, FEATURES.index("phi")].abs()
    reach = phi[edge_2M].amax(dim=0)
    inside = phi <= reach.sort().values[min(edges, len(reach)) - 1]
    number = torch.cumsum(inside, dim=0) - 1
    return x_NF[inside], number[edge_2M[:, inside[edge_2M].all(dim=0)]]


# ------------------------ the memory model: fitted as a run does it on small events, tried on events of 1k to 100k hits


EVENTS, SMALLEST, LARGEST, LARGEST_QUICK = 30, 1000, 100_000, 8000
DENSITIES = (0.6, 1.0, 1.4)  # edges per hit, in those of the event: graphs differ by their cuts
CPU = torch.device("cpu")


class MeanSquares:
    """A loss that every output takes part in; the losses proper add O(hits) to a pass."""

    def __init__(self) -> None:
        self.weights = {"all": 1.0}

    def __call__(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """One term, the outputs' mean squares."""
        means = [value.square().mean() for value in outputs.values()]
        return {"all": LossTerm(reduce(operator.add, means), 1)}


def predictions(
    models: dict[str, dict[str, Any]],
    features: list[str],
    x_NF: Tensor,
    edge_2M: Tensor,
    *,
    room_gib: float,
    quick: bool,
) -> Page:
    """`memory_error_max` over 30 events (parts of one event) and both models, in modes that should stay in the room."""
    hits = len(x_NF)
    event = Data(
        x=x_NF, edge_index=edge_2M, track=torch.full((hits,), -1), n_tracks=torch.zeros(1, dtype=torch.long),
        event_id=torch.zeros(1, dtype=torch.long), num_nodes=hits,
    )  # fmt: skip
    sizes = np.geomspace(SMALLEST, min(hits / max(DENSITIES), LARGEST_QUICK if quick else LARGEST), EVENTS).astype(int)
    figures, rows = [], []
    for name, model in models.items():
        found = one_model(model, features, event, sizes, room_gib)
        rows += [f"| {name} | {' | '.join(row)} |" for row in by_mode(found)]
        errors = [abs(predicted / measured - 1) for _, _, predicted, measured in found]
        figures.append(Figure(f"memory_error_{name}", errors, "of the peak", f"{len(found)} events, {name}"))
    worst = max(max(figure.values) for figure in figures)
    about = f"largest of all events, {sizes[0]} to {sizes[-1]} hits"
    head = ["| model | mode | events | largest error | largest measured, GiB |", "|---|---|---|---|---|"]
    title = "## The memory model: predicted against measured peaks of a forward and backward pass"
    return Page(
        [Figure("memory_error_max", [worst], "of the peak", about), *figures], "\n".join([title, "", *head, *rows])
    )


def one_model(
    model: dict[str, Any], features: list[str], event: Data, sizes: np.ndarray, room_gib: float
) -> list[tuple[int, str, float, float]]:
    """(hits, mode, predicted, measured bytes) of events of these sizes, the modes that have room taking turns."""
    torch.manual_seed(0)
    built = build_model(Named(**model), features)
    env = Env(0, 1, 0, CPU, backend=None, source="bench")
    engine = DDPEngine(built, lambda m: torch.optim.SGD(m.parameters()), env, Precision("fp32", CPU), ParallelConfig())
    memory, objective = Memory(MemoryConfig(cap_gib=room_gib), engine), MeanSquares()
    calibrate(engine, objective, memory, event)
    found = []
    for turn, hits in enumerate(sizes):
        density = DENSITIES[turn % len(DENSITIES)] * event.num_edges / event.num_nodes
        batch = Batch.from_data_list([cut_down(event, int(hits), int(density * hits))])
        modes = [mode for mode in memory.modes if memory.predict(batch, mode) <= memory.room]
        if modes:
            mode = modes[turn % len(modes)]
            found.append((int(hits), mode, memory.predict(batch, mode), measure(engine, objective, batch, mode)))
    return found


def by_mode(found: list[tuple[int, str, float, float]]) -> list[list[str]]:
    """Rows of the table."""
    rows = []
    for mode in dict.fromkeys(mode for _, mode, _, _ in found):
        pairs = [(predicted, measured) for _, other, predicted, measured in found if other == mode]
        worst, largest = max(abs(p / m - 1) for p, m in pairs), max(m for _, m in pairs)
        rows.append([mode, str(len(pairs)), f"{100 * worst:.1f} %", f"{largest / GIB:.2f}"])
    return rows
