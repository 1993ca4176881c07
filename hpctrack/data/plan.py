"""Which events form each optimizer step, and how a step's events are split over ranks and micro-batches.

Pure numpy, no communication: every rank computes the same plan. The events of a step depend on (number of events, seed,
epoch, events per step) only, never on the number of ranks. Nothing is dropped: an epoch's last step may be smaller.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import xxhash


@dataclass(frozen=True)
class EpochPlan:
    """One epoch as arrays: entry i puts dataset row `event[i]` on rank `rank[i]`, micro-batch `micro[i]` of its step.

    `step_offsets` [n_steps + 1] bounds the steps.
    """

    event: np.ndarray
    rank: np.ndarray
    micro: np.ndarray
    step_offsets: np.ndarray

    @property
    def n_steps(self) -> int:
        """Optimizer steps in the epoch, the same on every rank."""
        return len(self.step_offsets) - 1

    def step_events(self, step: int) -> np.ndarray:
        """Rows of all events of a step, over all ranks."""
        return self.event[self.step_offsets[step] : self.step_offsets[step + 1]]

    def micro_batches(self, step: int, rank: int) -> list[np.ndarray]:
        """The rank's micro-batches of a step, as rows of events; may be empty."""
        here = slice(self.step_offsets[step], self.step_offsets[step + 1])
        mine = self.rank[here] == rank
        event, micro = self.event[here][mine], self.micro[here][mine]
        return [event[micro == m] for m in range(micro.max() + 1)] if len(event) else []

    @property
    def hash(self) -> str:
        """Identity of what each step consumes, independent of the number of ranks."""
        steps = [np.sort(self.step_events(s)) for s in range(self.n_steps)]
        return xxhash.xxh3_64_hexdigest(np.concatenate([*steps, self.step_offsets]).astype("<i8").tobytes())


def plan_epoch(
    costs: np.ndarray,
    world_size: int,
    seed: int,
    epoch: int,
    events_per_step: int,
    memory: np.ndarray | None = None,
    memory_cap: float | None = None,
) -> EpochPlan:
    """Plan one epoch: shuffle, cut into steps, split each step over ranks by cost, pack micro-batches under the cap.

    `costs` [n_events] are relative seconds, `memory` [n_events] what counts against `memory_cap` (e.g. hits). An event
    above the cap gets a micro-batch of its own.
    """
    n = len(costs)
    order = np.random.default_rng([seed, epoch]).permutation(n)
    offsets = np.append(np.arange(0, n, events_per_step), n)
    rank = np.empty(n, dtype=np.int32)
    micro = np.zeros(n, dtype=np.int32)
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        rows = order[start:stop]
        rank[start:stop] = split_by_cost(costs[rows], world_size)
        if memory is not None and memory_cap is not None:
            for r in range(world_size):
                mine = start + np.flatnonzero(rank[start:stop] == r)
                micro[mine] = pack(memory[order[mine]], memory_cap)
    return EpochPlan(order, rank, micro, offsets)


def split_by_cost(costs: np.ndarray, parts: int) -> np.ndarray:
    """Part [n] of each item, longest processing time first: the dearest item goes to the least loaded part."""
    part = np.empty(len(costs), dtype=np.int32)
    load = [(0.0, p) for p in range(parts)]
    for i in np.argsort(-costs, kind="stable"):
        total, p = heapq.heappop(load)
        part[i] = p
        heapq.heappush(load, (total + float(costs[i]), p))
    return part


def pack(sizes: np.ndarray, cap: float) -> np.ndarray:
    """Bin [n] of each item, in order, opening a new bin when the next item would overfill the last one."""
    bins = np.zeros(len(sizes), dtype=np.int32)
    current, filled = 0, 0.0
    for i, size in enumerate(sizes):
        if filled and filled + size > cap:
            current, filled = current + 1, 0.0
        bins[i] = current
        filled += size
    return bins
