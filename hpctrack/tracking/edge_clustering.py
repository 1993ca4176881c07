"""Builders on scored edges: connected components of what passes a cut, walks through those that branch, and
density-based clustering with 1 - probability as the distance along an edge (scikit-learn).

M. Ester et al., "A density-based algorithm", KDD 1996; R. Campello et al., "Density-based clustering based on
hierarchical density estimates", PAKDD 2013. Both are used on GNN scores in acorn and gnn_tracking.

Outputs: `edge_score` [M], logits, of `edge_index` [2, M], from the inner to the outer hit.

Legend: N hits, M edges that pass the cut, C candidates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from hpctrack.errors import InputError
from hpctrack.tracking import edge_clustering_on_device as on_device
from hpctrack.tracking.builder import BaseBuilder, Lists, Outputs
from hpctrack.tracking.on_device import TensorLists, Tensors

WITHOUT_EDGES = "section 'builder': this builder needs the edges' scores; take a model that scores edges"
CIRCLE = "builder 'walk': edges make a circle; it needs edges that lead from inner to outer hits"


class EdgeBuilder(BaseBuilder):
    """What builders on edges share; each says how hits become groups: `groups(edge_2M, probability_M) -> label [N]`.

    A hit's label is the number of its group from 0, or -1. Groups do not overlap. A candidate's score is the mean
    probability of the edges within it.
    """

    class Options(BaseBuilder.Options):
        """The cut, and the smallest candidate that counts."""

        cut: float | None = Field(None, gt=0, lt=1, description="edges must be as probable; null: tuned after training")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        return [{"cut": cut} for cut in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)]

    def lists(self, outputs: Outputs) -> Lists:
        """Groups of at least `min_hits` hits, from `edge_score` [M] and `edge_index` [2, M], by their first hits."""
        if "edge_index" not in outputs:
            raise InputError(WITHOUT_EDGES)
        edge_2M, probability_M = outputs["edge_index"], sigmoid(outputs["edge_score"])
        passed = probability_M >= self.options.cut
        edge_2M, probability_M = edge_2M[:, passed], probability_M[passed]
        label_N = self.groups(edge_2M, probability_M) if edge_2M.size else np.zeros(0, dtype=np.int64)
        return labelled(label_N, edge_2M, probability_M, self.options.min_hits)

    def lists_on_device(self, outputs: Tensors) -> TensorLists:
        """As `lists`, of tensors, where these are."""
        if "edge_index" not in outputs:
            raise InputError(WITHOUT_EDGES)
        edge_2M, probability_M = outputs["edge_index"], on_device.sigmoid(outputs["edge_score"])
        passed = probability_M >= self.options.cut
        edge_2M, probability_M = edge_2M[:, passed], probability_M[passed]
        label_N = self.groups_on_device(edge_2M, probability_M) if edge_2M.shape[1] else edge_2M.new_zeros(0)
        return on_device.labelled(label_N, edge_2M, probability_M, self.options.min_hits)

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit."""
        raise NotImplementedError

    def groups_on_device(self, edge_2M: Tensor, probability_M: Tensor) -> Tensor:
        """As `groups`, of tensors, where these are; labels are below N."""
        raise NotImplementedError


class ComponentsBuilder(EdgeBuilder):
    """Connected components are candidates."""

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit: its component."""
        return components(edge_2M, int(edge_2M.max()) + 1)

    def groups_on_device(self, edge_2M: Tensor, probability_M: Tensor) -> Tensor:
        """Label [N] of each hit: the first hit of its component."""
        return on_device.components(edge_2M, int(edge_2M.max()) + 1)


class WalkBuilder(EdgeBuilder):
    """The best paths one after the other, each without the hits of those before it.

    The best path is the one from inner to outer hits with the largest sum of edge probabilities, so the longest if
    edges are sure of themselves. A component that does not branch is one path; the others are walked through. A path
    that no better one shares a hit with stays as it is until its turn comes, so all such paths are taken at a time, and
    then what is left is looked at again. The idea is Exa.TrkX's (CC and walk-through, X. Ju et al., arXiv:2103.06995),
    whose paths are found greedily, hit by hit.

    A path has one hit of each layer, but where modules overlap a track has two: a hit beside the paths just taken goes
    to one of them if an edge as probable as `join` leads there, and to that with the largest sum of probabilities.
    """

    class Options(EdgeBuilder.Options):
        """The cut, and what joins a path."""

        join: float | None = Field(
            0.5,
            gt=0,
            le=1,
            description="probability of an edge by which a hit beside a path joins it; null: paths alone",
        )

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit: the last hit of its path."""
        n = int(edge_2M.max()) + 1
        circle = connected_components(adjacency(edge_2M, n), connection="strong")[0] < n
        if circle or (edge_2M[0] == edge_2M[1]).any():
            raise InputError(CIRCLE)
        weight_M = np.rint(probability_M * 2**40).astype(np.int64) + 1  # sums are exact in any order
        least = np.inf if self.options.join is None else self.options.join
        label_N = np.full(n, -1, dtype=np.int64)
        while edge_2M.shape[1]:
            hit, label, value_N = undisputed_paths(edge_2M, weight_M, n)
            label_N[hit] = label
            hit, label = beside(label_N, value_N, edge_2M, weight_M, probability_M >= least)
            label_N[hit] = label
            left = (label_N[edge_2M] < 0).all(axis=0)
            edge_2M, weight_M, probability_M = edge_2M[:, left], weight_M[left], probability_M[left]
        return label_N

    def groups_on_device(self, edge_2M: Tensor, probability_M: Tensor) -> Tensor:
        """Label [N] of each hit: the last hit of its path."""
        n = int(edge_2M.max()) + 1
        if on_device.has_circle(edge_2M, n):
            raise InputError(CIRCLE)
        return on_device.walks(edge_2M, probability_M, n, self.options.join)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), fp64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))


def adjacency(edge_2M: np.ndarray, n: int) -> coo_matrix:
    """Ones [n, n] where there are edges."""
    return coo_matrix((np.ones(edge_2M.shape[1], dtype=np.int8), tuple(edge_2M)), shape=(n, n))


def components(edge_2M: np.ndarray, n: int) -> np.ndarray:
    """Number of the connected component of each of `n` hits."""
    return connected_components(adjacency(edge_2M, n), directed=False)[1].astype(np.int64)


def undisputed_paths(edge_2M: np.ndarray, weight_M: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hits of the paths that no better path shares a hit with, the last hit of the path of each, sums of weights [n].

    The sums are those of the best path to each hit: at a path's last hit, its own. Of equally good paths that
    share a hit the one with the lowest last hit stands.
    """
    value, before = best_sums(edge_2M, weight_M, n)
    through = value + best_sums(edge_2M[::-1], weight_M, n)[0]  # of the best path through each hit
    last = np.flatnonzero((value > 0) & (through == value))
    hits, labels, at, end = [], [], last, last
    while len(at):
        hits.append(at)
        labels.append(end)
        at = before[at]
        at, end = at[at >= 0], end[at >= 0]
    hit, label = np.concatenate(hits), np.concatenate(labels)
    lost = np.zeros(n, dtype=bool)
    lost[label[through[hit] != value[label]]] = True
    hit, label = hit[~lost[label]], label[~lost[label]]
    owner = np.full(n, n)
    np.minimum.at(owner, hit, label)
    lost[label[owner[hit] != label]] = True
    return hit[~lost[label]], label[~lost[label]], value


def beside(
    label_N: np.ndarray, value_N: np.ndarray, edge_2M: np.ndarray, weight_M: np.ndarray, strong_M: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Hits without a label that a strong edge joins to a labelled one, and the label of the largest sum of weights.

    Of labels with the same sum the one of the largest value, then the lowest.
    """
    here, there = np.concatenate([edge_2M, edge_2M[::-1]], axis=1)
    m = np.flatnonzero((label_N[here] < 0) & (label_N[there] >= 0))
    if not np.tile(strong_M, 2)[m].any():
        return m[:0], m[:0]
    hit, label, weight, joins = here[m], label_N[there[m]], np.tile(weight_M, 2)[m], np.tile(strong_M, 2)[m]
    order = np.lexsort((label, hit))
    hit, label, weight, joins = hit[order], label[order], weight[order], joins[order]
    start, _ = first_of_runs(hit * len(label_N) + label)
    total = np.add.reduceat(weight, start)
    start, total = (values[np.logical_or.reduceat(joins, start)] for values in (start, total))
    hit, label = hit[start], label[start]
    best = np.lexsort((label, -value_N[label], -total, hit))
    best = best[first_of_runs(hit[best])[0]]
    return hit[best], label[best]


def best_sums(edge_2M: np.ndarray, weight_M: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest sum of weights of a path to each hit, int64 [n], and the hit before it on that path, or -1.

    Dynamic programming: the best path to a hit is one edge longer than the best path to some hit before it.
    """
    order = np.lexsort((edge_2M[0], edge_2M[1]))
    (source, target), weight_M = edge_2M[:, order], weight_M[order]
    start, reached = first_of_runs(target)
    value = np.zeros(n, dtype=np.int64)
    while True:
        longer = np.maximum.reduceat(value[source] + weight_M, start)
        if np.array_equal(longer, value[reached]):
            break
        value[reached] = longer
    best = np.flatnonzero(value[source] + weight_M == value[target])[::-1]
    before = np.full(n, -1, dtype=np.int64)
    before[target[best]] = source[best]  # of equal ones the first stays
    return value, before


def first_of_runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values begin, and these values."""
    start = np.flatnonzero(np.append(True, values[1:] != values[:-1]))
    return start, values[start]


def labelled(label_N: np.ndarray, edge_2M: np.ndarray, probability_M: np.ndarray, min_hits: int) -> Lists:
    """Groups of at least `min_hits` hits as candidates, in the order of their first hits."""
    hit = np.flatnonzero(label_N >= 0)
    _, first, group = np.unique(label_N[hit], return_index=True, return_inverse=True)
    size = np.bincount(group, minlength=len(first))
    rank = np.full(len(first), -1, dtype=np.int64)
    kept = np.flatnonzero(size >= min_hits)
    kept = kept[np.argsort(first[kept])]
    rank[kept] = np.arange(len(kept))
    number_N = np.full(len(label_N), -1, dtype=np.int64)
    number_N[hit] = rank[group]
    hit = np.flatnonzero(number_N >= 0)
    rows = hit[np.argsort(number_N[hit], kind="stable")]
    inside = (number_N[edge_2M[0]] == number_N[edge_2M[1]]) & (number_N[edge_2M[0]] >= 0)
    of_edge = number_N[edge_2M[0, inside]]
    edges = np.bincount(of_edge, minlength=len(kept))
    total = np.bincount(of_edge, probability_M[inside], minlength=len(kept))
    offsets = np.concatenate([[0], np.cumsum(size[kept])]).astype(np.int64)
    return Lists(offsets, rows, total / np.maximum(edges, 1))


# ------------------------------------------------------------------------------------------------ density-based


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
