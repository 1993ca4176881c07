"""Builders on scored edges: density-based clustering with 1 - probability as the distance along an edge (scikit-learn).

M. Ester et al., "A density-based algorithm", KDD 1996; R. Campello et al., "Density-based clustering based on
hierarchical density estimates", PAKDD 2013. Both are used on GNN scores in acorn and gnn_tracking.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field
from scipy.sparse import coo_matrix, csr_matrix

from hpctrack.tracking.components import EdgeBuilder, components, first_of_runs

NEAREST = 1e-9  # least distance: sparse matrices drop zeros
APART = 2.0  # distance between components, above every other


class DbscanBuilder(EdgeBuilder):
    """DBSCAN: hits with enough neighbours within 1 - cut are cores; what cores reach is a group."""

    class Options(EdgeBuilder.Options):
        """With 1 neighbour enough, groups are connected components."""

        min_samples: int = Field(3, ge=1, description="hits within reach, itself among them, that make a hit a core")

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit."""
        from sklearn.cluster import DBSCAN  # here, since it takes a second to load

        search = DBSCAN(eps=1 - self.options.cut, min_samples=self.options.min_samples, metric="precomputed")
        return search.fit_predict(distances(edge_2M, probability_M)).astype(np.int64)


class HdbscanBuilder(EdgeBuilder):
    """HDBSCAN: the most stable groups over all cuts above the lowest one."""

    class Options(EdgeBuilder.Options):
        """The smallest group is also the smallest candidate."""

        selection: str = Field("eom", pattern="^(eom|leaf)$", description="groups: by excess of mass, or the finest")

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit; core distances are those to the nearest neighbour."""
        from sklearn.cluster import HDBSCAN  # here, since it takes a second to load

        n = int(edge_2M.max()) + 1
        seen = np.unique(edge_2M)
        label_N = np.full(n, -1, dtype=np.int64)
        if len(seen) < max(2, self.options.min_hits):
            return label_N
        edge_2M = np.searchsorted(seen, edge_2M)
        component = components(edge_2M, len(seen))
        order = np.argsort(component, kind="stable")
        first = order[first_of_runs(component[order])[0]]
        bridges = np.stack([first[:-1], first[1:]])  # it takes one connected graph
        near = distances(
            np.concatenate([edge_2M, bridges], axis=1), np.append(probability_M, np.full(bridges.shape[1], 1 - APART))
        )
        search = HDBSCAN(
            min_cluster_size=max(2, self.options.min_hits),
            min_samples=2,
            metric="precomputed",
            cluster_selection_method=self.options.selection,
            allow_single_cluster=bridges.shape[1] == 0,
            copy=True,
        )
        label_N[seen] = search.fit_predict(near)
        return label_N


def distances(edge_2M: np.ndarray, probability_M: np.ndarray) -> csr_matrix:
    """Symmetric 1 - probability [N, N], rows sorted; of several edges between two hits the shortest. Diagonal: 0."""
    n = int(edge_2M.max()) + 1
    distance = np.maximum(1 - probability_M, NEAREST)
    i, j, d = np.append(*edge_2M), np.append(*edge_2M[::-1]), np.append(distance, distance)
    order = np.lexsort((d, j, i))
    i, j, d = i[order], j[order], d[order]
    first = first_of_runs(i * n + j)[0]
    keep = first[i[first] != j[first]]
    own = np.arange(n)
    rows, cols, values = np.append(i[keep], own), np.append(j[keep], own), np.append(d[keep], np.zeros(n))
    return coo_matrix((values, (rows, cols)), shape=(n, n)).tocsr()
