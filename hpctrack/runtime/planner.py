"""The plan of a run on this rank: which events each optimizer step consumes, who takes them, and what they cost."""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache
from typing import Any

import numpy as np
from torch import nn

from hpctrack.config import RunConfig
from hpctrack.data.certificate import certify
from hpctrack.data.loader import expected_hits
from hpctrack.data.plan import EpochPlan, compose, plan_epoch
from hpctrack.data.policies import counterfactual
from hpctrack.data.store import Dataset
from hpctrack.errors import InputError
from hpctrack.parallel.collectives import gather
from hpctrack.parallel.env import Env
from hpctrack.runtime.cost import KEEP, CostModel, event_terms


class Planner:
    """Plans epochs from event sizes, and learns what events cost.

    `sizes` [n_events] are the model's own estimate of relative cost, mean 1: they compose the steps, the same in every
    run. Measured costs only ever decide who takes which events of a step (`plan.cost: learned`). `edges` [n_events]: of
    the events' graphs, if they are known beforehand.
    """

    def __init__(
        self, config: RunConfig, data: Dataset, model: nn.Module, env: Env, edges: np.ndarray | None = None
    ) -> None:
        self.config, self.data, self.env = config.plan, data, env
        self.seed = config.seed
        self.hits = expected_hits(data, config.data.selection) * config.data.augment.share
        self.edges = edges
        sizes = np.maximum(model.relative_cost(self.hits, edges), 1e-9)
        self.sizes = sizes / sizes.mean()
        self.window = None if config.plan.window == "epoch" else config.plan.window
        self.cost = CostModel()
        self.epoch_starts = [0]  # first step of each epoch that was looked at
        self.plan = lru_cache(maxsize=4)(self._plan)  # this epoch's, and the next one's when readers are ahead
        self.check_cap()

    def _plan(self, epoch: int) -> EpochPlan:
        config = self.config
        return plan_epoch(
            self.sizes,
            self.env.world,
            self.seed,
            epoch,
            config.events_per_step,
            config.cost_per_step,
            self.window,
            self.costs() if config.cost == "learned" else self.sizes,
            self.hits,
            config.hits_per_micro_batch,
            self.data.shard if config.locality else None,
        )

    def costs(self) -> np.ndarray:
        """Cost of each event as well as it is known: measured seconds, or the model's own estimate before that."""
        return self.cost.seconds(event_terms(self.hits, self.edges)) if self.cost.fitted else self.sizes

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step within the epoch) of an optimizer step, counted from 0."""
        config = self.config
        while self.epoch_starts[-1] <= step:  # epochs of a fixed cost a step differ in their number of steps
            epoch = len(self.epoch_starts) - 1
            _, bounds = compose(self.sizes, self.seed, epoch, config.events_per_step, config.cost_per_step, self.window)
            self.epoch_starts.append(self.epoch_starts[-1] + len(bounds) - 1)
        epoch = bisect_right(self.epoch_starts, step) - 1
        return epoch, step - self.epoch_starts[epoch]

    def epoch_end(self, step: int) -> int:
        """First step after the epoch that `step` (from 0) is in."""
        return self.epoch_starts[self.position(step)[0] + 1]

    def readable_until(self, step: int, last: int) -> int:
        """How far readers may go ahead: to the last step, but plans from learned costs are made epoch by epoch."""
        return min(last, self.epoch_end(step)) if self.config.cost == "learned" else last

    def micro_batches(self, step: int) -> list[tuple[int, np.ndarray]]:
        """This rank's micro-batches of a step as (epoch, rows)."""
        epoch, within = self.position(step)
        return [(epoch, rows) for rows in self.plan(epoch).micro_batches(within, self.env.rank)]

    def step_events(self, step: int) -> list[int]:
        """Ids of the events of a step, over all ranks."""
        epoch, within = self.position(step)
        return self.data.event_ids[self.plan(epoch).step_events(within)].tolist()

    def identity(self, step: int) -> dict[str, Any]:
        """Where the run stands, by which a resumed one checks that it goes on with the same plan."""
        epoch, within = self.position(step)
        return {"epoch": epoch, "step": within, "hash": self.plan(epoch).hash}

    # ------------------------------------------------------------------------------------- memory cap

    def check_cap(self) -> None:
        """InputError for the first event over the cap, if that is the policy."""
        over = self.over_cap()
        if len(over) and self.config.over_cap == "error":
            raise InputError(
                f"{self.data.folder}: event {self.data.event_ids[over[0]]} has {self.hits[over[0]]:.0f} hits, above "
                f"plan.hits_per_micro_batch={self.config.hits_per_micro_batch}; raise it, or set plan.over_cap to alone"
            )

    def over_cap(self) -> np.ndarray:
        """Rows of events with more hits than a micro-batch may have."""
        return np.flatnonzero(self.hits > (self.config.hits_per_micro_batch or np.inf))

    # ------------------------------------------------------------------------------------- costs

    def collect(self) -> None:
        """Share the ranks' new cost samples."""
        self.cost.collect(gather(self.cost.new[-max(1, KEEP // self.env.world) :], self.env))

    def learn(self) -> list[str]:
        """At the end of an epoch: all ranks' samples into the cost model, the same one everywhere; what it says."""
        self.collect()
        if not self.cost.learn():
            return []
        if self.config.cost == "learned":
            self.plan.cache_clear()
        return self.cost.lines()

    def certificate(self, step: int) -> list[str]:
        """How balanced the plan of the epoch of `step` is, and what of the randomness it gives up."""
        plan = self.plan(self.position(step)[0])
        lines = certify(plan, self.sizes, self.costs(), self.env.world).lines()
        over = len(self.over_cap())
        if over:
            cap = self.config.hits_per_micro_batch
            lines.append(f"plan: {over} events have more than {cap} hits: each is a micro-batch of its own")
        return lines

    def counterfactual(self) -> dict[str, float]:
        """Balance that other policies would have reached with the costs as they are known."""
        per_step = self.config.events_per_step or max(1, round(self.config.cost_per_step or 1))
        return counterfactual(self.costs(), self.hits, self.env.world, per_step, self.seed)
