"""The events of a training run on one rank: its datasets, their exact sizes, and the batches that are read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch_geometric.data import Batch

from hpctrack.config import DataConfig
from hpctrack.division.divided import Place, division_of
from hpctrack.division.exchange import Exchange
from hpctrack.events.loader import EventLoader
from hpctrack.events.readers import Readers
from hpctrack.graphs.contracts import Graph
from hpctrack.losses.term import labels
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
        self,
        train: EventSet,
        valid: EventSet | None,
        env: Env,
        config: DataConfig,
        alive: Callable[[str], None],
        *,
        groups: Mapping[int, Exchange] | None = None,
        ranks_per_event: int = 1,
    ) -> None:
        self.train, self.valid, self.env, self.config, self.alive = train, valid, env, config, alive
        self.groups = groups or {}  # by size, the ranks that hold an event together with this one
        self.ranks_per_event = ranks_per_event  # of every validation event

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
                for (epoch, rows, _), batch in parts:
                    self.train.sizes.check(epoch, rows, labels(batch).ptr.diff().tolist())
                yield [self.here(batch) for _, batch in parts]
            step = end

    @property
    def exchange_s(self) -> float:
        """Seconds that this rank has passed rows to and fro with those that hold events together with it, or waited."""
        return sum(exchange.seconds for exchange in self.groups.values())

    def here(self, batch: Batch) -> Batch:
        """The batch on this rank's device; all ranks that hold its event together come here together."""
        batch = batch.to(self.env.device, non_blocking=True)
        division = division_of(batch)
        if division is not None:
            division.join(self.groups[division.place.of])
        return batch

    def of_validation(self, step: int, whole: bool = False) -> Iterator[Batch]:
        """This rank's share of the validation events, one a batch, the same draws every time.

        Where ranks hold each event together they share these as well, unless they are wanted `whole`.
        """
        assert self.valid is not None
        sizes, together = self.valid.sizes.in_epoch(0).hits, 1 if whole else self.ranks_per_event
        group, _ = longest_first(sizes.astype(np.float64), self.env.world // together)
        own, number = divmod(self.env.rank, together)
        for row in np.flatnonzero(group == own):
            self.alive(f"validation after step {step}")
            if together > 1:
                batch = self.valid.loader.part(int(row), 0, Place(number, together))
            else:
                batch = Batch.from_data_list([self.valid.loader(int(row), 0)])
            self.valid.sizes.check(0, np.array([row]), labels(batch).ptr.diff().tolist())
            yield self.here(batch)
