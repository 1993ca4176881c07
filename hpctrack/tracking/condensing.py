"""Builders `greedy` and `condensation`: one hit after the other takes the free hits around it.

Their device form finds the same groups many at a time: a free hit whose turn is before those of all free hits around it
takes them whatever happens elsewhere.

Legend: N hits of the event, E embedding dimensions, K hits that get a turn, F the first of them, C groups.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from scipy.spatial import cKDTree
from torch import Tensor

from hpctrack.graphs.neighbours import radius_pairs
from hpctrack.numerics import group_mean
from hpctrack.storage.schema import Candidates
from hpctrack.tracking.builder import BaseBuilder, Lists, Outputs, joined, radii
from hpctrack.tracking.on_device import TensorLists, Tensors, grouped

FIRST = 1 << 12  # hits that get their turns at a time, at first; all pairs of so many may be near
NEAR = 1 << 24  # pairs of such hits that are held


class GreedyBuilder(BaseBuilder):
    """Greedy random condensation, the baseline of D. Murnane, "Influencer Loss", CHEP 2023.

    A random free hit takes all free hits within the radius, until no hit is free; candidates do not overlap. The order
    is drawn from the event id, so a repetition gives the same. A candidate's score is 1 - mean distance / radius.
    """

    class Options(BaseBuilder.Options):
        """The radius, and the smallest candidate that counts."""

        radius: float | None = Field(
            None, gt=0, description="within which hits belong together; null: tuned on validation events"
        )

    grid = staticmethod(radii)

    def build(self, outputs: Outputs, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """Candidates of one event from `embedding` [N, E] of its hits `hit_rows` [N], ascending."""
        order = np.argsort(turns(hit_rows, n_hits, event_id))
        return self.lists(outputs, order).at(hit_rows).candidates(n_hits, event_id, self.options.min_hits)

    def build_on_device(self, outputs: Tensors, hit_rows: np.ndarray, n_hits: int, event_id: int) -> Candidates:
        """As `build`, of tensors, where these are."""
        turn_N = torch.from_numpy(turns(hit_rows, n_hits, event_id)).to(outputs["embedding"].device)
        found = self.lists_on_device(outputs, turn_N.argsort())
        track_N = found.exclusive(len(hit_rows), self.options.min_hits)
        return found.candidates(track_N, hit_rows, n_hits, event_id)

    def lists(self, outputs: Outputs, order: np.ndarray | None = None) -> Lists:
        """Candidates, given the order [N] in which hits get their turn; by default always the same."""
        radius = self.options.radius
        x_NE = outputs["embedding"].astype(np.float64)
        if order is None:
            order = np.random.default_rng(0).permutation(len(x_NE))
        groups = condense(x_NE, order, radius, self.options.min_hits)
        scores = [1 - np.linalg.norm(x_NE[rows] - x_NE[seed], axis=1).mean() / radius for seed, rows in groups]
        return joined([rows for _, rows in groups], scores)

    def lists_on_device(self, outputs: Tensors, order: Tensor | None = None) -> TensorLists:
        """As `lists`, of tensors, where these are."""
        radius, x_NE = self.options.radius, outputs["embedding"].double()
        if order is None:
            order = torch.from_numpy(np.random.default_rng(0).permutation(len(x_NE))).to(x_NE.device)
        candidate, hit, seed = groups_in_turn(x_NE, order, radius, self.options.min_hits)
        distance = (x_NE[hit] - x_NE[seed[candidate]]).square_().sum(1).sqrt_()
        size = torch.bincount(candidate, minlength=len(seed))
        return TensorLists(candidate, hit, size, 1 - group_mean(distance, candidate, size) / radius)


class CondensationBuilder(BaseBuilder):
    """Object condensation's inference (J. Kieseler, arXiv 2002.03329, section 2).

    Hits with beta above `beta_min` get their turn by falling beta (then the lowest row); one that is still free takes
    all free hits within the radius. Candidates do not overlap; a candidate's score is the beta of its hit.
    """

    class Options(BaseBuilder.Options):
        """Threshold, radius, and the smallest candidate that counts."""

        beta_min: float | None = Field(None, ge=0, lt=1, description="t_beta; null: tuned on validation events")
        radius: float | None = Field(None, gt=0, description="t_d; null: tuned on validation events")

    @staticmethod
    def grid() -> list[dict[str, Any]]:
        """Settings that tuning tries: every threshold with every radius."""
        return [{"beta_min": b, "radius": round(0.1 * k, 1)} for b in (0.05, 0.1, 0.2, 0.4, 0.6) for k in range(2, 10)]

    def lists(self, outputs: Outputs) -> Lists:
        """Candidates from `embedding` [N, E] and `beta` [N, 1], in logits, by falling beta of their points."""
        beta = 1 / (1 + np.exp(-outputs["beta"].astype(np.float64).ravel()))
        order = np.argsort(-beta, kind="stable")
        order = order[: np.count_nonzero(beta > self.options.beta_min)]
        x_NE = outputs["embedding"].astype(np.float64)
        groups = condense(x_NE, order, self.options.radius, self.options.min_hits)
        return joined([rows for _, rows in groups], [beta[seed] for seed, _ in groups])

    def lists_on_device(self, outputs: Tensors) -> TensorLists:
        """As `lists`, of tensors, where these are."""
        beta = 1 / (1 + torch.exp(-outputs["beta"].double().flatten()))
        order = beta.argsort(stable=True, descending=True)
        order = order[: int((beta > self.options.beta_min).sum())]
        x_NE = outputs["embedding"].double()
        candidate, hit, seed = groups_in_turn(x_NE, order, self.options.radius, self.options.min_hits)
        return TensorLists(candidate, hit, torch.bincount(candidate, minlength=len(seed)), beta[seed])


def turns(hit_rows: np.ndarray, n_hits: int, event_id: int) -> np.ndarray:
    """A random turn for each of the hits `rows` [N], drawn for the event's `n_hits`."""
    return np.random.default_rng(event_id).permutation(n_hits)[hit_rows]


def condense(x_NE: np.ndarray, order: np.ndarray, radius: float, min_hits: int) -> list[tuple[int, np.ndarray]]:
    """Groups (seed, rows ascending): in their order, hits that are still free take all free hits within the radius."""
    if not len(order):
        return []
    tree = cKDTree(x_NE)
    free = np.ones(len(x_NE), dtype=bool)
    groups = []
    for seed in order.tolist():
        if free[seed]:
            near = np.array(tree.query_ball_point(x_NE[seed], radius))
            rows = near[free[near]]
            free[rows] = False
            if len(rows) >= min_hits:
                groups.append((seed, np.sort(rows)))
    return groups


# ------------------------------------------------------------------------------------------------ on a device


def groups_in_turn(x_NE: Tensor, order_K: Tensor, radius: float, min_hits: int) -> tuple[Tensor, Tensor, Tensor]:
    """As `condense`, in torch: group and hit of each pair, [P] each, ascending, and each group's seed [C]."""
    taker_N = takers(x_NE, order_K, radius)
    size_K = torch.bincount(taker_N, minlength=len(order_K) + 1)[: len(order_K)]
    candidate, hit, turn_C = grouped(taker_N, size_K, min_hits)
    return candidate, hit, order_K[turn_C]


def takers(x_NE: Tensor, order_K: Tensor, radius: float) -> Tensor:
    """The turn 0..K-1 of the hit that takes each hit, K for those that none takes, int64 [N].

    The first F hits that are still free get their turns together, then the next: so memory is bounded whatever is near
    (G. Blelloch, J. Fineman, J. Shun, "Greedy sequential maximal independent set and matching are parallel on average",
    SPAA 2012). F doubles, until too many of them are near each other.
    """
    none, device = len(order_K), x_NE.device
    taker_N = torch.full((len(x_NE),), none, device=device)
    turn_N = torch.full_like(taker_N, none)
    turn_N[order_K] = torch.arange(none, device=device)
    ahead_K, first, most = order_K, FIRST, max(FIRST, none)
    while len(ahead_K):
        some_F = ahead_K[:first]
        alone_F = independent(x_NE[some_F], radius)
        if alone_F is None:
            first = most = max(FIRST, len(some_F) // 2)
            continue
        seed = some_F[alone_F]
        free = (taker_N == none).nonzero().squeeze(1)
        for i, j in radius_pairs(x_NE[seed], x_NE[free], radius, closed=True):
            taker_N.scatter_reduce_(0, free[j], turn_N[seed[i]], "amin")
        ahead_K = ahead_K[first:]
        ahead_K = ahead_K[taker_N[ahead_K] == none]
        first = min(2 * first, most)
    return taker_N


def independent(x_FE: Tensor, radius: float) -> Tensor | None:
    """Which of hits in the order of their turns no earlier one takes, bool [F]; None if too many pairs are near.

    In rounds: a hit that no earlier one is near, but for those taken, takes its later neighbours.
    """
    ends, number = [x_FE.new_zeros((2, 0), dtype=torch.long)], 0
    for pair in radius_pairs(x_FE, None, radius, closed=True):
        ends.append(torch.stack([torch.minimum(*pair), torch.maximum(*pair)]))
        number += len(pair[0])
        if number > NEAR and len(x_FE) > FIRST:
            return None
    early, late = torch.cat(ends, dim=1)
    taken_F = torch.zeros(len(x_FE), dtype=torch.bool, device=x_FE.device)
    while len(late):
        waits_F = torch.zeros_like(taken_F)
        waits_F[late] = True
        taken_F[late[~waits_F[early]]] = True
        left = ~(taken_F[early] | taken_F[late])
        early, late = early[left], late[left]
    return ~taken_F
