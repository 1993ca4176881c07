"""Split items of known cost into parts of equal sum: longest processing time, Karmarkar-Karp, exchanges.

The bottleneck is the fullest part, on which all others wait.
"""

from __future__ import annotations

import heapq
from functools import lru_cache
from itertools import combinations

import numpy as np

FEW = 11  # items: 2^10 splits in two
SLOTS = 5  # items of a part that are traded at once
SPLITS = np.array(
    [[i in half for i in range(2 * SLOTS)] for half in combinations(range(2 * SLOTS), SLOTS)], dtype=float
)
CHOICES = np.ascontiguousarray(SPLITS.T)
PARTNERS = 32  # emptiest parts to trade with, at least
PATIENCE = 16  # rounds without a gain
ROUNDS = 200


def partition(costs: np.ndarray, parts: int, good_enough: float = 1.0) -> np.ndarray:
    """Part [n] of each item: `longest_first` improved by `exchange`; failing that, `differencing` likewise.

    Deterministic. Stops when mean / max of the parts' sums reaches `good_enough`, or what the dearest item allows. Two
    parts of few items are the best there are.
    """
    mean, dearest = float(costs.sum()) / parts, float(costs.max(initial=0.0))
    if dearest <= 0:
        return np.arange(len(costs), dtype=np.int32) % parts
    if parts == 2 and len(costs) <= FEW:
        return best_of_two(costs)
    ceiling = max(mean / good_enough, dearest)  # no part needs to be below the dearest item
    best, top = longest_first(costs, parts)
    if top <= ceiling or len(costs) <= 2 * parts:  # so few that the largest with the smallest is as good as it gets
        return best
    best, top = exchange(costs, best, parts, ceiling)
    if top > ceiling:
        other, other_top = exchange(costs, differencing(costs, parts)[0], parts, ceiling)
        best = other if other_top < top else best
    return best


def balance(costs: np.ndarray, part: np.ndarray, parts: int) -> float:
    """Mean over maximum of the parts' sums, in (0, 1]; the efficiency of a step in which all wait for the slowest."""
    load = np.bincount(part, costs, parts)
    top = load.max()
    return float(load.mean() / top) if top > 0 else 1.0


def best_of_two(costs: np.ndarray) -> np.ndarray:
    """Part [n] of each of at most FEW items in two parts, by trying all splits."""
    kept = splits_in_two(len(costs)) @ costs
    return splits_in_two(len(costs))[np.abs(kept - costs.sum() / 2).argmin()].astype(np.int32)


@lru_cache
def splits_in_two(n: int) -> np.ndarray:
    """All splits of n items in two parts, 0 or 1 for each item [2^(n - 1), n], the first item in part 0."""
    return (np.arange(1 << (n - 1))[:, None] >> np.arange(n)[::-1] & 1).astype(np.float64)


def longest_first(costs: np.ndarray, parts: int) -> tuple[np.ndarray, float]:
    """Parts and the largest sum: the dearest item first, each to the part with the least so far.

    LPT; R. Graham, SIAM J. Appl. Math. 17 (1969) 416.
    """
    part = [0] * len(costs)
    load = [(0.0, p) for p in range(parts)]
    value = costs.tolist()
    for i in np.argsort(-costs, kind="stable").tolist():
        total, p = load[0]
        part[i] = p
        heapq.heapreplace(load, (total + value[i], p))
    return np.array(part, dtype=np.int32), max(load)[0]


def differencing(costs: np.ndarray, parts: int) -> tuple[np.ndarray, float]:
    """Parts and the largest sum by Karmarkar-Karp differencing on tuples of one item a part.

    W. Michiels, J. Korst, E. Aarts, "Performance ratios for the differencing method" (2003). The sorted items form
    tuples of `parts` neighbours. The two tuples with the widest spread are merged, the largest with the smallest, until
    one is left: parts get equal numbers of items (up to one) and nearly equal sums.
    """
    n = len(costs)
    rows = -(-n // parts)
    order = np.full(rows * parts, -1)
    order[:n] = np.argsort(-costs, kind="stable")
    padded = np.append(costs, 0.0)  # -1 is an item of no cost
    heap = []
    for row, items in enumerate(order.reshape(rows, parts)):
        sums = padded[items]
        heap.append((-float(np.ptp(sums)), row, sums, items[:, None]))
    heapq.heapify(heap)
    merged = rows
    while len(heap) > 1:
        _, _, first_sums, first_items = heapq.heappop(heap)
        _, _, second_sums, second_items = heapq.heappop(heap)
        down, up = np.argsort(-first_sums, kind="stable"), np.argsort(second_sums, kind="stable")
        sums = first_sums[down] + second_sums[up]
        heapq.heappush(
            heap, (-float(np.ptp(sums)), merged, sums, np.concatenate([first_items[down], second_items[up]], axis=1))
        )
        merged += 1
    part = np.zeros(n + 1, dtype=np.int32)
    if heap:
        part[heap[0][3]] = np.arange(parts, dtype=np.int32)[:, None]
    return part[:n], float(heap[0][2].max()) if heap else 0.0


def exchange(costs: np.ndarray, part: np.ndarray, parts: int, ceiling: float) -> tuple[np.ndarray, float]:
    """Lower the largest sum down to `ceiling`, or until nothing helps: parts trade with each other two by two.

    In a round every part above the ceiling meets one of the emptiest, the fullest first; the best split of the `SLOTS`
    cheapest items of either between the two is found among all of them at once. No trade makes its pair's larger sum
    larger. Partners change from round to round.
    """
    nothing = len(costs)
    value = np.append(costs, 0.0)
    slot, fixed = seats(costs, part, parts)
    load = fixed + value[slot].sum(axis=1)
    stale = 0
    for _ in range(ROUNDS):
        order = np.argsort(-load, kind="stable")
        above = order[: min(int((load > ceiling).sum()), parts // 2)]
        below = order[::-1][: max(len(above), min(PARTNERS, parts // 2))]
        if not len(above) or stale >= min(PATIENCE, len(below)):
            break
        below = below[(np.arange(len(above)) + stale) % len(below)]
        items = np.concatenate([slot[above], slot[below]], axis=1)
        kept = value[items] @ CHOICES  # [pairs, splits]: what the fuller part would keep
        target = (load[above] + load[below]) / 2 - fixed[above]
        chosen = SPLITS[np.abs(kept - target[:, None]).argmin(axis=1)].astype(bool)
        slot_above, slot_below = items[chosen].reshape(-1, SLOTS), items[~chosen].reshape(-1, SLOTS)
        new_above = fixed[above] + value[slot_above].sum(axis=1)
        new_below = fixed[below] + value[slot_below].sum(axis=1)
        better = np.maximum(new_above, new_below) < load[above] * (1 - 1e-12)
        top = load.max()
        slot[above[better]], slot[below[better]] = slot_above[better], slot_below[better]
        load[above[better]], load[below[better]] = new_above[better], new_below[better]
        stale = 0 if load.max() < top * (1 - 1e-12) else stale + 1
    part = np.append(part, 0).astype(np.int32)
    part[slot] = np.arange(parts, dtype=np.int32)[:, None]
    return part[:nothing], float(load.max())


def seats(costs: np.ndarray, part: np.ndarray, parts: int) -> tuple[np.ndarray, np.ndarray]:
    """The `SLOTS` cheapest items of each part [parts, SLOTS] (n: none), and the sum of the others [parts]."""
    order = np.lexsort((costs, part))
    first = np.cumsum(np.bincount(part, minlength=parts)) - np.bincount(part, minlength=parts)
    place = np.arange(len(part)) - first[part[order]]
    seated = place < SLOTS
    slot = np.full((parts, SLOTS), len(costs))
    slot[part[order[seated]], place[seated]] = order[seated]
    rest = order[~seated]
    return slot, np.bincount(part[rest], costs[rest], parts)
