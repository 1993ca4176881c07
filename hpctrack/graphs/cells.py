"""Near pairs and nearest points by sorted cells: exact, in bounded memory, in torch operations that any device has.

Points are projected on a few axes along which they spread most. No distance grows by that, so what is near in all
dimensions is near on the axes. All axes but the last are cut into cells as wide as the search reaches; points are
sorted by cell and along the last axis. What a query can reach then lies in a few stretches of the sorted points, of the
cells around its own, and only these are looked at. Distances are taken in all dimensions, as brute force takes them.

Legend: M queries, N points, E dimensions, A axes, S stretches of a query, P pairs, k neighbours.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

AXES = 4  # at most: a query has 3^(AXES - 1) stretches
REACH = 1 + 1e-5  # searches look a little further than the radius: rounding in fp32 can bring a pair nearer
ROUNDING = 1e-6  # of a cell's width: what projections may be off
CELLS = 1 << 12  # cells to either side of the middle; points further out count to the outermost
STEPS = 1 << 20  # the same for steps along the last axis
FINE = 8  # steps along the last axis in a cell's width
ROW = 2 * STEPS + 2 * FINE + 1  # keys of a row of cells
QUERIES = 1 << 14  # whose stretches are held at a time
PAIRS = {"cpu": 1 << 20, "cuda": 1 << 23}  # held at a time
CROWDED = 0.5  # of the pairs in a rectangle: from here on all of it is looked at, which costs less a pair


class Stretches(NamedTuple):
    """Of queries `row` [M] the stretches [M, S] of sorted points to look at; `span`: of sorted points, holds them all.

    The queries are neighbours in the sorted order; `start` is the place of the first.
    """

    start: int
    row_M: Tensor
    first_MS: Tensor
    size_MS: Tensor
    span: tuple[int, int]

    @property
    def crowded(self) -> bool:
        """Whether so much of the span is to be looked at that all of it may be."""
        return int(self.size_MS.sum()) > CROWDED * len(self.row_M) * (self.span[1] - self.span[0])

    def pieces(self) -> Iterator[Stretches]:
        """Queries of about as many pairs each, with all their pairs; as many as may be held at a time, or one query."""
        size_M = self.size_MS.sum(1)
        order_M = size_M.argsort(descending=True, stable=True)
        sizes, start = size_M[order_M].tolist(), 0
        while start < len(sizes):
            stop = start + max(1, PAIRS[self.row_M.device.type] // max(1, sizes[start]))
            some = order_M[start:stop]
            yield self._replace(row_M=self.row_M[some], first_MS=self.first_MS[some], size_MS=self.size_MS[some])
            start = stop

    def pairs(self) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs: which of these queries, which sorted point, [P] each; and the queries' numbers of pairs [M]."""
        size = self.size_MS.flatten()
        stretch_P = torch.repeat_interleave(size)
        place_P = torch.arange(len(stretch_P), device=size.device) - (size.cumsum(0) - size)[stretch_P]
        place_P += self.first_MS.flatten()[stretch_P]
        return stretch_P // self.size_MS.shape[1], place_P, self.size_MS.sum(1)


class Cells:
    """Points [N, E] sorted for searches within `reach`; with queries [M, E], or the points themselves as such.

    As such a point looks for those behind it in the sorted order alone, so that each pair is met once. ValueError for
    points that are not finite.
    """

    def __init__(self, point_NE: Tensor, query_ME: Tensor | None, reach: float) -> None:
        origin_E = point_NE.double().mean(0) if len(point_NE) else point_NE.new_zeros(point_NE.shape[1]).double()
        self.symmetric = query_ME is None
        width = reach * REACH
        axes_EA = axes(point_NE, query_ME, origin_E, width)
        row_N, step_N = self._places(point_NE, origin_E, axes_EA, width)
        self.key_N, self.order_N = (row_N * ROW + step_N).sort(stable=True)  # row of the points, by their order
        if query_ME is None:
            self.query_M, self.row_M, self.step_M = self.order_N, row_N[self.order_N], step_N[self.order_N]
        else:
            row_M, step_M = self._places(query_ME, origin_E, axes_EA, width)
            self.query_M = (row_M * ROW + step_M).argsort(stable=True)
            self.row_M, self.step_M = row_M[self.query_M], step_M[self.query_M]
        self.around = around(axes_EA.shape[1] - 1).to(point_NE.device)
        if self.symmetric:
            self.around = self.around[self.around >= 0]

    @staticmethod
    def _places(x_NE: Tensor, origin_E: Tensor, axes_EA: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Row of cells and step along the last axis, int64 [N] each."""
        place_NA = project(x_NE, origin_E, axes_EA) / width
        row_N = place_NA.new_zeros(len(x_NE), dtype=torch.long)
        for axis in range(axes_EA.shape[1] - 1):
            cell_N = place_NA[:, axis].floor().clamp(-CELLS, CELLS).long()
            row_N = row_N * (2 * CELLS + 3) + cell_N + CELLS + 1  # one is left free at each end
        return row_N, (place_NA[:, -1] * FINE).floor().clamp(-STEPS, STEPS).long() + STEPS + FINE

    def stretches(self) -> Iterator[Stretches]:
        """Those of all queries, a number of neighbouring ones at a time."""
        for start in range(0, len(self.query_M), QUERIES):
            part = slice(start, start + QUERIES)
            row_MS = self.row_M[part, None] + self.around
            step_M = self.step_M[part, None]
            first_MS = torch.searchsorted(self.key_N, row_MS * ROW + step_M - FINE)
            if self.symmetric:  # in its own row a point looks forward from itself; its row is the first of `around`
                first_MS[:, 0] = torch.arange(start + 1, start + 1 + len(first_MS), device=first_MS.device)
            behind_MS = torch.searchsorted(self.key_N, row_MS * ROW + step_M + FINE, right=True)
            span = torch.stack([first_MS.min(), behind_MS.max()]).tolist()
            yield Stretches(start, self.query_M[part], first_MS, behind_MS - first_MS, (span[0], span[1]))


def axes(point_NE: Tensor, query_ME: Tensor | None, origin_E: Tensor, width: float) -> Tensor:
    """Orthonormal axes [E, A] that cut the points into cells: principal ones, or coordinates where those are unsafe.

    Sums over huge coordinates would be rounded by more than a cell holds; a single coordinate is not.
    """
    centred_NE = point_NE.double() - origin_E
    every = [centred_NE] if query_ME is None else [centred_NE, query_ME.double() - origin_E]
    largest = max((float(x.abs().max()) for x in every if x.numel()), default=0.0)
    if not math.isfinite(largest):
        raise ValueError("points to search among are not finite, or too far from each other for fp64")
    dimensions = point_NE.shape[1]
    if largest * dimensions * 2.0**-50 < ROUNDING * width:
        spread_E, axes_EE = np.linalg.eigh((centred_NE.T @ centred_NE).cpu().numpy() / max(1, len(point_NE)))
    else:
        spread_E, axes_EE = centred_NE.var(0, correction=0).cpu().numpy(), np.eye(dimensions)
    useful = np.argsort(-spread_E, kind="stable")[:AXES]
    wide = useful[spread_E[useful] > width * width / 4]  # narrower ones would have a cell or two
    chosen = axes_EE[:, wide if len(wide) else useful[:1]]
    return torch.from_numpy(np.ascontiguousarray(chosen)).to(point_NE.device)


def project(x_NE: Tensor, origin_E: Tensor, axes_EA: Tensor) -> Tensor:
    """Places on the axes, in fp64, [N, A]."""
    return (x_NE.double() - origin_E) @ axes_EA


def around(axes_cut: int) -> Tensor:
    """What a row's number differs by from those of the rows around it, itself first."""
    steps = itertools.product((-1, 0, 1), repeat=axes_cut)
    numbers = [sum(step * (2 * CELLS + 3) ** power for power, step in enumerate(offset)) for offset in steps]
    return torch.tensor(sorted(numbers, key=lambda number: (number != 0, number)))


def square_distance(a: Tensor, b: Tensor) -> Tensor:
    """Sum over the first dimension of (a - b)^2, one dimension after the other: so rounding is that of every shape."""
    total = (a[0] - b[0]).square_()
    for a_e, b_e in zip(a[1:], b[1:], strict=True):
        total += (a_e - b_e).square_()
    return total


def pair_distance(a_EM: Tensor, b_EN: Tensor, i_P: Tensor, j_P: Tensor) -> Tensor:
    """Squared distances [P] of pairs (i, j), as `square_distance` has them, without a copy of their points."""
    total = (a_EM[0][i_P] - b_EN[0][j_P]).square_()
    for a_M, b_N in zip(a_EM[1:], b_EN[1:], strict=True):
        total += (a_M[i_P] - b_N[j_P]).square_()
    return total


# ------------------------------------------------------------------------------------------------ the k nearest


SAMPLE = 256  # queries that say how far the others have to look
FIRST = (0.5, 0.9, 1.0)  # of the sample, what is found at the first reaches
DOUBLINGS = 10  # of the reach behind these
FEW = 1 << 24  # pairs that all may be looked at
NONE = torch.iinfo(torch.int64).max  # a key behind all others, whose distance is not a number


@torch.no_grad()
def nearest_rows(point_NE: Tensor, k: int, query_ME: Tensor | None = None) -> Tensor:
    """Rows int64 [M, k] of the k nearest points of each query, or of each point; k is at most N.

    Nearest first, of equal distances the lowest row; distances are fp32, and those of brute force bit for bit. The
    search looks within a reach in which a sample of the queries finds k, then further for those that have not found as
    many. ValueError for points that are not finite.
    """
    points = point_NE.float()
    queries = points if query_ME is None else query_ME.float()
    row_MK = torch.empty(len(queries), k, dtype=torch.long, device=points.device)
    left = torch.arange(len(queries), device=points.device)
    if not k or not len(left):
        return row_MK
    if not (points.isfinite().all() and queries.isfinite().all()):
        raise ValueError("points to search among are not finite")
    ahead = reaches(points, queries, k) if len(left) * len(points) > FEW else iter(())
    for reach in ahead:
        left = search(points, queries, left, reach, row_MK)
        if len(left) * len(points) <= FEW:
            break
    for part in left.split(rows_at_a_time(points)):
        row_MK[part] = rows_of(all_keys(points, queries[part]).topk(k, largest=False).values)
    return row_MK


def reaches(points: Tensor, queries: Tensor, k: int) -> Iterator[float]:
    """Radii to search within, one after the other: those in which shares of a sample find k, then twice as far."""
    sample = queries[:: 1 + len(queries) // SAMPLE]
    keys = [
        all_keys(points, part).topk(k, largest=False).values[:, -1] for part in sample.split(rows_at_a_time(points))
    ]
    found = distance_of(torch.cat(keys)).double().sqrt().cpu().numpy()
    found = found[np.isfinite(found) & (found > 0)]
    found = found if len(found) else np.array([float(points.double().std()) * 1e-3 or 1.0])
    reach = 0.0
    for share in FIRST:
        reach = float(np.quantile(found, share)) * REACH
        yield reach
    for _ in range(DOUBLINGS):
        reach *= 2
        yield reach


def search(points: Tensor, queries: Tensor, left: Tensor, reach: float, row_MK: Tensor) -> Tensor:
    """Fill the rows of those queries of `left` that have k points within a reach; the others."""
    cells, missed, k = Cells(points, queries[left], reach), [], row_MK.shape[1]
    asked_EM, point_EN = queries[left].T.contiguous(), points.T.contiguous()
    for found in cells.stretches():
        columns = cells.order_N[found.span[0] : found.span[1]]
        if found.crowded and len(columns) >= k:
            some = found.row_M.split(rows_at_a_time(columns))
            parts = ((part, all_keys(points, queries[left[part]], columns)) for part in some)
        else:
            parts = ((piece.row_M, keys_of(cells, piece, asked_EM, point_EN, k)) for piece in found.pieces())
        for part, keys in parts:
            best = keys.topk(k, largest=False).values
            done = distance_of(best[:, -1]) < reach * reach
            row_MK[left[part[done]]] = rows_of(best[done])
            missed.append(part[~done])
    return left[torch.cat(missed)]


def keys_of(cells: Cells, piece: Stretches, query_EM: Tensor, point_EN: Tensor, least: int) -> Tensor:
    """Keys of a piece's pairs, a query a row, NONE behind them; at least so many columns."""
    which_P, place_P, number_M = piece.pairs()
    j_P = cells.order_N[place_P]
    keys = torch.full((len(number_M), max(least, int(number_M.max()))), NONE, device=j_P.device)
    column_P = torch.arange(len(which_P), device=j_P.device) - (number_M.cumsum(0) - number_M)[which_P]
    keys[which_P, column_P] = key(pair_distance(query_EM, point_EN, piece.row_M[which_P], j_P), j_P)
    return keys


def all_keys(points: Tensor, queries: Tensor, row_n: Tensor | None = None) -> Tensor:
    """Keys of queries with all points, or with those of some rows, [M, n]."""
    some = points if row_n is None else points[row_n]
    row_n = torch.arange(len(points), device=points.device) if row_n is None else row_n
    return key(square_distance(queries.T.contiguous().unsqueeze(2), some.T.contiguous()), row_n)


def rows_at_a_time(points: Tensor) -> int:
    """Queries whose pairs with all of these points may be held."""
    return max(1, PAIRS[points.device.type] // max(1, len(points)))


def key(distance: Tensor, row: Tensor) -> Tensor:
    """Numbers in the order of fp32 distances, which are not negative, and of rows where these are equal."""
    return distance.view(torch.int32).long() << 32 | row


def distance_of(keys: Tensor) -> Tensor:
    """The distance in keys; not a number in NONE."""
    return (keys >> 32).int().view(torch.float32)


def rows_of(keys: Tensor) -> Tensor:
    """The row in keys."""
    return keys & 0xFFFFFFFF
