"""Splitting items into parts of equal sum."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.planning.partition import balance, best_of_two, differencing, exchange, longest_first, partition

COSTS = st.lists(st.integers(0, 1000), max_size=50).map(lambda c: np.array(c, dtype=float))
PARTS = st.integers(1, 13)


def top(costs: np.ndarray, part: np.ndarray, parts: int) -> float:
    return float(np.bincount(part, costs, parts).max())


@settings(max_examples=300)
@given(COSTS, PARTS, st.sampled_from([0.9, 0.99, 1.0]))
def test_each_item_has_one_part_and_the_result_is_at_least_that_of_longest_first(costs, parts, good_enough):
    part = partition(costs, parts, good_enough)
    assert part.shape == costs.shape
    assert ((part >= 0) & (part < parts)).all()
    assert np.array_equal(part, partition(costs.copy(), parts, good_enough))
    if costs.sum() > 0:
        mean, first = costs.sum() / parts, longest_first(costs, parts)[1]
        assert top(costs, part, parts) <= max(first, mean / good_enough) + 1e-9
        assert top(costs, part, parts) >= max(mean, costs.max()) - 1e-9


@given(COSTS.filter(lambda c: len(c) > 0), PARTS)
def test_longest_first_keeps_grahams_bound(costs, parts):
    part, largest = longest_first(costs, parts)
    assert largest == pytest.approx(top(costs, part, parts))
    assert largest <= costs.sum() / parts + (1 - 1 / parts) * costs.max() + 1e-9


@given(COSTS.filter(lambda c: len(c) > 0), PARTS)
def test_differencing_gives_equal_numbers_up_to_one(costs, parts):
    part, largest = differencing(costs, parts)
    assert largest == pytest.approx(top(costs, part, parts))
    count = np.bincount(part, minlength=parts)
    assert count.max() - count.min() <= 1


@settings(max_examples=300)
@given(COSTS.filter(lambda c: len(c) > 0), st.integers(2, 13), st.integers(0, 5))
def test_exchange_never_makes_any_split_worse(costs, parts, seed):
    start = np.random.default_rng(seed).integers(parts, size=len(costs)).astype(np.int32)
    part, largest = exchange(costs, start, parts, costs.sum() / parts)
    assert largest == pytest.approx(top(costs, part, parts))
    assert largest <= top(costs, start, parts) + 1e-9


@given(st.lists(st.integers(1, 100), min_size=1, max_size=8).map(lambda c: np.array(c, dtype=float)))
def test_two_parts_of_few_items_are_the_best_there_are(costs):
    splits = itertools.product((0, 1), repeat=len(costs))
    assert top(costs, best_of_two(costs), 2) == min(top(costs, np.array(split), 2) for split in splits)
    assert top(costs, partition(costs, 2), 2) == top(costs, best_of_two(costs), 2)


@pytest.mark.parametrize("parts", [2, 16, 256])
def test_ceiling_is_reached_where_the_items_allow_it(parts):
    costs = np.random.default_rng(parts).lognormal(0, 0.2, parts * 8) ** 1.9
    assert balance(costs, partition(costs, parts, 0.99), parts) >= 0.99


def test_a_dear_item_stays_alone_and_the_rest_is_no_worse():
    costs = np.array([100.0, *[1.0] * 30])
    part = partition(costs, 4)
    assert (part == part[0]).sum() == 1
    assert top(costs, part, 4) == 100


def test_items_of_no_cost_are_spread():
    assert np.bincount(partition(np.zeros(10), 4), minlength=4).tolist() == [3, 3, 2, 2]
    assert partition(np.zeros(0), 4).shape == (0,)
