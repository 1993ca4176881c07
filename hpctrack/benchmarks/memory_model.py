"""How well the memory model predicts: fitted as a run does it, on small events, tried on events of 1k to 100k hits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from hpctrack.benchmarks.measure import Figure, Page
from hpctrack.config import MemoryConfig, Named, ParallelConfig
from hpctrack.losses.term import LossTerm
from hpctrack.models import build_model
from hpctrack.parallel.ddp import DDPEngine
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision
from hpctrack.runtime.calibrate import calibrate, cut_down, measure
from hpctrack.runtime.memory import GIB, Memory

EVENTS, SMALLEST, LARGEST, LARGEST_QUICK = 30, 1000, 100_000, 8000
DENSITIES = (0.6, 1.0, 1.4)  # edges per hit, in those of the event: graphs differ by their cuts
CPU = torch.device("cpu")


@dataclass
class Objective(nn.Module):
    """A loss that every output takes part in; the losses proper add O(hits) to a pass."""

    weights: dict[str, float] = field(default_factory=lambda: {"all": 1.0})
    __hash__ = object.__hash__

    def __call__(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, LossTerm]:
        """One term, the outputs' mean squares."""
        return {"all": LossTerm(sum(value.square().mean() for value in outputs.values()), 1)}


def predictions(
    models: dict[str, dict[str, Any]], features: list[str], x_NF: Tensor, edge_2M: Tensor, room_gib: float, quick: bool
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
    env = Env(0, 1, 0, CPU, None, "bench")
    engine = DDPEngine(built, lambda m: torch.optim.SGD(m.parameters()), env, Precision("fp32", CPU), ParallelConfig())
    memory, objective = Memory(MemoryConfig(cap_gib=room_gib), engine), Objective()
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
