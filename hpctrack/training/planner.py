"""The plan of a run on this rank: which events each optimizer step consumes, who takes them, and what they cost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from hpctrack.config import PlanConfig, SelectionConfig
from hpctrack.division.divided import Place
from hpctrack.errors import InputError
from hpctrack.events.readers import Specification
from hpctrack.models import Model
from hpctrack.parallel.collectives import gather
from hpctrack.parallel.env import Env
from hpctrack.planning.certificate import certify
from hpctrack.planning.plan import EpochPlan, compose, composition_hash, plan_epoch
from hpctrack.resources.cost_model import KEEP, CostModel, event_terms
from hpctrack.storage.store import Dataset
from hpctrack.training.size_table import SizeTable

BY_SELECTION, BY_INDEX = "selection", "index"  # sizes that steps are composed by, as checkpoints say it
Rules = Callable[[np.ndarray, np.ndarray, int, int, int], dict[str, float]]  # benchmarks/peers.py, `counterfactual`
AHEAD = 64  # steps for whose epochs sizes are drawn before readers go on


class Planner:
    """Plans epochs from event sizes, and learns what events cost.

    `sizes` [n_events] are the model's own estimate of relative cost, mean 1, from the hits that the selection leaves
    (on average, where they are drawn): they compose the steps, the same in every epoch and run. The exact numbers of
    hits of an epoch, or measured costs (`plan.cost: learned`), only ever decide who takes which events of a step, and
    in which micro-batches. `share`: of an event's hits that augmentation leaves on average; `edges` [n_events]: of the
    events' graphs, if they are known beforehand; `ranks_per_event`: how many ranks hold an event together.
    """

    def __init__(
        self,
        config: PlanConfig,
        table: SizeTable,
        model: Model,
        env: Env,
        *,
        seed: int,
        selection: SelectionConfig,
        share: float = 1.0,
        edges: np.ndarray | None = None,
        ranks_per_event: int | Literal["auto"] = 1,
    ) -> None:
        self.ranks_per_event = ranks_per_event
        self.config, self.data, self.table, self.env = config, table.data, table, env
        self.seed, self.selection, self.share = seed, selection, share
        self.model, self.edges = model, edges
        self.window = None if config.window == "epoch" else config.window
        self.cost, self.drawn = CostModel(), set[int]()
        self.composed = lru_cache(maxsize=4)(self._compose)
        self.plan = lru_cache(maxsize=4)(self._plan)  # this epoch's, and the next one's when readers are ahead
        self.compose_by(BY_SELECTION)

    def compose_by(self, sizes: str) -> None:
        """What steps are composed by: the hits that the selection leaves, or what the index alone lets expect.

        The latter is for runs whose checkpoints do not say: they were begun so.
        """
        self.composed_by = BY_SELECTION if sizes == BY_SELECTION else BY_INDEX
        hits = self.table.expected if sizes == BY_SELECTION else hits_by_index(self.data, self.selection) * self.share
        self.sizes = self.relative_cost(hits)
        self.sizes = self.sizes / self.sizes.mean()
        self.epoch_starts = [0]  # first step of each epoch that was looked at
        self.composed.cache_clear()
        self.plan.cache_clear()

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """The model's own estimate for events of so many hits."""
        return np.maximum(self.model.relative_cost(hits, self.edges), 1e-9)

    def hits(self, epoch: int) -> np.ndarray:
        """Hits of each event in an epoch, exact; the first time, all ranks must ask for them together."""
        hits = self.table.in_epoch(epoch).hits
        self.check_cap(hits)
        return hits

    def _compose(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config
        return compose(
            self.sizes,
            self.seed,
            epoch,
            config.events_per_step,
            size_per_step=config.cost_per_step,
            window=self.window,
        )

    def _plan(self, epoch: int) -> EpochPlan:
        config = self.config
        return plan_epoch(
            self.sizes,
            self.env.world,
            self.seed,
            epoch,
            config.events_per_step,
            size_per_step=config.cost_per_step,
            window=self.window,
            costs=self.costs(epoch) if config.cost == "learned" else self.relative_cost(self.hits(epoch)),
            memory=self.hits(epoch),
            memory_cap=config.hits_per_micro_batch,
            shards=self.data.shard if config.locality else None,
            ranks_per_event=self.ranks_per_event,
        )

    def costs(self, epoch: int) -> np.ndarray:
        """Cost of each event as well as it is known: measured seconds, or the model's own estimate before that."""
        hits = self.hits(epoch)
        if self.cost.fitted:
            return self.cost.seconds(event_terms(hits, self.edges))
        costs = self.relative_cost(hits)
        return costs / costs.mean()

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, step within the epoch) of an optimizer step, counted from 0."""
        while self.epoch_starts[-1] <= step:  # epochs of a fixed cost a step differ in their number of steps
            _, bounds = self.composed(len(self.epoch_starts) - 1)
            self.epoch_starts.append(self.epoch_starts[-1] + len(bounds) - 1)
        epoch = bisect_right(self.epoch_starts, step) - 1
        return epoch, step - self.epoch_starts[epoch]

    def epoch_end(self, step: int) -> int:
        """First step after the epoch that `step` (from 0) is in."""
        return self.epoch_starts[self.position(step)[0] + 1]

    def prepare(self, step: int, last: int) -> int:
        """How far readers may go ahead from `step`, at most to the last, when the sizes until there are known.

        All ranks come here together: where sizes are drawn, they share the counting. Plans from learned costs are made
        epoch by epoch.
        """
        epoch, _ = self.position(step)
        self.table.forget_before(epoch)
        self.draw(epoch)
        end = min(last, self.epoch_end(step))
        if self.config.cost == "learned":
            return end
        while end < last and end - step < AHEAD:
            epoch, _ = self.position(end)
            if not self.table.draw.by_chance(epoch):
                return last
            self.draw(epoch)
            end = min(last, self.epoch_end(end))
        return end

    def micro_batches(self, step: int) -> list[Specification]:
        """This rank's micro-batches of a step; first those of events that it holds together with others."""
        epoch, within = self.position(step)
        plan, rank = self.plan(epoch), self.env.rank
        divided = [
            Specification(epoch, np.array([row]), Place(number, of)) for row, number, of in plan.divided(within, rank)
        ]
        return divided + [Specification(epoch, rows) for rows in plan.micro_batches(within, rank)]

    def draw(self, epoch: int) -> None:
        """Make the sizes of an epoch known to all ranks; a warning if nothing is to be learned in it."""
        self.hits(epoch)
        if epoch not in self.drawn and not self.table.in_epoch(epoch).targets.any():
            self.env.say(f"warning: no event has a target in epoch {epoch} (section data.selection, data.augment)")
        self.drawn.add(epoch)

    def step_rows(self, step: int) -> tuple[int, np.ndarray]:
        """Epoch and rows of the events of a step, over all ranks."""
        epoch, within = self.position(step)
        order, bounds = self.composed(epoch)
        return epoch, order[bounds[within] : bounds[within + 1]]

    def step_events(self, step: int) -> list[int]:
        """Ids of the events of a step, over all ranks."""
        return self.data.event_ids[self.step_rows(step)[1]].tolist()

    def step_hits(self, step: int) -> int:
        """Hits of the events of a step, over all ranks, as planned."""
        epoch, rows = self.step_rows(step)
        return int(self.hits(epoch)[rows].sum())

    def identity(self, step: int) -> dict[str, Any]:
        """Where the run stands, by which a resumed one checks that it goes on with the same plan."""
        epoch, within = self.position(step)
        order, bounds = self.composed(epoch)
        return {"epoch": epoch, "step": within, "hash": composition_hash(order, bounds), "sizes": self.composed_by}

    # ------------------------------------------------------------------------------------- memory cap

    def check_cap(self, hits: np.ndarray) -> None:
        """InputError for the first event over the cap, if that is the policy."""
        if self.config.over_cap == "error" and len(over := self.over_cap(hits)):
            raise InputError(
                f"{self.data.folder}: event {self.data.event_ids[over[0]]} has {hits[over[0]]} hits, above "
                f"plan.hits_per_micro_batch={self.config.hits_per_micro_batch}; raise it, or set plan.over_cap to alone"
            )

    def over_cap(self, hits: np.ndarray) -> np.ndarray:
        """Rows of events with more hits than a micro-batch may have."""
        return np.flatnonzero(hits > (self.config.hits_per_micro_batch or np.inf))

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
        """How balanced the plan of the epoch of `step` is, what randomness it gives up, and how large batches get."""
        epoch, cap = self.position(step)[0], self.config.hits_per_micro_batch
        plan, hits = self.plan(epoch), self.hits(epoch)
        lines = certify(plan, self.sizes, self.costs(epoch), self.env.world).lines()
        of_at_most = f" of at most {cap:,}" if cap else ""
        lines.append(
            f"plan: {hits.min():,} to {hits.max():,} hits an event after selection, {hits.mean():,.0f} on average; the "
            f"largest micro-batch has {plan.micro_batch_sizes(hits).max():,}{of_at_most}"
        )
        over = len(self.over_cap(hits))
        if over:
            lines.append(f"plan: {over} events have more than {cap} hits: each is a micro-batch of its own")
        bare = np.flatnonzero(self.table.in_epoch(epoch).targets == 0)
        if len(bare):
            lines.append(
                f"warning: {len(bare)} of {len(hits)} events have no target in epoch {epoch} (section data.selection), "
                f"the first is event {self.data.event_ids[bare[0]]}"
            )
        return lines

    def counterfactual(self, step: int, rules: Rules) -> dict[str, float]:
        """Balance that other rules would have reached in the epoch of `step` with the costs as they are known."""
        epoch, per_step = self.position(step)[0], self.config.events_per_step
        per_step = per_step or max(1, round(self.config.cost_per_step or 1))
        return rules(self.costs(epoch), self.hits(epoch), self.env.world, per_step, self.seed)


def hits_by_index(data: Dataset, selection: SelectionConfig) -> np.ndarray:
    """Hits of each event that one expects of noise and drawn tracks from the index alone, float [n_events]."""
    hits, share = (data.n_hits - data.n_noise).astype(np.float64), selection.noise_share
    if selection.noise:
        hits = hits + (data.n_noise if share is None else np.minimum(data.n_noise, share / (1 - share) * hits))
    if selection.tracks is None:
        return hits
    return hits * np.minimum(1.0, selection.tracks / np.maximum(data.n_particles, 1))
