"""From the activations of a network to tracks: chains of segments, each hit with one successor and one predecessor; or
the walks of the house's builder, with V in the place of a probability.

Legend: N hits, M segments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from hpctrack.tracking.builder import Lists
from hpctrack.tracking.edge_clustering import WalkBuilder, components, labelled


def chains(edge_2M: np.ndarray, value_M: np.ndarray, n_hits: int, threshold: float, min_hits: int) -> Lists:
    """Chains of at least `min_hits` hits as candidates, by their first hits; a score is the mean V of the segments.

    Segments of V >= `threshold` are taken, the largest V first (of equals the first segment), each unless its first hit
    has a successor or its second a predecessor.
    """
    kept = np.flatnonzero(value_M >= threshold)
    kept = kept[greedy(edge_2M[:, kept], value_M[kept], n_hits)]
    edge_2M, value_M = edge_2M[:, kept], value_M[kept]
    label_N = np.full(n_hits, -1, dtype=np.int64)
    hit = np.unique(edge_2M)
    if len(hit):
        label_N[hit] = components(edge_2M, n_hits)[hit]
    return labelled(label_N, edge_2M, value_M, min_hits)


def greedy(edge_2M: np.ndarray, value_M: np.ndarray, n_hits: int) -> np.ndarray:
    """Which segments are taken one by one from the largest V, ascending.

    In rounds, all at a time: who is the best at both its hits is taken, whoever shares a hit with it that way is out.
    The result is that of one segment after the other.
    """
    rank = np.empty(len(value_M), dtype=np.int64)
    rank[np.lexsort((np.arange(len(value_M)), -value_M))] = np.arange(len(value_M))
    left, taken = np.arange(len(value_M)), [np.zeros(0, dtype=np.int64)]
    while len(left):
        begin, end = edge_2M[:, left]
        first, last = np.full(n_hits, len(rank)), np.full(n_hits, len(rank))
        np.minimum.at(first, begin, rank[left])
        np.minimum.at(last, end, rank[left])
        best = (first[begin] == rank[left]) & (last[end] == rank[left])
        taken.append(left[best])
        used_as_begin, used_as_end = np.zeros(n_hits, dtype=bool), np.zeros(n_hits, dtype=bool)
        used_as_begin[begin[best]], used_as_end[end[best]] = True, True
        left = left[~used_as_begin[begin] & ~used_as_end[end]]
    return np.sort(np.concatenate(taken))


def walks(join: float) -> Callable[[np.ndarray, np.ndarray, int, float, int], Lists]:
    """As `chains`, but the best walks along segments of V >= the threshold; `join`: as of builder `walk`."""

    def found(edge_2M: np.ndarray, value_M: np.ndarray, n_hits: int, threshold: float, min_hits: int) -> Lists:
        kept = value_M >= threshold
        edge_2M, value_M = edge_2M[:, kept], value_M[kept]
        label_N = np.full(n_hits, -1, dtype=np.int64)
        if edge_2M.size:
            of_walks = WalkBuilder(WalkBuilder.Options(cut=0.5, join=join)).groups(edge_2M, value_M)
            label_N[: len(of_walks)] = of_walks
        return labelled(label_N, edge_2M, value_M, min_hits)

    return found
