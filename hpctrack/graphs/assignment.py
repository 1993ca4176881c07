"""The exact assignment of hits to the next ones: of the edges of a graph, at most one out of each hit and one into it.

Of all such choices the one with the most edges, and of those the one of the least cost. Where edges join neighbouring
layers alone, that is one rectangular assignment problem for each pair of layers (T. Kortus et al., arXiv:2407.13420);
edges that skip a layer are taken as any other. A problem falls apart into the connected components of the graph in
which each hit stands twice, once with the edges that leave it, once with those that enter it.

Each component is solved by scipy's Jonker-Volgenant algorithm (D. Crouse, IEEE TAES 52 (2016) 1679), in fp64, with a
cost for what is no edge that is larger than all others together.

Legend: N hits, M edges, K components, R and C hits of a component with edges out and in.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from hpctrack.errors import MachineError

LARGEST = 1 << 27  # cells of a component's matrices of costs and of numbers: 2 GiB


class Assignment:
    """The assignment problems of a graph, to be solved for one cost after the other.

    `edge_2M` int64 [2, M] between `n_hits` hits; `threads`: so many components are solved at a time. Of several edges
    between the same two hits the cheapest can be chosen, of equal ones the first. MachineError for a component whose
    matrix would have more than 2^27 cells.
    """

    def __init__(self, edge_2M: np.ndarray, n_hits: int, threads: int = 1) -> None:
        self.n_edges, self.threads = edge_2M.shape[1], threads
        self.ends = [_numbered(end_M) for end_M in edge_2M]  # of each edge, its first and its last hit; how many
        self.component_M = components(edge_2M, n_hits)
        order = np.argsort(self.component_M, kind="stable")
        bounds = np.flatnonzero(np.diff(self.component_M[order], prepend=-1))
        self.parts = np.split(order, bounds[1:]) if len(order) else []
        single = [part for part in self.parts if len(part) == 1]
        self.alone = np.concatenate(single) if single else np.zeros(0, np.int64)  # edges that have no rival
        self.problems = [_Problem(edge_2M[:, part], part) for part in self.parts if len(part) > 1]
        for problem in self.problems:
            if problem.rows * problem.columns > LARGEST:
                size = f"{problem.rows} x {problem.columns} hits that {len(problem.edge)} edges join"
                raise MachineError(f"an assignment of {size}; leave out edges of low score")

    @property
    def n_components(self) -> int:
        """How many problems there are, those of a single edge among them."""
        return len(self.parts)

    def __call__(self, cost_M: np.ndarray) -> np.ndarray:
        """The chosen edges, bool [M], for costs [M] of either sign; ValueError for a cost that is not finite."""
        if not np.isfinite(cost_M).all():
            raise ValueError("costs must be finite numbers")
        chosen_M = np.zeros(self.n_edges, dtype=bool)
        chosen_M[self.alone] = True
        for found in self._solved(cost_M.astype(np.float64, copy=False)):
            chosen_M[found] = True
        return chosen_M

    def _solved(self, cost_M: np.ndarray) -> Iterator[np.ndarray]:
        if self.threads == 1 or len(self.problems) < 2:
            yield from (problem(cost_M) for problem in self.problems)
            return
        with ThreadPoolExecutor(min(self.threads, len(self.problems))) as pool:  # scipy lets go of the GIL
            yield from pool.map(lambda problem: problem(cost_M), self.problems)


def _numbered(end_M: np.ndarray) -> tuple[np.ndarray, int]:
    known, number_M = np.unique(end_M, return_inverse=True)
    return number_M, len(known)


class _Problem:
    """One component: its edges [m] by their numbers in the graph, rows and columns of its matrix."""

    def __init__(self, edge_2m: np.ndarray, numbers: np.ndarray) -> None:
        (out, self.row), (into, self.column) = (np.unique(ends, return_inverse=True) for ends in edge_2m)
        self.rows, self.columns, self.edge = len(out), len(into), numbers
        cell = self.row * self.columns + self.column
        self.repeated = len(np.unique(cell)) < len(cell)

    def __call__(self, cost_M: np.ndarray) -> np.ndarray:
        """Numbers of the chosen edges."""
        cost = cost_M[self.edge]
        cost = cost - cost.min()  # the same for all choices of as many edges
        forbidden = min(self.rows, self.columns) * cost.max() + 1.0
        matrix = np.full((self.rows, self.columns), forbidden)
        number = np.full((self.rows, self.columns), -1, dtype=np.int64)
        place, edge = (self.row, self.column), self.edge
        if self.repeated:
            order = np.lexsort((-edge, -cost))  # of several values the last one stays
            place, cost, edge = (self.row[order], self.column[order]), cost[order], edge[order]
        matrix[place], number[place] = cost, edge
        found = number[linear_sum_assignment(matrix)]
        return found[found >= 0]


def components(edge_2M: np.ndarray, n_hits: int) -> np.ndarray:
    """Number of each edge's problem, int64 [M]: edges that share a first hit, or a last hit, are of one."""
    if not edge_2M.shape[1]:
        return np.zeros(0, np.int64)
    ends = (edge_2M[0], edge_2M[1] + n_hits)
    graph = coo_matrix((np.ones(edge_2M.shape[1], np.int8), ends), shape=(2 * n_hits, 2 * n_hits))
    label = connected_components(graph, directed=False)[1][edge_2M[0]]
    return np.unique(label, return_inverse=True)[1].astype(np.int64)
