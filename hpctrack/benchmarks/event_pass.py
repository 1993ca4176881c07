"""Training steps on one event by this rank and those that share it; alone, a rank has the event whole.

Peaks are the process's high-water mark (VmHWM) beyond what it held before the event was read.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.benchmarks.measure import new_high_water_gib, status_gib
from hpctrack.config import AugmentConfig, Named, ParallelConfig, SelectionConfig
from hpctrack.division.divided import Place
from hpctrack.events.loader import EventLoader
from hpctrack.graphs import build_graph
from hpctrack.losses import build_loss
from hpctrack.models import Model, build_model
from hpctrack.parallel.collectives import all_max
from hpctrack.parallel.env import Env, distributed
from hpctrack.parallel.groups import GroupExchange, make_groups
from hpctrack.parallel.precision import Precision
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.resources.peak_memory import GIB, return_freed_memory
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint
from hpctrack.training.step import empty_batch, train_step

CAP_GIB = 16.0


class Counted(GroupExchange):
    """The same exchange, counting: by kind, its calls and the bytes that this rank received of others."""

    def __init__(self, found: GroupExchange) -> None:
        super().__init__(found.group, found.number, found.of, found.backend, way=found.way)
        self.kinds = {kind: [0, 0] for kind in ("all_sum", "all_rows", "swap")}
        self.halo = 0  # rows of others that were asked for at once, at most

    def all_sum(self, x: Tensor) -> Tensor:
        """As of a group; its size counts once."""
        self.count("all_sum", x.numel() * x.element_size())
        return super().all_sum(x)

    def all_rows(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """As of a group."""
        self.count("all_rows", (sum(sizes) - len(x)) * row_bytes(x))
        return super().all_rows(x, sizes)

    def swap(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """As of a group."""
        self.count("swap", (sum(receive) - receive[self.number]) * row_bytes(rows))
        if not rows.is_floating_point() and list(send) != [1] * self.of:  # numbers of the rows that are asked for
            self.halo = max(self.halo, len(rows))
        return super().swap(rows, send, receive)

    def count(self, kind: str, size: int) -> None:
        """Note a call."""
        self.kinds[kind][0] += 1
        self.kinds[kind][1] += size


def row_bytes(x: Tensor) -> int:
    """Bytes of one of its rows."""
    return x.element_size() * math.prod(x.shape[1:])


def one_rank(asked: dict[str, Any]) -> dict[str, Any]:
    """What this rank finds; `asked`: as benchmarks/event_parallel.py says."""
    with distributed(ParallelConfig(device="cpu"), 1) as env:
        return steps(asked, env)


def steps(asked: dict[str, Any], env: Env) -> dict[str, Any]:
    """Seconds, processor seconds and exchange seconds of each step; peak memory, and this rank's part of the event."""
    return_freed_memory(CAP_GIB * GIB)
    torch.manual_seed(0)
    model, loss = build_model(Named(**asked["model"]), asked["features"]), build_loss(Named(**asked["loss"]))
    if asked["weights"]:
        checkpoint.begin_from(model, checkpoint.find(Path(asked["weights"])), asked["features"])
    engine = DDPEngine(
        model, partial(still, model), env, Precision("fp32", env.device, tf32=False), ParallelConfig(device="cpu")
    )
    exchange = Counted(make_groups(env, [env.world], 600)[env.world]) if env.world > 1 else None
    warm_up(engine)
    before = new_high_water_gib()
    begin = time.process_time()
    batch = read(asked, exchange)
    found: dict[str, Any] = {"build_s": time.process_time() - begin, "steps": []}
    for _ in range(asked["steps"]):
        all_max([0], env)  # all begin together
        begins = time.perf_counter(), time.process_time(), exchange.seconds if exchange else 0.0
        train_step(engine, loss, [batch], None, [asked["mode"]])
        ends = time.perf_counter(), time.process_time(), exchange.seconds if exchange else 0.0
        found["steps"].append([end - begin for begin, end in zip(begins, ends, strict=True)])
    edges = batch.edge_index if "edge_index" in batch else torch.zeros(2, 0, dtype=torch.long)
    return found | {
        "before": before,
        "peak": status_gib("VmHWM") - before,
        "hits": batch.num_nodes,
        "edges": edges.shape[1],
        "cut": int((edges >= batch.num_nodes).any(dim=0).sum()),
        "halo": exchange.halo if exchange else 0,
        "volumes": exchange.kinds if exchange else {},
        "parameters": engine.n_parameters,
    }


def still(model: Model, _: Any = None) -> torch.optim.Optimizer:
    """An optimizer that leaves weights as they are, so that all steps do the same."""
    return torch.optim.SGD(model.parameters(), lr=0.0)


def warm_up(engine: DDPEngine) -> None:
    """Let libraries take what they take once."""
    engine.predict(empty_batch(engine))


def read(asked: dict[str, Any], exchange: Counted | None) -> Batch:
    """The event, or this rank's part of it."""
    dataset = Dataset(Path(asked["data"]))
    graph = build_graph(Named(**asked["graph"]), asked["data"], dataset) if asked["graph"] else None
    augmentation = AugmentConfig(sector_rad=asked["sector_rad"])
    selection = SelectionConfig(**asked["selection"])
    load = EventLoader(dataset, asked["features"], selection, augmentation, (0, 0), graph=graph)
    if exchange is None:
        return Batch.from_data_list([load(asked["row"], 0)])
    batch = load.part(asked["row"], 0, Place(exchange.number, exchange.of))
    batch.division.join(exchange)
    return batch
