"""Nearest neighbours of every point within its own event."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

CHUNK_PAIRS = 1 << 24  # distances held at once on a GPU


@torch.no_grad()
def nearest(point_ND: Tensor, sizes: Sequence[int], k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points of the same event, itself among them: rows int64 [N, k] of the batch, and which exist.

    `sizes` are the events' numbers of points. An event of fewer than k points has places without a neighbour: these
    hold the point itself and are False in the second tensor, bool [N, k]. Exact; nearest first. A point that is not
    finite counts as one at 0: the model's outputs are not finite either, by which the event is named on all ranks.
    """
    point_ND = point_ND.nan_to_num(0.0, 0.0, 0.0)
    search = _nearest_torch if point_ND.device.type == "cuda" else _nearest_tree
    rows, start = [], 0
    for points in point_ND.split(list(sizes)):
        found = search(points, min(k, len(points))) if len(points) else points.new_zeros((0, 0), dtype=torch.long)
        missing = k - found.shape[1]
        rows.append(torch.nn.functional.pad(found + start, (0, missing), value=-1))
        start += len(points)
    row_NK = torch.cat(rows) if rows else torch.zeros(0, k, dtype=torch.long, device=point_ND.device)
    exists_NK = row_NK >= 0
    own_N1 = torch.arange(len(row_NK), device=row_NK.device).unsqueeze(1)
    return torch.where(exists_NK, row_NK, own_N1), exists_NK


def _nearest_tree(points: Tensor, k: int) -> Tensor:
    """Rows [n, k] by a k-d tree: n log n in the few dimensions that neighbour spaces have."""
    values = points.double().numpy()
    _, rows = cKDTree(values).query(values, k=np.arange(1, k + 1))
    return torch.from_numpy(rows.astype(np.int64))


def _nearest_torch(points: Tensor, k: int) -> Tensor:
    """Rows [n, k] by distances, a chunk of queries at a time."""
    points = points.float()
    chunk = max(1, CHUNK_PAIRS // len(points))
    exact = "donot_use_mm_for_euclid_dist"  # products would be rounded, by TF32 even more
    distances = (torch.cdist(part, points, compute_mode=exact) for part in points.split(chunk))
    return torch.cat([d.topk(k, dim=1, largest=False).indices for d in distances])
