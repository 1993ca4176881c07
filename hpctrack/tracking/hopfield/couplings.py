"""How much two segments in a row support each other: by the angle between them, as in 1988, or by curvature.

The angle punishes every track that a field bends, and the sum over all that go on in a segment rewards dense regions.
Curvature asks instead whether both segments bend alike: of a helix from near the beam line the slopes dphi/dr and dz/dr
stay the same, whatever its momentum. In disks z takes the place of r, for there z is what is known well.

Legend: N hits, M segments, T triplets, t triplets of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import coo_matrix, csr_matrix

from hpctrack.graphs.triplets import continuations, triplet_chunks
from hpctrack.tracking.builder import TooManyPairs

Coupling = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # of the first, middle, last hits [t]: T_t >= 0


@dataclass(frozen=True)
class Hits:
    """Where hits are: `r`, `phi` and `z` (mm, rad) and `layer`, a number for each layer; [N] each."""

    r: np.ndarray
    phi: np.ndarray
    z: np.ndarray
    layer: np.ndarray

    def steps(self, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Differences in r, phi (in [-pi, pi)) and z from hits i to hits j."""
        turn = np.remainder(self.phi[j] - self.phi[i] + np.pi, 2 * np.pi) - np.pi
        return self.r[j] - self.r[i], turn, self.z[j] - self.z[i]


@dataclass(frozen=True)
class Cosine:
    """cos^power / (d^mu + d'^mu) of the angle between two segments of lengths d and d' in units of `unit_mm`.

    0 below the cosine `least`. With mu = 0 it is cos^power / 2. mu = 1: Denby and Peterson; mu = 2: ALEPH.
    """

    hits: Hits
    power: float
    mu: float
    unit_mm: float
    least: float

    def __call__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """T [t] of the segments from hits a to b and from b to c."""
        hits = self.hits
        xyz_N3 = np.stack([hits.r * np.cos(hits.phi), hits.r * np.sin(hits.phi), hits.z], axis=1)
        first, second = xyz_N3[b] - xyz_N3[a], xyz_N3[c] - xyz_N3[b]
        d, e = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
        cosine = np.clip((first * second).sum(1) / np.maximum(d * e, 1e-12), -1, 1)
        length = (np.maximum(d, 1e-12) / self.unit_mm) ** self.mu + (np.maximum(e, 1e-12) / self.unit_mm) ** self.mu
        return np.where(cosine > self.least, np.maximum(cosine, 0) ** self.power / length, 0.0)


@dataclass(frozen=True)
class Curvature:
    """exp(- 1/2 (dk / s_k)^2 - 1/2 (ds / s_s)^2), dk and ds the changes of dphi/dr and dz/dr between two segments."""

    hits: Hits
    spread_k: float  # rad per mm
    spread_s: float

    def __call__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """T [t] of the segments from hits a to b and from b to c."""
        change_k, change_s = changes(self.hits, (a, b, c), np.zeros(len(a), dtype=bool))
        return np.exp(-0.5 * ((change_k / self.spread_k) ** 2 + (change_s / self.spread_s) ** 2))


def changes(
    hits: Hits, of: tuple[np.ndarray, np.ndarray, np.ndarray], along_z: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Changes from the first to the second segment of hits `of` (a, b, c): of dphi/dr and dz/dr, [t] each.

    Where `along_z` [t], of dphi/dz and dr/dz. Infinite where a step is zero.
    """
    slopes: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for i, j in (of[:2], of[1:]):
        dr, turn, dz = hits.steps(i, j)
        along, across = np.where(along_z, dz, dr), np.where(along_z, dr, dz)
        moves = along != 0
        along = np.where(moves, along, 1.0)
        slopes.append((turn / along, across / along, moves))
    (turn_a, lean_a, moves_a), (turn_b, lean_b, moves_b) = slopes
    both = moves_a & moves_b
    return np.where(both, turn_b - turn_a, np.inf), np.where(both, lean_b - lean_a, np.inf)


def supports(
    edge_2M: np.ndarray, n_hits: int, coupling: Coupling, *, scale: float = 1.0, least: float = 0.0, most: int = 1 << 40
) -> csr_matrix:
    """scale x T of all pairs of segments in a row as a symmetric matrix [M, M], without those of T <= `least`.

    Triplets are looked at in chunks, so memory goes with those that stay. TooManyPairs if there are more than `most`
    triplets to look at.
    """
    size = edge_2M.shape[1]
    first, second, value = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0)]
    for e, f in _chunks(edge_2M, n_hits, most):
        found = coupling(edge_2M[0, e], edge_2M[1, e], edge_2M[1, f])
        kept = found > least
        first.append(e[kept])
        second.append(f[kept])
        value.append(scale * found[kept])
    e, f, v = np.concatenate(first), np.concatenate(second), np.concatenate(value)
    both = (np.append(e, f), np.append(f, e))
    return coo_matrix((np.append(v, v), both), shape=(size, size)).tocsr()


def _chunks(edge_2M: np.ndarray, n_hits: int, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    edges = torch.from_numpy(edge_2M)
    total = int(continuations(edges, n_hits).sum())
    if total > most:
        raise TooManyPairs(
            f"{edge_2M.shape[1]} segments go on in each other in {total} ways, at most triplets_max={most} are "
            "looked at; tighten the cuts on segments, or raise it (memory: about 24 bytes each that stays)"
        )
    for pair_2t in triplet_chunks(edges, n_hits):
        first, second = pair_2t.numpy()
        yield first, second


def best_partners(support: csr_matrix, edge_2M: np.ndarray) -> csr_matrix:
    """Of each segment's support only the strongest of one that goes before it, and of one that goes on in it (ALPHA-g).

    Of equals the first. No longer symmetric: who is somebody's best need not have it as its own.
    """
    pairs = support.tocoo()
    row, col = pairs.row.astype(np.int64), pairs.col.astype(np.int64)
    side = (edge_2M[1, row] == edge_2M[0, col]).astype(np.int64)  # 1: the other goes on where this one ends
    order = np.lexsort((col, -pairs.data, side, row))
    key = 2 * row[order] + side[order]
    best = order[np.flatnonzero(np.append(True, key[1:] != key[:-1])[: len(key)])]
    return coo_matrix((pairs.data[best], (row[best], col[best])), shape=support.shape).tocsr()
