"""One forward and backward pass of a model in a process of its own: `python -m hpctrack.benchmarks.memory_pass JSON`.

Peaks are the process's high-water mark as the kernel counts it (VmHWM), so they hold all that was ever resident: what
operators take for themselves, and what the C library has not given back (it is asked to, as by memory.policy: auto).
Seconds are CPU time of its one thread.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch_geometric.data import Batch, Data

from hpctrack.benchmarks.measure import new_high_water_gib, status_gib
from hpctrack.config import Named
from hpctrack.models import build_model
from hpctrack.resources.peak_memory import GIB, return_freed_memory


def main(argument: str) -> None:
    """Print {"before", "peak" (both GiB), "seconds"} of what `argument` (see `memory.measure`) asks for."""
    asked = json.loads(argument)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return_freed_memory(asked["cap_gib"] * GIB)
    tensors = torch.load(asked["graph"], weights_only=True)
    batch = Batch.from_data_list([Data(**tensors, num_nodes=len(tensors["x"]))])
    del tensors
    model = build_model(Named(**asked["model"]), asked["features"], asked["mode"])
    one_pass(model, Batch.from_data_list([first_hits(batch, 100)]))  # libraries take what they take once
    before = new_high_water_gib()
    seconds = [one_pass(model, batch)]
    peak = status_gib("VmHWM")
    seconds += [one_pass(model, batch) for _ in range(asked["repeats"] - 1)]
    print(json.dumps({"before": before, "peak": peak, "seconds": seconds}))


def one_pass(model: torch.nn.Module, batch: Batch) -> float:
    """Seconds of forward, a quadratic objective on all outputs, and backward."""
    model.zero_grad()
    begin = time.process_time()
    objective(model(batch)).backward()
    return time.process_time() - begin


def objective(outputs: dict[str, Any]) -> torch.Tensor:
    """A scalar that every output takes part in."""
    return sum(value.square().mean() for value in outputs.values())


def first_hits(batch: Batch, n: int) -> Data:
    """The first hits of a batch and the edges among them."""
    edges = batch.edge_index
    return Data(x=batch.x[:n], edge_index=edges[:, (edges < n).all(dim=0)], num_nodes=min(n, batch.num_nodes))


if __name__ == "__main__":
    main(sys.argv[1])
