"""What a model and its loss must do in training: the gradient is the same however events are split (fp64: 1e-12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from hpctrack.config import Named, RunConfig
from hpctrack.parallel.engine import Engine, whole
from hpctrack.parallel.env import distributed
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import FEATURES, toy_config, toy_dataset
from hpctrack.training.build import build
from hpctrack.training.step import train_step
from hpctrack.training.trainer import Trainer

Found = tuple[list[np.ndarray], float, int]
PLANS: dict[str, dict[str, Any]] = {
    "whole": {},
    "packed": {"hits_per_micro_batch": 30},  # uneven micro-batches; some events are over the cap
    "chunked": {"hits_per_micro_batch": 30, "memory": "chunks"},
    "sorted": {"window": "epoch", "locality": True},
    "probed": {"probe": True, "hits_per_micro_batch": 30},
}
SIZES = (4, 0, 9, 5, 1, 2, 6)  # tracks of the events; one has only noise


class TrainingContract:
    """Tests of a model with its loss: a subclass sets `model` and `loss`, and what else a recipe needs for them.

    `features` are the inputs of the model (`data.features`), `graph` is the section `data.graph`; `ranks` are numbers
    of processes, which are forked.
    """

    model: ClassVar[dict[str, Any]]
    loss: ClassVar[dict[str, Any]]
    features: ClassVar[Sequence[str]] = FEATURES
    graph: ClassVar[dict[str, Any] | None] = None
    ranks: ClassVar[Sequence[int]] = (1, 2)
    plans: ClassVar[Sequence[str]] = ("whole", "packed", "sorted", "probed")

    def config(self, folder: Path, name: str) -> RunConfig:
        """A run in fp64 on the dataset in `folder`, with a plan of PLANS."""
        return planned(name, folder, self.model, self.loss, reading=self.reading())

    def reading(self) -> dict[str, Any]:
        """What is set of the section `data`."""
        return {"graph": self.graph, "features": list(self.features)}

    @pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
    def test_gradient_is_that_of_one_rank(self, tmp_path: Path, strategy: str) -> None:
        toy_dataset(tmp_path / "data", sizes=SIZES, n_noise=2)
        check_gradients(lambda name: self.config(tmp_path, name), strategy, self.ranks, self.plans)


def planned(
    name: str, folder: Path, model: dict[str, Any] | None, loss: dict[str, Any] | None, **sections: dict[str, Any]
) -> RunConfig:
    """A run on the dataset `folder`/data, all of its events in a step, with a plan of PLANS.

    `model` and `loss` take the place of those of `toy_config`, `sections` add to its others.
    """
    plan = {"events_per_step": len(SIZES)} | PLANS[name]
    probe_every, memory = 1 if plan.pop("probe", False) else 1000, plan.pop("memory", "plain")
    sections["train"] = {"probe_every": probe_every} | sections.get("train", {})
    config = toy_config(folder / "run", folder / "data", None, plan=plan, memory={"policy": memory}, **sections)
    named = {"model": model, "loss": loss}
    return config.model_copy(update={key: Named(**section) for key, section in named.items() if section})


def check_gradients(
    config: Callable[[str], RunConfig], strategy: str, ranks: Sequence[int], plans: Sequence[str]
) -> None:
    """Assert that each plan of `config(plan)` has, on so many ranks, loss and gradient of the first on one rank."""

    def runs(names: Sequence[str], strategy: str) -> list[RunConfig]:
        found = map(config, names)
        return [
            each.model_copy(update={"parallel": each.parallel.model_copy(update={"strategy": strategy})})
            for each in found
        ]

    [[(expected, value, _)]] = run_ranks(1, gradients, runs(plans[:1], "ddp"))
    assert any(np.abs(g).max() > 0 for g in expected)
    for n in ranks:
        results = run_ranks(n, gradients, runs(plans, strategy))
        if n == 4:
            assert len({rank[list(plans).index("packed")][2] for rank in results}) > 1  # uneven micro-batches
        for rank in results:
            for found, loss_value, _ in rank:
                assert loss_value == pytest.approx(value, rel=1e-12)
                assert_same(found, expected, 1e-12)


def keep_gradients(engine: Engine, found: list[np.ndarray]) -> None:
    """Let the engine note its whole gradients where it would update the weights."""
    setattr(engine, "step", lambda: found.extend(whole(p.grad).numpy().copy() for p in engine.module.parameters()))  # noqa: B010


def gradients(configs: list[RunConfig], keep: Callable[..., None] = keep_gradients) -> list[Found]:
    """For each run: gradient of its first step on this rank, its loss, and how many micro-batches this rank had."""
    with distributed(configs[0].parallel, 1) as env:
        return [gradient(build(config, env), keep) for config in configs]


def gradient(trainer: Trainer, keep: Callable[..., None]) -> Found:
    """Gradient of the next step, its loss, and this rank's number of micro-batches; `keep` as keep_gradients."""
    found: list[np.ndarray] = []
    keep(trainer.engine, found)
    batches, modes = next(trainer.batches())
    cost = trainer.planner.cost if trainer.probe() else None
    clip = trainer.config.optim.clip_norm
    result = train_step(
        trainer.engine, trainer.loss, batches, clip, modes, cost=cost, expected=trainer.planner.step_events(0)
    )
    return found, result.loss, len(batches)


def assert_same(found: list[np.ndarray], expected: list[np.ndarray], tolerance: float) -> None:
    """Assert that gradients agree within a tolerance relative to the largest of each tensor."""
    least = 1e-3 * max(np.abs(b).max() for b in expected)  # an embedding may be shifted: its last bias has no slope
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * max(np.abs(b).max(), least))
