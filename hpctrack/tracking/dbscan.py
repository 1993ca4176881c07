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
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from sklearn.cluster import DBSCAN

from hpctrack.config import Section
from hpctrack.evaluation.matching import exclusive_lists
from hpctrack.storage.schema import Candidates, Event
from hpctrack.tracking.builder import PAIRS_ALWAYS, from_lists

CHUNK = 1 << 21  # pairs at a time, where there are more than fit


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
        tree = cKDTree(points_N3)
        if tree.count_neighbors(tree, self.options.eps) > PAIRS_ALWAYS:
            return labels_in_chunks(tree, self.options.eps, self.options.min_samples)
        search = DBSCAN(eps=self.options.eps, min_samples=self.options.min_samples, algorithm="kd_tree")
        return search.fit_predict(points_N3)


def labels_in_chunks(tree: cKDTree, eps: float, min_samples: int) -> np.ndarray:
    """What DBSCAN says of the points of `tree`, int64 [N], -1 = noise, with no more than CHUNK pairs in memory.

    Or those of one point. Cores that are neighbours are joined chunk by chunk; a point that is no core goes to the
    lowest cluster that has a core beside it; clusters are numbered by their first core.
    """
    points, n = tree.data, tree.n
    size = tree.query_ball_point(points, eps, return_length=True)
    core = size >= min_samples
    cuts = np.searchsorted(np.cumsum(size), np.arange(CHUNK, size.sum(), CHUNK))
    joined, chunks = np.arange(n), np.split(np.arange(n), cuts)
    for rows in filter(len, chunks):
        i, j = pairs(tree, rows, eps)
        both = core[i] & core[j]
        ends = np.append(i[both], np.arange(n)), np.append(j[both], joined)
        graph = coo_matrix((np.ones(len(ends[0]), np.int8), ends), shape=(n, n))
        label = connected_components(graph, directed=False)[1]
        joined = np.unique(label, return_index=True)[1][label]
    found = np.full(n, n)
    found[core] = np.unique(joined[core], return_inverse=True)[1]
    for rows in filter(len, (rows[~core[rows]] for rows in chunks)):
        i, j = pairs(tree, rows, eps)
        np.minimum.at(found, i[core[j]], found[j[core[j]]])
    return np.where(found == n, -1, found)


def pairs(tree: cKDTree, rows: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Points `rows` of a tree, and those within `eps` of them, themselves among these."""
    near = cKDTree(tree.data[rows]).sparse_distance_matrix(tree, eps, output_type="ndarray")
    return rows[near["i"]], near["j"]
