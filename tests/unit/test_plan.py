"""The plan: every event once, steps independent of the ranks, micro-batches under the cap."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.data.plan import pack, plan_epoch, split_by_cost

COSTS = st.lists(st.integers(1, 1000), min_size=1, max_size=60).map(lambda c: np.array(c, dtype=float))


@settings(max_examples=200)
@given(COSTS, st.integers(1, 9), st.integers(0, 5), st.integers(0, 3), st.integers(1, 17), st.integers(1, 2000))
def test_every_event_exactly_once_under_the_cap(costs, world, seed, epoch, per_step, cap):
    plan = plan_epoch(costs, world, seed, epoch, per_step, memory=costs, memory_cap=cap)
    seen = []
    for step in range(plan.n_steps):
        parts = [batch for rank in range(world) for batch in plan.micro_batches(step, rank)]
        for batch in parts:
            assert len(batch) == 1 or costs[batch].sum() <= cap
        here = np.concatenate(parts)
        assert sorted(here) == sorted(plan.step_events(step))
        assert len(here) == per_step or step == plan.n_steps - 1
        seen.append(here)
    assert sorted(np.concatenate(seen)) == list(range(len(costs)))


@given(COSTS, st.integers(0, 5), st.integers(1, 17))
def test_steps_do_not_depend_on_the_ranks(costs, seed, per_step):
    plans = [plan_epoch(costs, world, seed, 1, per_step) for world in (1, 2, 3, 64)]
    assert len({plan.hash for plan in plans}) == 1
    for plan in plans[1:]:
        for step in range(plan.n_steps):
            assert np.array_equal(plan.step_events(step), plans[0].step_events(step))


def test_epochs_and_seeds_shuffle_differently():
    costs = np.ones(50)
    orders = {tuple(plan_epoch(costs, 1, seed, epoch, 5).event) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    assert plan_epoch(costs, 1, 0, 0, 5).hash != plan_epoch(costs, 1, 0, 1, 5).hash


@given(COSTS, st.integers(1, 8))
def test_split_is_within_one_item_of_even(costs, parts):
    part = split_by_cost(costs, parts)
    load = np.bincount(part, weights=costs, minlength=parts)
    assert load.max() - load.min() <= costs.max()


def test_pack_keeps_order_and_cap():
    assert pack(np.array([3, 3, 3, 9, 1, 1]), 6).tolist() == [0, 0, 1, 2, 3, 3]
