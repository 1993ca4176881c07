"""The plan: every event once, steps independent of ranks and measured costs, micro-batches under the cap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.errors import InputError
from hpctrack.planning.plan import compose, pack, plan_epoch

SIZES = st.lists(st.integers(1, 1000), min_size=1, max_size=60).map(lambda c: np.array(c, dtype=float))
STEPS = st.one_of(
    st.fixed_dictionaries({"events_per_step": st.integers(1, 17)}),
    st.fixed_dictionaries({"size_per_step": st.floats(1, 5000)}),
)
WINDOWS = st.sampled_from([1, 2, 5, None])


@settings(max_examples=200)
@given(SIZES, STEPS, WINDOWS, st.integers(1, 9), st.integers(0, 5), st.integers(1, 2000), st.booleans())
def test_every_event_exactly_once_under_the_cap(sizes, steps, window, world, epoch, cap, locality):
    shards = np.arange(len(sizes)) // 4 if locality else None
    plan = plan_epoch(sizes, world, 3, epoch, **steps, window=window, memory=sizes, memory_cap=cap, shards=shards)
    seen = []
    for step in range(plan.n_steps):
        parts = [part for rank in range(world) for part in plan.micro_batches(step, rank)]
        for batch in parts:
            assert len(batch) == 1 if sizes[batch].max() > cap else sizes[batch].sum() <= cap
        here = np.concatenate(parts)
        assert sorted(here) == sorted(plan.step_events(step)) != []
        seen.append(here)
    assert sorted(np.concatenate(seen)) == list(range(len(sizes)))
    loads = plan.loads(sizes, world)
    assert loads.shape == (plan.n_steps, world) and loads.sum() == pytest.approx(sizes.sum())


@given(SIZES, STEPS, WINDOWS, st.integers(0, 5))
def test_steps_do_not_depend_on_ranks_costs_memory_or_shards(sizes, steps, window, seed):
    rng = np.random.default_rng(seed)
    plans = [
        plan_epoch(sizes, world, seed, 1, **steps, window=window, costs=costs, memory_cap=cap, shards=shards)
        for world, costs, cap, shards in (
            (1, None, None, None),
            (2, rng.random(len(sizes)), None, None),
            (3, None, 50.0, rng.integers(0, 3, len(sizes))),
            (64, rng.random(len(sizes)), 1.0, None),
        )
    ]
    assert len({plan.hash for plan in plans}) == 1
    for plan in plans[1:]:
        assert np.array_equal(plan.step_offsets, plans[0].step_offsets)
        for step in range(plan.n_steps):
            assert np.array_equal(plan.step_events(step), plans[0].step_events(step))


def test_epochs_and_seeds_shuffle_differently():
    sizes = np.arange(1.0, 51.0)
    for window in (1, 3, None):
        plans = [plan_epoch(sizes, 1, seed, epoch, 5, window=window) for seed in range(3) for epoch in range(3)]
        assert len({tuple(plan.event) for plan in plans}) == 9
    assert len({plan_epoch(sizes, 1, 0, epoch, 5).hash for epoch in range(5)}) == 5


def test_steps_have_a_fixed_number_of_events_or_about_a_fixed_size():
    sizes = np.random.default_rng(0).uniform(1, 3, 1003)
    for window in (1, 4, None):
        order, bounds = compose(sizes, 0, 0, events_per_step=10, window=window)
        assert sorted(np.diff(bounds)) == [3] + [10] * 100
        order, bounds = compose(sizes, 0, 0, size_per_step=40.0, window=window)
        totals = np.add.reduceat(sizes[order], bounds[:-1])
        assert np.sort(totals)[1:].min() > 36 and totals.max() < 44  # to half an event at each end


def test_windows_group_like_sizes():
    sizes = np.random.default_rng(0).lognormal(0, 0.5, 4000)
    spread = []
    for window in (1, 4, 16, None):
        plan = plan_epoch(sizes, 1, 0, 0, 8, window=window)
        spread.append(np.mean([np.ptp(sizes[plan.step_events(s)]) for s in range(plan.n_steps)]))
    assert spread == sorted(spread, reverse=True) and spread[-1] < 0.05 * spread[0]


def test_locality_keeps_loads_and_finds_more_shards_again():
    rng = np.random.default_rng(0)
    sizes, shards = rng.uniform(1, 2, 640), np.arange(640) // 20
    plain, local = (plan_epoch(sizes, 8, 0, 0, 16, shards=s) for s in (None, shards))
    assert np.allclose(np.sort(plain.loads(sizes, 8)), np.sort(local.loads(sizes, 8)))

    def opened(plan):
        return sum(len(np.unique(shards[plan.event[plan.rank == r]])) for r in range(8))

    assert opened(local) < opened(plain)


def test_a_step_has_one_length():
    with pytest.raises(InputError, match="either events_per_step or size_per_step"):
        compose(np.ones(3), 0, 0)


def test_pack_keeps_the_cap():
    assert pack(np.array([3.0, 3, 3, 9, 1, 1]), 6).tolist() == [1, 1, 2, 0, 2, 2]
