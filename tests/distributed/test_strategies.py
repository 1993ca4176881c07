"""The same recipe under every strategy: the curve of one rank, and checkpoints that move between strategies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from strategies import HAS_DEEPSPEED, VARIANTS, needs_deepspeed, variants

from hpctrack.config import ParallelConfig, parse
from hpctrack.errors import InputError, MachineError
from hpctrack.parallel.env import distributed
from hpctrack.parallel.strategies import STRATEGIES
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import checkpoint
from hpctrack.training.loop import train
from hpctrack.training.trainer import Trainer

SIZES = (4, 6, 5, 7, 3, 6, 9, 2, 5, 5)
TRAIN = {"steps": 12, "valid_every": 6, "checkpoint_every": 3, "probe_every": 4}
PRECISION = {"ddp": "fp64", "fsdp": "fp64", "fsdp, kept": "fp64"}  # DeepSpeed has none but fp32
TOLERANCE = {"fp64": 1e-9, "fp32": 1e-5, "bf16": 2e-2}  # of the loss in 12 steps, relative


@pytest.fixture(autouse=True)
def shared_out(monkeypatch):
    """Small weights are shared out, too."""
    monkeypatch.setattr("hpctrack.parallel.zero.PERSISTENT", 10)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return toy_dataset(tmp_path_factory.mktemp("toys") / "data", sizes=SIZES)


def config(run: Path, data: Path, parallel: dict[str, Any], precision: str, **optim: Any):
    return toy_config(
        run, data, valid=data, plan={"hits_per_micro_batch": 50}, parallel=parallel, optim=optim,
        train=TRAIN | {"precision": precision}, builder={"radius": None},
    )  # fmt: skip


class Stopped(Exception):
    """Thrown where a test ends a run."""


def run(config, last: int | None = None) -> None:
    """Train; stop once checkpoint `last` is written, if it is given."""
    with distributed(config.parallel, 1) as env:
        if last is not None:
            save = Trainer.save

            def save_and_stop(self: Trainer, *args: Any, **options: Any) -> None:
                save(self, *args, **options)
                if self.step == last:
                    raise Stopped

            Trainer.save = save_and_stop
        train(config, env)


def run_until(config, last: int) -> None:
    try:
        run(config, last)
    except Stopped:
        return
    raise AssertionError("did not stop")


def curve(folder: Path, key: str = "loss") -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if line["kind"] in ("train", "valid") and key in line]


def assert_same_curve(found: Path, expected: Path, tolerance: float) -> None:
    assert curve(found) == pytest.approx(curve(expected), rel=tolerance)
    assert curve(found, "grad_norm") == pytest.approx(curve(expected, "grad_norm"), rel=10 * tolerance)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data) -> dict[str, Path]:
    """Runs on one rank under ddp, by precision."""
    folder = tmp_path_factory.mktemp("alone")
    for precision in TOLERANCE:
        run_ranks(1, run, config(folder / precision, data, {}, precision))
    return {precision: folder / precision for precision in TOLERANCE}


def test_every_strategy_is_tested():
    assert {values.get("strategy", "ddp") for values in VARIANTS.values()} == set(STRATEGIES)


@pytest.mark.parametrize("name", variants())
def test_the_curve_and_the_weights_are_those_of_one_rank(tmp_path, data, alone, name):
    for precision in [PRECISION.get(name, "fp32"), *(["bf16"] if name in ("ddp", "fsdp", "zero 3") else [])]:
        tolerance = TOLERANCE[precision]
        run_ranks(2, run, config(tmp_path / precision, data, VARIANTS[name], precision), timeout=300)
        assert_same_curve(tmp_path / precision, alone[precision], tolerance)
        states = [checkpoint.read_state(checkpoint.find(path)) for path in (tmp_path / precision, alone[precision])]
        # Adam blows up what is only rounding: gradients of key biases, which a softmax does not see
        assert_same_content(*states, 1e-8 if precision == "fp64" else 0.1)


def assert_same_content(a: Any, b: Any, tolerance: float) -> None:
    """Checkpoints of the same names and shapes, and near values."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_content(a[key], b[key], tolerance)
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same_content(x, y, tolerance)
    elif isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    else:
        assert a == (pytest.approx(b) if isinstance(b, float) else b)


ROUTES = {  # strategy and number of ranks, three steps each
    "torch": [("ddp", 2), ("fsdp", 3), ("ddp", 1), ("fsdp", 2)],
    "deepspeed": [("ddp", 1), ("zero 3", 2), ("fsdp", 2), ("zero 1", 3)],
    "deepspeed, back": [("zero 1", 2), ("zero 3", 3), ("zero 2", 1), ("ddp", 2)],
}


@pytest.mark.parametrize("route", [pytest.param(n, marks=[needs_deepspeed] if "deep" in n else []) for n in ROUTES])
def test_checkpoints_move_between_strategies_and_numbers_of_ranks(tmp_path, data, alone, route):
    precision = "fp32" if "deep" in route else "fp64"
    for leg, (name, ranks) in enumerate(ROUTES[route], 1):
        settings = config(tmp_path / "run", data, VARIANTS[name], precision)
        if leg < 4:
            run_ranks(ranks, run_until, settings, 3 * leg, timeout=300)
        else:
            run_ranks(ranks, run, settings, timeout=300)
    assert_same_curve(tmp_path / "run", alone[precision], TOLERANCE[precision])


@pytest.mark.parametrize("name", variants("ddp", "fsdp", "zero 2"))
def test_gradients_in_bf16_are_near(tmp_path, data, alone, name):
    run_ranks(2, run, config(tmp_path / "run", data, VARIANTS[name] | {"compress": "bf16"}, "fp32"), timeout=300)
    found, exact = curve(tmp_path / "run"), curve(alone["fp32"])
    assert found == pytest.approx(exact, rel=0.05) and found != pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("name", variants("fsdp", "zero 2", "zero 3"))
def test_what_is_not_finite_ends_all_ranks(tmp_path, data, name):
    optim = {"lr": 1e36, "warmup_steps": 0, "clip_norm": None}
    settings = config(tmp_path / "run", data, VARIANTS[name], "fp32", **optim)
    run_ranks(2, expect_error, settings, "is not finite", timeout=300)


def expect_error(config, part: str) -> None:
    with pytest.raises(MachineError) as error:
        run(config)
    assert str(error.value).startswith("step 2: ") and part in str(error.value)


@needs_deepspeed
def test_zero_with_state_and_weights_in_the_host_memory(tmp_path, data, alone):
    options = VARIANTS["zero 3"] | {"offload_optimizer": True, "offload_param": True}
    run_ranks(2, run, config(tmp_path / "run", data, options, "fp32"), timeout=300)
    assert_same_curve(tmp_path / "run", alone["fp32"], TOLERANCE["fp32"])


@pytest.mark.parametrize(("name", "strategy"), [("lamb", "ddp"), ("lars", "ddp"), ("sgd", "fsdp")])
def test_other_optimizers_are_the_same_on_two_ranks(tmp_path, data, name, strategy):
    if name != "sgd":
        pytest.importorskip("pytorch_optimizer", reason="needs pytorch-optimizer: pip install 'hpctrack[optim]'")
    run_ranks(1, run, config(tmp_path / "alone", data, {}, "fp64", name=name))
    settings = config(tmp_path / "ranks", data, VARIANTS[strategy], "fp64", name=name)
    run_ranks(2, run_until, settings, 6)
    run_ranks(2, run, settings)
    assert_same_curve(tmp_path / "ranks", tmp_path / "alone", TOLERANCE["fp64"])
    states = [checkpoint.read_state(checkpoint.find(tmp_path / run)) for run in ("ranks", "alone")]
    assert_same_content(*states, 1e-8)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"parallel": {"strategy": "fsdp", "offload_optimizer": True}}, "are for strategy deepspeed, not fsdp"),
        ({"parallel": {"strategy": "deepspeed", "offload_param": True}}, "offload_param needs zero_stage 3, not 2"),
        ({"parallel": {"strategy": "fsdp"}, "optim": {"name": "lamb"}}, "optim.name=lamb needs whole layers"),
        (
            {"parallel": {"strategy": "deepspeed"}, "train": {"precision": "fp64"}},
            "deepspeed takes train.precision fp32 or bf16",
        ),
        ({"parallel": {"strategy": "horovod"}}, "parallel.strategy"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, sections, message):
    with pytest.raises(InputError) as error:
        toy_config(tmp_path / "run", tmp_path / "data", **sections)
    assert message in str(error.value)


@pytest.mark.skipif(HAS_DEEPSPEED, reason="DeepSpeed is there")
def test_without_deepspeed_one_line_says_so(tmp_path, data):
    with pytest.raises(InputError, match=r"pip install 'hpctrack\[deepspeed\]'"):
        run(config(tmp_path / "run", data, VARIANTS["zero 1"], "fp32"))


def test_defaults_are_plain_ddp():
    assert parse(ParallelConfig, {}, "test") == ParallelConfig(strategy="ddp", compress="none", device="auto")
