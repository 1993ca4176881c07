"""Fixed-radius neighbour search between two sets of points."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_PAIRS = 1 << 24  # distances held at once


@torch.no_grad()
def radius_pairs(query_ME: Tensor, point_NE: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """All pairs (m, n) with |query_m - point_n| < radius, as two index vectors sorted by m, then n.

    Exact, without a cap on neighbours; holds `CHUNK_PAIRS` distances at a time.
    """
    step = max(1, CHUNK_PAIRS // max(1, len(point_NE)))
    found = []
    for start in range(0, len(query_ME), step):
        near = torch.cdist(query_ME[start : start + step], point_NE) < radius
        found.append(near.nonzero() + near.new_tensor([start, 0], dtype=torch.long))
    pairs = torch.cat(found) if found else torch.zeros(0, 2, dtype=torch.long, device=query_ME.device)
    return pairs[:, 0], pairs[:, 1]
