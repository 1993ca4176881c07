"""One optimizer step over all ranks, and the loss of a validation set.

Each term's counts are added over ranks and micro-batches before any backward pass, so that the gradient is that of
mean-over-events however the events are spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch_geometric.data import Batch, Data

from hpctrack.errors import MachineError
from hpctrack.parallel.collectives import all_sum, barrier, gather
from hpctrack.parallel.strategy import DDPEngine
from hpctrack.runtime.cost import CostModel, MemoryMeter, batch_terms
from hpctrack.runtime.telemetry import synchronize

Sums = dict[str, float]  # by term
ID_MODULUS = 1 << 31  # event ids are compared modulo this, so that their sum is exact in float64


@dataclass(frozen=True)
class StepResult:
    """Global values: weighted loss, each term, events and hits consumed, gradient norm before clipping.

    `skipped`: the gradient overflowed fp16 and the weights are as they were; its norm is then given as 0.
    `parts`: this rank's seconds of computing, waiting for the slowest rank and summing gradients, if it was probed.
    """

    loss: float
    terms: dict[str, float]
    events: int
    hits: int
    grad_norm: float = 0.0
    skipped: bool = False
    parts: dict[str, float] = field(default_factory=dict)


def train_step(
    engine: DDPEngine,
    loss: nn.Module,
    batches: list[Batch],
    clip_norm: float | None,
    modes: list[str] | None = None,
    cost: CostModel | None = None,
    expected: list[int] | None = None,
) -> StepResult:
    """Forward, backward and update with this rank's micro-batches of the step (possibly none).

    `modes`: memory mode of each micro-batch. `cost`: probe the step, that is, compute without overlapping the gradient
    sum, time the parts and let the cost model observe each micro-batch. `expected`: ids of all events of the step over
    all ranks; consuming others is an error.
    """
    names = list(loss.weights)
    counts = [loss.counts(batch) for batch in batches]
    ids = [int(event) % ID_MODULUS for batch in batches for event in batch.event_id]
    *totals, n_events, id_sum = all_sum([*(sum(c[n] for c in counts) for n in names), len(ids), sum(ids)], engine.env)
    if expected is not None and (n_events, id_sum) != (len(expected), sum(e % ID_MODULUS for e in expected)):
        raise MachineError(f"the ranks hold {n_events:.0f} events, not the {len(expected)} of the plan")
    total = dict(zip(names, totals, strict=True))

    sums = dict.fromkeys(names, 0.0)
    work = batches or [empty_batch(engine)]  # every rank takes part in the gradient sum
    begin = synchronize(engine.env.device)
    for i, batch in enumerate(work):
        with Probe(engine, cost if batches else None, batch):
            mode = modes[i] if modes else None
            terms = loss(engine.forward(batch, cost is None and i == len(work) - 1, mode), batch)
            engine.backward(sum(loss.weights[name] * terms[name].sum / max(1, total[name]) for name in names))
        for name in names:
            sums[name] += terms[name].sum.item()
    parts = sum_gradients(engine, begin) if cost is not None else {}

    events, hits = sum(b.num_graphs for b in batches), sum(b.num_nodes for b in batches)
    result = combine(engine, sums, total, loss.weights, events, hits)
    if not result.loss < float("inf"):
        raise MachineError(f"loss is not finite in event {blame(engine, loss, batches)}; gradients were not applied")
    norm = engine.gradient_norm(clip_norm)
    if engine.precision.accept(norm):
        engine.step()
    elif engine.precision.scaled:
        engine.discard()
        return replace(result, skipped=True, parts=parts)
    else:
        every = sorted(e for part in gather([int(e) for b in batches for e in b.event_id], engine.env) for e in part)
        raise MachineError(f"gradient is not finite (events {every}); gradients were not applied")
    return replace(result, grad_norm=norm, parts=parts)


class Probe:
    """Times one micro-batch and measures its memory for the cost model; does nothing without one."""

    def __init__(self, engine: DDPEngine, cost: CostModel | None, batch: Batch) -> None:
        self.device, self.cost, self.batch = engine.env.device, cost, batch

    def __enter__(self) -> None:
        if self.cost is not None:
            self.meter = MemoryMeter(self.device).__enter__()
            self.begin = synchronize(self.device)

    def __exit__(self, kind: type | None, *_: object) -> None:
        if self.cost is not None:
            seconds = synchronize(self.device) - self.begin
            self.meter.__exit__()
            if kind is None:
                self.cost.observe(batch_terms(self.batch), seconds, self.meter.bytes)


def sum_gradients(engine: DDPEngine, begin: float) -> dict[str, float]:
    """Sum gradients after the backward passes of a probed step; seconds of computing, waiting and summing."""
    computed = synchronize(engine.env.device)
    barrier(engine.env)
    waited = synchronize(engine.env.device)
    engine.sum_gradients()
    return {
        "compute_s": computed - begin,
        "wait_s": waited - computed,
        "communicate_s": synchronize(engine.env.device) - waited,
    }


def validate(engine: DDPEngine, loss: nn.Module, batches: Iterable[Batch]) -> StepResult:
    """Loss over this rank's share of a validation set, added over ranks."""
    sums, counts = dict.fromkeys(loss.weights, 0.0), dict.fromkeys(loss.weights, 0.0)
    events = hits = 0
    with torch.no_grad():
        for batch in batches:
            for name, term in loss(engine.predict(batch), batch).items():
                sums[name] += term.sum.item()
                counts[name] += term.count
            events, hits = events + batch.num_graphs, hits + batch.num_nodes
    names = list(loss.weights)
    total = dict(zip(names, all_sum([counts[name] for name in names], engine.env), strict=True))
    return combine(engine, sums, total, loss.weights, events, hits)


def combine(engine: DDPEngine, sums: Sums, total: Sums, weights: Sums, events: int, hits: int) -> StepResult:
    """Add the terms' sums, events and hits over ranks; the same numbers on every rank."""
    *values, events, hits = all_sum([*sums.values(), events, hits], engine.env)
    terms = {name: value / max(1, total[name]) for name, value in zip(sums, values, strict=True)}
    return StepResult(sum(weights[n] * v for n, v in terms.items()), terms, int(events), int(hits))


def blame(engine: DDPEngine, loss: nn.Module, batches: list[Batch]) -> str:
    """Ids of the events whose own loss is not finite, over all ranks."""
    bad = []
    with torch.no_grad():
        for batch in batches:
            for event in batch.to_data_list():
                alone = Batch.from_data_list([event])
                value = sum(term.sum for term in loss(engine.predict(alone), alone).values())
                if not torch.isfinite(value):
                    bad.append(int(event.event_id))
    found = sorted(event for part in gather(bad, engine.env) for event in part)
    return ", ".join(map(str, found)) or "none alone, only in their sum"


def empty_batch(engine: DDPEngine) -> Batch:
    """A batch of one event without hits, for a rank that has no event in this step."""
    parameter = next(engine.module.parameters())
    nothing = torch.zeros(0, dtype=torch.long)
    data = Data(
        x=torch.zeros(0, engine.module.n_features, dtype=parameter.dtype),
        track=nothing,
        n_tracks=torch.zeros(1, dtype=torch.long),
        hit_row=nothing,
        event_id=torch.tensor([-1]),
        num_nodes=0,
    )
    return Batch.from_data_list([data]).to(parameter.device)
