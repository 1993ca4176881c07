"""Whole trainings on the device against the CPU's; memory that runs out; the memory model; inference."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from gpu_passes import CPU, engine_on, gradients_of_ranks, one_pass, toy

from hpctrack.config import MemoryConfig, Named
from hpctrack.losses import build_loss
from hpctrack.parallel.env import distributed
from hpctrack.resources.calibration import calibrate, cut_down, measure
from hpctrack.resources.peak_memory import Memory
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.loop import train
from hpctrack.training.trainer import Trainer
from tests.distributed.test_out_of_memory import LOSS, MODEL, SIZES, first_step

BACKBONE = {"backbone": {"name": "neighbours", "width": 8, "stages": 1, "steps": 2, "neighbours": 4, "heads": 2}}
TRANSFORMER = {"backbone": {"name": "transformer", "width": 8, "layers": 2, "heads": 2}}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return toy_dataset(tmp_path_factory.mktemp("toys") / "data")


def run(folder: Path, data: Path, device: torch.device, steps: int = 6, **sections) -> list[float]:
    """Losses of a training."""
    parallel = {"device": device.type} | sections.pop("parallel", {})
    more = {"steps": steps, "precision": "fp64"} | sections.pop("train", {})
    config = toy_config(folder, data, valid=data, parallel=parallel, train=more, **sections)
    with distributed(config.parallel, 1) as env:
        assert train(config, env) == 0
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("model", [BACKBONE, TRANSFORMER], ids=["neighbours", "transformer"])
def test_a_training_is_that_of_the_cpu(tmp_path, data, device, model):
    here, there = (run(tmp_path / str(i), data, d, model=model) for i, d in enumerate((CPU, device)))
    assert there == pytest.approx(here, rel=1e-6)


def test_resume_from_a_checkpoint_of_the_cpu_and_back(tmp_path, data, device):
    whole = run(tmp_path / "whole", data, CPU)
    for order, first, then in (("cpu", CPU, device), ("device", device, CPU)):  # one device in a rehearsal
        folder = tmp_path / f"{order}-first"
        stop_after(folder, data, first, 2)
        assert run(folder, data, then) == pytest.approx(whole, rel=1e-6)


class Stopped(Exception):
    """Thrown where a training is to stop."""


def stop_after(folder: Path, data: Path, device: torch.device, step: int) -> None:
    """Train until checkpoint `step` is there."""
    save = Trainer.save

    def save_and_stop(self, *args, **options):
        save(self, *args, **options)
        if self.step == step:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Trainer, "save", save_and_stop)
        run(folder, data, device)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("workers", [0, 1])
def test_trainings_in_low_precision_and_with_readers(tmp_path, data, device, precision, workers):
    reading = {"workers": workers}  # batches come pinned and ahead
    losses = run(tmp_path, data, device, model=TRANSFORMER, train={"precision": precision}, reading=reading)
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_the_scale_of_fp16_adapts(device):
    engine = engine_on(device, Named(name="influencer", embedding=3, **TRANSFORMER), "fp16")
    engine.precision.loss_scale = 2.0**40
    loss = Named(name="influencer", compactness=1.0)
    before, skipped = [p.clone() for p in engine.module.parameters()], 0
    for _ in range(60):
        batch = toy().to(device)
        terms = build_loss(loss)(engine.forward(batch, True), batch)
        engine.backward(sum(term.sum for term in terms.values()))
        if engine.precision.accept(engine.gradient_norm(None)):
            engine.step()
            break
        engine.discard()
        skipped += 1
    assert skipped and engine.precision.loss_scale == 2.0 ** (40 - skipped)
    assert all(p.isfinite().all() for p in engine.module.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(engine.module.parameters(), before, strict=True))


@pytest.mark.parametrize("name", ["interaction", "influencer"])
def test_memory_model_is_within_15_percent_of_the_peak(device, name):
    """Of torch's own peak, on an event of another size than those that it was fitted on."""
    small = device.type == "cpu"
    if small and name == "influencer":
        pytest.skip("events as small as a rehearsal's are not what the memory model of a sum over pairs is for")
    options = {"iterations": 3, "width": 16} if name == "interaction" else {"embedding": 3, **BACKBONE}
    loss = build_loss(Named(**({"name": "edges"} if name == "interaction" else {"name": "influencer"})))
    engine = engine_on(device, Named(name=name, **options), "fp32")
    memory = Memory(MemoryConfig(cap_gib=2.0 if small else 8.0), engine)
    event = toy(sizes=(300 if small else 6000,), noise=300 if small else 6000).to_data_list()[0]
    calibrate(engine, loss, memory, event)
    for hits in (event.num_nodes * 2 // 3, event.num_nodes):
        batch = type(toy()).from_data_list([cut_down(event, hits, 2 * hits)]).to(device)
        for mode in memory.modes:
            assert memory.predict(batch, mode) == pytest.approx(measure(engine, loss, batch, mode), rel=0.15), mode


@pytest.mark.cuda
def test_a_step_that_really_runs_out_of_memory_is_taken_again(tmp_path, device):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(
        tmp_path / "run", data, model=MODEL, loss=LOSS, memory={"cap_gib": 1.0}, parallel={"device": "cuda"}
    )
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    kept = torch.cuda.memory_reserved(device)
    try:
        torch.cuda.set_per_process_memory_fraction((kept + 80 * 2**20) / total, device)
        _, loss, retries = first_step(config, None, 0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
    assert retries and loss < float("inf")


def test_two_ranks_that_share_the_device(tmp_path, device):
    model, loss = Named(name="influencer", embedding=3, **TRANSFORMER), Named(name="influencer", compactness=1.0)
    meet = str(tmp_path / "meet")
    torch.multiprocessing.spawn(gradients_of_ranks, (2, device, meet, model, loss), nprocs=2)
    ranks = [torch.load(f"{meet}.{rank}", weights_only=True) for rank in range(2)]
    whole = one_pass(engine_on(CPU, model, "fp64"), toy("fp64"), loss).gradient
    assert torch.equal(*ranks)
    torch.testing.assert_close(ranks[0], whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_group_of_one_rank(tmp_path, data, device, strategy):
    """Under torchrun, with NCCL on a GPU."""
    config = toy_config(
        tmp_path / "run", data, parallel={"device": device.type, "strategy": strategy}, train={"precision": "fp32"}
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(config.model_dump(mode="json")))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    done = subprocess.run(
        [*launcher, "-m", "hpctrack.train", str(recipe)], capture_output=True, text=True, check=False, timeout=300
    )
    assert not done.returncode, done.stderr
    assert f"on {device.type}" in done.stdout + done.stderr
