"""Groups of consecutive ranks that hold an event together: torch's collectives as division/exchange.py wants them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from hpctrack.division.exchange import Way
from hpctrack.parallel.env import ENDED, WATCHDOG_FIRST_S, Env


class GroupExchange:
    """The exchange within a process group; `seconds`: spent in it so far, waiting for others included."""

    def __init__(self, group: dist.ProcessGroup, number: int, of: int, backend: str, *, way: Way = "boundary") -> None:
        self.group, self.number, self.of, self.backend, self.way = group, number, of, backend, way
        self.seconds = 0.0

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum over the group's ranks."""
        begin, total = time.perf_counter(), x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total, group=self.group)
        self.seconds += time.perf_counter() - begin
        return total

    def all_rows(self, x: Tensor, sizes: Sequence[int]) -> Tensor:
        """All ranks' rows; they travel padded to the longest."""
        begin, most = time.perf_counter(), max(sizes)
        padded = x.new_zeros(most, *x.shape[1:])
        padded[: len(x)] = x.detach()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.group)
        self.seconds += time.perf_counter() - begin
        return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])

    def swap(self, rows: Tensor, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        """Uneven all-to-all; with NCCL a rank that has nothing to pass passes a row to itself (pytorch#146468)."""
        begin, send, receive = time.perf_counter(), list(send), list(receive)
        rows, at = rows.detach().contiguous(), sum(receive[: self.number])
        idle = self.backend == "nccl" and not (sum(send) and sum(receive))
        if idle:
            before = sum(send[: self.number])
            rows = torch.cat([rows[:before], rows.new_zeros(1, *rows.shape[1:]), rows[before:]])
            send[self.number] += 1
            receive[self.number] += 1
        found = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(found, rows, receive, send, group=self.group)
        self.seconds += time.perf_counter() - begin
        return torch.cat([found[:at], found[at + 1 :]]) if idle else found


def make_groups(env: Env, sizes: Sequence[int], timeout_s: float, way: Way = "boundary") -> dict[int, GroupExchange]:
    """By size, the exchange within this rank's group of so many consecutive ranks; all ranks come together.

    Groups are aligned: ranks 0 … size - 1 are the first. Sizes that do not divide the number of ranks have none for the
    ranks left over.
    """
    found: dict[int, GroupExchange] = {}
    if env.backend is None:
        return found
    limit = timedelta(seconds=timeout_s + WATCHDOG_FIRST_S)
    for size in sorted(sizes):
        for first in range(0, env.world - size + 1, size):
            group = dist.new_group(list(range(first, first + size)), timeout=limit, backend=env.backend)
            ENDED.append(group)
            if first <= env.rank < first + size:
                found[size] = GroupExchange(group, env.rank - first, size, env.backend, way=way)
    return found
