"""Precisions: bf16 and fp16 training come to fp32's loss, overflowing fp16 steps are left out by all ranks alike."""

from __future__ import annotations

import pytest
import torch

from hpctrack import infer
from hpctrack.config import Named
from hpctrack.errors import InputError, MachineError
from hpctrack.inference import stages
from hpctrack.losses import build_loss
from hpctrack.models import build_model
from hpctrack.parallel.env import Env, distributed
from hpctrack.parallel.precision import FIRST_SCALE, GROWTH_STEPS, Precision, emulated
from hpctrack.parallel.strategies import DDPEngine
from hpctrack.storage.candidates import CandidateStore
from hpctrack.testing.toys import FEATURES, toy_batch, toy_config, toy_dataset
from hpctrack.training import build, loop
from hpctrack.training.compiled import compile_model, try_compiled
from hpctrack.training.step import train_step

CPU = torch.device("cpu")
STEPS = 150
TOLERANCE = 0.1  # of fp32's loss, mean over the last steps


def make_engine(precision: str, lr: float = 1e-2) -> DDPEngine:
    torch.manual_seed(0)
    backbone = {"name": "transformer", "width": 16, "layers": 1, "heads": 2}
    model = build_model(Named(name="influencer", embedding=3, backbone=backbone), FEATURES)
    env, config = Env(0, 1, 0, CPU, None, "test"), toy_config("run", "data").parallel
    return DDPEngine(model, lambda m: torch.optim.AdamW(m.parameters(), lr), env, Precision(precision, CPU), config)


def train(precision: str) -> float:
    engine, losses = make_engine(precision), []
    loss = build_loss(Named(name="influencer", compactness=1.0))
    batches = [toy_batch(seed=seed, dtype=torch.float32) for seed in range(3)]
    for step in range(STEPS):
        losses.append(train_step(engine, loss, [batches[step % 3]], 1.0).loss)
    assert engine.precision.skipped_steps < 20
    assert sum(losses[-15:]) < 0.7 * sum(losses[:15])
    return sum(losses[-15:]) / 15


def test_mixed_precision_reaches_the_loss_of_fp32():
    expected = train("fp32")
    for precision in ("bf16", "fp16"):
        assert train(precision) == pytest.approx(expected, rel=TOLERANCE), precision


def test_weights_and_losses_stay_in_fp32():
    for precision in ("bf16", "fp16"):
        engine, batch = make_engine(precision), toy_batch(dtype=torch.float32)
        made = []
        qkv = engine.module.backbone.blocks[0].qkv
        qkv.register_forward_hook(lambda *passed, made=made: made.append(passed[2].dtype))
        outputs = engine.forward(batch, True)
        assert made == [getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}[precision])]
        assert outputs["user"].dtype == torch.float32  # embeddings go out as exact as weights are
        loss = build_loss(Named(name="influencer"))
        assert all(term.sum.dtype == torch.float32 for term in loss(outputs, batch).values())
        assert {p.dtype for p in engine.module.parameters()} == {torch.float32}
    assert make_engine("fp64").precision.weights_dtype == torch.float64


def test_an_overflowing_step_is_left_out_and_counted():
    engine = make_engine("fp16")
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    engine.precision.loss_scale = 2.0**126  # the scaled gradient is beyond float32
    loss, batch = build_loss(Named(name="influencer")), toy_batch(dtype=torch.float32)
    result = train_step(engine, loss, [batch], 1.0)
    assert result.skipped and result.grad_norm == 0 and engine.precision.skipped_steps == 1
    assert engine.precision.loss_scale == 2.0**125
    for a, b in zip(engine.module.parameters(), before, strict=True):
        assert torch.equal(a, b) and a.grad is None
    engine.precision.loss_scale = 2.0**8
    assert not train_step(engine, loss, [batch], 1.0).skipped
    assert not torch.equal(next(engine.module.parameters()), before[0])


def test_the_scale_goes_up_and_down():
    precision = Precision("fp16", CPU)
    for _ in range(GROWTH_STEPS):
        assert precision.accept(1.0)
    assert precision.loss_scale == 2 * FIRST_SCALE
    assert not precision.accept(float("nan")) and precision.loss_scale == FIRST_SCALE
    other = Precision("fp16", CPU)
    other.load(precision.state())
    assert other.state() == precision.state() and other.skipped_steps == 1
    precision.loss_scale = 1.0
    with pytest.raises(MachineError, match="at any loss scale; train with bf16 or fp32"):
        precision.accept(float("inf"))
    gradient = torch.full((3,), 8.0)
    other.loss_scale = 4.0
    other.unscale([gradient])
    assert gradient.tolist() == [2.0] * 3 and other.scale(torch.tensor(1.0)) == 4
    for name in ("fp32", "bf16", "fp64"):
        assert Precision(name, CPU).accept(1.0) and not Precision(name, CPU).accept(float("inf"))
        assert Precision(name, CPU).loss_scale == 1


def test_tf32_is_off_unless_asked_for():
    Precision("fp32", CPU, tf32=True)
    assert torch.get_float32_matmul_precision() == "high"
    Precision("fp32", CPU)
    assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.slow
def test_a_compiled_model_computes_the_same():
    batches = [toy_batch(sizes=(9,), dtype=torch.float32), toy_batch(sizes=(4, 7), dtype=torch.float32)]
    plain, compiled = make_engine("fp32"), make_engine("fp32")
    compile_model(compiled.module, auto_memory=False, device="cpu")
    loss = build_loss(Named(name="influencer"))
    assert "compiled: the first pass took" in try_compiled(compiled, loss, batches[0].to_data_list()[0])
    for batch in batches:
        for name, value in plain.forward(batch, True).items():
            torch.testing.assert_close(compiled.forward(batch, True)[name], value, rtol=1e-4, atol=1e-5)
    assert plain.module.state_dict().keys() == compiled.module.state_dict().keys()


def test_what_torch_cannot_compile_is_said(monkeypatch):
    from torch._dynamo.exc import BackendCompilerFailed

    engine, event = make_engine("fp32"), toy_batch(sizes=(9,), dtype=torch.float32).to_data_list()[0]

    def failing(*_: object) -> None:
        raise BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    monkeypatch.setattr(engine, "forward", failing)
    with pytest.raises(MachineError, match=r"train\.compile: torch could not compile the model .* set it to false"):
        try_compiled(engine, build_loss(Named(name="influencer")), event)
    with pytest.raises(InputError, match="name a mode instead"):
        compile_model(engine.module, auto_memory=True, device="cpu")


def test_only_formats_of_autocast_on_a_processor_can_be_emulated():
    assert not any(emulated(name, CPU) for name in ("fp32", "fp64")) and not emulated("bf16", torch.device("meta"))
    assert emulated("bf16", CPU) is not torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_a_training_says_that_its_format_is_emulated(monkeypatch, capsys):
    monkeypatch.setattr(build, "emulated", lambda name, _: name == "bf16")
    env = Env(0, 1, 0, CPU, None, "test")
    build.say_emulated(env, "fp32")
    assert not capsys.readouterr().out
    build.say_emulated(env, "bf16")
    assert "train.precision=bf16: this processor has no arithmetic of it" in capsys.readouterr().out


def test_inference_takes_fp32_for_what_is_emulated_and_goes_on_as_it_was_begun(tmp_path, monkeypatch, capsys):
    data = toy_dataset(tmp_path / "data", sizes=(4, 3))
    config = toy_config(tmp_path / "run", data, train={"precision": "bf16", "steps": 1})
    with distributed(config.parallel, 1) as env:
        loop.train(config, env)
    common = ["--checkpoint", str(tmp_path / "run"), "--data", str(data), "--out"]

    def precision(out: str, *words: str) -> str:
        assert infer.main([*common, str(tmp_path / out), *words]) == 0
        return CandidateStore(tmp_path / out).attributes["precision"]

    monkeypatch.setattr(stages, "emulated", lambda *_: False)
    assert precision("has") == "bf16"
    capsys.readouterr()
    monkeypatch.setattr(stages, "emulated", lambda name, _: name == "bf16")
    assert precision("lacks") == "fp32"
    assert "trained in bf16, of which this processor has no arithmetic: computed in fp32" in capsys.readouterr().out
    assert [precision(word, f"precision={word}") for word in ("bf16", "trained")] == ["bf16", "bf16"]
    capsys.readouterr()
    assert precision("has") == "bf16" and "goes on in bf16, as it was begun, of which" in capsys.readouterr().out
    assert infer.main([*common, str(tmp_path / "has"), "precision=fp32"]) == 2
