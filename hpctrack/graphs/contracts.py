"""What makes the edges of an event: the base class of all that do, whose methods each of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from hpctrack.config import Section
from hpctrack.division.sectors import cost_of_hits
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset

Owners = Callable[[np.ndarray], np.ndarray]  # whose each hit is, int64 [N], given what each costs, [N]


class Graph:
    """Makes the edges of an event."""

    Options: ClassVar[type[Section]]  # the keys of the section `data.graph` besides `name`
    COLUMNS: ClassVar[Sequence[str]]  # of an event, that it reads, as `hits.r`
    n_edges: np.ndarray | None = None  # int [events of the dataset], whatever is selected; None: not known beforehand

    def __init__(self, options: Any, folder: Path, data: Dataset | None = None) -> None:
        """`options`: of `Options`; `folder`: of the dataset; `data`: that dataset, if it is open already."""
        raise NotImplementedError

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] from inner to outer hits among the hits `rows` [N], ascending, as numbers 0..N-1 of these.

        The same edges in the same order each time.
        """
        raise NotImplementedError

    def of_part(self, event: Event, rows: np.ndarray, owners: Owners, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Whose each hit of a divided event is, int64 [N]; and the edges with an end that is rank `number`'s, [2, M].

        `owners` divides the hits, given about what each costs. Edges are in the order, and in the numbers, of all. This
        makes all of them first; a kind that need not do so overrides it.
        """
        edge_2M = self(event, rows)
        owner_N = owners(cost_of_hits(len(rows), edge_2M))
        return owner_N, edge_2M[:, (owner_N[edge_2M] == number).any(axis=0)]

    def subsets(self, event: Event, rows: np.ndarray, edge_2M: np.ndarray) -> np.ndarray | None:
        """The subset of each edge, int64 [M] from 0, over which losses may take means apart; None: there are none."""
        return None
