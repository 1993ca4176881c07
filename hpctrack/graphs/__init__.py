"""Graphs: edges between an event's hits. One file a kind, one line here."""

from __future__ import annotations

from pathlib import Path

from hpctrack.config import Named, lookup, parse
from hpctrack.graphs.contracts import Graph
from hpctrack.graphs.doublets import Doublets
from hpctrack.graphs.planes import Planes
from hpctrack.graphs.seeds import Seeds
from hpctrack.graphs.stored import StoredEdges
from hpctrack.graphs.true_edges import TrueEdges
from hpctrack.registry import Registry
from hpctrack.storage.store import Dataset

GRAPHS: Registry[type[Graph]] = Registry(
    "hpctrack.graphs",
    "graph",
    {"doublets": Doublets, "planes": Planes, "seeds": Seeds, "stored": StoredEdges, "truth": TrueEdges},
)

__all__ = ["GRAPHS", "Graph", "build_graph", "graph_columns"]


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
