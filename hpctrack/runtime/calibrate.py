"""What a pass needs in every memory mode, measured before the first step on a ladder of small events."""

from __future__ import annotations

import torch
from torch import nn
from torch_geometric.data import Batch, Data

from hpctrack.errors import MEMORY, lacking
from hpctrack.parallel.collectives import all_max
from hpctrack.parallel.engine import Engine
from hpctrack.runtime.memory import Memory
from hpctrack.runtime.meter import MemoryMeter

LARGEST = 20_000  # hits of the largest event of the ladder
RUNGS = 8  # each with twice the hits of the one below
GROWTH = 4.0  # memory of the next rung over this one's, at most: an event of twice the hits has four times the pairs


def calibrate(engine: Engine, loss: nn.Module, memory: Memory, event: Data) -> list[str]:
    """Measure cut-down copies of `event` in every mode, as far as they fit, and fit; what the fits say.

    All ranks run the same passes, since they may be collective, and rank by rank agree on when a mode does not go on.
    """
    for mode in memory.modes:
        peak = 0.0
        for rung in range(RUNGS):
            hits = min(event.num_nodes, LARGEST) >> (RUNGS - 1 - rung)
            edges = event.num_edges * hits // max(1, event.num_nodes) // (1 + rung % 2)  # apart from hits in the fit
            if hits == 0 or GROWTH * peak > memory.room:
                continue
            batch = Batch.from_data_list([cut_down(event, hits, edges)]).to(engine.env.device)
            peak = measure(engine, loss, batch, mode)
            [peak] = all_max([peak], engine.env)
            if peak < float("inf"):
                memory.observe(batch, mode, peak)
    for fit in memory.fits.values():  # ranks have measured the same: one of them is enough
        fit.new = fit.new if engine.env.is_main else []
    return memory.learn()


def measure(engine: Engine, loss: nn.Module, batch: Batch, mode: str) -> float:
    """Peak bytes of a forward and backward pass, whose gradients are discarded; infinite if memory ran out.

    Gradients are summed over ranks only where passes are collective, since they would be kept for the sum otherwise.
    """
    peak = float("inf")
    try:
        with MemoryMeter(engine.env.device) as meter:
            terms = loss(engine.forward(batch, engine.lockstep, mode), batch)
            engine.backward(sum(loss.weights[name] * terms[name].sum for name in loss.weights))
        peak = float(meter.peak)
    except (RuntimeError, MemoryError) as error:
        if engine.lockstep or lacking(error) != MEMORY:
            raise
    engine.discard()
    return peak


def cut_down(event: Data, hits: int, edges: int) -> Data:
    """The event's first hits, and edges with their ends put among them: as many as asked for, whatever they connect."""
    out = Data(num_nodes=hits)
    tracks, number = event.track[:hits].unique(return_inverse=True)
    noise = int((tracks < 0).sum())
    for key, value in event:
        if key == "edge_index":
            out[key] = value[:, :edges] % hits
        elif torch.is_tensor(value) and event.is_edge_attr(key):
            out[key] = value[:edges]
        elif torch.is_tensor(value) and event.is_node_attr(key):
            out[key] = value[:hits]
        elif torch.is_tensor(value) and len(value) == int(event.n_tracks):
            out[key] = value[tracks[noise:]]
        elif key != "num_nodes":
            out[key] = value
    out.track, out.n_tracks = number - noise, torch.tensor([len(tracks) - noise])
    return out
