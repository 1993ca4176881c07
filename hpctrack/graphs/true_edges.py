"""The true edges themselves, which metric learning learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpctrack.config import Section
from hpctrack.events import truth
from hpctrack.graphs.contracts import Graph
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset


class TrueEdges(Graph):
    """Graph truth (events/truth.py)."""

    class Options(Section):
        """None."""

    COLUMNS = truth.COLUMNS

    def __init__(self, options: Options, folder: Path | None = None, data: Dataset | None = None) -> None:
        self.options = options

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] among the hits `rows` [N] of an event, as numbers of these, 0..N-1."""
        return truth.graph_truth(event, rows)
