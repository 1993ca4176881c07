"""Other people's ways to share events among ranks, for comparison on the same events.

Each rule is stated here in its smallest form, from the code that is named; PyG's own sampler is run by
`hpctrack bench plan`. What a rule drops or repeats is counted, not mended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.planning.certificate import balances
from hpctrack.planning.partition import longest_first
from hpctrack.planning.plan import plan_epoch

SAMPLE = 20_000  # events that a counterfactual looks at


@dataclass(frozen=True)
class Assignment:
    """Event `event[i]` is done by rank `rank[i]` in step `step[i]`; events may be missing or stand twice."""

    event: np.ndarray
    step: np.ndarray
    rank: np.ndarray
    world_size: int

    def loads(self, costs: np.ndarray) -> np.ndarray:
        """Summed costs [steps, world]; `costs` [n_events]."""
        steps = int(self.step.max(initial=-1)) + 1
        flat = np.bincount(self.step * self.world_size + self.rank, costs[self.event], steps * self.world_size)
        return flat.reshape(steps, self.world_size)

    def efficiency(self, costs: np.ndarray) -> float:
        """Mean / maximum cost of the ranks, averaged over steps."""
        return balances(self.loads(costs))[0]

    def dropped(self, n_events: int) -> int:
        """Events that nobody does."""
        return int((np.bincount(self.event, minlength=n_events) == 0).sum())

    def repeated(self, n_events: int) -> int:
        """Times that an event is done again."""
        return int(np.maximum(np.bincount(self.event, minlength=n_events) - 1, 0).sum())


def plain_random(n_events: int, world_size: int, per_rank: int, seed: int) -> Assignment:
    """The same number of random events for each rank: torch's DistributedSampler (pads by repeating) + batch size."""
    order = np.random.default_rng(seed).permutation(n_events)
    order = np.concatenate([order, np.resize(order, -n_events % world_size)])
    place = np.arange(len(order))
    return Assignment(order, place // (per_rank * world_size), place % world_size, world_size)


def longest_first_by(sizes: np.ndarray, world_size: int, per_rank: int, seed: int) -> Assignment:
    """The steps of `plain_random`, each split again by LPT on sizes.

    fairchem's BalancedBatchSampler (facebookresearch/fairchem, core/common/data_parallel.py, `_balanced_partition`):
    gather the step's events from all ranks, the largest first to the part with the least atoms.
    """
    random = plain_random(len(sizes), world_size, per_rank, seed)
    rank = random.rank.copy()
    bounds = np.flatnonzero(np.diff(random.step, prepend=-1, append=-1))
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        rank[start:stop] = longest_first(sizes[random.event[start:stop]].astype(np.float64), world_size)[0]
    return Assignment(random.event, random.step, rank, world_size)


def budget_random(sizes: np.ndarray, world_size: int, budget: float, seed: int) -> Assignment:
    """Next-fit batches up to a total size, in random order, dealt out to ranks.

    fairchem's MaxAtomDistributedBatchSampler (facebookresearch/fairchem,
    core/datasets/samplers/max_atom_distributed_sampler.py): larger events are left out, batches are made once and
    shuffled, the last step is filled with batches from the start.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(sizes))
    batches = next_fit(order[sizes[order] <= budget], sizes, budget)
    batches = [batches[i] for i in rng.permutation(len(batches))]
    return deal(fill(batches, world_size), world_size)


def budget_sorted(sizes: np.ndarray, world_size: int, budget: float, seed: int) -> Assignment:
    """Next-fit batches up to a total size, sorted by size; neighbours form a step, steps are shuffled, ranks rotate.

    HydraGNN's DistributedCostAwareBatchSampler (ORNL/HydraGNN, preprocess/batch_sampler.py), larger events in batches
    of their own; the list of batches is filled up from its start before it is sorted.
    """
    rng = np.random.default_rng(seed)
    batches = fill(next_fit(rng.permutation(len(sizes)), sizes, budget), world_size)
    batches.sort(key=lambda batch: sizes[batch].sum())
    steps = [batches[i : i + world_size] for i in range(0, len(batches), world_size)]
    shuffled = [steps[i] for i in rng.permutation(len(steps))]
    rotated = [step[(rank + s) % world_size] for s, step in enumerate(shuffled) for rank in range(world_size)]
    return deal(rotated, world_size)


def next_fit(order: np.ndarray, sizes: np.ndarray, budget: float) -> list[np.ndarray]:
    """Batches of events in `order`; a new one is begun when the next event would exceed the budget."""
    bounds, filled = [0], 0.0
    for i, size in enumerate(sizes[order].tolist()):
        if i > bounds[-1] and filled + size > budget:
            bounds.append(i)
            filled = 0.0
        filled += size
    return [order[a:b] for a, b in zip(bounds, [*bounds[1:], len(order)], strict=True) if b > a]


def fill(batches: list[np.ndarray], world_size: int) -> list[np.ndarray]:
    """The batches, filled up from their start to whole steps."""
    return batches + [batches[i % len(batches)] for i in range(-len(batches) % world_size)]


def deal(batches: list[np.ndarray], world_size: int) -> Assignment:
    """Batch b to rank b mod world, in step b // world."""
    number = np.repeat(np.arange(len(batches)), [len(batch) for batch in batches])
    event = np.concatenate([np.zeros(0, dtype=np.int64), *batches])
    return Assignment(event, number // world_size, number % world_size, world_size)


def assignments(hits: np.ndarray, world_size: int, per_rank: int, seed: int) -> dict[str, Assignment]:
    """Every rule of this file for events of so many `hits`; budgets fit `per_rank` mean events, or the largest one."""
    budget = max(per_rank * float(hits.mean()), float(hits.max()))
    return {
        "plain random": plain_random(len(hits), world_size, per_rank, seed),
        "LPT of hits (fairchem)": longest_first_by(hits, world_size, per_rank, seed),
        "hit budget (fairchem)": budget_random(hits, world_size, budget, seed),
        "sorted hit budget (HydraGNN)": budget_sorted(hits, world_size, budget, seed),
    }


def counterfactual(
    costs: np.ndarray, sizes: np.ndarray, world_size: int, events_per_step: int, seed: int
) -> dict[str, float]:
    """Mean / maximum cost of the ranks, averaged over steps, that other policies reach on the same events.

    `costs` [n_events] seconds or any unit; `sizes` [n_events] what the others count: hits. Of many events a random
    sample is taken.
    """
    if not len(costs):
        return {}
    if len(costs) > SAMPLE:
        sample = np.random.default_rng(seed).permutation(len(costs))[:SAMPLE]
        costs, sizes = costs[sample], sizes[sample]
    others = assignments(sizes, world_size, max(1, round(events_per_step / world_size)), seed)
    found = {name: assignment.efficiency(costs) for name, assignment in others.items()}
    for name, window in (("cost split, window 1", 1), ("cost split, window 8", 8)):
        plan = plan_epoch(costs, world_size, seed, 0, events_per_step, window=window)
        found[name] = balances(plan.loads(costs, world_size))[0]
    return found
