"""The cost model: recovers what it was given, shrugs off hiccups, survives a checkpoint."""

from __future__ import annotations

import json

import numpy as np

from hpctrack.resources.cost_model import KEEP, CostModel, batch_terms, event_terms, fit
from hpctrack.testing.toys import toy_batch


def samples(n: int = 200, noise: float = 0.05, hiccups: int = 0, seed: int = 0):
    rng = np.random.default_rng(seed)
    hits = rng.uniform(500, 5000, n)
    x = np.stack([np.ones(n), hits, np.zeros(n), hits**2], axis=1)
    y = (x @ [0.01, 2e-5, 0.0, 3e-9]) * rng.lognormal(0, noise, n)
    y[rng.choice(n, hiccups, replace=False)] *= 8
    return x, y


def test_fit_recovers_the_coefficients():
    x, y = samples(noise=0.0)
    coefficients, error = fit(x, y)
    np.testing.assert_allclose(coefficients, [0.01, 2e-5, 0, 3e-9], rtol=1e-6, atol=1e-15)
    assert error < 1e-9


def test_fit_is_robust_and_never_negative():
    x, y = samples(hiccups=12)
    coefficients, error = fit(x, y)
    assert (coefficients >= 0).all() and error < 0.06
    _, truth = samples(noise=0.0)
    assert np.median(np.abs(x @ coefficients - truth) / truth) < 0.03


def test_a_model_learns_from_all_ranks_alike_and_survives_a_checkpoint():
    x, y = samples()
    model, others = CostModel(), [[*row, s] for row, s in zip(x[100:].tolist(), y[100:], strict=True)]
    assert not model.fitted and not model.learn() and model.lines() == []
    for row, s in zip(x[:100].tolist(), y[:100], strict=True):
        model.observe(row, s)
    model.collect([model.new, others])
    assert model.learn() and model.fitted and model.new == []
    again = CostModel(json.loads(json.dumps(model.state())))
    hits = np.array([100.0, 1000.0, 4000.0])
    assert np.array_equal(again.seconds(event_terms(hits)), model.seconds(event_terms(hits)))
    assert again.learn() and np.array_equal(again.coefficients, model.coefficients)
    expected = 2e-5 * hits + 3e-9 * hits**2
    np.testing.assert_allclose(model.seconds(event_terms(hits)), expected, rtol=0.2)
    assert "s/hits" in model.lines()[0] and "median error" in model.lines()[0]


def test_old_samples_are_forgotten():
    model = CostModel()
    model.collect([[[1.0, i, 0.0, 0.0, 1.0] for i in range(KEEP + 50)]])
    assert len(model.samples) == KEEP and model.samples[0, 1] == 50


def test_terms_of_a_batch_are_sums_over_events():
    batch = toy_batch(sizes=(4, 0, 3))
    hits = batch.ptr.diff().numpy().astype(float)
    expected = event_terms(hits).sum(axis=0)
    expected[0] = 1
    assert batch_terms(batch) == expected.tolist()
