"""Edges that an earlier stage of a pipeline has found: written (storage/edges.py), or passed on in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hpctrack.config import Section
from hpctrack.division.sectors import cost_of_hits
from hpctrack.graphs.contracts import Graph, Owners
from hpctrack.storage.edges import EDGES, Edges, EdgeStore
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

COLUMNS = ["hits.r", "hits.z"]


class StoredEdges(Graph):
    """The stored edges among an event's selected hits, from the hit that is nearer to the origin to the other."""

    class Options(Section):
        """Which edges, and which of them."""

        edges: str = Field(description="name of a folder in the dataset's folder `edges`, or a path")
        score_min: float = Field(0.0, ge=0, le=1, description="leave out edges with a lower score")

    COLUMNS = COLUMNS

    def __init__(self, options: Options, folder: Path, data: Dataset | None = None) -> None:
        self.options = options
        self.store, dataset = EdgeStore(EDGES.folder_of(options.edges, folder)), data or Dataset(folder)
        self.store.check_made_for(folder, dataset.fingerprint)
        rows = [self.store.position[int(event)] for event in dataset.event_ids]
        self.n_edges = self.store.n_edges[rows]  # of each event of the dataset, whatever is selected

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] among the hits `rows` [N] of an event, ascending, as numbers of these, 0..N-1."""
        return edges_among(event, rows, self.store.of_event(event.event_id), self.options.score_min)

    def of_part(self, event: Event, rows: np.ndarray, owners: Owners, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As the contract says; other ranks' edges are read and left where they are."""
        return part_among(
            event, rows, self.store.of_event(event.event_id), self.options.score_min, owners=owners, number=number
        )


class EdgeTensors(NamedTuple):
    """Edges of one event on the device where they were found: rows of its hit tables, int64 [M], and scores [M]."""

    event_id: int
    sender: Tensor
    receiver: Tensor
    score: Tensor

    def stored(self) -> Edges:
        """As they are written."""
        sender, receiver = (end.int().cpu().numpy() for end in (self.sender, self.receiver))
        return Edges(self.event_id, sender, receiver, self.score.float().cpu().numpy())


class PassedEdges:
    """As StoredEdges, of the one event whose edges are `found`; they stay on the device that they are on."""

    COLUMNS: ClassVar[Sequence[str]] = COLUMNS
    found: Edges | EdgeTensors  # of the event that is asked for next

    def __init__(self, options: StoredEdges.Options) -> None:
        self.options = options

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray | Tensor:
        """Edges int64 [2, M] among the hits `rows` [N], as numbers of these."""
        if isinstance(self.found, Edges):
            return edges_among(event, rows, self.found, self.options.score_min)
        return tensors_among(event, rows, self.found, self.options.score_min)

    def of_part(self, event: Event, rows: np.ndarray, owners: Owners, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As Graph.of_part (graphs/contracts.py)."""
        found = self.found if isinstance(self.found, Edges) else self.found.stored()
        return part_among(event, rows, found, self.options.score_min, owners=owners, number=number)

    def subsets(self, event: Event, rows: np.ndarray, edge_2M: np.ndarray) -> None:
        """There are none."""


def tensors_among(event: Event, rows: np.ndarray, found: EdgeTensors, score_min: float) -> Tensor:
    """As `edges_among`, on the device of the edges."""
    device = found.score.device
    number_N = torch.full((event.n_hits,), -1, device=device)
    number_N[torch.from_numpy(rows).to(device)] = torch.arange(len(rows), device=device)
    begin, end = number_N[found.sender], number_N[found.receiver]
    inside = (begin >= 0) & (end >= 0) & (found.score >= score_min)
    begin, end = begin[inside], end[inside]
    square_N = torch.from_numpy(square_of_distance(event, rows)).to(device)
    inward = square_N[begin] > square_N[end]
    return torch.stack([torch.where(inward, end, begin), torch.where(inward, begin, end)])


def edges_among(event: Event, rows: np.ndarray, found: Edges, score_min: float) -> np.ndarray:
    """The `found` edges among an event's hits `rows` [N], as numbers of these, int64 [2, M]; all lead outwards."""
    return outward(event, rows, *ends_among(event, rows, found, score_min))


def part_among(
    event: Event, rows: np.ndarray, found: Edges, score_min: float, *, owners: Owners, number: int
) -> tuple[np.ndarray, np.ndarray]:
    """As Graph.of_part (graphs/contracts.py), of the `found` edges."""
    begin, end = ends_among(event, rows, found, score_min)
    owner_N = owners(cost_of_hits(len(rows), np.stack([begin, end])))
    own_N = owner_N == number
    own = own_N[begin] | own_N[end]
    return owner_N, outward(event, rows, begin[own], end[own])


def ends_among(event: Event, rows: np.ndarray, found: Edges, score_min: float) -> tuple[np.ndarray, np.ndarray]:
    """Both ends, int32 [M], of the `found` edges among an event's hits `rows` [N], as numbers of these."""
    number = np.full(event.n_hits, -1, dtype=np.int32)
    number[rows] = np.arange(len(rows), dtype=np.int32)
    begin = number[found.sender]
    left = np.flatnonzero((begin >= 0) & (found.score >= score_min))  # of a sector few, which makes the rest cheap
    end = number[found.receiver[left]]
    inside = end >= 0
    return begin[left[inside]], end[inside]


def outward(event: Event, rows: np.ndarray, begin: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Edges int64 [2, M] from the end that is nearer to the origin to the other."""
    square = square_of_distance(event, rows)
    inward = square[begin] > square[end]
    return np.stack([np.where(inward, end, begin), np.where(inward, begin, end)]).astype(np.int64)


def square_of_distance(event: Event, rows: np.ndarray) -> np.ndarray:
    """Of hits from the origin, fp64 [N]."""
    r, z = (event.column(name)[rows].astype(np.float64) for name in COLUMNS)
    return r**2 + z**2
