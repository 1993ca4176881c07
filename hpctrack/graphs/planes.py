"""Segments between planes that follow each other along a beam: all pairs of hits within an angle to the beam axis.

As in T. Kortus et al., arXiv:2407.13420: 0.4 rad in the calorimeter, 0.2 rad where an end lies in a tracker.

Legend: N hits, M edges.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from hpctrack.config import Section
from hpctrack.graphs.contracts import Graph
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset


class Planes(Graph):
    """Edges from each plane (`layer_id`) to the next, in the order of their ends."""

    class Options(Section):
        """The angles, and where the trackers are."""

        angle_max_rad: float = Field(0.4, gt=0, lt=1.5, description="largest angle of an edge to the z axis")
        tracker_angle_max_rad: float = Field(0.2, gt=0, lt=1.5, description="the same where an end is in a tracker")
        tracker_volume: int = Field(
            1, ge=0, description="volume_id of the trackers; their edges are a subset of losses"
        )

    COLUMNS = ["hits.x", "hits.y", "hits.z", "hits.volume_id", "hits.layer_id"]

    def __init__(self, options: Options, folder: Path | None = None, data: Dataset | None = None) -> None:
        self.options = options

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] among the hits `rows` [N] of an event, as numbers of these, 0..N-1."""
        x, y, z = (event.column(f"hits.{axis}")[rows].astype(np.float64) for axis in "xyz")
        volume, layer = (event.column(f"hits.{name}")[rows] for name in ("volume_id", "layer_id"))
        order = np.argsort(layer, kind="stable")
        bounds = np.searchsorted(layer[order], np.arange(int(layer.max(initial=0)) + 2))
        parts = [np.zeros((2, 0), np.int64)]
        for plane in range(len(bounds) - 2):
            a, b = order[bounds[plane] : bounds[plane + 1]], order[bounds[plane + 1] : bounds[plane + 2]]
            across = np.hypot(x[a][:, None] - x[b], y[a][:, None] - y[b])
            tracker = (volume[a] == self.options.tracker_volume)[:, None] | (volume[b] == self.options.tracker_volume)
            most = np.where(tracker, self.options.tracker_angle_max_rad, self.options.angle_max_rad)
            i, j = np.nonzero(across < np.tan(most) * np.abs(z[a][:, None] - z[b]))
            parts.append(np.stack([a[i], b[j]]))
        edge_2M = np.concatenate(parts, axis=1).astype(np.int64)
        return edge_2M[:, np.lexsort(edge_2M[::-1])]

    def subsets(self, event: Event, rows: np.ndarray, edge_2M: np.ndarray) -> np.ndarray:
        """1 for an edge with an end in a tracker, 0 for others: int64 [M], over which losses take means apart."""
        tracker = event.column("hits.volume_id")[rows] == self.options.tracker_volume
        return tracker[edge_2M].any(axis=0).astype(np.int64)
