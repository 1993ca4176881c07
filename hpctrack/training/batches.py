"""The events of a training run on one rank: its datasets, their exact sizes, and the batches that are read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from torch_geometric.data import Batch

from hpctrack.config import DataConfig
from hpctrack.events.loader import EventLoader
from hpctrack.events.readers import Readers
from hpctrack.graphs.contracts import Graph
from hpctrack.parallel.env import Env
from hpctrack.planning.partition import longest_first
from hpctrack.storage.store import Dataset
from hpctrack.training.planner import Planner
from hpctrack.training.size_table import SizeTable


@dataclass(frozen=True)
class EventSet:
    """A dataset as a run sees it: its graph (None without edges), what loads an event, and the events' exact sizes."""

    dataset: Dataset
    graph: Graph | None
    loader: EventLoader
    sizes: SizeTable


class Batches:
    """What a rank reads: the micro-batches of training, and its share of the validation events."""

    def __init__(
        self, train: EventSet, valid: EventSet | None, env: Env, config: DataConfig, alive: Callable[[str], None]
    ) -> None:
        self.train, self.valid, self.env, self.config, self.alive = train, valid, env, config, alive

    def keep_sizes(self) -> None:
        """Keep the sizes in the run's folder if they could not be kept beside the events; on one rank."""
        for events in (self.train, self.valid):
            if events is not None:
                events.sizes.keep()

    def of_steps(self, planner: Planner, step: int, last: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step from `step` to the last; all ranks take them together."""
        cuda = self.env.device.type == "cuda"
        readers = Readers(self.train.loader, self.config.workers, cuda, self.config.prefetch_factor)
        while step < last:
            end = planner.prepare(step, last)
            ahead = (part for at in range(step, end) for part in planner.micro_batches(at))
            loaded = readers(ahead)
            for at in range(step, end):
                parts = [(part, next(loaded)) for part in planner.micro_batches(at)]
                for (epoch, rows), batch in parts:
                    self.train.sizes.check(epoch, rows, batch.ptr.diff().tolist())
                yield [batch.to(self.env.device, non_blocking=True) for _, batch in parts]
            step = end

    def of_validation(self, step: int) -> Iterator[Batch]:
        """This rank's share of the validation events, one a batch, the same draws every time."""
        assert self.valid is not None
        sizes = self.valid.sizes.in_epoch(0).hits
        rank, _ = longest_first(sizes.astype(np.float64), self.env.world)
        for row in np.flatnonzero(rank == self.env.rank):
            self.alive(f"validation after step {step}")
            batch = Batch.from_data_list([self.valid.loader(int(row), 0)])
            self.valid.sizes.check(0, np.array([row]), [batch.num_nodes])
            yield batch.to(self.env.device)
