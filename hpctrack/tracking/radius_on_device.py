"""Builder `radius` where its outputs are: search, candidates and their exclusive reading in torch, on any device.

The same candidates as tracking/radius_builder.py finds: distances in fp64 decide in both. Sums differ by the order of
their terms, so a score may differ in its last bit. What leaves the device is what is stored.

Legend: N hits of the event, E embedding dimensions, C candidates, P (candidate, hit) pairs, T tracks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpctrack.graphs.cells import REACH, nearest_rows
from hpctrack.graphs.neighbours import block_square_distance, near_blocks
from hpctrack.numerics import group_mean
from hpctrack.storage.schema import Candidates
from hpctrack.tracking.builder import check_pairs
from hpctrack.tracking.hit_probability import Cut


class Found(NamedTuple):
    """Pairs (candidate, hit) [P], ascending, the candidates' numbers of hits [C] and scores [C]."""

    candidate: Tensor
    hit: Tensor
    size: Tensor
    score: Tensor


def candidates(
    around_NE: Tensor,
    user_NE: Tensor,
    radius: float,
    *,
    min_hits: int,
    reach: float | None,
    cut: Cut | None = None,
    hit_rows: np.ndarray,
    n_hits: int,
    event_id: int,
) -> Candidates:
    """Candidates of an event: users within a radius of the points; with `reach`, hits then go to the nearest track.

    With `cut`, those whose hits are probable enough. `hit_rows` [N], ascending, of the event's `n_hits`. TooManyPairs
    if more users are near than could be candidates.
    """
    user_NE = user_NE.double()
    found = search(around_NE.double(), user_NE, radius, min_hits)
    found = found if cut is None else probable(found, cut)
    track_N = exclusive(found, len(user_NE), min_hits)
    if reach is not None:
        track_N = nearest_track(user_NE, track_N, reach * radius, min_hits)
    track_ids = np.zeros(n_hits, dtype=np.int32)
    track_ids[hit_rows] = track_N.cpu().numpy()
    offsets = np.concatenate([[0], np.cumsum(found.size.cpu().numpy())]).astype(np.int64)
    rows = hit_rows[found.hit.cpu().numpy()].astype(np.int32)
    return Candidates(event_id, offsets, rows, found.score.float().cpu().numpy(), track_ids)


def search(around_NE: Tensor, user_NE: Tensor, radius: float, min_hits: int) -> Found:
    """The users within the radius of each point, if they are at least `min_hits`."""
    n, pairs, number = len(user_NE), list[Tensor](), 0
    distances = list[Tensor]()
    for block in near_blocks(around_NE, user_NE, radius * REACH):
        distance = block_square_distance(around_NE[block.rows], user_NE[block.cols], block).sqrt_()
        near = distance <= radius
        i, j = (block.rows[near], block.cols[near]) if block.listed else of_rectangle(block.rows, block.cols, near)
        pairs.append(i * n + j)
        distances.append(distance[near])
        number += len(i)
        check_pairs(number, n, "builder.radius", radius)
    empty = user_NE.new_zeros(0)
    pair_P, order = torch.cat([empty.long(), *pairs]).sort()
    distance_P, size_N = torch.cat([empty, *distances])[order], torch.bincount(pair_P // max(1, n), minlength=n)
    large_N = size_N >= min_hits
    kept = large_N[pair_P // max(1, n)]
    pair_P, distance_P, size_C = pair_P[kept], distance_P[kept], size_N[large_N]
    candidate_P = torch.repeat_interleave(size_C)
    return Found(candidate_P, pair_P % max(1, n), size_C, 1 - group_mean(distance_P, candidate_P, size_C) / radius)


def probable(found: Found, cut: Cut) -> Found:
    """Those candidates whose hits are on tracks with a mean probability of at least the cut."""
    probability_N = torch.from_numpy(cut.probability_N).to(found.score.device)
    keep_C = group_mean(probability_N[found.hit], found.candidate, found.size) >= cut.least
    size, score = found.size[keep_C], found.score[keep_C]
    return Found(torch.repeat_interleave(size), found.hit[keep_C[found.candidate]], size, score)


def of_rectangle(rows: Tensor, cols: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of the pairs of a rectangle that are near."""
    i, j = near.nonzero(as_tuple=True)
    return rows[i], cols[j]


def exclusive(found: Found, n: int, min_hits: int) -> Tensor:
    """One track for each hit, int64 [N], 0 = none: as `exclusive` of tracking/builder.py, in the same rounds."""
    score, size = found.score.float(), found.size
    first = found.hit[size.cumsum(0) - size]
    order = first.argsort(stable=True)
    order = order[size[order].argsort(stable=True, descending=True)]
    order = order[score[order].argsort(stable=True, descending=True)]
    rank, size = torch.empty_like(order), size[order]
    rank[order] = torch.arange(len(order), device=order.device)
    of_pair, hit = rank[found.candidate], found.hit
    owner, nobody = torch.full((n,), -1, device=hit.device), len(order)
    while len(hit):
        free = torch.bincount(of_pair, minlength=len(size))
        alive = ((free >= min_hits) & (2 * free > size))[of_pair]
        of_pair, hit = of_pair[alive], hit[alive]
        best = torch.full_like(owner, nobody).scatter_reduce_(0, hit, of_pair, "amin")
        leads = best[hit] == of_pair
        takes = (torch.bincount(of_pair[leads], minlength=len(size)) == free)[of_pair]
        owner[hit[takes]] = of_pair[takes]
        left = owner[hit] < 0
        of_pair, hit = of_pair[left], hit[left]
    return numbered(owner)


def numbered(owner_N: Tensor) -> Tensor:
    """Owners, of which those below 0 are none, as numbers from 1 in their order; 0 for none."""
    track_N, owned = torch.zeros_like(owner_N), owner_N >= 0
    track_N[owned] = owner_N[owned].unique(return_inverse=True)[1] + 1
    return track_N


def nearest_track(user_NE: Tensor, track_N: Tensor, reach: float, min_hits: int) -> Tensor:
    """Each hit's track after all hits chose the nearest mean user of the given tracks, within `reach`; 0 = none.

    As `nearest_track` of tracking/radius_builder.py, but that the nearest is chosen in fp32.
    """
    n_tracks = int(track_N.max()) if len(track_N) else 0
    if not n_tracks:
        return track_N
    taken = track_N > 0
    size_T = torch.bincount(track_N[taken] - 1, minlength=n_tracks)
    mean_TE = group_mean(user_NE[taken], track_N[taken] - 1, size_T)
    nearest_N = nearest_rows(mean_TE, 1, user_NE).squeeze(1)
    found = (user_NE - mean_TE[nearest_N]).square().sum(1).sqrt() < reach
    large_T = torch.bincount(nearest_N[found], minlength=n_tracks) >= min_hits
    return torch.where(found & large_T[nearest_N], large_T.cumsum(0)[nearest_N], 0)
