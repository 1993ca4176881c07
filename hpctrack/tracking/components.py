"""Builders on scored edges: connected components of what passes a cut, and walks through those that branch.

Outputs: `edge_score` [M], logits, of `edge_index` [2, M], from the inner to the outer hit.

Legend: N hits, M edges that pass the cut, C candidates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hpctrack.config import Section
from hpctrack.data.schema import Candidates
from hpctrack.errors import InputError
from hpctrack.tracking.lists import Lists

Outputs = Mapping[str, np.ndarray]


class EdgeBuilder:
    """What builders on edges share; each says how hits become groups: `groups(edge_2M, probability_M) -> label [N]`.

    A hit's label is the number of its group from 0, or -1. Groups do not overlap. A candidate's score is the mean
    probability of the edges within it.
    """

    class Options(Section):
        """The cut, and the smallest candidate that counts."""

        cut: float | None = Field(None, gt=0, lt=1, description="edges must be as probable; null: tuned after training")
        min_hits: int = Field(3, ge=1, description="smaller groups are no candidates")

    options: Any

    def __init__(self, options: Options) -> None:
        self.options = options

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries."""
        return [{"cut": cut} for cut in (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)]

    @property
    def needs_tuning(self) -> bool:
        """True while the cut is open."""
        return self.options.cut is None

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of an event from `edge_score` [M] and `edge_index` [2, M] of its `hit_rows` [N], ascending."""
        found = self.lists(outputs)
        return found._replace(rows=hit_rows[found.rows]).candidates(n_hits, event_id, self.options.min_hits)

    @staticmethod
    def sweep(builders: Sequence[EdgeBuilder], outputs: Outputs) -> Iterator[Lists]:
        """Each builder's candidates of the same event."""
        for builder in builders:
            yield builder.lists(outputs)

    def lists(self, outputs: Outputs) -> Lists:
        """Groups of at least `min_hits` hits, in the order of their first hits."""
        if "edge_index" not in outputs:
            raise InputError("section 'builder': this builder needs the edges' scores; take a model that scores edges")
        edge_2M, probability_M = outputs["edge_index"], sigmoid(outputs["edge_score"])
        passed = probability_M >= self.options.cut
        edge_2M, probability_M = edge_2M[:, passed], probability_M[passed]
        label_N = self.groups(edge_2M, probability_M) if edge_2M.size else np.zeros(0, dtype=np.int64)
        return labelled(label_N, edge_2M, probability_M, self.options.min_hits)

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit."""
        raise NotImplementedError


class ComponentsBuilder(EdgeBuilder):
    """Connected components are candidates."""

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit: its component."""
        return components(edge_2M, int(edge_2M.max()) + 1)


class WalkBuilder(EdgeBuilder):
    """Connected components that do not branch are candidates; in the others, the best paths one after the other.

    The best path of a component is the one from inner to outer hits with the largest sum of edge probabilities, so the
    longest if edges are sure of themselves. Its hits are taken out, and what is left of the component is looked at
    again. All components are walked through at a time. The idea is Exa.TrkX's (CC and walk-through, X. Ju et al.,
    arXiv:2103.06995), whose paths are found greedily, hit by hit.
    """

    def groups(self, edge_2M: np.ndarray, probability_M: np.ndarray) -> np.ndarray:
        """Label [N] of each hit: its path."""
        n = int(edge_2M.max()) + 1
        if connected_components(adjacency(edge_2M, n), connection="strong")[0] < n:
            raise InputError("builder 'walk': edges make a circle; it needs edges that lead from inner to outer hits")
        order = np.argsort(edge_2M[1], kind="stable")
        edge_2M, probability_M = edge_2M[:, order], probability_M[order]
        label_N, free_N, found = np.full(n, -1, dtype=np.int64), np.ones(n, dtype=bool), 0
        while edge_2M.shape[1]:
            component = components(edge_2M, n)
            simple = ~branching(edge_2M, component, n)
            taken = best_paths(edge_2M, probability_M, component, n) | simple[component]
            taken &= free_N & (np.bincount(component, minlength=n)[component] > 1)
            label_N[taken] = found + component[taken]
            found += n
            free_N &= ~taken
            left = free_N[edge_2M].all(axis=0)
            edge_2M, probability_M = edge_2M[:, left], probability_M[left]
        return label_N


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), fp64, without overflow."""
    return 0.5 * (1 + np.tanh(0.5 * x.astype(np.float64)))


def adjacency(edge_2M: np.ndarray, n: int) -> coo_matrix:
    """Ones [n, n] where there are edges."""
    return coo_matrix((np.ones(edge_2M.shape[1], dtype=np.int8), tuple(edge_2M)), shape=(n, n))


def components(edge_2M: np.ndarray, n: int) -> np.ndarray:
    """Number of the connected component of each of `n` hits."""
    return connected_components(adjacency(edge_2M, n), directed=False)[1].astype(np.int64)


def branching(edge_2M: np.ndarray, component: np.ndarray, n: int) -> np.ndarray:
    """Which components, bool [n] by number, have a hit with two ways in or out."""
    crossing = (np.bincount(edge_2M[0], minlength=n) > 1) | (np.bincount(edge_2M[1], minlength=n) > 1)
    branches = np.zeros(n, dtype=bool)
    branches[component[crossing]] = True
    return branches


def best_paths(edge_2M: np.ndarray, probability_M: np.ndarray, component: np.ndarray, n: int) -> np.ndarray:
    """Which hits, bool [n], are on the best path of their component; edges sorted by the hit they lead to.

    Dynamic programming: the best path to a hit is one edge longer than the best path to some hit before it.
    """
    start, target = first_of_runs(edge_2M[1])
    value = np.zeros(n)
    while True:
        longer = np.maximum.reduceat(value[edge_2M[0]] + probability_M, start)
        if np.array_equal(longer, value[target]):
            break
        value[target] = longer
    best = np.flatnonzero(value[edge_2M[0]] + probability_M == value[edge_2M[1]])[::-1]
    before = np.full(n, -1, dtype=np.int64)
    before[edge_2M[1, best]] = edge_2M[0, best]  # of equal ones the first stays
    by_value = np.lexsort((np.arange(n), -value, component))
    at = by_value[first_of_runs(component[by_value])[0]]
    on_path = np.zeros(n, dtype=bool)
    while len(at):
        on_path[at] = True
        at = before[at]
        at = at[at >= 0]
    return on_path


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
