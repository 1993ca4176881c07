"""Candidates as tensors, on the device that a model's outputs are on: what the device forms of builders share.

A device form gives the candidates of its host form. Distances and probabilities are fp64 in both. Sums differ by the
order of their terms, so a score may differ in its last bit. What leaves the device is what is stored.

Legend: C candidates, P (candidate, hit) pairs in all, N hits that the model saw.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpctrack.storage.schema import Candidates

Tensors = Mapping[str, Tensor]  # a model's outputs, and `edge_index` [2, M] if the event has a graph


class TensorLists(NamedTuple):
    """Pairs (candidate, hit) [P], ascending, the candidates' numbers of hits [C], none 0, and scores [C]."""

    candidate: Tensor
    hit: Tensor
    size: Tensor
    score: Tensor

    def exclusive(self, n: int, min_hits: int) -> Tensor:
        """One track for each of n hits, int64 [N], 0 = none: as `exclusive` of tracking/builder.py, in its rounds."""
        score, size = self.score.float(), self.size
        first = self.hit[size.cumsum(0) - size]
        order = first.argsort(stable=True)
        order = order[size[order].argsort(stable=True, descending=True)]
        order = order[score[order].argsort(stable=True, descending=True)]
        rank, size = torch.empty_like(order), size[order]
        rank[order] = torch.arange(len(order), device=order.device)
        of_pair, hit = rank[self.candidate], self.hit
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

    def candidates(self, track_N: Tensor, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """As stored, of an event with `n_hits` hits; `track_N`: their exclusive reading, `hit_rows` [N]: their rows."""
        track_ids = np.zeros(n_hits, dtype=np.int32)
        track_ids[hit_rows] = track_N.cpu().numpy()
        offsets = np.concatenate([[0], np.cumsum(self.size.cpu().numpy())]).astype(np.int64)
        rows = hit_rows[self.hit.cpu().numpy()].astype(np.int32)
        return Candidates(event_id, offsets, rows, self.score.float().cpu().numpy(), track_ids)


def numbered(owner_N: Tensor) -> Tensor:
    """Owners, of which those below 0 are none, as numbers from 1 in their order; 0 for none."""
    track_N, owned = torch.zeros_like(owner_N), owner_N >= 0
    track_N[owned] = owner_N[owned].unique(return_inverse=True)[1] + 1
    return track_N


def grouped(group_N: Tensor, size_G: Tensor, min_hits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Groups of at least `min_hits` hits: candidate and hit of each pair, [P] each, and which groups they are [C].

    `group_N`: the group 0..G-1 of each hit, G for none; `size_G`: how many hits each has. They stay in their order.
    """
    large_G = size_G >= min_hits
    number_G = torch.cat([large_G.cumsum(0) - 1, large_G.new_zeros(1, dtype=torch.long)])
    hit = torch.cat([large_G, large_G.new_zeros(1)])[group_N].nonzero().squeeze(1)
    candidate, order = number_G[group_N[hit]].sort(stable=True)
    return candidate, hit[order], large_G.nonzero().squeeze(1)
