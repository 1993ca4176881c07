"""Graphs: edges between an event's hits. One file a kind, one line here.

`graph(event, rows) -> edges int64 [2, M]` among the hits `rows` [N] of an event, as numbers of these; `COLUMNS` is what
it reads; `n_edges` [n_events], if it knows them beforehand, else None.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpctrack.config import Named, lookup, parse
from hpctrack.graphs.doublets import Doublets
from hpctrack.graphs.stored import StoredEdges
from hpctrack.graphs.true_edges import TrueEdges
from hpctrack.storage.store import Dataset

GRAPHS: dict[str, Any] = {"doublets": Doublets, "stored": StoredEdges, "truth": TrueEdges}


def build_graph(config: Named | None, folder: str | Path, data: Dataset | None = None) -> Any:
    """What makes the graphs that section `data.graph` names, of the dataset in `folder`; None if it names none.

    `data`: that dataset, if it is open already.
    """
    if config is None:
        return None
    kind = lookup(GRAPHS, config.name, "data.graph")
    return kind(parse(kind.Options, config.options, "data.graph", "data.graph"), Path(folder), data)


def graph_columns(config: Named | None) -> list[str]:
    """The columns of an event that its graph needs."""
    return lookup(GRAPHS, config.name, "data.graph").COLUMNS if config else []
