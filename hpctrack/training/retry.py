"""Forward and backward over a rank's share of a step, taken again in a harder memory mode where memory runs out."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch_geometric.data import Batch

from hpctrack.division.divided import division_of
from hpctrack.errors import MEMORY, MachineError, lacking
from hpctrack.losses import Loss, objective
from hpctrack.parallel.collectives import all_sum, gather
from hpctrack.parallel.engine import Engine
from hpctrack.resources.calibration import MemoryMeter
from hpctrack.resources.cost_model import CostModel, batch_terms
from hpctrack.resources.peak_memory import GIB, Memory
from hpctrack.training.telemetry import synchronize

Sums = dict[str, float]  # by term
Work = list[tuple[Batch, str | None]]  # micro-batches and their memory modes


@dataclass(frozen=True)
class OutOfMemoryRetry:
    """A pass that ran out of memory: where, on what, in which mode, and what came instead (`after`; None: nothing).

    `wanted` is the allocation that failed, `predicted` the peak in bytes that made the mode be chosen.
    """

    rank: int
    events: list[int]
    hits: int
    before: str
    after: str | None
    wanted: str
    predicted: float

    def line(self) -> str:
        """What happened, for people."""
        return (
            f"rank {self.rank} ran out of memory in event {', '.join(map(str, self.events))} ({self.hits} hits, mode "
            f"{self.before}, predicted {self.predicted / GIB:.3g} GiB, {self.wanted}); its gradients were discarded, "
            + (f"its part of the step is taken again, this {self.after}" if self.after else "no harder mode is left")
        )

    def values(self) -> dict[str, Any]:
        """The same, for metrics.jsonl."""
        return asdict(self) | {"predicted": self.predicted if self.predicted < float("inf") else None}


@dataclass
class Share:
    """What one rank does of a step. `total`: counts of each loss term over all ranks.

    `cost` observes the seconds of every pass. `memory` lets a pass that runs out of memory be taken again; with
    `measure` it observes the peak of the first pass, which also makes the gradients.
    """

    engine: Engine
    loss: Loss
    total: Sums
    cost: CostModel | None = None
    memory: Memory | None = None
    measure: bool = False
    divides: bool = False  # whether the rank holds events together with others, which run these passes with it

    def run(self, work: Work, overlap: bool) -> tuple[Sums, list[OutOfMemoryRetry]]:
        """Sum of each term over the micro-batches, whose gradients add up; `overlap`: the last sums them over ranks.

        Without `overlap` no rank waits for another in here. A pass that runs out of memory takes the rank's gradients
        with it: all its passes are taken again, that one in a harder mode. If there is none, the last of them says so.
        """
        work, retries = list(work), list[OutOfMemoryRetry]()
        self.divides = any(division_of(batch) is not None for batch, _ in work)
        while True:
            sums, failed = dict.fromkeys(self.loss.weights, 0.0), ""
            for i, (batch, mode) in enumerate(work):
                try:
                    found = self.forward_backward(batch, mode, overlap and i == len(work) - 1, first=i == 0)
                except (RuntimeError, MemoryError) as error:
                    if lacking(error) != MEMORY:
                        raise
                    failed = wanted(error)
                if failed:  # outside of `except`, where the error would hold on to all that the pass has made
                    break
                sums = {name: sums[name] + found[name] for name in sums}
            else:
                return sums, retries
            instead = self.retry(retries, batch, mode, failed)
            if not instead:
                return sums, retries
            work[i : i + 1] = instead

    def forward_backward(self, batch: Batch, mode: str | None, last: bool, first: bool) -> Sums:
        """One pass: its terms' sums; gradients are those of terms divided by their global counts."""
        with Probe(self, batch, mode, first):
            terms = self.loss(self.engine.forward(batch, last, mode), batch)
            self.engine.backward(objective(self.loss.weights, terms, self.total))
        return {name: term.sum.item() for name, term in terms.items()}

    def retry(
        self, retries: list[OutOfMemoryRetry], batch: Batch, mode: str | None, failed: str
    ) -> list[tuple[Batch, str]]:
        """Clear up after a pass that ran out of memory, note it, and say what comes in its place."""
        events = [int(event) for event in batch.event_id]
        together = self.engine.lockstep or self.divides
        if self.memory is None or mode is None or together:
            how = "memory.policy=auto tries harder modes" if self.memory is None else "ranks run passes together"
            raise MachineError(f"event {events}: out of memory in mode {mode}, {failed}; {how}")
        self.engine.discard()
        if self.engine.env.device.type == "cuda":
            torch.cuda.empty_cache()
        instead = self.memory.next_mode(batch, mode)
        after = None if not instead else "event by event" if len(instead) > 1 else f"in mode {instead[0][1]}"
        predicted = self.memory.predict(batch, mode)
        rank, hits = self.engine.env.rank, batch.num_nodes
        retries.append(
            OutOfMemoryRetry(rank, events, hits, before=mode, after=after, wanted=failed, predicted=predicted)
        )
        return instead


class Probe:
    """Measures one pass: the peak of memory if that is wanted, else the seconds."""

    def __init__(self, share: Share, batch: Batch, mode: str | None, first: bool) -> None:
        self.share, self.batch, self.mode = share, batch, mode
        self.device = share.engine.env.device
        self.whole = division_of(batch) is None  # a part of an event costs something else, and waits for the others
        counts = batch.num_nodes > 0 and mode is not None and self.whole
        self.meter = MemoryMeter(self.device) if counts and first and share.measure and share.memory else None

    def __enter__(self) -> None:
        if self.meter:
            self.meter.__enter__()
        self.begin = synchronize(self.device) if self.share.cost else 0.0

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.meter:
            self.meter.__exit__()
        if kind is not None or not self.batch.num_nodes:
            return
        if self.meter and self.share.memory and self.mode:
            self.share.memory.observe(self.batch, self.mode, self.meter.peak)
        elif self.share.cost and self.whole:
            self.share.cost.observe(batch_terms(self.batch), synchronize(self.device) - self.begin)


def gather_retries(engine: Engine, memory: Memory | None, retries: list[OutOfMemoryRetry]) -> list[OutOfMemoryRetry]:
    """All ranks' retries, before gradients are summed; MachineError on all of them if one has no mode left."""
    if not all_sum([len(retries)], engine.env)[0]:
        return []
    every = [retry for part in gather(retries, engine.env) for retry in part]
    for retry in every:
        if retry.after is None:
            raise MachineError(retry.line())
    if memory is not None:
        memory.lower_ceiling([retry.predicted for retry in every])
    return every


def wanted(error: BaseException) -> str:
    """How much could not be had, as far as the error says."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+ \w+)", str(error))
    return f"tried to allocate {found[1]}" if found else "size not known"
