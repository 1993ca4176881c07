"""Edges that an earlier stage of a pipeline has found, as they were written (storage/edges.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

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
