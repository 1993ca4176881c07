"""The steps of builders `components` and `walk` in torch, on any device: those that edge_clustering.py has in numpy.

Given the same probabilities the groups are the same: sums that decide are of whole numbers. Where numpy sorts and looks
at runs, here the largest, or lowest, is scattered.

Legend: N hits, M edges that pass the cut, C candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hpctrack.numerics import group_mean
from hpctrack.tracking.on_device import TensorLists, grouped


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), fp64, in the same form as in numpy; its last bit may differ."""
    return 0.5 * (1 + torch.tanh(0.5 * x.double()))


def lowest(index: Tensor, value: Tensor, n: int) -> Tensor:
    """The lowest value at each index, int64 [n]; n where there is none, above all that are given."""
    return torch.full((n,), n, device=index.device).scatter_reduce_(0, index, value, "amin")


def components(edge_2M: Tensor, n: int) -> Tensor:
    """The lowest hit of the connected component of each of `n` hits.

    A component is a tree of depth one below its lowest hit. Of each edge between two of them the higher root goes below
    the lower one, then trees are made flat again.
    """
    root_N = torch.arange(n, device=edge_2M.device)
    a, b = edge_2M
    while len(a):
        root_N.scatter_reduce_(0, torch.maximum(a, b), torch.minimum(a, b), "amin")
        while not torch.equal(above_N := root_N[root_N], root_N):
            root_N = above_N
        a, b = root_N[a], root_N[b]
        apart = a != b
        a, b = a[apart], b[apart]
    return root_N


def has_circle(edge_2M: Tensor, n: int) -> bool:
    """Whether edges lead back to where they began: edges from hits that none leads to are left out, again and again."""
    while edge_2M.shape[1]:
        reached_N = torch.zeros(n, dtype=torch.bool, device=edge_2M.device)
        reached_N[edge_2M[1]] = True
        left = reached_N[edge_2M[0]]
        if bool(left.all()):
            return True
        edge_2M = edge_2M[:, left]
    return False


def walks(edge_2M: Tensor, probability_M: Tensor, n: int, join: float | None) -> Tensor:
    """Label [N] of each of `n` hits, as `WalkBuilder.groups`: the last hit of its path, or -1."""
    weight_M = (probability_M * 2**40).round().long() + 1
    least = torch.inf if join is None else join
    label_N = torch.full((n,), -1, device=edge_2M.device)
    while edge_2M.shape[1]:
        hit, label, value_N = undisputed_paths(edge_2M, weight_M, n)
        label_N[hit] = label
        hit, label = beside(label_N, value_N, edge_2M, weight_M, probability_M >= least)
        label_N[hit] = label
        left = (label_N[edge_2M] < 0).all(dim=0)
        edge_2M, weight_M, probability_M = edge_2M[:, left], weight_M[left], probability_M[left]
    return label_N


def undisputed_paths(edge_2M: Tensor, weight_M: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hits of the paths that no better path shares a hit with, the last hit of each one's path, sums of weights [n]."""
    value_N = best_sums(edge_2M, weight_M, n)
    through_N = value_N + best_sums(edge_2M.flip(0), weight_M, n)  # of the best path through each hit
    source, target = edge_2M
    best = value_N[source] + weight_M == value_N[target]
    before_N = lowest(target[best], source[best], n)  # n: none
    at = end = ((value_N > 0) & (through_N == value_N)).nonzero().squeeze(1)
    hits, labels = [], []
    while len(at):
        hits.append(at)
        labels.append(end)
        at = before_N[at]
        at, end = at[at < n], end[at < n]
    hit, label = torch.cat(hits), torch.cat(labels)
    hit, label = whole(hit, label, through_N[hit] == value_N[label])
    hit, label = whole(hit, label, lowest(hit, label, n)[hit] == label)
    return hit, label, value_N


def whole(hit: Tensor, label: Tensor, wins: Tensor) -> tuple[Tensor, Tensor]:
    """Hits of those labels that win at all of theirs."""
    loses = torch.unique(label[~wins])
    left = ~torch.isin(label, loses)
    return hit[left], label[left]


def best_sums(edge_2M: Tensor, weight_M: Tensor, n: int) -> Tensor:
    """The largest sum of weights of a path to each hit, int64 [n]."""
    source, target = edge_2M
    value_N = torch.zeros(n, dtype=torch.long, device=source.device)
    while True:
        longer_N = value_N.scatter_reduce(0, target, value_N[source] + weight_M, "amax")
        if torch.equal(longer_N, value_N):
            return value_N
        value_N = longer_N


def beside(
    label_N: Tensor, value_N: Tensor, edge_2M: Tensor, weight_M: Tensor, strong_M: Tensor
) -> tuple[Tensor, Tensor]:
    """Hits without a label that a strong edge joins to a labelled one, and the label of the largest sum of weights.

    Of labels with the same sum the one of the largest value, then the lowest.
    """
    n = len(label_N)
    here, there = torch.cat([edge_2M, edge_2M.flip(0)], dim=1)
    m = ((label_N[here] < 0) & (label_N[there] >= 0)).nonzero().squeeze(1)
    pair, run = torch.unique(here[m] * n + label_N[there[m]], return_inverse=True)
    total = torch.zeros_like(pair).index_add_(0, run, weight_M.repeat(2)[m])
    joins = torch.zeros_like(pair, dtype=torch.bool)
    joins[run[strong_M.repeat(2)[m]]] = True
    hit, label, total = pair[joins] // n, pair[joins] % n, total[joins]
    best = largest(hit, total, n)
    hit, label = hit[best], label[best]
    best = largest(hit, value_N[label], n)
    hit, label = hit[best], label[best]
    best = lowest(hit, label, n)[hit] == label
    return hit[best], label[best]


def largest(index: Tensor, value: Tensor, n: int) -> Tensor:
    """Which values, none below 0, are the largest of those with the same index."""
    most_N = torch.zeros(n, dtype=value.dtype, device=value.device).scatter_reduce_(0, index, value, "amax")
    return most_N[index] == value


def labelled(label_N: Tensor, edge_2M: Tensor, probability_M: Tensor, min_hits: int) -> TensorLists:
    """Groups of at least `min_hits` hits as candidates, in the order of their first hits; a label is below N, or -1."""
    n = len(label_N)
    hit = (label_N >= 0).nonzero().squeeze(1)
    first_N = torch.full_like(label_N, n)  # hit of each hit's group
    first_N[hit] = lowest(label_N[hit], hit, n)[label_N[hit]]
    size_N = torch.bincount(first_N, minlength=n + 1)[:n]
    candidate, hit, first_C = grouped(first_N, size_N, min_hits)
    number_N = torch.full_like(label_N, -1)
    number_N[hit] = candidate
    begin, end = number_N[edge_2M]
    inside = (begin == end) & (begin >= 0)
    edges_C = torch.bincount(begin[inside], minlength=len(first_C)).clamp(min=1)
    return TensorLists(candidate, hit, size_N[first_C], group_mean(probability_M[inside], begin[inside], edges_C))
