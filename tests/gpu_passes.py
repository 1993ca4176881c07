"""Passes of a model on any device in any number format, for tests/gpu."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch_geometric.data import Batch

from hpctrack.config import Named, ParallelConfig
from hpctrack.losses import build_loss, objective
from hpctrack.losses.term import LossTerm
from hpctrack.models import build_model
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import WEIGHTS, Precision
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.testing.toys import FEATURES, gradient, toy_batch

CPU = torch.device("cpu")


class Pass(NamedTuple):
    """Outputs, terms of the loss and the gradient [W] of a pass, in fp64 on the CPU."""

    outputs: dict[str, torch.Tensor]
    terms: dict[str, float]
    gradient: torch.Tensor


def engine_on(
    device: torch.device, model: Named, precision: str, *, tf32: bool = False, rank: int = 0, world: int = 1
) -> DDPEngine:
    """An engine of one or more ranks on a device; the same weights each time."""
    torch.manual_seed(0)
    built = build_model(model, FEATURES).to(device, WEIGHTS[precision])
    env = Env(rank, world, 0, device, backend="gloo" if world > 1 else None, source="test")
    number = Precision(precision, device, tf32)
    number.loss_scale = min(number.loss_scale, 2.0**10)
    return DDPEngine(built, lambda m: torch.optim.SGD(m.parameters(), 0.1), env, number, ParallelConfig())


def toy(precision: str = "fp32", sizes: tuple[int, ...] = (14, 9, 17), noise: int = 12) -> Batch:
    """Events of some 200 hits in all, with edges."""
    return toy_batch(sizes=sizes, n_noise=noise, edges=3, dtype=WEIGHTS[precision])


def one_pass(engine: DDPEngine, batch: Batch, loss: Named | None, mode: str | None = None) -> Pass:
    """Forward and backward; the terms summed with weight 1. Without a loss: mean squares of all outputs."""
    batch = batch.to(engine.env.device)
    outputs = engine.forward(batch, True, mode)
    if loss is None:
        terms = {name: LossTerm(value.double().square().mean(), 1) for name, value in outputs.items()}
    else:
        terms = build_loss(loss)(outputs, batch)
    engine.backward(objective(dict.fromkeys(terms, 1.0), terms))
    engine.gradient_norm(None)  # takes the scale of the loss away
    every = torch.cat([gradient(p).flatten() for p in engine.module.parameters()])
    found = {name: value.detach().double().cpu() for name, value in outputs.items()}
    engine.discard()
    return Pass(found, {name: term.sum.item() for name, term in terms.items()}, every.double().cpu())


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Distance over length."""
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12))


def gradients_of_ranks(rank: int, world: int, device: torch.device, meet: str, model: Named, loss: Named) -> None:
    """What a rank of `world` on one device finds, written beside the file by which they meet; for a spawned process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=world)
    engine = engine_on(device, model, "fp64", rank=rank, world=world)
    events = toy("fp64").to_data_list()[rank::world]
    batch = Batch.from_data_list(events).to(device)
    terms = build_loss(loss)(engine.forward(batch, True), batch)
    engine.backward(objective(dict.fromkeys(terms, 1.0), terms))
    every = torch.cat([gradient(p).flatten() for p in engine.module.parameters()])
    torch.save(every.cpu(), f"{meet}.{rank}")
    torch.distributed.destroy_process_group()
