"""A divided event as one of its ranks sees it: own hits as a batch, and the other ranks behind `batch.division`.

Legend: n own hits, N hits of the event, M edges with an own end, h hits of others at their ends.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch_geometric.data import Batch, Data

from hpctrack.division.exchange import (
    AllRows,
    BoundaryHalo,
    Exchange,
    Gathered,
    Halo,
    Pulled,
    Received,
    Summed,
    WholeHalo,
)

PER_HIT = ("x", "track", "hit_row")  # of an event's data, a row a hit
LABELS = ("track", "n_tracks", "track_weight", "event_id")  # of the event that every rank knows whole


class Place(NamedTuple):
    """Rank `number` of the `of` that hold an event together."""

    number: int
    of: int


@dataclass
class Division:
    """What a rank knows of an event that it holds together with others.

    `rows_n`: its own hits' numbers in the event, ascending; `owner_N`: whose each hit is; `whole`: the labels of the
    whole event, as a batch without inputs; `far_h`: hits of others at the ends of its edges, by owner, ascending.
    `join` gives it the others; before that nothing can be exchanged.
    """

    place: Place
    rows_n: Tensor
    owner_N: Tensor
    whole: Batch
    far_h: Tensor | None = None
    exchange: Exchange | None = None
    halo: Halo | None = None  # of the edges

    def to(self, device: Any, non_blocking: bool = False) -> Division:
        """The same on a device; called by PyG with the batch."""
        moved = {"rows_n": self.rows_n, "owner_N": self.owner_N, "whole": self.whole}
        moved |= {} if self.far_h is None else {"far_h": self.far_h}
        return replace(self, **{name: value.to(device, non_blocking=non_blocking) for name, value in moved.items()})

    def join(self, exchange: Exchange) -> None:
        """Meet the other ranks of the event, all together; tensors are where they stay."""
        self.exchange = exchange
        self.halo = None if self.far_h is None else self.halo_of(self.far_h)

    @property
    def others(self) -> Exchange:
        """The ranks of the event."""
        if self.exchange is None:
            raise ValueError("a divided event has not met its other ranks: call join")
        return self.exchange

    @property
    def n_hits(self) -> int:
        """Hits of the event, N."""
        return len(self.owner_N)

    @property
    def leads(self) -> bool:
        """Whether this rank counts what belongs to the event as a whole."""
        return self.place.number == 0

    @cached_property
    def sizes(self) -> list[int]:
        """Hits of each rank."""
        return torch.bincount(self.owner_N, minlength=self.place.of).tolist()

    @cached_property
    def by_owner_N(self) -> Tensor:
        """Hits of the event by owner, each one's ascending."""
        return self.owner_N.argsort(stable=True)

    @cached_property
    def number_N(self) -> Tensor:
        """The number of each hit of the event among its owner's."""
        number_N = torch.empty_like(self.owner_N)
        number_N[self.by_owner_N] = torch.cat([torch.arange(n, device=number_N.device) for n in self.sizes])
        return number_N

    @property
    def all_rows(self) -> AllRows:
        """What passes the rows of all hits."""
        return AllRows(self.others, self.sizes, self.by_owner_N)

    # ----------------------------------------------------------------------------------------- without autograd

    def collect(self, x_n: Tensor) -> Tensor:
        """The rows of all ranks in the order of the event, [N, …]."""
        return self.all_rows.collect(x_n)

    def add_up(self, g_N: Tensor) -> Tensor:
        """The transpose of `collect`: what all ranks have for the own rows, added up, [n, …]."""
        return self.all_rows.add_up(g_N)

    def total(self, number: int) -> int:
        """The sum of the ranks' numbers."""
        return int(self.others.all_sum(self.owner_N.new_tensor([number])))

    def halo_of(self, rows_h: Tensor) -> Halo:
        """What fetches the hits `rows_h` of others, given by owner, ascending; all ranks ask for theirs together."""
        if self.others.way == "all":
            return WholeHalo(rows_h, self.all_rows)
        of = self.place.of
        receive = torch.bincount(self.owner_N[rows_h], minlength=of)
        send = self.others.swap(receive, [1] * of, [1] * of)
        asked_s = self.others.swap(rows_h, receive.tolist(), send.tolist())
        return BoundaryHalo(rows_h, self.others, self.number_N[asked_s], send.tolist(), receive.tolist())

    def far(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Hits of others among the event's hits `rows`, each once, by owner; and `rows` in numbers 0 … n + h - 1.

        Own hits are 0 … n - 1, those of others follow in the order that is given.
        """
        seen_N = torch.zeros(self.n_hits, dtype=torch.bool, device=rows.device)
        seen_N[rows.flatten()] = True
        seen_N[self.rows_n] = False
        far_h = self.by_owner_N[seen_N[self.by_owner_N]]
        local_N = self.number_N.clone()
        local_N[far_h] = len(self.rows_n) + torch.arange(len(far_h), device=rows.device)
        return far_h, local_N[rows]

    # ----------------------------------------------------------------------------------------- for autograd

    def gather(self, x_n: Tensor, received: Received | None = None, number: int = 0) -> Tensor:
        """As `collect`; `received`: as of `extended`."""
        return Gathered.apply(x_n, self, received, number)

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum over the ranks of the event."""
        return Summed.apply(x, self.others)

    def on_leader(self, value: Tensor) -> Tensor:
        """What all ranks have alike, once: zero on all ranks but the one that leads, and still on the graph."""
        return value if self.leads else value * 0


def extended(x_n: Tensor, halo: Halo, received: Received | None = None, number: int = 0) -> Tensor:
    """Own rows, and those of the halo behind them, [n + h, …], for autograd.

    `received`: where what was fetched under a `number` is kept, for iterations that are computed again.
    """
    return Pulled.apply(x_n, halo, received or Received(), number)


def division_of(batch: Batch) -> Division | None:
    """How the batch's one event is divided over ranks; None for whole events."""
    return batch.division if "division" in batch else None


def leads(batch: Batch) -> bool:
    """Whether this rank counts the batch's events: it holds them alone, or leads those that hold one together."""
    division = division_of(batch)
    return division is None or division.leads


def collect_outputs(outputs: dict[str, Tensor], part: Batch, event: Data) -> dict[str, Tensor]:
    """A model's outputs on the whole event, on every rank, given those on the ranks' parts of it."""
    division, found = part.division, {}
    for name, value in outputs.items():
        if not name.startswith("edge_"):
            found[name] = division.collect(value)
            continue
        owner_M = division.owner_N[event.edge_index[0].to(value.device)]  # each edge is that of the hit it begins at
        sizes = torch.bincount(owner_M, minlength=division.place.of).tolist()
        rows = division.others.all_rows(value[part.edge_index[0] < part.num_nodes], sizes)
        found[name] = torch.empty_like(rows)
        found[name][owner_M.argsort(stable=True)] = rows
    return found


def divide(event: Data, owner_N: Tensor, place: Place) -> Batch:
    """A rank's part of an event, whose hits' owners are `owner_N`: its own hits, and edges with an own end.

    Edges are in the order of the event's, in numbers of the own hits and, behind them, of hits `division.far_h`.
    """
    rows_n = (owner_N == place.number).nonzero().squeeze(1)
    given = event.to_dict()
    labels = {name: given[name] for name in LABELS if name in given}
    whole = Batch.from_data_list([Data(**labels, num_nodes=len(owner_N))])
    division = Division(place, rows_n, owner_N, whole)
    own = {name: value[rows_n] if name in PER_HIT else value for name, value in given.items()}
    own["num_nodes"] = len(rows_n)
    if "edge_index" in given:
        kept_M = (owner_N[given["edge_index"]] == place.number).any(dim=0)
        division.far_h, own["edge_index"] = division.far(given["edge_index"][:, kept_M])
        if "edge_truth" in given:
            own["edge_truth"] = given["edge_truth"][kept_M]
    batch = Batch.from_data_list([Data(**own)])
    batch.division = division
    return batch
