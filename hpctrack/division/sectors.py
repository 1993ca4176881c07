"""Which rank of a group owns which hit of an event: sectors of azimuth of equal predicted cost.

Tracks and edges hardly leave a sector of phi, so that few rows have to pass between ranks; any other owners would give
the same results. Pure numpy, without communication: every rank finds the same owners.
"""

from __future__ import annotations

import numpy as np


def sectors(phi_N: np.ndarray, cost_N: np.ndarray, parts: int) -> np.ndarray:
    """Owner 0 … parts - 1 of each hit, int64 [N], by its phi, so that the owners' sums of `cost_N` are about equal.

    Sectors follow each other from -pi to pi, their bounds are between hits. Hits at one phi go by their order.
    """
    order = np.argsort(phi_N, kind="stable")
    cost = np.asarray(cost_N, dtype=np.float64)[order]
    middle = np.cumsum(cost) - cost / 2
    total = max(float(cost.sum()), np.finfo(np.float64).tiny)
    owner_N = np.empty(len(order), dtype=np.int64)
    owner_N[order] = np.minimum((middle / total * parts).astype(np.int64), parts - 1)
    return owner_N


def cost_of_hits(n_hits: int, edge_2M: np.ndarray | None) -> np.ndarray:
    """Predicted cost of each hit, up to a factor, float [N]: its own, and half of that of each of its edges."""
    cost_N = np.ones(n_hits)
    return cost_N if edge_2M is None else cost_N + np.bincount(edge_2M.ravel(), minlength=n_hits) / 2
