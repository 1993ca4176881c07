"""Ranks, micro-batches, uneven shares and strategies do not change the gradient (fp64: 1e-12; DeepSpeed: 1e-5)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from strategies import VARIANTS as VARIANTS_OF_STRATEGY
from strategies import needs_deepspeed, variants
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
from hpctrack.testing import training_contract
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import FEATURES, toy_batch, toy_config, toy_dataset
from hpctrack.testing.training_contract import PLANS, SIZES, assert_same, check_gradients, gradients, planned

VARIANTS = [  # of the influencer loss
    {"compactness": 1.0, "parameters": 0.1, "hits": 0.5},
    {"per": "hit", "squared_hinge_ui": True},
]
TRANSFORMER = {"name": "transformer", "width": 8, "layers": 1, "heads": 2}
INFLUENCER = {"name": "influencer", "embedding": 3, "backbone": TRANSFORMER}
LINE_GRAPH = {"name": "line_graph", "width": 8, "table": 64}
MODELS_FOR = {  # losses of other outputs than the influencer model's
    "assignment": LINE_GRAPH,
    "segments": LINE_GRAPH,
    "condensation": {"name": "condensation", "embedding": 3, "backbone": TRANSFORMER},
    "contrastive": {"name": "embedding", "embedding": 3, "backbone": TRANSFORMER},
    "edges": {"name": "attention", "width": 8, "iterations": 2},
    "hits": {"name": "hit_filter", "backbone": TRANSFORMER},
    "hybrid": {"name": "interaction", "width": 8, "iterations": 2, "embed_hits": 2, "embed_edges": 3},
    "metric": {"name": "embedding", "embedding": 3, "backbone": {"name": "mlp", "width": 8, "layers": 2}},
    "seeded": {"name": "plane_lstm", "planes": 13, "pixels": 8, "axes": ["phi"], "hidden": 5, "after": 2},
    "triplets": {"name": "triplets", "network": {"name": "attention", "width": 8, "iterations": 2}},
}
DOUBLETS = {"name": "doublets", "phi_slope_max_per_mm": 0.02, "z0_max_mm": 500.0}
GRAPHS_FOR = {"edges": DOUBLETS, "hybrid": DOUBLETS, "metric": {"name": "truth"}, "triplets": DOUBLETS}
GRAPHS_FOR |= {"seeded": {"name": "seeds", "layer": 2}, "assignment": DOUBLETS, "segments": DOUBLETS}
FEATURES_FOR = {"seeded": ["plane", "phi"]}
OF_IMAGES = {"count", "line_bins", "lines"}  # in test_ranks_of_images.py: their models have one memory mode
OTHERS = sorted(set(LOSSES.own) - OF_IMAGES - {"influencer"})


def keep_gradients(engine: Engine, found: list[np.ndarray]) -> None:
    """As in the package, and of DeepSpeed's engine, which updates the weights together with the norm."""
    if isinstance(engine, ZeroEngine):
        engine.gradient_norm = lambda clip_norm=None: found.extend(zero_gradients(engine)) or 1.0
    else:
        training_contract.keep_gradients(engine, found)


def zero_gradients(engine: ZeroEngine) -> list[np.ndarray]:
    from deepspeed.utils import safe_get_full_grad

    return [whole(safe_get_full_grad(p)).numpy().copy() for p in engine.module.parameters()]


# every number of ranks, plan and clipping for the influencer loss; of these, the others have those that differ most
CASES = [("influencer", options, *how) for options in VARIANTS for how in [("ddp", None), ("fsdp", 0.1)]]
CASES += [("influencer", {}, "ddp", 0.1), ("influencer", {}, "fsdp", None)]
CASES += [(name, {}, *how) for name in OTHERS for how in [("ddp", None), ("fsdp", 0.1)]]


@pytest.mark.parametrize(("loss", "options", "strategy", "clip"), CASES, ids=str)
def test_gradient_is_that_of_one_rank(tmp_path, loss, options, clip, strategy):
    toy_dataset(tmp_path / "data", sizes=SIZES, n_noise=2)
    model = MODELS_FOR.get(loss, INFLUENCER) | (
        {"parameters": True, "hit_score": True} if "parameters" in options else {}
    )

    def config(name: str):
        emphasis = {"short": 2.0, "displaced": 1.0, "displaced_min_mm": 1.0} if "compactness" in options else {}
        sections = {"optim": {"clip_norm": clip}, "reading": {"graph": GRAPHS_FOR.get(loss), "emphasis": emphasis}}
        sections["reading"]["features"] = FEATURES_FOR.get(loss, FEATURES)
        return planned(name, tmp_path, model, {"name": loss, **options}, **sections)

    if loss == "influencer":
        check_gradients(config, strategy, (1, 2, 4), list(PLANS))
    elif strategy == "ddp":
        check_gradients(config, strategy, (2, 4), ["whole", "packed", "chunked"])
    else:
        check_gradients(config, strategy, (2,), ["whole", "packed"])


@needs_deepspeed
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_gradient_of_zero_is_that_of_one_rank(tmp_path, stage, monkeypatch):
    monkeypatch.setattr("hpctrack.parallel.zero.PERSISTENT", 10)  # so that these small weights are shared out
    toy_dataset(tmp_path / "data", sizes=SIZES, n_noise=2)

    def config(name: str, **parallel):  # without clipping, which is part of DeepSpeed's update
        sections = {"parallel": parallel, "optim": {"clip_norm": None}, "train": {"precision": "fp32"}}
        return planned(name, tmp_path, None, None, **sections)

    [[(expected, value, _)]] = run_ranks(1, gradients, [config("whole")], keep_gradients)
    for n in (2, 4) if stage == 2 else (2,):
        names = ("packed", "chunked", "probed") if n == 2 else ("packed",)
        for rank in run_ranks(
            n,
            gradients,
            [config(name, strategy="deepspeed", zero_stage=stage) for name in names],
            keep_gradients,
            timeout=300,
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

    [[(expected, _, _)]] = run_ranks(1, gradients, [config("ddp")], keep_gradients)
    results = run_ranks(3, gradients, [config(strategy)], keep_gradients, timeout=300)
    assert sorted(rank[0][2] for rank in results) == [0, 0, 1]
    for rank in results:
        assert_same(rank[0][0], expected, tolerance)


def at_rest(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.0)


def gradients_of_models(parallel: dict[str, Any], precision: str, modes: int | None) -> dict[str, list[np.ndarray]]:
    """Whole gradients of every model in its first memory modes, from one batch a rank; the clip is none."""
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
            for mode in model.memory_modes[:modes]:
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
def test_every_model_is_shared_out_in_its_memory_modes(name, monkeypatch):
    monkeypatch.setattr("hpctrack.parallel.zero.PERSISTENT", 10)
    precision, tolerance, modes = ("fp64", 1e-10, None) if name == "fsdp" else ("fp32", 2e-4, 2)  # each gathers alike
    [expected] = run_ranks(1, gradients_of_models, {}, precision, modes, timeout=300)
    for found in run_ranks(2, gradients_of_models, VARIANTS_OF_STRATEGY[name], precision, modes, timeout=300):
        assert found.keys() == expected.keys() or (name == "zero 3" and "influencer transformer, recompute" in found)
        for case, values in found.items():
            for a, b in zip(values, expected[case], strict=True):
                near = tolerance * max(np.abs(b).max(), 1e-3)
                np.testing.assert_allclose(a, b, rtol=tolerance, atol=near, err_msg=case)
