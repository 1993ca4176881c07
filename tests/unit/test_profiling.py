"""Traces of steps, the timeline of ranks, and what is read of GPUs, by a library made up for it."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from hpctrack.errors import InputError
from hpctrack.parallel.env import Env, distributed
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import sensors
from hpctrack.training.loop import train
from hpctrack.training.profiling import timeline
from hpctrack.training.sensors import Sensors, means_of_gpus
from hpctrack.training.telemetry import Progress


def test_chosen_steps_are_traced_and_all_are_in_the_timeline(tmp_path):
    data, losses = toy_dataset(tmp_path / "data"), []
    for name, profile in (("with", [2, 3]), ("without", [])):
        options = {"steps": 3, "precision": "fp32", "profile": profile}
        config = toy_config(tmp_path / name, data, valid=data, train=options)
        with distributed(config.parallel, 1) as env:
            train(config, env)
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if "loss" in line])
    assert losses[0] == losses[1] and not (tmp_path / "without/profile").exists()
    files = sorted(path.name for path in (tmp_path / "with/profile").iterdir())
    assert files == ["step-000002-rank-00000.json", "step-000003-rank-00000.json", "timeline.json"]
    trace = json.loads((tmp_path / "with/profile" / files[0]).read_text())
    assert any("aten::" in event.get("name", "") for event in trace["traceEvents"])
    names = [
        event["name"] for event in json.loads((tmp_path / "with/profile/timeline.json").read_text())["traceEvents"]
    ]
    assert {"process_name", "data", "step 1", "step 3", "compute", "checkpoint", "validation"} <= set(names)


def test_timeline_has_a_process_for_each_rank_and_begins_at_zero():
    found = timeline([[("data", 10.0, 0.5)], [("step 1", 10.25, 1.0)]])["traceEvents"]
    assert [event["pid"] for event in found] == [0, 1, 0, 1]
    assert (found[2]["ts"], found[2]["dur"], found[3]["ts"]) == (0, 5e5, 2.5e5)


def test_a_step_that_never_comes_is_refused(tmp_path):
    with pytest.raises(InputError, match="profile has step 9, but the last is steps=6"):
        toy_config(tmp_path / "run", tmp_path, train={"profile": [9]})


class NVMLError(Exception):
    pass


def nvml(joules):
    return SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: 1000 * next(joules),
        nvmlDeviceGetUtilizationRates=lambda handle: SimpleNamespace(gpu=75),
        nvmlDeviceGetPowerUsage=lambda handle: 250_000,
    )


def test_power_and_energy_of_a_gpu(monkeypatch):
    env = Env(0, 1, 0, torch.device("cuda"), backend=None, source="test")
    monkeypatch.setattr(sensors, "gpu_identity", lambda device: "abc")
    monkeypatch.setattr(sensors.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "pynvml", nvml(iter([100.0, 160.0])))
    found = Sensors(env)
    assert found.handle == "GPU-abc" and found.read() == (1.0, 0.75, 250.0, 60.0)
    means = means_of_gpus([2.0, 1.5, 500.0, 60.0], 12)
    assert means == {"gpu_busy": 0.75, "gpu_power_w": 250.0, "energy_j_per_event": 5.0}
    values = {"step_s": 1.0, "epoch": 0, "loss": 1.0, "lr": 0.1, "grad_norm": 1.0, "hits_per_s": 1.0, "peak_gib": 1.0}
    assert "75% busy  250 W  5 J/event" in Progress(3).line(1, values | means)
    assert "busy" not in Progress(3).line(1, values)


def test_without_a_gpu_or_its_library_nothing_is_read(monkeypatch, capsys):
    assert Sensors(Env(0, 1, 0, torch.device("cpu"), backend=None, source="test")).read() == (0, 0, 0, 0)
    env = Env(0, 1, 0, torch.device("cuda"), backend=None, source="test")
    monkeypatch.setattr(sensors.importlib.util, "find_spec", lambda name: None)
    assert Sensors(env).read()[0] == 0 and "pip install 'hpctrack[gpu]'" in capsys.readouterr().out
    assert means_of_gpus([0.0, 0.0, 0.0, 0.0], 3) == {}
