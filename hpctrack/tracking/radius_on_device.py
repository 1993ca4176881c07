"""The steps of builder `radius` in torch, on any device: search, cut, and the nearest track of each hit.

Legend: N hits of the event, E embedding dimensions, C candidates, P (candidate, hit) pairs, T tracks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpctrack.graphs.cells import REACH, nearest_rows
from hpctrack.graphs.neighbours import block_square_distance, near_blocks
from hpctrack.numerics import group_mean
from hpctrack.tracking.builder import check_pairs
from hpctrack.tracking.hit_probability import Cut
from hpctrack.tracking.on_device import TensorLists


def search(around_NE: Tensor, user_NE: Tensor, radius: float, min_hits: int) -> TensorLists:
    """The users within the radius of each point, if they are at least `min_hits`; TooManyPairs."""
    n, pairs, number = len(user_NE), list[Tensor](), 0
    distances = list[Tensor]()
    for block in near_blocks(around_NE, user_NE, radius * REACH):
        distance = block_square_distance(around_NE[block.rows], user_NE[block.cols], block).sqrt_()
        near = distance <= radius
        i, j = block.ends(near)
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
    score_C = 1 - group_mean(distance_P, candidate_P, size_C) / radius
    return TensorLists(candidate_P, pair_P % max(1, n), size_C, score_C)


def probable(found: TensorLists, cut: Cut) -> TensorLists:
    """Those candidates whose hits are on tracks with a mean probability of at least the cut."""
    probability_N = torch.from_numpy(cut.probability_N).to(found.score.device)
    keep_C = group_mean(probability_N[found.hit], found.candidate, found.size) >= cut.least
    size, score = found.size[keep_C], found.score[keep_C]
    return TensorLists(torch.repeat_interleave(size), found.hit[keep_C[found.candidate]], size, score)


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
