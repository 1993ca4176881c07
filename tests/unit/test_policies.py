"""Other people's rules: whom they give what, and what they lose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpctrack.benchmarks import peers
from hpctrack.benchmarks.peers import assignments, budget_random, budget_sorted, counterfactual, next_fit, plain_random
from hpctrack.benchmarks.plan import pyg_dynamic

HITS = st.lists(st.integers(1, 500), min_size=8, max_size=80).map(lambda h: np.array(h, dtype=float))


@given(HITS, st.integers(1, 8), st.integers(1, 3), st.integers(0, 3))
def test_every_event_is_done_or_counted_as_lost(hits, world, per_rank, seed):
    n = len(hits)
    for name, rule in assignments(hits, world, per_rank, seed).items():
        assert len(rule.event) == n - rule.dropped(n) + rule.repeated(n), name
        assert rule.dropped(n) == 0, name  # budgets hold the largest event
        assert ((rule.rank >= 0) & (rule.rank < world)).all(), name
        assert 0 < rule.efficiency(hits) <= 1 + 1e-12, name
        assert rule.loads(hits).sum() == pytest.approx(hits[rule.event].sum()), name


@given(HITS, st.integers(1, 4))
def test_pygs_sampler_keeps_its_budget_and_its_lost_tail_is_counted(hits, world):
    rule = pyg_dynamic(hits, world, 2, seed=0)
    assert rule.repeated(len(hits)) == 0
    assert len(rule.event) == len(hits) - rule.dropped(len(hits))
    if len(rule.event):
        assert rule.loads(hits).max() <= max(2 * hits.mean(), hits.max()) + 1


def test_plain_random_pads_like_distributed_sampler():
    rule = plain_random(10, 4, 1, seed=0)
    assert (len(rule.event), rule.repeated(10), rule.dropped(10)) == (12, 2, 0)
    assert np.bincount(rule.step).tolist() == [4, 4, 4]
    assert np.bincount(rule.rank).tolist() == [3, 3, 3, 3]


def test_next_fit_never_looks_back():
    sizes = np.array([3.0, 4.0, 3.0, 1.0, 9.0, 1.0])
    batches = next_fit(np.arange(6), sizes, 7)
    assert [batch.tolist() for batch in batches] == [[0, 1], [2, 3], [4], [5]]


def test_a_budget_drops_larger_events_in_fairchem_and_isolates_them_in_hydragnn():
    sizes = np.array([2.0, 2.0, 2.0, 50.0, 2.0, 2.0])
    assert budget_random(sizes, 2, 4, seed=0).dropped(6) == 1
    alone = budget_sorted(sizes, 2, 4, seed=0)
    assert alone.dropped(6) == 0
    assert alone.loads(sizes).max() == 50


def test_sorted_batches_rotate_over_ranks():
    sizes = np.random.default_rng(0).uniform(1, 40, 60)
    rule = budget_sorted(sizes, 2, 60, seed=0)
    loads = rule.loads(sizes)
    larger = loads.argmax(axis=1)[loads[:, 0] != loads[:, 1]]
    assert len(set(larger.tolist())) == 2


def test_counterfactual_orders_the_rules_as_expected(monkeypatch):
    hits = np.random.default_rng(0).lognormal(10, 0.2, 4000)
    found = counterfactual(hits**1.9, hits, 16, 64, seed=0)
    ours = found["cost split, window 1"]
    assert ours > found["LPT of hits (fairchem)"] > found["plain random"]
    assert ours > 0.98
    monkeypatch.setattr(peers, "SAMPLE", 500)
    sampled = counterfactual(hits**1.9, hits, 16, 64, seed=0)
    assert sampled.keys() == found.keys()
    assert sampled["plain random"] == pytest.approx(found["plain random"], abs=0.1)
    assert counterfactual(np.zeros(0), np.zeros(0), 2, 4, 0) == {}


@pytest.mark.parametrize("world", [1, 16])
def test_counterfactual_with_fewer_events_than_ranks_a_step(world):
    hits = np.linspace(50, 150, 20)
    assert all(0 < value <= 1 for value in counterfactual(hits, hits, world, 4, seed=1).values())
