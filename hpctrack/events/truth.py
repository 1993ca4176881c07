"""Which pairs of hits a graph should connect.

Graph truth knows no geometry: per particle, hits are ordered by distance from its creation vertex and grouped by shared
layer, and all combinations between neighbouring groups are true edges, from the inner to the outer hit (D. Murnane,
"Track reconstruction with metric learning and GNNs", Exa.TrkX). Particle truth: any pair of hits of one particle.

Legend: N hits, M edges, G groups (the hits of one particle on one layer).
"""

from __future__ import annotations

import numpy as np

from hpctrack.storage.schema import Event

COLUMNS = ["truth.particle_row", "hits.x", "hits.y", "hits.z", "hits.volume_id", "hits.layer_id"]
COLUMNS += ["particles.vx", "particles.vy", "particles.vz"]  # what `graph_truth` reads


def graph_truth(event: Event, rows: np.ndarray | None = None) -> np.ndarray:
    """True edges int64 [2, M] among the hits `rows` [N] of an event (default: all), as numbers of these, 0..N-1.

    Ordered by particle and along the track. A group stands where its hit next to the vertex is; of equal distances the
    lower layer comes first.
    """
    rows = np.arange(event.n_hits) if rows is None else rows
    particle = event.column("truth.particle_row")[rows].astype(np.int64)
    hit_N = np.flatnonzero(particle >= 0)
    particle, rows = particle[hit_N], rows[hit_N]
    layer = layer_number(event.column("hits.volume_id")[rows], event.column("hits.layer_id")[rows])
    group = particle << 16 | layer
    order = np.argsort(group, kind="stable")
    hit_N, rows, particle, group = hit_N[order], rows[order], particle[order], group[order]
    start_G, size_G = runs(group)
    nearest_G = np.minimum.reduceat(square_distance(event, rows, particle), start_G) if len(rows) else np.zeros(0)
    along = np.lexsort((nearest_G, particle[start_G]))  # groups in the order of their tracks, ties in that of layers
    start_G, size_G = start_G[along], size_G[along]
    inner = np.flatnonzero(particle[start_G[1:]] == particle[start_G[:-1]])
    i, j = combinations(start_G[inner], size_G[inner], start_G[inner + 1], size_G[inner + 1])
    return np.stack([hit_N[i], hit_N[j]])


def square_distance(event: Event, rows: np.ndarray, particle: np.ndarray) -> np.ndarray:
    """From hits `rows` [N] to the creation vertices of their particles, rows `particle` [N]; mm^2."""
    apart = (event.column(f"hits.{axis}")[rows] - vertex(event, axis)[particle] for axis in "xyz")
    return sum(difference**2 for difference in apart)


def vertex(event: Event, axis: str) -> np.ndarray:
    """A coordinate of the particles' creation vertices, float64 [P], mm."""
    return event.column(f"particles.v{axis}").astype(np.float64)


def particle_truth(particle_row: np.ndarray) -> np.ndarray:
    """All pairs of hits of one particle, int64 [2, M], each once, lower hit first; `particle_row` [N], -1 is noise."""
    hit_N = np.flatnonzero(particle_row >= 0)
    hit_N = hit_N[np.argsort(particle_row[hit_N], kind="stable")]
    start, size = runs(particle_row[hit_N])
    end = np.repeat(start + size, size)  # of each hit's particle
    at = np.arange(len(hit_N))
    i, j = combinations(at, np.ones_like(at), at + 1, end - at - 1)
    return np.stack([hit_N[i], hit_N[j]])


def combinations(
    start_a: np.ndarray, size_a: np.ndarray, start_b: np.ndarray, size_b: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All pairs (i, j), i in start_a[k] + [0, size_a[k]) and j in start_b[k] + [0, size_b[k]), for every k in order."""
    number = size_a * size_b
    block = np.repeat(np.arange(len(number)), number)
    within = np.arange(len(block)) - np.repeat(np.cumsum(number) - number, number)
    step = size_b[block]
    return start_a[block] + within // step, start_b[block] + within % step


def runs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of equal values begin, and how long they are."""
    start = np.flatnonzero(np.append(True, values[1:] != values[:-1])[: len(values)])
    return start, np.diff(start, append=len(values))


def layer_number(volume: np.ndarray, layer: np.ndarray) -> np.ndarray:
    """One number a layer, int64: 256 volume + layer."""
    return volume.astype(np.int64) * 256 + layer


def is_true(edge_2M: np.ndarray, truth_2T: np.ndarray, n_hits: int) -> np.ndarray:
    """Which edges are among the true ones, in either direction, bool [M]."""
    truth = np.sort(undirected(truth_2T, n_hits))
    if not len(truth):
        return np.zeros(edge_2M.shape[1], dtype=bool)
    key = undirected(edge_2M, n_hits)
    return truth[np.minimum(np.searchsorted(truth, key), len(truth) - 1)] == key


def undirected(edge_2M: np.ndarray, n_hits: int) -> np.ndarray:
    """A number for each edge, int64 [M], that does not depend on its direction."""
    low, high = np.minimum(*edge_2M).astype(np.int64), np.maximum(*edge_2M)
    return low * n_hits + high
