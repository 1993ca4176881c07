"""Random graphs and random owners: a divided event has the losses and gradients of the whole one (fp64: 1e-12).

Ranks are threads of this process, so that many divisions, also over more ranks than there are cores, cost little.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch_geometric.data import Batch, Data

from hpctrack.config import Named
from hpctrack.division.divided import Place, divide
from hpctrack.division.exchange import Way
from hpctrack.losses import build_loss, objective
from hpctrack.models import build_model
from hpctrack.testing.toys import FEATURES, toy_batch

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "interaction": ({"name": "interaction", "width": 4, "iterations": 3, "layers": 1}, {"name": "edges"}),
    "influencer": (
        {
            "name": "influencer",
            "embedding": 3,
            "backbone": {
                "name": "neighbours", "width": 4, "stages": 1, "steps": 2, "neighbours": 3, "space": 2, "heads": 1
            },
        },
        {"name": "influencer", "compactness": 1.0, "neighbours": 0.5},
    ),
}  # fmt: skip


@dataclass
class Meeting:
    """Where threads leave what the others are to see."""

    of: int
    left: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.of, timeout=20)


@dataclass
class Thread:
    """The exchange (division/exchange.py) of one thread with the others."""

    meeting: Meeting
    number: int
    way: Way
    seconds: float = 0.0

    @property
    def of(self) -> int:
        return self.meeting.of

    def meet(self, value: Any) -> list[Any]:
        self.meeting.left[self.number] = value
        self.meeting.barrier.wait()
        found = [self.meeting.left[number] for number in range(self.of)]
        self.meeting.barrier.wait()
        return found

    def all_sum(self, x: Tensor) -> Tensor:
        return torch.stack(self.meet(x.detach().clone())).sum(0).to(x.dtype)

    def all_rows(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        found = self.meet(x.detach().clone())
        assert list(map(len, found)) == list(sizes)
        return torch.cat(found)

    def swap(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        assert len(rows) == sum(send)
        found = [part[self.number] for part in self.meet(rows.detach().clone().split(list(send)))]
        assert list(map(len, found)) == list(receive)
        return torch.cat(found)


@cache
def built(case: str, mode: str) -> tuple[Any, Any]:
    torch.manual_seed(2)
    model, loss = CASES[case]
    return build_model(Named(**model), FEATURES, mode).double(), build_loss(Named(**loss))


def gradient(case: str, mode: str, batch: Batch, counts: dict[str, int]) -> tuple[Tensor, Tensor]:
    """Loss and its gradient of all weights, of this rank's part."""
    model, loss = built(case, mode)
    value = objective(loss.weights, loss(model(batch), batch), counts)
    weights = list(model.parameters())
    found = torch.autograd.grad(value, weights, allow_unused=True)
    every = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    return value.detach(), torch.cat([g.flatten() for g in every])


def of_part(case: str, mode: str, event: Data, owner_N: Tensor, exchange: Thread) -> tuple[Tensor, Tensor]:
    part = divide(event, owner_N, Place(exchange.number, exchange.of))
    try:
        part.division.join(exchange)
        counts = {n: part.division.total(c) for n, c in built(case, mode)[1].counts(part).items()}
        return gradient(case, mode, part, counts)
    except BaseException:
        exchange.meeting.barrier.abort()  # the others need not wait
        raise


@pytest.mark.parametrize(("case", "modes"), [("interaction", ["plain", "nested", "chunks"]), ("influencer", ["plain"])])
@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_any_owners_of_any_graph_give_the_gradient_of_the_whole_event(case, modes, data):
    tracks, noise = data.draw(st.integers(0, 4), "tracks"), data.draw(st.integers(0, 6), "noise")
    edges = data.draw(st.integers(1, 3), "edges a hit") if case == "interaction" else 0
    [event] = toy_batch(
        (tracks,), n_noise=noise, seed=data.draw(st.integers(0, 10**6), "seed"), edges=edges
    ).to_data_list()
    if not event.num_nodes:
        return
    of, mode = data.draw(st.sampled_from([1, 2, 3, 5, 8]), "ranks"), data.draw(st.sampled_from(modes), "mode")
    owners = data.draw(st.lists(st.integers(0, of - 1), min_size=event.num_nodes, max_size=event.num_nodes), "owners")
    owner_N = torch.from_numpy(np.array(owners, dtype=np.int64))
    whole = Batch.from_data_list([event])
    value, expected = gradient(case, mode, whole, built(case, mode)[1].counts(whole))
    meeting, way = Meeting(of), data.draw(st.sampled_from(get_args(Way)), "exchange")
    with ThreadPoolExecutor(of) as pool:
        parts = [pool.submit(of_part, case, mode, event, owner_N, Thread(meeting, number, way)) for number in range(of)]
        found = [part.result() for part in parts]
    torch.testing.assert_close(sum(v for v, _ in found), value, rtol=1e-12, atol=1e-12)
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(sum(g for _, g in found), expected, rtol=1e-12, atol=1e-12 * scale)
