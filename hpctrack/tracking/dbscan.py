"""Method `dbscan`: DBSCAN on the hits' directions, the plain clustering that trackers are compared with.

Hits of a straight track from the origin share a direction, so those of stiff tracks lie close together in (cos phi,
sin phi, pseudorapidity). TrackML's starting kit clusters directions, too, as (x / R, y / R, z / r).
Ester, Kriegel, Sander, Xu, "A density-based algorithm", KDD 1996; M. Kiehn et al., "The TrackML challenge", 2019.
"""

from __future__ import annotations

import time
from typing import ClassVar

import numpy as np
from pydantic import Field
from sklearn.cluster import DBSCAN

from hpctrack.config import Section
from hpctrack.data.schema import Candidates, Event
from hpctrack.tracking.lists import from_lists
from hpctrack.tracking.matching import exclusive_lists


class Dbscan:
    """Clusters are candidates; none overlap. A candidate's score is its number of hits."""

    class Options(Section):
        """The best `eps` falls with the number of hits; 0.007 is for full mu = 200 events."""

        eps: float = Field(0.007, gt=0, description="hits closer than this are neighbours")
        eta_weight: float = Field(6.0, gt=0, description="of pseudorapidity against cos phi and sin phi")
        min_samples: int = Field(2, ge=1, description="neighbours, itself among them, that make a hit a core")
        min_hits: int = Field(3, ge=1, description="smaller clusters are no candidates")

    COLUMNS: ClassVar = ["hits.phi", "hits.eta"]

    def __init__(self, options: Options) -> None:
        self.options = options

    def reconstruct(self, event: Event, rows: np.ndarray) -> tuple[Candidates, dict[str, float]]:
        """Candidates from the hits `rows` [N] of an event, and the seconds of each part."""
        times = [time.perf_counter()]
        phi, eta = (event.column(name)[rows].astype(np.float64) for name in self.COLUMNS)
        points_N3 = np.stack([np.cos(phi), np.sin(phi), self.options.eta_weight * eta], axis=1)
        labels = self._labels(points_N3)
        times.append(time.perf_counter())
        offsets, places = exclusive_lists(labels + 1)
        lists = [rows[one] for one in np.split(places, offsets[1:-1]) if len(one) >= self.options.min_hits]
        found = from_lists(lists, list(map(len, lists)), event.n_hits, event.event_id, self.options.min_hits)
        times.append(time.perf_counter())
        return found, dict(zip(("cluster_s", "build_s"), np.diff(times).tolist(), strict=True))

    def _labels(self, points_N3: np.ndarray) -> np.ndarray:
        if not len(points_N3):
            return np.zeros(0, np.int64)
        search = DBSCAN(eps=self.options.eps, min_samples=self.options.min_samples, algorithm="kd_tree")
        return search.fit_predict(points_N3)
