"""The benchmark on a GPU, rehearsed on the CPU; its page; and what projections take from it."""

from __future__ import annotations

import json
import math
import os
import subprocess
from pathlib import Path

import pytest
import torch

from hpctrack.benchmarks import gpu, gpu_page, measured_gpu, roofline
from hpctrack.benchmarks.gpu import PARTS, Bench, Sizes
from hpctrack.benchmarks.measure import Figure
from hpctrack.errors import InputError

TINY = Sizes(small=6, full=6, pixel=96, event=120, edges=300, slope=(96, 240))


@pytest.fixture(scope="module")
def bench():
    patch = pytest.MonkeyPatch()
    patch.setattr(roofline, "PRODUCT", {"cpu": 32})
    patch.setattr(roofline, "COPY", {"cpu": 1 << 12})
    yield Bench(torch.device("cpu"), TINY, 1)
    patch.undo()


def test_parts_give_finite_figures_and_all_that_have_a_goal(bench, monkeypatch):
    monkeypatch.setattr(gpu, "compile_for_sizes", lambda model: None)  # half a minute
    figures = [figure for part in PARTS.values() for figure in part(bench)]
    names = [figure.name for figure in figures]
    assert len(names) == len(set(names)) and all(name.startswith("gpu_") for name in names)
    assert all(math.isfinite(value) for figure in figures for value in figure.values)
    assert {goal.figure for goal in gpu_page.GOALS} <= set(names)


def test_flop_and_bytes_are_counted():
    a, b = torch.rand(10, 20), torch.rand(20, 30)
    flop, moved = roofline.counted(lambda: (a @ b).view(-1))
    assert flop == 2 * 10 * 20 * 30 and moved == 4 * (200 + 600 + 300)
    x = torch.rand(5, 5, requires_grad=True)
    flop, _ = roofline.counted(lambda: (x @ x).sum().backward())
    assert flop == 3 * 2 * 125  # forward, and a product for each side
    assert roofline.share(100, 10, 2.0, roofline.Peaks(50, 20)) == 1.0


def test_unknown_parts_are_named():
    with pytest.raises(InputError, match=r"no part 'all'; there are: influencer-500, paper"):
        gpu.run(True, parts="paper,all")


def result(gpu_name, **medians):
    figures = {
        name: {"median": m, "min": m, "max": m, "unit": "", "meaning": "", "n": 1} for name, m in medians.items()
    }
    machine = {"cpu": "a CPU"} | ({"gpu": gpu_name} if gpu_name else {})
    return {"commit": "c", "versions": {"torch": "2"}, "machine": machine, "figures": figures}


def test_page_says_what_has_not_been_run(tmp_path):
    text = gpu_page.page(tmp_path)
    assert "No GPU has been at hand yet" in text and text.count(gpu_page.NOT_RUN) == len(gpu_page.GOALS) + 4


def test_page_never_passes_a_rehearsal_off_as_a_gpu(tmp_path):
    file = tmp_path / "bench-paper.json"
    file.write_text(json.dumps(result(None, gpu_build_over_greedy=99.0)))
    text = gpu_page.page(tmp_path)
    assert "rehearsal on the CPU" in text and "reached" not in text
    file.write_text(json.dumps(result("A GPU", gpu_build_over_greedy=99.0, gpu_step_over_baseline=1.5)))
    (tmp_path / "status.jsonl").write_text('{"name": "tests", "rc": 124, "seconds": 5}\n')
    (tmp_path / "tests-models.xml").write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="2"/></testsuites>'
    )
    gpu_page.main([str(tmp_path), "--markdown", str(tmp_path / "gpu.md"), "--json", str(tmp_path / "gpu.json")])
    text = (tmp_path / "gpu.md").read_text()
    assert "| >= 10 x | 99 (99 – 99) | reached |" in text and "| <= 1.2 x | 1.5 (1.5 – 1.5) | **not reached** |" in text
    assert "5 passed, 2 failed, 2 skipped" in text and "| tests | stopped: time was up | 5 |" in text
    assert json.loads((tmp_path / "gpu.json").read_text())["figures"]["gpu_step_over_baseline"]["median"] == 1.5


def test_page_says_what_a_training_came_to(tmp_path):
    run = tmp_path / "influencer-500"
    run.mkdir()
    rows = [{"kind": "train", "step": 50, "step_s": 0.6}, {"kind": "valid", "step": 50}]
    rows.append({"kind": "train", "step": 200, "step_s": 0.2})
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    entry = {"value": 0.99612, "numerator": 9961, "denominator": 10000}
    results = {"candidates": {"metrics": {"double_majority_efficiency": entry}}}
    (tmp_path / "influencer-500.json").write_text(json.dumps(results))
    assert "double majority has not been run on a GPU" in gpu_page.page(tmp_path)  # nobody says that it was one
    (tmp_path / "bench-paper.json").write_text(json.dumps(result("A GPU")))
    text = gpu_page.page(tmp_path)
    assert (
        "200 steps in 1.0 minutes, without validation and checkpoints; double majority of candidate lists 0.9961 (9,9"
        in text
    )


def test_projections_take_what_was_measured(tmp_path, monkeypatch):
    file = tmp_path / "gpu.json"
    found = measured_gpu.speed(203.0, file)
    assert (found.ratio, found.word) == (203.0, "assumed") and "has not been measured" in found.source
    step = Figure("here_s", [0.4, 0.5, 0.6], "s", "as training() says, which a test above runs")
    monkeypatch.setattr(measured_gpu, "training", lambda bench, recipe, n_tracks, name: [step])
    monkeypatch.setattr(roofline, "PRODUCT", {"cpu": 32})
    monkeypatch.setattr(roofline, "COPY", {"cpu": 1 << 12})
    file.write_text(json.dumps(result("A GPU", gpu_step_500_s=1e-3)))
    found = measured_gpu.speed(203.0, file)
    assert found.word == "measured" and found.ratio == 500 and "on A GPU" in found.source
    file.write_text(json.dumps(result("A GPU")))
    with pytest.raises(InputError, match="has no figure gpu_step_500_s"):
        measured_gpu.speed(203.0, file)


def check(*arguments, **environment):
    script = Path(__file__).parents[2] / "launch/gpu_check.sh"
    found = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, check=False, env=found)


def test_script_says_what_it_is_for_and_what_it_lacks(tmp_path):
    said = check("--help")
    assert not said.returncode and "HPCTRACK_GPU_WHEELS" in said.stdout and "set -euo" not in said.stdout
    assert check().returncode == 2
    without = check(str(tmp_path / "out"), PYTHON="/bin/false")
    assert (without.returncode, without.stdout) == (
        2,
        "gpu_check: /bin/false has no torch; set PYTHON to one that has\n",
    )
