"""What the ranks that hold an event together pass each other, and the transposes of it for the backward pass.

The loss of an event is the sum of what its ranks find. So the transpose of collecting rows on all ranks adds each row's
gradients up where it is owned, that of a sum over ranks is a sum over ranks, and that of fetching some rows adds their
gradients up at their owners. All ranks of a group call the same functions in the same order, forward and backward.

Legend: n own rows, N rows of the event, h rows of others that are fetched, s own rows that others fetch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpctrack.numerics import at_least_fp32

Way = Literal["boundary", "all"]  # to fetch the rows that are needed from their owners, or all rows of all ranks


class Exchange(Protocol):
    """How the ranks of a group pass tensors; each function is called by all of them together."""

    number: int  # of this rank within the group
    of: int  # ranks in the group
    way: Way  # in which rows of other ranks are fetched
    seconds: float  # spent in the functions below so far, waiting for the others included

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum over ranks, the same bits on each; a new tensor."""

    def all_rows(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """The rows of all ranks, one rank's behind the other's; `sizes`: how many each has."""

    def swap(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Give `send[k]` of the rows to rank k, in order; the rows received, `receive[k]` of rank k, in order."""


@dataclass
class AllRows:
    """Rows of all hits of an event: `sizes`, how many each rank owns, and `by_owner_N`, the hits by owner."""

    exchange: Exchange
    sizes: list[int]
    by_owner_N: Tensor

    def collect(self, x_n: Tensor) -> Tensor:
        """The rows of all ranks in the order of the event, [N, …]."""
        found = self.exchange.all_rows(x_n, self.sizes)
        x_N = torch.empty_like(found)
        x_N[self.by_owner_N] = found
        return x_N

    def add_up(self, g_N: Tensor) -> Tensor:
        """The transpose of `collect`: what all ranks have for the own rows, added up, [n, …]."""
        n, of = self.sizes[self.exchange.number], self.exchange.of
        found = self.exchange.swap(g_N[self.by_owner_N], self.sizes, [n] * of)
        return at_least_fp32(found.unflatten(0, (of, n))).sum(0).to(g_N.dtype)


class Halo(Protocol):
    """Rows of other ranks that this one fetches; all ranks of the event do so together."""

    rows_h: Tensor  # their numbers in the event, by owner, ascending

    def pull(self, x_n: Tensor) -> Tensor:
        """What the owners have in the rows `rows_h`, [h, …], given `x_n` of the own rows, [n, …]."""

    def push(self, g_h: Tensor, n: int) -> Tensor:
        """The transpose: what all ranks have for the own rows, added up, [n, …], given `g_h` for theirs, [h, …]."""


@dataclass
class BoundaryHalo:
    """Way `boundary`: the owners give what is needed.

    `give_s`: own rows, by who fetches them; `send` and `receive`: how many of them go to, and come from, each rank.
    """

    rows_h: Tensor
    exchange: Exchange
    give_s: Tensor
    send: list[int]
    receive: list[int]

    def pull(self, x_n: Tensor) -> Tensor:
        """As of Halo."""
        return self.exchange.swap(x_n[self.give_s], self.send, self.receive)

    def push(self, g_h: Tensor, n: int) -> Tensor:
        """As of Halo."""
        found_s = at_least_fp32(self.exchange.swap(g_h, self.receive, self.send))
        return found_s.new_zeros(n, *g_h.shape[1:]).index_add_(0, self.give_s, found_s).to(g_h.dtype)


@dataclass
class WholeHalo:
    """Way `all`: every rank gets the rows of all, and takes what it needs.

    More passes, in fewer messages: better where ranks need most of the event, or where a message is dear.
    """

    rows_h: Tensor
    rows: AllRows

    def pull(self, x_n: Tensor) -> Tensor:
        """As of Halo."""
        return self.rows.collect(x_n)[self.rows_h]

    def push(self, g_h: Tensor, n: int) -> Tensor:
        """As of Halo."""
        g_N = g_h.new_zeros(len(self.rows.by_owner_N), *g_h.shape[1:])
        g_N[self.rows_h] = g_h
        return self.rows.add_up(g_N)


class Received:
    """The rows that iterations have fetched, so that one that is computed again does not ask for them anew."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}


class Pulled(torch.autograd.Function):
    """Own rows and those of a halo behind them."""

    @staticmethod
    def forward(ctx: Any, x_n: Tensor, halo: Halo, received: Received, number: int) -> Tensor:
        """[n + h, …]; what has been `received` under this number already is not fetched again."""
        ctx.halo, ctx.n = halo, len(x_n)
        if number not in received.kept:
            received.kept[number] = halo.pull(x_n)
        return torch.cat([x_n, received.kept[number]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        """Of `x_n`."""
        return g[: ctx.n] + ctx.halo.push(g[ctx.n :], ctx.n), None, None, None


class Gathered(torch.autograd.Function):
    """The rows of all ranks in the order of the event."""

    @staticmethod
    def forward(ctx: Any, x_n: Tensor, division: Any, received: Received | None, number: int) -> Tensor:
        """[N, …]; `division`: what a rank knows of a divided event (division/divided.py). The rest: as of Pulled."""
        ctx.division = division
        if received is None:
            return division.collect(x_n)
        if number not in received.kept:
            received.kept[number] = division.collect(x_n)
        return received.kept[number].detach()  # autograd wants another tensor each time, not another memory

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor, None, None, None]:
        """Of `x_n`."""
        return ctx.division.add_up(g_N), None, None, None


class Summed(torch.autograd.Function):
    """The sum over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: Exchange) -> Tensor:
        """As `x`."""
        ctx.exchange = exchange
        return exchange.all_sum(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """Of `x`."""
        return ctx.exchange.all_sum(g), None
