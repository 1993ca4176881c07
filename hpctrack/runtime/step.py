"""One optimizer step over all ranks, and the loss of a validation set.

Each term's counts are added over ranks and micro-batches before any backward pass, so that the gradient is that of
mean-over-events however the events are spread.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from torch_geometric.data import Batch, Data

from hpctrack.errors import MachineError
from hpctrack.parallel.collectives import all_sum, gather
from hpctrack.parallel.strategy import DDPEngine

Sums = dict[str, float]  # by term


@dataclass(frozen=True)
class StepResult:
    """Global values: weighted loss, each term, events and hits consumed, gradient norm before clipping."""

    loss: float
    terms: dict[str, float]
    events: int
    hits: int
    grad_norm: float = 0.0


def train_step(engine: DDPEngine, loss: nn.Module, batches: list[Batch], clip_norm: float | None) -> StepResult:
    """Forward, backward and update with this rank's micro-batches of the step (possibly none)."""
    counts = [loss.counts(batch) for batch in batches]
    names = list(loss.weights)
    total = dict(zip(names, all_sum([sum(c[name] for c in counts) for name in names], engine.env), strict=True))
    sums = dict.fromkeys(names, 0.0)
    work = batches or [empty_batch(engine)]  # every rank takes part in the gradient sum
    for i, batch in enumerate(work):
        terms = loss(engine.forward(batch, last=i == len(work) - 1), batch)
        engine.backward(sum(loss.weights[name] * terms[name].sum / max(1, total[name]) for name in names))
        for name in names:
            sums[name] += terms[name].sum.item()
    events, hits = sum(b.num_graphs for b in batches), sum(b.num_nodes for b in batches)
    result = combine(engine, sums, total, loss.weights, events, hits)
    if not result.loss < float("inf"):
        raise MachineError(f"loss is not finite in event {blame(engine, loss, batches)}; gradients were not applied")
    norm = engine.gradient_norm(clip_norm)
    if not norm < float("inf"):
        events = sorted(e for part in gather([int(e) for b in batches for e in b.event_id], engine.env) for e in part)
        raise MachineError(f"gradient is not finite (events {events}); gradients were not applied")
    engine.step()
    return StepResult(result.loss, result.terms, result.events, result.hits, norm)


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
