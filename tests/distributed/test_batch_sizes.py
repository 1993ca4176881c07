"""A small version of the campaign on batch sizes, broken off and taken up again; and the rules themselves."""

from __future__ import annotations

import json

import pytest
from campaigns import batch_sizes
from campaigns.batch_sizes import Point, campaign

from hpctrack.config import OptimConfig, PlanConfig
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.optimizers import learning_rate, peak_rate


def test_learning_rates_follow_the_batch():
    for rule, factor in (("none", 1.0), ("linear", 4.0), ("sqrt", 2.0)):
        config = OptimConfig(lr=0.1, scale_lr=rule, base_batch=8.0, warmup_steps=10)
        assert peak_rate(config, PlanConfig(events_per_step=32)) == pytest.approx(0.1 * factor)
        assert peak_rate(config, PlanConfig(events_per_step=None, cost_per_step=32.0)) == pytest.approx(0.1 * factor)
        assert learning_rate(0, 100, config, PlanConfig(events_per_step=32)) == pytest.approx(0.01 * factor)
        assert learning_rate(99, 100, config, PlanConfig(events_per_step=32)) == pytest.approx(0.001 * factor)


def test_a_campaign_goes_on_where_it_broke_off(tmp_path, monkeypatch):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7))
    recipe = toy_config(tmp_path / "none", data, valid=data, optim={"base_batch": 4.0})
    points = [Point(rule, batch, 1) for batch in (2, 4) for rule in ("none", "linear")]
    taken, take = [], batch_sizes.take

    def take_three(config):
        if len(taken) == 3:
            raise KeyboardInterrupt
        taken.append(config)
        take(config)

    monkeypatch.setattr(batch_sizes, "take", take_three)
    with pytest.raises(KeyboardInterrupt):
        campaign(recipe, points, 32, tmp_path / "out")
    monkeypatch.setattr(batch_sizes, "take", lambda config: (taken.append(config), take(config)))
    text = campaign(recipe, points, 32, tmp_path / "out")
    assert len(taken) == 4 and len({config.run for config in taken}) == 4
    rates = {(c.plan.events_per_step, c.optim.scale_lr): peak_rate(c.optim, c.plan) for c in taken}
    assert rates == {(2, "none"): 1e-2, (4, "none"): 1e-2, (2, "linear"): 5e-3, (4, "linear"): 1e-2}
    assert {c.train.steps * c.plan.events_per_step for c in taken} == {32}
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert len(results["runs"]) == 4 and all(len(run["curve"]) > 2 for run in results["runs"])
    assert "| none | " in text and "| linear | " in text and (tmp_path / "out/results.md").read_text() == text
    base = next(run for run in results["runs"] if (run["rule"], run["batch"]) == ("none", 4))
    assert base["step"] is not None and dict(base["curve"])[base["step"]] <= results["target"]
