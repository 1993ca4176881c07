"""One optimizer step over all ranks, and the loss of a validation set.

Each term's counts are added over ranks and micro-batches before any backward pass, so that the gradient is that of
mean-over-events however the events are spread.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch_geometric.data import Batch, Data

from hpctrack.division.divided import division_of, leads
from hpctrack.errors import MachineError
from hpctrack.events.lines import LINE
from hpctrack.losses import Loss, objective
from hpctrack.models.memory_modes import MODES
from hpctrack.parallel.collectives import all_max, all_sum, gather
from hpctrack.parallel.engine import Engine
from hpctrack.resources.cost_model import CostModel
from hpctrack.resources.peak_memory import Memory
from hpctrack.storage.schema import PARAMETERS
from hpctrack.training.retry import OutOfMemoryRetry, Share, Sums, Work, gather_retries
from hpctrack.training.telemetry import synchronize

ID_MODULUS = 1 << 31  # event ids are compared modulo this, so that their sum is exact in float64


@dataclass(frozen=True)
class StepResult:
    """Global values: weighted loss, each term, events and hits consumed, gradient norm before clipping.

    `skipped`: the gradient overflowed fp16 and the weights are as they were; its norm is then given as 0.
    `parts`: this rank's seconds of computing, waiting for the slowest rank and summing gradients, if it was probed; and
    where a rank divides an event, of exchanging rows of it, waiting for the others of the event included.
    `stop`: a rank was asked to end. `metrics`: what the loss says besides in validation (Loss.metrics). `retries`: all
    ranks' passes that ran out of memory and were taken again.
    """

    loss: float
    terms: dict[str, float]
    events: int
    hits: int
    grad_norm: float = 0.0
    skipped: bool = False
    parts: dict[str, float] = field(default_factory=dict)
    stop: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    retries: list[OutOfMemoryRetry] = field(default_factory=list)


def train_step(
    engine: Engine,
    loss: Loss,
    batches: list[Batch],
    clip_norm: float | None,
    modes: list[str] | None = None,
    *,
    cost: CostModel | None = None,
    expected: list[int] | None = None,
    stop: bool = False,
    memory: Memory | None = None,
    measure: bool = False,
) -> StepResult:
    """Forward, backward and update with this rank's micro-batches of the step (possibly none).

    `modes`: memory mode of each micro-batch. `cost`: probe the step, that is, compute without overlapping the gradient
    sum, time the parts and let the cost model observe each micro-batch. `expected`: ids of all events of the step over
    all ranks; consuming others is an error. `stop`: this rank was asked to end after the step, which all ranks learn.
    `memory`: take passes that run out of memory again in harder modes; and with `measure`, let it observe one.
    """
    names = list(loss.weights)
    counts = [loss.counts(batch) for batch in batches]
    ids = [event % ID_MODULUS for event in counted_events(batches)]
    shared = sum(division_of(batch) is not None for batch in batches)
    mine = [*(sum(c[n] for c in counts) for n in names), len(ids), sum(ids), stop, shared]
    *totals, n_events, id_sum, stops, divided = all_sum(mine, engine.env)
    if expected is not None and (n_events, id_sum) != (len(expected), sum(e % ID_MODULUS for e in expected)):
        raise MachineError(f"the ranks hold {n_events:.0f} events, not the {len(expected)} of the plan")
    total = dict(zip(names, totals, strict=True))

    overlap = cost is None and (memory is None or engine.lockstep) and not divided
    begin, exchanged = synchronize(engine.env.device), exchange_s(batches)
    share = Share(engine, loss, total, cost=cost, memory=memory, measure=measure)
    sums, retries = share.run(pad_to_all_ranks(engine, batches, modes), overlap)
    if not overlap:
        parts, retries = sum_gradients(engine, memory, retries, begin)
        if divided:
            parts["exchange_s"] = exchange_s(batches) - exchanged
            parts["compute_s"] -= parts["exchange_s"]

    events, hits = len(ids), sum(b.num_nodes for b in batches)
    result = combine(engine, sums, total, loss.weights, events=events, hits=hits)
    result = replace(result, parts=parts if cost else {}, retries=retries, stop=stops > 0)
    if not result.loss < float("inf"):
        found = find_non_finite_events(engine, loss, batches)
        raise MachineError(f"loss is not finite in event {found}; gradients were not applied")
    norm = engine.gradient_norm(clip_norm)
    if engine.precision.accept(norm):
        engine.step()
    elif engine.precision.scaled:
        engine.discard()
        return replace(result, skipped=True)
    else:
        every = sorted(e for part in gather(counted_events(batches), engine.env) for e in part)
        raise MachineError(f"gradient is not finite (events {every}); gradients were not applied")
    return replace(result, grad_norm=norm)


def exchange_s(batches: Iterable[Batch]) -> float:
    """Seconds so far that this rank has exchanged rows with those that hold these batches' events together with it."""
    divisions = (division_of(batch) for batch in batches)
    others = {id(division.others): division.others for division in divisions if division is not None}
    return sum(exchange.seconds for exchange in others.values())


def sum_gradients(
    engine: Engine, memory: Memory | None, retries: list[OutOfMemoryRetry], begin: float
) -> tuple[dict[str, float], list[OutOfMemoryRetry]]:
    """Sum gradients after all backward passes, once the ranks agree that all have theirs.

    Seconds of computing, waiting and summing, and all ranks' retries.
    """
    computed = synchronize(engine.env.device)
    every = gather_retries(engine, memory, retries)
    waited = synchronize(engine.env.device)
    engine.sum_gradients(empty_batch(engine))
    parts = {
        "compute_s": computed - begin,
        "wait_s": waited - computed,
        "communicate_s": synchronize(engine.env.device) - waited,
    }
    return parts, every


def validate(engine: Engine, loss: Loss, batches: Iterable[Batch]) -> StepResult:
    """Loss over this rank's share of a validation set, added over ranks.

    MachineError, on all ranks, that names the events of which it is not finite.
    """
    sums, counts = dict.fromkeys(loss.weights, 0.0), dict.fromkeys(loss.weights, 0.0)
    events, hits, own = 0, 0, list[int]()
    more: dict[str, list[float]] = {}
    with torch.no_grad():
        for batch in in_lockstep(engine, batches):
            outputs = engine.predict(batch)
            for name, term in loss.metrics(outputs, batch).items():
                value, number = more.get(name, [0.0, 0.0])
                more[name] = [value + term.sum.item(), number + term.count]
            for name, term in loss(outputs, batch).items():
                value = term.sum.item()
                sums[name] += value
                counts[name] += term.count
                own += [] if math.isfinite(value) else batch.event_id.tolist()
            events, hits = events + len(counted_events([batch])), hits + batch.num_nodes
    bad = sorted({event for part in gather(own, engine.env) for event in part})
    if bad:
        raise MachineError(f"validation loss is not finite in event {', '.join(map(str, bad))}")
    names = list(loss.weights)
    total = dict(zip(names, all_sum([counts[name] for name in names], engine.env), strict=True))
    result = combine(engine, sums, total, loss.weights, events=events, hits=hits)
    return replace(result, metrics=over_ranks(engine, more))


def over_ranks(engine: Engine, found: dict[str, list[float]]) -> dict[str, float]:
    """Means of sums and numbers, added over ranks, of which some may have had no event; without those of nothing."""
    names = sorted({name for part in gather(list(found), engine.env) for name in part})
    sums = all_sum([value for name in names for value in found.get(name, [0.0, 0.0])], engine.env) if names else []
    pairs = zip(names, sums[::2], sums[1::2], strict=True)
    return {name: value / number for name, value, number in pairs if number}


def combine(engine: Engine, sums: Sums, total: Sums, weights: Sums, *, events: int, hits: int) -> StepResult:
    """Add the terms' sums, events and hits over ranks; the same numbers on every rank."""
    *values, all_events, all_hits = all_sum([*sums.values(), events, hits], engine.env)
    terms = {name: value / max(1, total[name]) for name, value in zip(sums, values, strict=True)}
    return StepResult(sum(weights[n] * v for n, v in terms.items()), terms, int(all_events), int(all_hits))


def find_non_finite_events(engine: Engine, loss: Loss, batches: list[Batch]) -> str:
    """Ids of the events whose own loss is not finite, over all ranks."""
    bad = []
    with torch.no_grad():
        events = (event for batch in batches for event in one_by_one(batch))
        for alone in in_lockstep(engine, events):
            terms = loss(engine.predict(alone), alone)
            value = objective(dict.fromkeys(terms, 1.0), terms)
            if not torch.isfinite(value):
                bad.append(int(alone.event_id))
    found = sorted({event for part in gather(bad, engine.env) for event in part})
    return ", ".join(map(str, found)) or "none alone, only in their sum"


def one_by_one(batch: Batch) -> list[Batch]:
    """The batch's events as batches of their own; a rank's part of one is one already."""
    if division_of(batch) is not None:
        return [batch]
    return [Batch.from_data_list([event]) for event in batch.to_data_list()]


def counted_events(batches: Iterable[Batch]) -> list[int]:
    """Ids of the batches' events that this rank counts: of those that several hold together, one rank does."""
    return [int(event) for batch in batches if leads(batch) for event in batch.event_id]


def pad_to_all_ranks(engine: Engine, batches: list[Batch], modes: list[str] | None) -> Work:
    """This rank's micro-batches and their modes, or an empty one, since every rank takes part in the gradient sum.

    Where passes are collective, as many as the rank with the most has, in modes that save enough for every rank.
    """
    own: list[str | None] = list(modes) if modes else [None] * len(batches)
    if engine.lockstep:
        every = gather(own, engine.env)
        rounds = [[part[i] for part in every if i < len(part)] for i in range(max(map(len, every)))]
        own = [max(found, key=lambda mode: MODES.index(mode) if mode else -1) for found in rounds]
    padding = [empty_batch(engine)] * (max(1, len(own)) - len(batches))
    return list(zip([*batches, *padding], own or [None], strict=True))


def agree(batch: Batch, mode: str) -> str:
    """The memory mode of a micro-batch: of a divided event, the hardest that one of its ranks needs."""
    division = division_of(batch)
    if division is None:
        return mode
    chosen = torch.nn.functional.one_hot(torch.tensor(MODES.index(mode)), len(MODES)).to(batch.ptr.device)
    return MODES[int(division.others.all_sum(chosen).nonzero().max())]


def in_lockstep(engine: Engine, batches: Iterable[Batch]) -> Iterator[Batch]:
    """This rank's batches, each for one prediction; where these are collective, empty ones until all ranks are done."""
    for batch in batches:
        if engine.lockstep:
            all_max([1], engine.env)
        yield batch
    while engine.lockstep and all_max([0], engine.env)[0]:
        engine.predict(empty_batch(engine))


def empty_batch(engine: Engine) -> Batch:
    """A batch of one event without hits, for a rank that has no event in this step."""
    parameter = next(engine.module.parameters())
    nothing = torch.zeros(0, dtype=torch.long)
    data = Data(
        x=torch.zeros(0, engine.module.n_features, dtype=parameter.dtype),
        track=nothing,
        n_tracks=torch.zeros(1, dtype=torch.long),
        hit_row=nothing,
        event_id=torch.tensor([-1]),
        parameters=torch.zeros(0, len(PARAMETERS), dtype=parameter.dtype),
        lines=torch.zeros(0, len(LINE), dtype=parameter.dtype),
        num_nodes=0,
    )
    return Batch.from_data_list([data]).to(parameter.device)
