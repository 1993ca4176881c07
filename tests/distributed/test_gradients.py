"""Ranks, micro-batches and uneven shares do not change the gradient (fp64: 1e-12)."""

from __future__ import annotations

import numpy as np
import pytest
from ranks import run_ranks
from toys import toy_config, toy_dataset

from hpctrack.losses import LOSSES
from hpctrack.parallel.env import distributed
from hpctrack.parallel.strategy import STRATEGIES
from hpctrack.runtime.step import train_step
from hpctrack.runtime.trainer import Trainer

VARIANTS = {"influencer": [{"compactness": 1.0}, {"per": "hit", "squared_hinge_ui": True}]}
CASES = [(name, options) for name in sorted(LOSSES) for options in VARIANTS.get(name, [{}])]


def gradient(config) -> tuple[list[np.ndarray], float, int]:
    """Gradient of the run's first step on this rank, its loss, and how many micro-batches this rank had."""
    with distributed(config.parallel, 1) as env:
        trainer = Trainer(config, env)
        found = []
        trainer.engine.step = lambda: found.extend(p.grad.numpy().copy() for p in trainer.engine.module.parameters())
        batches, modes = next(trainer.batches())
        cost = trainer.planner.cost if trainer.probe() else None
        expected = trainer.planner.step_events(0)
        clip = config.optim.clip_norm
        result = train_step(trainer.engine, trainer.loss, batches, clip, modes, cost, expected)
        return found, result.loss, len(batches)


PLANS = {
    "whole": {},
    "packed": {"hits_per_micro_batch": 30},  # uneven micro-batches; some events are over the cap and recomputed
    "chunked": {"hits_per_micro_batch": 30, "over_cap": "chunk"},
    "sorted": {"window": "epoch", "locality": True},
    "probed": {"probe": True, "hits_per_micro_batch": 30},
}


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
def test_gradient_is_that_of_one_rank(tmp_path, loss, options, clip, strategy):
    data = toy_dataset(tmp_path / "data", sizes=(4, 0, 9, 5, 1, 2, 6), n_noise=2)  # one event has only noise

    def config(name: str):
        plan = {"events_per_step": 7} | PLANS[name]
        probe_every = 1 if plan.pop("probe", False) else 1000
        return toy_config(
            tmp_path / "run", data, loss={"name": loss, **options}, plan=plan, optim={"clip_norm": clip},
            parallel={"strategy": strategy}, train={"probe_every": probe_every},
        )  # fmt: skip

    [(expected, value, _)] = run_ranks(1, gradient, config("whole"))
    assert any(np.abs(g).max() > 0 for g in expected)
    for name in PLANS:
        for n in (1, 2, 4):
            results = run_ranks(n, gradient, config(name))
            if n == 4 and name == "packed":
                assert len({batches for _, _, batches in results}) > 1  # uneven micro-batches
            for found, loss_value, _ in results:
                assert loss_value == pytest.approx(value, rel=1e-12)
                for a, b in zip(found, expected, strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * np.abs(b).max())


def test_ranks_without_an_event_take_part(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=(5,))
    config = toy_config(tmp_path / "run", data)
    [(expected, _, _)] = run_ranks(1, gradient, config)
    results = run_ranks(3, gradient, config)
    assert sorted(batches for _, _, batches in results) == [0, 0, 1]
    for found, _, _ in results:
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15)
