"""Ranks, micro-batches, uneven shares and strategies do not change the gradient (fp64: 1e-12; DeepSpeed: 1e-5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from strategies import VARIANTS as VARIANTS_OF_STRATEGY
from strategies import needs_deepspeed, variants
from toys import FEATURES, toy_batch, toy_config, toy_dataset
from unit.test_models_contract import CONFIGS

from hpctrack.config import Named, ParallelConfig
from hpctrack.errors import InputError
from hpctrack.losses import LOSSES
from hpctrack.models import build_model
from hpctrack.parallel.engine import Engine, units, whole
from hpctrack.parallel.env import distributed
from hpctrack.parallel.precision import Precision
from hpctrack.parallel.strategies import STRATEGIES
from hpctrack.parallel.zero import ZeroEngine
from hpctrack.training.build import build
from hpctrack.training.step import train_step
from hpctrack.training.trainer import Trainer

VARIANTS = {"influencer": [{"compactness": 1.0, "parameters": 0.1}, {"per": "hit", "squared_hinge_ui": True}]}
TRANSFORMER = {"name": "transformer", "width": 8, "layers": 1, "heads": 2}
MODELS_FOR = {  # losses of other outputs than the influencer model's
    "condensation": {"name": "condensation", "embedding": 3, "backbone": TRANSFORMER},
    "contrastive": {"name": "embedding", "embedding": 3, "backbone": TRANSFORMER},
    "edges": {"name": "attention", "width": 8, "iterations": 2},
    "hybrid": {"name": "interaction", "width": 8, "iterations": 2, "embed_hits": 2, "embed_edges": 3},
    "metric": {"name": "embedding", "embedding": 3, "backbone": {"name": "mlp", "width": 8, "layers": 2}},
    "triplets": {"name": "triplets", "network": {"name": "attention", "width": 8, "iterations": 2}},
}
DOUBLETS = {"name": "doublets", "phi_slope_max_per_mm": 0.02, "z0_max_mm": 500.0}
GRAPHS_FOR = {"edges": DOUBLETS, "hybrid": DOUBLETS, "metric": {"name": "truth"}, "triplets": DOUBLETS}
CASES = [(name, options) for name in sorted(LOSSES) for options in VARIANTS.get(name, [{}])]
Found = tuple[list[np.ndarray], float, int]


def gradients(configs: list[Any]) -> list[Found]:
    """For each run: gradient of its first step on this rank, its loss, and how many micro-batches this rank had."""
    with distributed(configs[0].parallel, 1) as env:
        return [gradient(build(config, env)) for config in configs]


def gradient(trainer: Trainer) -> Found:
    found: list[np.ndarray] = []
    keep_gradients(trainer.engine, found)
    batches, modes = next(trainer.batches())
    cost = trainer.planner.cost if trainer.probe() else None
    clip = trainer.config.optim.clip_norm
    result = train_step(
        trainer.engine, trainer.loss, batches, clip, modes, cost, expected=trainer.planner.step_events(0)
    )
    return found, result.loss, len(batches)


def keep_gradients(engine: Engine, found: list[np.ndarray]) -> None:
    """Let the engine note its whole gradients where it would update the weights."""

    def instead(clip_norm: float | None = None) -> float:
        read = (lambda p: p.grad) if not isinstance(engine, ZeroEngine) else zero_gradient
        found.extend(whole(read(p)).numpy().copy() for p in engine.module.parameters())
        return 1.0

    setattr(engine, "gradient_norm" if isinstance(engine, ZeroEngine) else "step", instead)


def zero_gradient(parameter):
    from deepspeed.utils import safe_get_full_grad

    return safe_get_full_grad(parameter)


PLANS: dict[str, dict[str, Any]] = {
    "whole": {},
    "packed": {"hits_per_micro_batch": 30},  # uneven micro-batches; some events are over the cap
    "chunked": {"hits_per_micro_batch": 30, "memory": "chunks"},
    "sorted": {"window": "epoch", "locality": True},
    "probed": {"probe": True, "hits_per_micro_batch": 30},
}


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    least = 1e-3 * max(np.abs(b).max() for b in expected)  # an embedding may be shifted: its last bias has no slope
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), least))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize(("loss", "options"), CASES, ids=str)
def test_gradient_is_that_of_one_rank(tmp_path, loss, options, clip, strategy):
    data = toy_dataset(tmp_path / "data", sizes=(4, 0, 9, 5, 1, 2, 6), n_noise=2)  # one event has only noise

    def config(name: str, strategy: str):
        plan = {"events_per_step": 7} | PLANS[name]
        probe_every, memory = 1 if plan.pop("probe", False) else 1000, plan.pop("memory", "plain")
        config = toy_config(
            tmp_path / "run", data, plan=plan, optim={"clip_norm": clip}, parallel={"strategy": strategy},
            train={"probe_every": probe_every}, memory={"policy": memory}, reading={"graph": GRAPHS_FOR.get(loss)},
        )  # fmt: skip
        model = Named(**MODELS_FOR[loss]) if loss in MODELS_FOR else config.model
        if "parameters" in options:
            model = Named(name=model.name, **model.options, parameters=True)
        return config.model_copy(update={"model": model, "loss": Named(name=loss, **options)})

    [[(expected, value, _)]] = run_ranks(1, gradients, [config("whole", "ddp")])
    assert any(np.abs(g).max() > 0 for g in expected)
    for n in (1, 2, 4):
        results = run_ranks(n, gradients, [config(name, strategy) for name in PLANS])
        if n == 4:
            assert len({rank[list(PLANS).index("packed")][2] for rank in results}) > 1  # uneven micro-batches
        for rank in results:
            for found, loss_value, _ in rank:
                assert loss_value == pytest.approx(value, rel=1e-12)
                assert_same(found, expected, 1e-12)


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradient_of_zero_is_that_of_one_rank(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("hpctrack.parallel.zero.PERSISTENT", 10)  # so that these small weights are shared out
    data = toy_dataset(tmp_path / "data", sizes=(4, 0, 9, 5, 1, 2, 6), n_noise=2)

    def config(name: str, **parallel):  # without clipping, which is part of DeepSpeed's update
        plan = {"events_per_step": 7} | PLANS[name]
        probe_every, memory = 1 if plan.pop("probe", False) else 1000, plan.pop("memory", "plain")
        return toy_config(
            tmp_path / "run",
            data,
            plan=plan,
            parallel=parallel,
            optim={"clip_norm": None},
            train={"probe_every": probe_every, "precision": "fp32"},
            memory={"policy": memory},
        )

    [[(expected, value, _)]] = run_ranks(1, gradients, [config("whole")])
    for n in (2, 4) if stage == 2 else (2,):
        names = ("packed", "chunked", "probed") if n == 2 else ("packed",)
        for rank in run_ranks(
            n, gradients, [config(name, strategy="deepspeed", zero_stage=stage) for name in names], timeout=300
        ):
            for found, loss_value, _ in rank:
                assert loss_value == pytest.approx(value, rel=1e-5)
                assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", pytest.param("deepspeed", marks=needs_deepspeed)])
def test_ranks_without_an_event_take_part(tmp_path, strategy):
    data = toy_dataset(tmp_path / "data", sizes=(5,))
    precision, tolerance = ("fp32", 1e-5) if strategy == "deepspeed" else ("fp64", 1e-12)

    def config(strategy: str):
        return toy_config(
            tmp_path / "run", data, parallel={"strategy": strategy}, train={"precision": precision},
            optim={"clip_norm": None},
        )  # fmt: skip

    [[(expected, _, _)]] = run_ranks(1, gradients, [config("ddp")])
    results = run_ranks(3, gradients, [config(strategy)], timeout=300)
    assert sorted(rank[0][2] for rank in results) == [0, 0, 1]
    for rank in results:
        assert_same(rank[0][0], expected, tolerance)


def at_rest(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


def gradients_of_models(parallel: dict[str, Any], precision: str) -> dict[str, list[np.ndarray]]:
    """Whole gradients of every model in every memory mode, from one batch a rank; the clip is none."""
    found: dict[str, list[np.ndarray]] = {}
    config = ParallelConfig(**parallel)
    with distributed(config, 1) as env:
        number = Precision(precision, env.device)
        for name, options in CONFIGS.items():
            torch.manual_seed(0)
            model = build_model(Named(name=name.split()[0], **options), FEATURES).to(number.weights_dtype)
            try:
                engine = STRATEGIES[config.strategy](model, at_rest, env, number, config)
            except InputError as error:
                assert "use 2, or parallel.strategy=fsdp" in str(error) and model in units(model)
                continue
            for mode in model.memory_modes:
                values: list[np.ndarray] = []
                keep_gradients(engine, values)
                batches = [toy_batch(seed=seed, dtype=number.weights_dtype, edges=3) for seed in range(2)]
                mine = batches[env.rank :: env.world]
                for i, batch in enumerate(mine):
                    outputs = engine.forward(batch, last=i == len(mine) - 1, mode=mode)
                    engine.backward(sum(value.square().sum() for value in outputs.values()))
                engine.gradient_norm(None)
                engine.step()
                if isinstance(engine, ZeroEngine):
                    engine.parallel.step()
                else:
                    engine.module.zero_grad(set_to_none=True)
                found[f"{name}, {mode}"] = values[: len(list(engine.module.parameters()))]
            if isinstance(engine, ZeroEngine):
                engine.parallel.destroy()
    return found


@pytest.mark.parametrize("name", variants("fsdp", "zero 3"))
def test_every_model_is_shared_out_in_every_memory_mode(name, monkeypatch):
    monkeypatch.setattr("hpctrack.parallel.zero.PERSISTENT", 10)
    precision, tolerance = ("fp64", 1e-10) if name == "fsdp" else ("fp32", 2e-4)
    [expected] = run_ranks(1, gradients_of_models, {}, precision)
    for found in run_ranks(2, gradients_of_models, VARIANTS_OF_STRATEGY[name], precision, timeout=300):
        assert found.keys() == expected.keys() or (name == "zero 3" and "influencer transformer, chunks" in found)
        for case, values in found.items():
            for a, b in zip(values, expected[case], strict=True):
                near = tolerance * max(np.abs(b).max(), 1e-3)
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=near, err_msg=case)
