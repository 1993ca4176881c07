"""Neighbours of points: the k nearest within the same event, and all within a radius (exact, without a cap).

The radius search has bounded memory. On a CPU points are taken in blocks of neighbours (the order of a k-d tree). For
two blocks, trees list the pairs in reach where these are few; where they are many, as in a model that has not been
trained, the whole rectangle is given in tiles, since listing would cost more than computing. Which of the two is a
matter of speed alone: both hold every pair within the radius, and `square_distance` decides on each with the same
arithmetic. On an accelerator sorted cells (graphs/cells.py) take the place of trees.

Legend: M queries, N points, E dimensions, P pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist
from torch import Tensor

from hpctrack.graphs.cells import REACH, Cells, nearest_rows, pair_distance, square_distance


@torch.no_grad()
def nearest(point_ND: Tensor, sizes: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of the same event, itself among them: rows int64 [N, k] of the batch, and which exist.

    `sizes` are the events' numbers of points. An event of fewer than k points has places without a neighbour: these
    hold the point itself and are False in the second tensor, bool [N, k]. Exact; nearest first. A point that is not
    finite counts as one at 0: the model's outputs are not finite either, by which the event is named on all ranks.
    """
    point_ND = point_ND.nan_to_num(0.0, 0.0, 0.0)
    search = nearest_rows if point_ND.device.type == "cuda" else _nearest_tree
    rows, start = [], 0
    for points in point_ND.split(list(sizes)):
        found = search(points, min(k, len(points))) if len(points) else points.new_zeros((0, 0), dtype=torch.long)
        missing = k - found.shape[1]
        rows.append(torch.nn.functional.pad(found + start, (0, missing), value=-1))
        start += len(points)
    row_NK = torch.cat(rows) if rows else torch.zeros(0, k, dtype=torch.long, device=point_ND.device)
    return _or_itself(row_NK, torch.arange(len(row_NK), device=row_NK.device))


@torch.no_grad()
def nearest_to(own_n: Tensor, point_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `nearest`, of the points with the rows `own_n` alone, all points of one event: [n, k] each."""
    point_ND = point_ND.nan_to_num(0.0, 0.0, 0.0)
    search = nearest_rows if point_ND.device.type == "cuda" else _nearest_tree
    fewer = min(k, len(point_ND))
    found = search(point_ND, fewer, point_ND[own_n]) if len(own_n) else own_n.new_zeros(0, fewer)
    return _or_itself(torch.nn.functional.pad(found, (0, k - fewer), value=-1), own_n)


def _or_itself(row_NK: Tensor, own_N: Tensor) -> tuple[Tensor, Tensor]:
    """Rows without those that are -1, which become the point's own; and which they are not."""
    exists_NK = row_NK >= 0
    return torch.where(exists_NK, row_NK, own_N.unsqueeze(1)), exists_NK


def _nearest_tree(points: Tensor, k: int, queries: Tensor | None = None) -> Tensor:
    """Rows [n, k] by a k-d tree: n log n in the few dimensions that neighbour spaces have."""
    values = points.double().numpy()
    _, rows = cKDTree(values).query(values if queries is None else queries.double().numpy(), k=np.arange(1, k + 1))
    return torch.from_numpy(rows.astype(np.int64))


# ------------------------------------------------------------------------------------------------ within a radius


BLOCK = 8192  # points a block: bounds the pairs listed at a time
TILE = {
    "cpu": (128, 2048),
    "cuda": (4096, 8192),
}  # rows and columns at a time: on a CPU what its cache holds
DENSE_SHARE = 0.012  # of a rectangle's pairs in reach: above, computing it whole is faster than listing (measured)


class Block(NamedTuple):
    """Pairs of rows and columns: a `list` (rows[k], cols[k]), the `rectangle` of all, or its upper `triangle`."""

    rows: Tensor
    cols: Tensor
    shape: Literal["list", "rectangle", "triangle"]

    @property
    def listed(self) -> bool:
        """True for a list of pairs."""
        return self.shape == "list"

    def ends(self, near: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns of the pairs that are `near`: [P] of a list, else [R, C], which a triangle writes over."""
        if self.listed:
            return self.rows[near], self.cols[near]
        i, j = (near.triu_(1) if self.shape == "triangle" else near).nonzero(as_tuple=True)
        return self.rows[i], self.cols[j]


class Part(NamedTuple):
    """Up to BLOCK neighbouring points: their rows [n] and their tree."""

    rows: np.ndarray
    tree: cKDTree


def radius_pairs(
    query_ME: Tensor, point_NE: Tensor | None, radius: float, closed: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of the pairs (m, n) with |query_m - point_n| < radius, each pair once, in no order.

    Without points: pairs m != n among the queries, each in one of its two orders. `closed`: those at the radius, too.
    """
    other_NE, inside = query_ME if point_NE is None else point_NE, torch.le if closed else torch.lt
    for block in near_blocks(query_ME, point_NE, radius):
        distance = block_square_distance(query_ME[block.rows], other_NE[block.cols], block)
        yield block.ends(inside(distance, radius * radius))


@torch.no_grad()
def near_blocks(query_ME: Tensor, point_NE: Tensor | None, radius: float) -> Iterator[Block]:
    """Blocks that together hold each pair within the radius once, and pairs beyond it.

    Without points: each pair m != n among the queries in one of its two orders.
    """
    if not all_finite(query_ME, point_NE):  # no search takes what is not finite
        rows = torch.arange(len(query_ME), device=query_ME.device)
        yield from tiles(rows, None if point_NE is None else torch.arange(len(point_NE), device=point_NE.device))
        return
    if query_ME.device.type != "cpu":
        yield from cell_blocks(query_ME, point_NE, radius)
        return
    reach = radius * REACH
    queries = parts(query_ME)
    others = queries if point_NE is None else parts(point_NE)
    for k, a in enumerate(queries):
        for b in others[k:] if point_NE is None else others:
            if gap(a, b) < reach:
                yield from tree_blocks(a, b, reach)


def cell_blocks(query_ME: Tensor, point_NE: Tensor | None, radius: float) -> Iterator[Block]:
    """`near_blocks` by sorted cells, on any device: lists of what is near, rectangles where most of all is."""
    cells = Cells(query_ME if point_NE is None else point_NE, None if point_NE is None else query_ME, radius)
    query_EM = query_ME.T.contiguous()
    point_EN = query_EM if point_NE is None else point_NE.T.contiguous()
    for found in cells.stretches():
        if not found.crowded:
            for piece in found.pieces():
                which_P, place_P, _ = piece.pairs()
                i_P, j_P = piece.row_M[which_P], cells.order_N[place_P]
                near = pair_distance(query_EM, point_EN, i_P, j_P) < (radius * REACH) ** 2
                yield Block(i_P[near], j_P[near], "list")
        elif point_NE is None:
            yield from tiles(found.row_M, None)
            yield from tiles(found.row_M, cells.order_N[found.start + len(found.row_M) : found.span[1]])
        else:
            yield from tiles(found.row_M, cells.order_N[found.span[0] : found.span[1]])


def block_square_distance(row_RE: Tensor, col_CE: Tensor, block: Block) -> Tensor:
    """Squared distances of a block's pairs, given the points of its rows and columns: [P] for a list, else [R, C]."""
    if block.listed:
        return square_distance(row_RE.T, col_CE.T)
    return square_distance(row_RE.T.contiguous().unsqueeze(2), col_CE.T.contiguous())


def all_finite(*tensors: Tensor | None) -> bool:
    """True if no tensor has an infinity or not-a-number."""
    return all(t is None or bool(t.isfinite().all()) for t in tensors)


def parts(points_NE: Tensor) -> list[Part]:
    """The points in parts of neighbours."""
    points = points_NE.detach().double().numpy()
    if not len(points):
        return []
    tree = cKDTree(points, leafsize=16, balanced_tree=False)  # sliding midpoint: as fast to search, faster to build
    if len(points) <= BLOCK:
        return [Part(np.arange(len(points)), tree)]
    chunks = np.array_split(tree.indices, -(-len(points) // BLOCK))
    return [Part(rows, cKDTree(points[rows], leafsize=16, balanced_tree=False)) for rows in chunks]


def gap(a: Part, b: Part) -> float:
    """Distance between the boxes around two parts."""
    return float(np.linalg.norm(np.maximum(0, np.maximum(a.tree.mins - b.tree.maxes, b.tree.mins - a.tree.maxes))))


def tree_blocks(a: Part, b: Part, reach: float) -> Iterator[Block]:
    """The pairs of two parts (each once, if they are the same): listed if few are in reach, else all."""
    if share_in_reach(a, b, reach) > DENSE_SHARE:
        yield from tiles(torch.from_numpy(a.rows), None if a is b else torch.from_numpy(b.rows))
        return
    if a is b:
        i, j = a.tree.query_pairs(reach, output_type="ndarray").T
    else:
        found = a.tree.sparse_distance_matrix(b.tree, reach, output_type="ndarray")
        i, j = found["i"], found["j"]
    yield Block(torch.from_numpy(a.rows[i]), torch.from_numpy(b.rows[j]), "list")


def share_in_reach(a: Part, b: Part, reach: float) -> float:
    """Share of the pairs of two parts that are in reach, from an even sample of each."""
    sample = cdist(a.tree.data[:: 1 + len(a.rows) // 64], b.tree.data[:: 1 + len(b.rows) // 512])
    return float((sample < reach).mean())


def tiles(rows: Tensor, cols: Tensor | None) -> Iterator[Block]:
    """All pairs of rows and columns, or without columns all unordered pairs of different rows, a tile at a time."""
    height, width = TILE[rows.device.type]
    for start in range(0, len(rows), height):
        part = rows[start : start + height]
        if cols is None:
            yield Block(part, part, "triangle")
        rest = rows[start + height :] if cols is None else cols
        for left in range(0, len(rest), width):
            yield Block(part, rest[left : left + width], "rectangle")
