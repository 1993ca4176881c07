"""How a measured run would scale to thousands of GPUs: a projection, not a measurement.

    step = max over ranks (sum of the seconds of its events) + all-reduce of the gradient + three small all-reduces

The plan is the real one (data/plan.py), made from predicted seconds; each event takes its predicted seconds times a
drawn ratio of measured to predicted ones, so that what the cost model does not know stays in. Communication is not
overlapped with computing, and costs alpha + beta bytes on each link of a ring or a tree, whichever is faster.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hpctrack.data.plan import plan_epoch
from hpctrack.runtime.cost import CostModel, event_terms

WORLDS = (1, 4, 16, 64, 256, 1024, 4096)
PER_RANK, STRONG_BATCH, STEPS = 4, 16384, 3  # events a rank in weak, events a step in strong scaling, steps simulated
SMALL = 3  # all-reduces of a few numbers a step: counts, losses, gradient norm


@dataclass(frozen=True)
class Machine:
    """Nodes of `gpus` GPUs; latencies in s a hop, bandwidths in bytes/s a GPU and direction; `flops` of fp32."""

    name: str
    source: str
    gpus: int
    flops: float
    node_latency: float
    node_bandwidth: float
    net_latency: float
    net_bandwidth: float
    base_latency: float

    def all_reduce(self, size: float, world: int) -> float:
        """Seconds to sum `size` bytes over `world` GPUs: scattered within nodes, summed between them, gathered."""
        inside, nodes = min(world, self.gpus), math.ceil(world / self.gpus)
        if world == 1:
            return 0.0
        seconds = self.base_latency
        seconds += 2 * (inside - 1) * (self.node_latency + size / inside / self.node_bandwidth)
        if nodes > 1:
            share = size / inside  # each GPU has a network card of its own
            ring = 2 * (nodes - 1) * (self.net_latency + share / nodes / self.net_bandwidth)
            tree = 2 * math.ceil(math.log2(nodes)) * self.net_latency + 2 * share / self.net_bandwidth
            seconds += min(ring, tree)
        return seconds


PERLMUTTER_LIKE = Machine(
    name="nodes of 4 A100 on Slingshot 11",
    source="A100 data sheet (NVIDIA): 19.5 TFLOP/s in fp32, NVLink 3 at 25 GB/s a link and direction, four links "
    "between two of four GPUs; one 200 Gb/s Slingshot 11 card a GPU (D. De Sensi et al., SC24, arXiv:2408.14090, on "
    "such networks); latencies: NCCL's own tuning model (src/graph/tuning.cc, Simple: 8.4 us, 3.4 us a hop on "
    "NVLink, 14 us on a network)",
    gpus=4,
    flops=19.5e12,
    node_latency=3.4e-6,
    node_bandwidth=100e9,
    net_latency=14e-6,
    net_bandwidth=25e9,
    base_latency=8.4e-6,
)


@dataclass(frozen=True)
class Projected:
    """A projected point: efficiency against one rank, shares of the step's time."""

    kind: str
    world: int
    efficiency: float
    imbalance: float
    communication: float
    step_s: float


def core_flops(repeats: int = 5, size: int = 1024) -> float:
    """FLOP/s that a matrix product in fp32 reaches here, with the threads that are set."""
    a = torch.rand(size, size)
    best = math.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def project(cost_state: dict[str, Any], parameters: int, speedup: float, machine: Machine) -> list[Projected]:
    """Strong and weak scaling of events like those that the cost model saw, each event `speedup` times faster."""
    cost = CostModel(cost_state)
    cost.learn(1)
    samples = cost.samples[cost.samples[:, 1] > 0]
    ratio = samples[:, -1] / cost.seconds(samples[:, :-1])
    off = np.abs(np.log(ratio / np.median(ratio)))
    usual = off <= 3 * 1.4826 * max(np.median(off), 1e-9)  # the machine's hiccups are not the events'
    hits, ratio = samples[usual, 1], ratio[usual]
    points = []
    for kind in ("strong", "weak"):
        for world in WORLDS:
            batch = STRONG_BATCH if kind == "strong" else PER_RANK * world
            rng = np.random.default_rng([world, batch])
            drawn = rng.integers(len(hits), size=(STEPS * batch, 2))
            sizes = hits[drawn[:, 0]] * rng.lognormal(0, 0.02, STEPS * batch)  # no two events alike
            terms = event_terms(sizes)
            terms[:, 0] = 1.0
            predicted = cost.seconds(terms) / speedup
            measured = predicted * ratio[drawn[:, 1]]
            loads = plan_epoch(predicted, world, 0, 0, batch).loads(measured, world)
            summed = machine.all_reduce(4.0 * parameters, world) + SMALL * machine.all_reduce(8.0 * 16, world)
            slowest, mean = loads.max(axis=1).mean(), loads.mean()
            step = slowest + summed
            points.append(Projected(kind, world, mean / step, (slowest - mean) / step, summed / step, step))
    return points
