"""Graphs: edges between an event's hits. One file a kind, one line here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from hpctrack.config import Named, Section, lookup, parse
from hpctrack.graphs.doublets import Doublets
from hpctrack.graphs.stored import StoredEdges
from hpctrack.graphs.true_edges import TrueEdges
from hpctrack.registry import Registry
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset


class Graph(Protocol):
    """Makes the edges of an event."""

    Options: ClassVar[type[Section]]  # the keys of the section `data.graph` besides `name`
    COLUMNS: ClassVar[Sequence[str]]  # of an event, that it reads, as `hits.r`
    n_edges: np.ndarray | None  # int [events of the dataset], whatever hits are selected; None: not known beforehand

    def __init__(self, options: Any, folder: Path, data: Dataset | None = None) -> None:
        """`options`: of `Options`; `folder`: of the dataset; `data`: that dataset, if it is open already."""

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] from inner to outer hits among the hits `rows` [N], ascending, as numbers 0..N-1 of these.

        The same edges in the same order each time.
        """


GRAPHS: Registry[type[Graph]] = Registry(
    "hpctrack.graphs", "graph", {"doublets": Doublets, "stored": StoredEdges, "truth": TrueEdges}
)


def build_graph(config: Named | None, folder: str | Path, data: Dataset | None = None) -> Graph | None:
    """What makes the graphs that section `data.graph` names, of the dataset in `folder`; None if it names none.

    `data`: that dataset, if it is open already.
    """
    if config is None:
        return None
    kind = lookup(GRAPHS, config.name, "data.graph")
    return kind(parse(kind.Options, config.options, "data.graph", "data.graph"), Path(folder), data)


def graph_columns(config: Named | None) -> list[str]:
    """The columns of an event that its graph needs."""
    return list(lookup(GRAPHS, config.name, "data.graph").COLUMNS) if config else []
