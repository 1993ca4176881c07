"""From dataset rows to PyG batches: read only the columns the features need, select, augment, batch.

Every random choice is drawn from (stream, epoch, event id): the same on any rank, in any worker and after a resume.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, get_worker_info
from torch_geometric.data import Batch, Data

from hpctrack import signals
from hpctrack.config import AugmentConfig, CurriculumStage, DataConfig, SelectionConfig
from hpctrack.data import perigee, truth
from hpctrack.data import selection as selecting
from hpctrack.data.features import compute_features, feature_columns
from hpctrack.data.packing import pack, unpack
from hpctrack.data.schema import Event
from hpctrack.data.staging import stage
from hpctrack.data.store import Dataset
from hpctrack.data.symmetries import augment, check_symmetries, check_volumes
from hpctrack.errors import InputError, MachineError
from hpctrack.graphs import graph_columns


def open_events(config: DataConfig, folder: str, local_rank: int = 0, parameters: bool = False) -> Dataset:
    """The dataset `folder`, staged, held in memory and verified as section `data` asks; InputError if it is damaged."""
    dataset = Dataset(stage(folder, config.stage_to, local_rank) if config.stage_to else folder, config.verify)
    if config.in_memory:
        dataset.keep_in_memory(columns_read(config.features, parameters, graph_columns(config.graph)))
    return dataset


def columns_read(features: list[str], parameters: bool = False, graph: list[str] | None = None) -> list[str]:
    """The columns of an event that features and selection need and, if wanted, track parameters and a `graph`.

    `graph`: the columns that this kind of graph needs; its truth needs some besides.
    """
    of_graph = graph + truth.COLUMNS if graph else []
    return list(dict.fromkeys(feature_columns(features) + selecting.COLUMNS + perigee.COLUMNS * parameters + of_graph))


class EventLoader:
    """`loader(row, epoch)` -> PyG Data of one event.

    Data: `x` [N, F] features; `track` [N] target number 0..n_tracks-1, or -1; `n_tracks` [1]; `hit_row` [N] rows in the
    event; `event_id` [1]; if wanted, `parameters` [n_tracks, 5] at the perigee (data/perigee.py). With a graph:
    `edge_index` [2, M] and, with `labels`, `edge_truth` [M], whether an edge is in the graph truth (data/truth.py).
    """

    def __init__(
        self,
        dataset: Dataset,
        features: list[str],
        selection: SelectionConfig,
        augmentation: AugmentConfig,
        stream: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        curriculum: Sequence[CurriculumStage] = (),
        parameters: bool = False,
        graph: Any = None,
        labels: bool = True,
    ) -> None:
        self.dataset = dataset
        self.features = features
        self.selection = selection
        self.augmentation = augmentation
        self.stream = stream
        self.dtype = dtype
        self.curriculum = curriculum
        self.feature_columns = feature_columns(features)
        check_symmetries(features, selection, augmentation)
        self.parameters = parameters
        self.graph = graph
        self.labels = labels
        self.columns = columns_read(features, parameters, graph.COLUMNS if graph else None)

    def __call__(self, row: int, epoch: int) -> Data:
        event = self.dataset.read(row, self.columns)
        rng = np.random.default_rng([*self.stream, epoch, event.event_id])
        selection = selecting.in_epoch(self.selection, self.curriculum, epoch)
        chosen = selecting.select(event, selection, rng, self.augmentation)
        columns = {name: event.column(name)[chosen.rows] for name in self.feature_columns}
        if self.parameters:
            columns |= {name: event.column(name)[chosen.particles].astype(np.float64) for name in perigee.COLUMNS}
        if self.augmentation.mirror:
            check_volumes(columns, self.features, f"{self.dataset.folder}: event {event.event_id}")
        columns = augment(columns, self.augmentation.rotate, self.augmentation.mirror, rng)
        data = to_data(event, compute_features(columns, self.features), chosen, self.dtype)
        if self.parameters:
            data.parameters = torch.from_numpy(perigee.perigee(columns, event.field_t)).to(self.dtype)
        if self.graph:
            edge_2M = self.graph(event, chosen.rows)
            data.edge_index = torch.from_numpy(edge_2M)
            if self.labels:
                true_2T = truth.graph_truth(event, chosen.rows)
                data.edge_truth = torch.from_numpy(truth.is_true(edge_2M, true_2T, len(chosen.rows)))
        return data


def to_data(event: Event, x: np.ndarray, chosen: selecting.Selected, dtype: torch.dtype) -> Data:
    """The in-memory event."""
    return Data(
        x=torch.from_numpy(x).to(dtype),
        track=torch.from_numpy(chosen.track.astype(np.int64)),
        n_tracks=torch.tensor([chosen.n_tracks]),
        hit_row=torch.from_numpy(chosen.rows.astype(np.int64)),
        event_id=torch.tensor([event.event_id]),
        num_nodes=len(chosen.rows),
    )


def expected_hits(dataset: Dataset, selection: SelectionConfig) -> np.ndarray:
    """Hits of each event that `selection` is expected to leave, float [n_events], from the index alone."""
    hits, share = (dataset.n_hits - dataset.n_noise).astype(np.float64), selection.noise_share
    if selection.noise:
        hits = hits + (dataset.n_noise if share is None else np.minimum(dataset.n_noise, share / (1 - share) * hits))
    if selection.tracks is None:
        return hits
    return hits * np.minimum(1.0, selection.tracks / np.maximum(dataset.n_particles, 1))


class MicroBatches(torch.utils.data.Dataset):
    """Map (epoch, rows) to a Batch, for a DataLoader whose sampler yields such specifications."""

    def __init__(self, load: EventLoader) -> None:
        self.load = load

    def __getitem__(self, specification: tuple[int, np.ndarray]) -> tuple[bytes, torch.Tensor] | Batch | Exception:
        """The batch, packed if it is to leave this process.

        A fault of the input or the disk is returned: raised in a worker, it would lose its one line.
        """
        epoch, rows = specification
        try:
            batch = Batch.from_data_list([self.load(int(row), epoch) for row in rows])
        except (InputError, OSError) as error:
            return error
        return pack(batch) if get_worker_info() else batch


def _leave_signals(rank: int, _: int) -> None:
    """In a reader process: a batch system, or Ctrl-C, signals it with its rank, which needs it to end in good order."""
    signals.leave_to(rank)


def iterate(
    load: EventLoader,
    specifications: Iterable[tuple[int, np.ndarray]],
    workers: int = 0,
    pin: bool = False,
    prefetch_factor: int = 2,
) -> Iterator[Batch]:
    """Batches for `(epoch, rows)` specifications, in order, each of `workers` processes `prefetch_factor` ahead.

    `pin` puts them into page-locked memory, from where they go to a GPU while it computes. Raises what reading raises,
    and MachineError if a worker dies.
    """
    loader = DataLoader(
        MicroBatches(load),
        sampler=specifications,
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        prefetch_factor=prefetch_factor if workers else None,
        worker_init_fn=functools.partial(_leave_signals, os.getpid()),
    )
    try:
        with signals.held():  # readers are born with them blocked
            batches = iter(loader)
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield unpack(batch) if workers else batch
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise MachineError(
            f"a reader process died, out of memory? ({error}; key 'data.workers' is {workers})"
        ) from error
