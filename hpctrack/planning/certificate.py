"""What a plan reaches and what it gives up for it: balance over ranks, and how alike the events of a step are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.planning.partition import partition
from hpctrack.planning.plan import EpochPlan, good_enough

BINS = 10  # quantiles of the epoch's sizes, for the entropy
REFERENCE_EVENTS = 4_000  # of the epoch that are split at random for comparison; more would tell no more


@dataclass(frozen=True)
class Certificate:
    """Balance and randomness of a plan, beside the same events put into the same steps at random.

    `balance`: mean / maximum of the ranks' costs, averaged over steps; `time_balance`: the same weighted by the steps'
    time, the share of the ranks' time that is not spent waiting. `ks`: distance of a step's sizes from the epoch's
    (Kolmogorov-Smirnov), mean over steps; `entropy`: of a step's sizes over the epoch's ten quantiles, 1 if as mixed
    as so many events can be, mean over steps. `random_*`: of the random steps, split over ranks in the same way.
    """

    n_events: int
    n_steps: int
    world_size: int
    balance: float
    time_balance: float
    ks: float
    entropy: float
    random_balance: float
    random_time_balance: float
    random_ks: float
    random_entropy: float

    def lines(self) -> list[str]:
        """For people."""
        per_step = self.n_events / max(1, self.n_steps)
        ranks = f"{self.world_size} rank{'s' if self.world_size > 1 else ''}"
        return [
            f"plan: {self.n_steps} steps of {per_step:.3g} events over {ranks}: balance {self.balance:.3f}, by time "
            f"{self.time_balance:.3f} (plain random {self.random_balance:.3f}, {self.random_time_balance:.3f})",
            f"plan: a step's sizes: KS distance {self.ks:.3f} from the epoch's (plain random {self.random_ks:.3f}), "
            f"entropy {self.entropy:.3f} (plain random {self.random_entropy:.3f})",
        ]


def certify(plan: EpochPlan, sizes: np.ndarray, costs: np.ndarray, world_size: int, seed: int = 0) -> Certificate:
    """The certificate of `plan` for events of these `sizes` (by which it was composed) and `costs`, [n_events] each.

    Plain random: the plan's events shuffled over the plan's step bounds.
    """
    order = np.random.default_rng(seed).permutation(plan.event)
    balance, time_balance = balances(plan.loads(costs, world_size))
    random_balance, random_time_balance = balances(random_loads(order, plan.step_offsets, costs, world_size))
    ks, entropy = randomness(sizes[plan.event], plan.step_offsets)
    random_ks, random_entropy = randomness(sizes[order], plan.step_offsets)
    return Certificate(
        n_events=len(plan.event),
        n_steps=plan.n_steps,
        world_size=world_size,
        balance=balance,
        time_balance=time_balance,
        ks=ks,
        entropy=entropy,
        random_balance=random_balance,
        random_time_balance=random_time_balance,
        random_ks=random_ks,
        random_entropy=random_entropy,
    )


def balances(loads: np.ndarray) -> tuple[float, float]:
    """Mean / maximum over ranks of `loads` [steps, world]: averaged over steps, and sum of means / sum of maxima."""
    top, mean = loads.max(axis=1, initial=0.0), loads.sum(axis=1) / max(1, loads.shape[1])
    per_step = np.divide(mean, top, out=np.ones_like(top), where=top > 0)
    return (float(per_step.mean()) if len(top) else 1.0), (float(mean.sum() / top.sum()) if top.sum() > 0 else 1.0)


def random_loads(order: np.ndarray, bounds: np.ndarray, costs: np.ndarray, world_size: int) -> np.ndarray:
    """Loads [steps, world] of the events in `order`, cut at `bounds` and split over ranks; at most REFERENCE_EVENTS."""
    steps = max(1, int(np.searchsorted(bounds, REFERENCE_EVENTS, side="right")) - 1)
    loads = []
    for start, stop in zip(bounds[:steps], bounds[1 : steps + 1], strict=False):
        here = np.asarray(costs[order[start:stop]], dtype=np.float64)
        loads.append(np.bincount(partition(here, world_size, good_enough(world_size)), here, world_size))
    return np.array(loads).reshape(-1, world_size)


def randomness(sizes: np.ndarray, bounds: np.ndarray) -> tuple[float, float]:
    """KS distance and normalised entropy of the steps' sizes, mean over steps.

    `sizes` [n] in the order of the steps, `bounds` [n_steps + 1]. The entropy's unit is the largest that a step of so
    many events can have, log(min(BINS, events)); a step of one event counts as 1.
    """
    n, n_steps = len(sizes), len(bounds) - 1
    if not n:
        return 0.0, 1.0
    count = np.diff(bounds)
    step = np.repeat(np.arange(n_steps), count)
    by_size = np.sort(sizes)
    below = np.searchsorted(by_size, sizes, side="left") / n
    up_to = np.searchsorted(by_size, sizes, side="right") / n
    within = np.lexsort((sizes, step))
    place = np.arange(n) - np.repeat(bounds[:-1], count)
    above = (place + 1) / count[step] - up_to[within]
    under = below[within] - place / count[step]
    ks = np.maximum.reduceat(np.maximum(above, under), bounds[:-1])
    in_bin = np.bincount(step * BINS + (below * BINS).astype(int), minlength=n_steps * BINS).reshape(n_steps, BINS)
    share = in_bin / count[:, None]
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)
    most = np.log(np.minimum(count, BINS))
    normalised = np.divide(entropy, most, out=np.ones(n_steps), where=most > 0)
    return float(ks.mean()), float(normalised.mean())
