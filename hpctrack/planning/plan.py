"""Which events form each optimizer step, and how a step's events are split over ranks and micro-batches.

Pure numpy, no communication: every rank computes the same plan. The events of a step follow from the sizes, seed, epoch
and settings only, never from the number of ranks nor from measured costs; those decide only who takes which of a step's
events. Every event is in exactly one step of an epoch: nothing is dropped, an epoch's last step may be smaller.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
import xxhash
from scipy.optimize import linear_sum_assignment

from hpctrack.errors import InputError
from hpctrack.planning.partition import partition

GROUP_SIZES = (2, 4, 8)  # of ranks that hold an event together
GIANT = 1.25  # an event of so many times a rank's mean load is one, on which a step would wait


class Divided(NamedTuple):
    """Dataset row of an event that is held by `of` ranks, of which this one is number `number`."""

    row: int
    number: int
    of: int


@dataclass(frozen=True)
class EpochPlan:
    """One epoch as arrays: entry i puts dataset row `event[i]` on rank `rank[i]`, micro-batch `micro[i]` of its step.

    `step_offsets` [n_steps + 1] bounds the steps. An event that is divided (`parts[i]` > 1) is on `rank[i]` and the
    ranks after it, `parts[i]` in all; None: there is none.
    """

    event: np.ndarray
    rank: np.ndarray
    micro: np.ndarray
    step_offsets: np.ndarray
    parts: np.ndarray | None = None

    @property
    def n_steps(self) -> int:
        """Optimizer steps in the epoch, the same on every rank."""
        return len(self.step_offsets) - 1

    def step_events(self, step: int) -> np.ndarray:
        """Rows of all events of a step, over all ranks."""
        return self.event[self.step_offsets[step] : self.step_offsets[step + 1]]

    def micro_batches(self, step: int, rank: int) -> list[np.ndarray]:
        """The rank's micro-batches of a step, rows of whole events each; may be empty."""
        here = slice(self.step_offsets[step], self.step_offsets[step + 1])
        mine = self.rank[here] == rank
        if self.parts is not None:
            mine &= self.parts[here] == 1
        event, micro = self.event[here][mine], self.micro[here][mine]
        bins = range(micro.max() + 1) if len(event) else ()
        return [event[micro == m] for m in bins]

    def divided(self, step: int, rank: int) -> list[Divided]:
        """The events of a step that the rank holds together with others, in the order that all of these keep."""
        if self.parts is None:
            return []
        found = []
        for i in range(self.step_offsets[step], self.step_offsets[step + 1]):
            first, of = int(self.rank[i]), int(self.parts[i])
            if of > 1 and first <= rank < first + of:
                found.append(Divided(int(self.event[i]), rank - first, of))
        return found

    def loads(self, costs: np.ndarray, world_size: int) -> np.ndarray:
        """Summed cost of each rank in each step [n_steps, world_size]; `costs` [n_events] by dataset row."""
        step = np.repeat(np.arange(self.n_steps), np.diff(self.step_offsets))
        if self.parts is None:
            at, cost = step * world_size + self.rank, costs[self.event]
        else:  # each of an event's ranks has an equal part of it
            at = np.repeat(step * world_size + self.rank, self.parts)
            at += np.arange(len(at)) - np.repeat(np.cumsum(self.parts) - self.parts, self.parts)
            cost = np.repeat(costs[self.event] / self.parts, self.parts)
        flat = np.bincount(at, cost, self.n_steps * world_size)
        return flat.reshape(self.n_steps, world_size)

    def micro_batch_sizes(self, sizes: np.ndarray) -> np.ndarray:
        """Summed `sizes` (by dataset row) of each micro-batch of the epoch."""
        step = np.repeat(np.arange(self.n_steps), np.diff(self.step_offsets))
        _, batch = np.unique(np.stack([step, self.rank, self.micro]), axis=1, return_inverse=True)
        if self.parts is None:
            return np.bincount(batch, sizes[self.event]).astype(sizes.dtype)
        whole = self.parts == 1
        share = -(-sizes[self.event] // self.parts)
        return np.append(np.bincount(batch[whole], share[whole]), share[~whole]).astype(sizes.dtype)

    @property
    def hash(self) -> str:
        """Identity of what each step consumes, independent of the number of ranks."""
        return composition_hash(self.event, self.step_offsets)


def plan_epoch(
    sizes: np.ndarray,
    world_size: int,
    seed: int,
    epoch: int,
    events_per_step: int | None = None,
    *,
    size_per_step: float | None = None,
    window: int | None = 1,
    costs: np.ndarray | None = None,
    memory: np.ndarray | None = None,
    memory_cap: float | None = None,
    shards: np.ndarray | None = None,
    ranks_per_event: int | Literal["auto"] = 1,
) -> EpochPlan:
    """Plan one epoch: compose steps, split each over ranks, pack micro-batches under the cap.

    `sizes` [n_events]: relative cost known beforehand, the same in every run; groups like-sized events and measures
    `size_per_step`. `costs` [n_events]: predicted seconds for the split over ranks (default: the sizes). `memory`
    [n_events] counts against `memory_cap`; an event above it has a micro-batch of its own. `shards`
    [n_events]: ranks prefer events of shards they have read before, where that costs nothing. `ranks_per_event`: how
    many consecutive ranks hold an event together; auto: as `share_giants` says. The rest: `compose`.
    """
    order, offsets = compose(sizes, seed, epoch, events_per_step, size_per_step=size_per_step, window=window)
    costs = np.asarray(sizes if costs is None else costs, dtype=np.float64)
    rank = np.zeros(len(order), dtype=np.int32)
    micro = np.zeros(len(order), dtype=np.int32)
    parts = None if ranks_per_event == 1 or world_size == 1 else np.ones(len(order), dtype=np.int32)
    held = np.zeros((world_size, int(shards.max(initial=-1)) + 1 if shards is not None else 0), dtype=bool)
    for start, stop in zip(offsets[:-1], offsets[1:], strict=True):
        rows = order[start:stop]
        if parts is not None:
            divide = share_giants if ranks_per_event == "auto" else partial(share_all, parts=ranks_per_event)
            rank[start:stop], parts[start:stop] = divide(costs[rows], world_size)
        elif world_size > 1:
            part = partition(costs[rows], world_size, good_enough(world_size))
            rank[start:stop] = part if shards is None else prefer_held_shards(part, shards[rows], held)
        if memory_cap is not None:
            sizes_here = (memory if memory is not None else sizes)[rows]
            alone = rank[start:stop] if parts is None else np.where(parts[start:stop] == 1, rank[start:stop], -1)
            for r in np.unique(alone[alone >= 0]):
                mine = np.flatnonzero(alone == r)
                micro[start + mine] = pack(sizes_here[mine], memory_cap)
    return EpochPlan(order, rank, micro, offsets, parts)


def share_all(costs: np.ndarray, world_size: int, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """First rank and number of ranks of each event of a step, if all are divided over `parts` ranks."""
    groups = world_size // parts
    group = partition(costs, groups, good_enough(groups)) if groups > 1 else np.zeros(len(costs), dtype=np.int32)
    return group * parts, np.full(len(costs), parts)


def share_giants(costs: np.ndarray, world_size: int) -> tuple[np.ndarray, np.ndarray]:
    """First rank and number of ranks of each event of a step, if giants alone are divided.

    A giant costs more than GIANT times the mean load of a rank. It gets the smallest group of GROUP_SIZES whose ranks
    then have no more of it than that, or the largest there is. Giants come first, the dearest first, each to the group
    with the least so far; then the rest, each to the rank with the least (longest processing time).
    """
    limit = GIANT * float(costs.sum()) / world_size
    sizes = [size for size in GROUP_SIZES if world_size % size == 0]
    load, first, parts = np.zeros(world_size), np.zeros(len(costs), dtype=np.int32), np.ones(len(costs), dtype=np.int32)
    for i in np.argsort(-costs, kind="stable"):
        if costs[i] > limit and sizes:
            parts[i] = next((size for size in sizes if costs[i] <= limit * size), sizes[-1])
        group = load.reshape(-1, parts[i])
        chosen = int(group.max(axis=1).argmin())
        first[i] = chosen * parts[i]
        group[chosen] = group[chosen].max() + costs[i] / parts[i]  # its ranks wait for each other
    return first, parts


def good_enough(world_size: int) -> float:
    """Mean / max load of the ranks at which a split is not refined further; few ranks means many steps to split."""
    return 0.995 if world_size >= 32 else 0.99


def compose(
    sizes: np.ndarray,
    seed: int,
    epoch: int,
    events_per_step: int | None = None,
    *,
    size_per_step: float | None = None,
    window: int | None = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Events in the order of their steps, and the steps' bounds [n_steps + 1].

    Events are shuffled, cut into windows of so many steps, sorted by size within a window, cut into steps of a fixed
    number of events or (about) a fixed summed size, and the steps are shuffled. `window` 1 is plain random; None is the
    whole epoch sorted: the most alike steps, the least randomness in what stands together.
    """
    per_step = size_per_step if events_per_step is None else events_per_step
    if per_step is None or not (events_per_step is None or size_per_step is None):
        raise InputError("section 'plan': give either events_per_step or size_per_step")
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(sizes))
    if window != 1:
        span = None if window is None else window * per_step
        block = cut(sizes[order], span, by_count=events_per_step is not None)
        order = order[np.lexsort((sizes[order], block))]
    step = cut(sizes[order], per_step, by_count=events_per_step is not None)
    bounds = np.concatenate([np.flatnonzero(np.diff(step, prepend=-1)), [len(order)]]).astype(np.int64)
    if window == 1 or len(bounds) <= 2:
        return order, bounds
    shuffled = rng.permutation(len(bounds) - 1)
    pieces = [order[bounds[s] : bounds[s + 1]] for s in shuffled]
    return np.concatenate(pieces), np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])


def cut(sizes: np.ndarray, span: float | None, by_count: bool) -> np.ndarray:
    """Block number [n] of each event, in order: blocks of `span` events, or of about `span` summed size."""
    if span is None:
        return np.zeros(len(sizes), dtype=np.int64)
    if by_count:
        return np.arange(len(sizes)) // int(span)
    middle = np.cumsum(sizes) - sizes / 2  # an event belongs where its middle falls
    return np.unique((middle // span).astype(np.int64), return_inverse=True)[1]


def composition_hash(order: np.ndarray, offsets: np.ndarray) -> str:
    """Hash of which events stand in which step, whatever their order within it."""
    step = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    rows = order[np.lexsort((order, step))]
    return xxhash.xxh3_64_hexdigest(np.concatenate([rows, offsets]).astype("<i8").tobytes())


def prefer_held_shards(part: np.ndarray, shard: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Name the parts of a step so that ranks get events of shards they hold already; loads stay as they are.

    Parts are interchangeable: which rank takes which is chosen to match as many events as possible to a rank that has
    their shard (`held` [world, n_shards], updated).
    """
    world = len(held)
    known = np.zeros((world, world))  # events of part p whose shard rank r holds
    np.add.at(known, part, held[:, shard].T.astype(float))
    chosen, rank_of = linear_sum_assignment(-known)
    rank = rank_of[np.argsort(chosen)][part]
    held[rank, shard] = True
    return rank


def pack(sizes: np.ndarray, cap: float) -> np.ndarray:
    """Bin [n] of each item, first fit decreasing: no bin above the cap, but for an item that is so by itself."""
    bins = np.zeros(len(sizes), dtype=np.int32)
    filled: list[float] = []
    for i in np.argsort(-sizes, kind="stable"):
        fitting = (b for b, load in enumerate(filled) if load + sizes[i] <= cap)
        chosen = next(fitting, len(filled))
        if chosen == len(filled):
            filled.append(0.0)
        filled[chosen] += float(sizes[i])
        bins[i] = chosen
    return bins
