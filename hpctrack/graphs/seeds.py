"""Seeds: an edge from each hit of the innermost layer to every hit of the others, one after the other.

For models that see an image a seed (models/images/planes.py): its edges are all hits that may be of the seed's track.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from hpctrack.config import Section
from hpctrack.graphs.contracts import Graph
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset


class Seeds(Graph):
    """Edges from hits of one layer to those of all others, in the order of their ends."""

    class Options(Section):
        """Where seeds are."""

        layer: int = Field(0, ge=0, le=255, description="layer_id of the hits that are seeds")

    COLUMNS = ["hits.layer_id"]

    def __init__(self, options: Options, folder: Path | None = None, data: Dataset | None = None) -> None:
        self.options = options

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] among the hits `rows` [N] of an event, as numbers of these, 0..N-1."""
        is_seed = event.column("hits.layer_id")[rows] == self.options.layer
        seeds, others = np.flatnonzero(is_seed), np.flatnonzero(~is_seed)
        return np.stack([np.repeat(seeds, len(others)), np.tile(others, len(seeds))])
