"""What a pass needs in every memory mode, measured before the first step on a ladder of small events: its peak memory
is counted exactly.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch_geometric.data import Batch, Data

from hpctrack.errors import MEMORY, lacking
from hpctrack.losses import Weighted, objective
from hpctrack.parallel.collectives import all_max
from hpctrack.parallel.engine import Engine
from hpctrack.resources.peak_memory import Memory

LARGEST = 20_000  # hits of the largest event of the ladder
RUNGS = 8  # each with twice the hits of the one below
GROWTH = 4.0  # memory of the next rung over this one's, at most: an event of twice the hits has four times the pairs


def calibrate(engine: Engine, loss: Weighted, memory: Memory, event: Data) -> list[str]:
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


def measure(engine: Engine, loss: Weighted, batch: Batch, mode: str) -> float:
    """Peak bytes of a forward and backward pass, whose gradients are discarded; infinite if memory ran out.

    Gradients are summed over ranks only where passes are collective, since they would be kept for the sum otherwise.
    """
    peak = float("inf")
    try:
        with MemoryMeter(engine.env.device) as meter:
            terms = loss(engine.forward(batch, engine.lockstep, mode), batch)
            engine.backward(objective(loss.weights, terms))
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


# ----------------------------------------------------------------------------------- the peak memory of a piece of work


class MemoryMeter:
    """`peak` bytes of tensors alive at once within the block, and `now` bytes alive, beyond those from before it.

    On GPUs the allocator's own counts. On the CPU, whose allocator keeps none, each tensor's storage counts from the
    operator that made it to the end of its last holder: the same number as torch's profiler finds from allocations, at
    some microseconds an operator. What an operator takes for itself, and what the C library keeps of freed memory, is
    not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.live = None if device.type == "cuda" else LiveStorages()

    def __enter__(self) -> MemoryMeter:
        if self.live is None:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is None:
            self.peak = torch.cuda.max_memory_allocated(self.device) - self.before
            self.now = torch.cuda.memory_allocated(self.device) - self.before
        else:
            self.live.__exit__(None, None, None)
            self.peak, self.now = self.live.peak, self.live.now


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()  # storages alive, by address

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            self.see(tensor, counts=False)  # it was there before the block
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            self.see(tensor, counts=True)
        return result

    def see(self, tensor: Any, counts: bool) -> None:
        """Take note of a tensor's storage; of one not seen before, its bytes count or not."""
        if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in self.known:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes() if counts else 0
        self.known.add(storage._cdata)
        weakref.finalize(storage, self.gone, storage._cdata, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def gone(self, address: int, size: int) -> None:
        """A storage was freed."""
        self.known.discard(address)
        self.now -= size
