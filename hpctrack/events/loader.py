"""From a dataset row to PyG data: read only the columns the features need, select, augment.

Every random choice is drawn from (stream, epoch, event id): the same on any rank, in any worker and after a resume.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from hpctrack.config import AugmentConfig, CurriculumStage, DataConfig, EmphasisConfig, SelectionConfig
from hpctrack.division.divided import Place, divide
from hpctrack.division.sectors import cost_of_hits, sectors
from hpctrack.events import emphasis as emphasising
from hpctrack.events import lines, perigee, truth
from hpctrack.events import selection as selecting
from hpctrack.events.features import compute_features, feature_columns
from hpctrack.events.kept_hits import KeptHits
from hpctrack.events.symmetries import augment, check_symmetries, check_volumes
from hpctrack.storage.schema import Event
from hpctrack.storage.staging import stage
from hpctrack.storage.store import Dataset

PHI = "hits.phi"  # by which events are divided
TRUTH: dict[str, tuple[list[str], Callable[[Mapping[str, np.ndarray], float], np.ndarray]]] = {
    "parameters": (perigee.COLUMNS, perigee.perigee),
    "lines": (lines.COLUMNS, lines.lines),
}  # what can be known of targets: from which columns, and how, of these and the field in Tesla


def open_events(
    config: DataConfig,
    source: Dataset,
    local_rank: int = 0,
    of_tracks: Collection[str] = (),
    graph: list[str] | None = None,
) -> Dataset:
    """The dataset `source`, staged, held in memory and verified as section `data` asks; InputError if it is damaged.

    `of_tracks`: what is wanted of targets (TRUTH); `graph`: the columns that its kind of graph needs.
    """
    dataset = source
    if config.stage_to:
        dataset = source.at(stage(source.folder, config.stage_to, local_rank, source))
    dataset.verify = config.verify
    if config.in_memory:
        more = of_targets(of_tracks, config.emphasis)
        dataset.keep_in_memory(columns_of(dataset, config.features, more, graph))
    return dataset


def of_targets(of_tracks: Collection[str], emphasis: EmphasisConfig | None) -> list[str]:
    """The columns that say more of targets: what is wanted of them, and how much they count."""
    wanted = dict.fromkeys(column for name in of_tracks for column in TRUTH[name][0])
    return [*wanted, *emphasising.COLUMNS * (emphasis is not None and emphasis.wanted)]


def columns_read(features: list[str], targets: Sequence[str] = (), graph: list[str] | None = None) -> list[str]:
    """The columns of an event that features and selection need, those wanted of targets, and those of a `graph`.

    `graph`: the columns that this kind of graph needs; its truth needs some besides.
    """
    of_graph = graph + truth.COLUMNS if graph else []
    return list(dict.fromkeys([*feature_columns(features), *selecting.COLUMNS, *targets, *of_graph]))


class EventGraph(Protocol):
    """What makes an event's edges, as far as a loader needs it (graphs/contracts.py)."""

    COLUMNS: ClassVar[Sequence[str]]  # of an event, that it reads

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray | torch.Tensor:
        """Edges int64 [2, M] among the hits `rows` [N] of an event, as numbers of these; a tensor is where it stays."""

    def of_part(
        self, event: Event, rows: np.ndarray, owners: Callable[[np.ndarray], np.ndarray], number: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Whose each hit of a divided event is, [N], and the edges with an end that is rank `number`'s, [2, M]."""

    def subsets(self, event: Event, rows: np.ndarray, edge_2M: np.ndarray) -> np.ndarray | None:
        """The subset of each edge, int64 [M], or None."""


def columns_of(
    data: Dataset,
    features: list[str],
    targets: Sequence[str] = (),
    graph: list[str] | None = None,
    labels: bool = True,
) -> list[str]:
    """The same of a dataset, without what it lacks and nothing is computed with; no `labels`: edges without truth."""
    needed = feature_columns(features) + [*targets] + (graph or []) + truth.COLUMNS * labels
    found = columns_read(features, targets, graph)
    chosen = selecting.readable(data, selecting.COLUMNS)
    return list(dict.fromkeys([name for name in found if name in data.columns or name in needed] + chosen))


class EventLoader:
    """`loader(row, epoch)` -> PyG Data of one event, of its `kept` hits.

    Data: `x` [N, F] features; `track` [N] target number 0..n_tracks-1, or -1; `n_tracks` [1]; `hit_row` [N] rows in the
    event; `event_id` [1]; if in `of_tracks`, `parameters` [n_tracks, 5] at the perigee (events/perigee.py) and `lines`
    [n_tracks, 4] (events/lines.py); if wanted, `track_weight` [n_tracks] (events/emphasis.py). With a graph:
    `edge_index` [2, M] and, with `labels`, `edge_truth` [M], whether an edge is in the graph truth (events/truth.py);
    `edge_subset` [M] if its kind of graph has subsets of edges.
    """

    def __init__(
        self,
        dataset: Dataset,
        features: list[str],
        selection: SelectionConfig,
        augmentation: AugmentConfig,
        stream: tuple[int, ...],
        *,
        dtype: torch.dtype = torch.float32,
        curriculum: Sequence[CurriculumStage] = (),
        kept: KeptHits | None = None,
        of_tracks: Collection[str] = (),
        emphasis: EmphasisConfig | None = None,
        graph: EventGraph | None = None,
        labels: bool = True,
    ) -> None:
        self.dataset = dataset
        self.features = features
        self.draw = selecting.Draw(selection, stream, augmentation, curriculum, kept)
        self.augmentation = augmentation
        self.stream = stream
        self.dtype = dtype
        self.feature_columns = feature_columns(features)
        check_symmetries(features, selection, augmentation, dataset.detector)
        self.of_tracks = tuple(of_tracks)
        self.emphasis = emphasis if emphasis is not None and emphasis.wanted else None
        self.graph = graph
        self.labels = labels
        targets = of_targets(of_tracks, emphasis)
        self.columns = columns_of(dataset, features, targets, list(graph.COLUMNS) if graph else None, labels)

    def __call__(self, row: int, epoch: int) -> Data:
        """One event."""
        return self.load(self.dataset.read(row, self.columns), epoch)

    def part(self, row: int, epoch: int, place: Place) -> Batch:
        """One rank's part of an event that several hold together: by sectors of azimuth of about equal cost.

        Of its edges only those with an end among this rank's hits are made, as far as the kind of graph can do so.
        """
        event = self._with_phi(row)
        data = self.hits(event, epoch)
        rows = data.hit_row.numpy()
        owners = partial(sectors, event.column(PHI)[rows], parts=place.of)
        if self.graph is None:
            owner_N = owners(cost_of_hits(len(rows), None))
        else:
            owner_N, edge_2M = self.graph.of_part(event, rows, owners, place.number)
            self.add_edges(data, event, edge_2M)
        return divide(data, torch.from_numpy(owner_N), place)

    def whole_and_part(self, row: int, epoch: int, place: Place) -> tuple[Data, Batch]:
        """The event as `__call__` gives it, and a rank's part of it."""
        event = self._with_phi(row)
        data = self.load(event, epoch)
        edge_2M = data.edge_index.cpu().numpy() if self.graph else None
        cost_N = cost_of_hits(data.num_nodes, edge_2M)
        owner_N = sectors(event.column(PHI)[data.hit_row.numpy()], cost_N, place.of)
        return data, divide(data, torch.from_numpy(owner_N), place)

    def _with_phi(self, row: int) -> Event:
        """An event and what it is divided by."""
        return self.dataset.read(row, list(dict.fromkeys([*self.columns, PHI])))

    def load(self, event: Event, epoch: int) -> Data:
        """Data of an event that was read."""
        data = self.hits(event, epoch)
        if self.graph:
            self.add_edges(data, event, self.graph(event, data.hit_row.numpy()))
        return data

    def add_edges(self, data: Data, event: Event, edges: np.ndarray | torch.Tensor) -> None:
        """Give an event's data its `edges` [2, M], and with `labels` their truth."""
        data.edge_index = torch.as_tensor(edges)
        if self.labels:
            rows, edge_2M = data.hit_row.numpy(), data.edge_index.cpu().numpy()
            true_2T = truth.graph_truth(event, rows)
            data.edge_truth = torch.from_numpy(truth.is_true(edge_2M, true_2T, len(rows)))
            subset_M = self.graph.subsets(event, rows, edge_2M) if self.graph else None
            if subset_M is not None:
                data.edge_subset = torch.from_numpy(subset_M)

    def hits(self, event: Event, epoch: int) -> Data:
        """Data of an event that was read, without edges."""
        chosen, rng = self.draw(event, epoch)
        columns = {name: event.column(name)[chosen.rows] for name in self.feature_columns}
        for name in of_targets(self.of_tracks, None):
            columns[name] = event.column(name)[chosen.particles].astype(np.float64)
        if self.augmentation.mirror:
            where = f"{self.dataset.folder}: event {event.event_id}"
            check_volumes(columns, self.features, where, self.dataset.detector)
        columns = augment(
            columns, self.augmentation.rotate, self.augmentation.mirror, rng, detector=self.dataset.detector
        )
        data = to_data(event, compute_features(columns, self.features), chosen, self.dtype)
        for name in self.of_tracks:
            data[name] = torch.from_numpy(TRUTH[name][1](columns, event.field_t)).to(self.dtype)
        if self.emphasis:
            data.track_weight = torch.from_numpy(emphasising.track_weights(event, chosen, self.emphasis)).to(self.dtype)
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
