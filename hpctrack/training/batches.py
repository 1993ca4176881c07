"""The events of a training run on one rank: its datasets, their exact sizes, and the batches that are read of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, CurriculumStage, RunConfig
from hpctrack.errors import InputError
from hpctrack.events.loader import EventLoader, open_events
from hpctrack.events.readers import Readers
from hpctrack.graphs import build_graph, graph_columns
from hpctrack.parallel.collectives import run_on_main
from hpctrack.parallel.env import Env
from hpctrack.planning.partition import longest_first
from hpctrack.storage.store import Dataset
from hpctrack.training.planner import Planner
from hpctrack.training.size_table import SizeTable

TRAIN, VALID = 0, 1  # random streams of the two datasets


class Events:
    """Datasets `train` and, if there is one, `valid`; InputError for one that is damaged or has nothing to learn.

    One rank looks whether their files are there, and tells the others. `parameters`: whether events come with true
    track parameters; `dtype`: of features; `alive` is told what takes its time.
    """

    def __init__(
        self, config: RunConfig, env: Env, parameters: bool, dtype: torch.dtype, alive: Callable[[str], None]
    ) -> None:
        self.config, self.env, self.alive, self.dtype = config, env, alive, dtype
        data = config.data
        self.train = self._open(data.train, parameters)
        self.valid = self._open(data.valid, parameters) if data.valid else None
        if not len(self.train):
            raise InputError(f"key 'data.train': {data.train} has no event; expected at least one")
        self.graph = build_graph(data.graph, data.train, self.train)
        self.loader = self._loader(self.train, TRAIN, data.augment, data.curriculum, parameters, self.graph)
        self.sizes = self._sizes(self.loader, data.train)
        if self.valid is not None:
            graph = build_graph(data.graph, data.valid, self.valid)
            self.valid_loader = self._loader(self.valid, VALID, AugmentConfig(), (), parameters, graph)
            self.valid_sizes = self._sizes(self.valid_loader, data.valid)

    def _open(self, folder: str, parameters: bool) -> Dataset:
        source = run_on_main(lambda: Dataset(folder), self.env)
        of_graph = graph_columns(self.config.data.graph)
        return open_events(self.config.data, source, self.env.local_rank, parameters, of_graph)

    def _loader(
        self,
        dataset: Dataset,
        stream: int,
        augment: AugmentConfig,
        curriculum: list[CurriculumStage] | tuple[()],
        parameters: bool,
        graph: object,
    ) -> EventLoader:
        data, stream = self.config.data, (self.config.seed, stream)
        about = (stream, self.dtype, curriculum, parameters, graph)
        return EventLoader(dataset, data.features, data.selection, augment, *about)

    def _sizes(self, loader: EventLoader, folder: str) -> SizeTable:
        folders = [Path(folder), Path(self.config.run)]
        return SizeTable(loader.dataset, loader.draw, self.env, folders, self.alive, "data.selection")

    def keep_sizes(self) -> None:
        """Keep the sizes in the run's folder if they could not be kept beside the events; on one rank."""
        for table in (self.sizes, self.valid_sizes) if self.valid is not None else (self.sizes,):
            table.keep()

    def batches(self, planner: Planner, step: int, last: int) -> Iterator[list[Batch]]:
        """This rank's micro-batches of each step from `step` to the last; all ranks take them together."""
        data, cuda = self.config.data, self.env.device.type == "cuda"
        readers = Readers(self.loader, data.workers, cuda, data.prefetch_factor)
        while step < last:
            end = planner.prepare(step, last)
            ahead = (part for at in range(step, end) for part in planner.micro_batches(at))
            loaded = readers(ahead)
            for at in range(step, end):
                parts = [(part, next(loaded)) for part in planner.micro_batches(at)]
                for (epoch, rows), batch in parts:
                    self.sizes.check(epoch, rows, batch.ptr.diff().tolist())
                yield [batch.to(self.env.device, non_blocking=True) for _, batch in parts]
            step = end

    def valid_batches(self, step: int) -> Iterator[Batch]:
        """This rank's share of the validation events, one a batch, the same draws every time."""
        sizes = self.valid_sizes.in_epoch(0).hits
        rank, _ = longest_first(sizes.astype(np.float64), self.env.world)
        for row in np.flatnonzero(rank == self.env.rank):
            self.alive(f"validation after step {step}")
            batch = Batch.from_data_list([self.valid_loader(int(row), 0)])
            self.valid_sizes.check(0, [row], [batch.num_nodes])
            yield batch.to(self.env.device)
