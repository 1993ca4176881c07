"""Balance and randomness of plans, on cases done by hand and against scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from hpctrack.planning.certificate import balances, certify, randomness
from hpctrack.planning.plan import plan_epoch


def test_balance_is_averaged_over_steps_or_over_time():
    loads = np.array([[1.0, 1.0], [10.0, 5.0], [0.0, 0.0]])
    mean, by_time = balances(loads)
    assert mean == pytest.approx((1 + 0.75 + 1) / 3)
    assert by_time == pytest.approx((1 + 7.5) / (1 + 10))
    assert balances(np.zeros((0, 4))) == (1.0, 1.0)


def test_one_size_is_as_random_as_it_can_be():
    ks, entropy = randomness(np.full(20, 7.0), np.array([0, 10, 20]))
    assert ks == 0
    assert entropy == 0  # one size, one bin


def test_sorted_halves():
    ks, entropy = randomness(np.arange(20.0), np.array([0, 10, 20]))
    assert ks == pytest.approx(0.5)
    assert entropy == pytest.approx(np.log(5) / np.log(10))


def test_steps_of_one_event_count_as_mixed():
    assert randomness(np.arange(4.0), np.arange(5))[1] == 1.0


@given(st.lists(st.integers(1, 6), min_size=6, max_size=40), st.integers(1, 5))
def test_ks_is_scipys(sizes, n):
    sizes = np.array(sizes, dtype=float)
    bounds = np.arange(0, len(sizes), n)
    bounds = np.append(bounds, len(sizes))
    steps = [sizes[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    expected = np.mean([ks_2samp(step, sizes, method="asymp").statistic for step in steps])
    assert randomness(sizes, bounds)[0] == pytest.approx(expected)


def test_grouping_trades_randomness_for_balance_and_the_lines_say_so():
    sizes = np.random.default_rng(0).lognormal(0, 0.2, 2000)
    costs = sizes**2
    plain, grouped = (certify(plan_epoch(sizes, 8, 0, 0, 8, window=w), sizes, costs, 8) for w in (1, 16))
    assert plain.balance == pytest.approx(plain.random_balance, abs=0.02)
    assert plain.ks == pytest.approx(plain.random_ks, abs=0.02)
    assert grouped.balance > plain.balance + 0.1
    assert grouped.ks > plain.ks + 0.1
    assert grouped.entropy < plain.entropy - 0.1
    first, second = grouped.lines()
    assert "250 steps of 8 events over 8 ranks" in first
    assert f"{grouped.balance:.3f}" in first
    assert f"{grouped.random_balance:.3f}" in first
    assert f"{grouped.ks:.3f}" in second
    assert f"{grouped.random_entropy:.3f}" in second


@pytest.mark.parametrize("n", [1, 3, 9])
def test_small_epochs(n):
    sizes = np.arange(1.0, n + 1)
    certificate = certify(plan_epoch(sizes, 4, 0, 0, 4), sizes, sizes, 4)
    assert 0 < certificate.balance <= 1
    assert 0 <= certificate.ks <= 1
    assert 0 <= certificate.entropy <= 1
