"""`hpctrack landscape` on real ranks: the same results on any number of ranks and after kills; what it refuses."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from helpers import quietly

from hpctrack import landscape, report
from hpctrack.parallel.env import distributed
from hpctrack.results.landscapes import NAME, load_landscape
from hpctrack.testing.ranks import run_ranks, start_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.loop import train

QUICK = [
    "--grid",
    "3",
    "--iterations",
    "3",
    "--points",
    "3",
    "--curve-steps",
    "3",
    "--curve-events",
    "2",
    "--rows",
    "16",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[list[str], str]:
    folder = tmp_path_factory.mktemp("runs")
    data = toy_dataset(folder / "data", sizes=(4, 6, 5))
    found = []
    for seed, width in ((0, 8), (1, 8), (2, 12)):
        backbone = {"name": "transformer", "width": width, "layers": 1, "heads": 2}
        config = toy_config(folder / f"run{seed}", data, model={"backbone": backbone}, train={"steps": 3})
        config = config.model_copy(update={"seed": seed})
        with distributed(config.parallel, 1) as env:
            train(config, env)
        found.append(config.run)
    return found, str(data)


def look(chosen: list[str], data: str, out: Path, *more: str) -> None:
    code = landscape.main([*chosen, "--data", data, "--out", str(out), *QUICK, *more])
    assert code == 0, code


def content(out: Path) -> dict:
    found = json.loads((out / NAME).read_text())
    for part in found["parts"].values():
        del part["command"]  # names its folder
    return found


@pytest.fixture(scope="module")
def whole(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    run_ranks(1, look, runs[0][:2], runs[1], out)
    return out


def test_the_same_results_on_one_two_and_four_ranks(runs, whole, tmp_path):
    assert sorted(path.name for path in whole.iterdir()) == [NAME]
    for n in (2, 4):
        run_ranks(n, look, runs[0][:2], runs[1], tmp_path / str(n))
        assert content(tmp_path / str(n)) == content(whole)
    parts = content(whole)["parts"]
    assert set(parts) == {"landscape", "connections", "similarity", "churn"}
    assert parts["landscape"]["surfaces"][0]["losses"]["influencer"].keys() == {
        "total", "attraction", "repulsion_ui", "repulsion_ii", "compactness",
    }  # fmt: skip
    own = parts["similarity"]["pairs"][0]["cka"]
    assert [own[k][k] for k in range(len(own))] == pytest.approx([1.0] * len(own))
    line = parts["connections"]["pairs"][0]["paths"]["line"]["losses"]["influencer"]["total"]
    centres = [one["centre"]["influencer"]["total"] for one in parts["landscape"]["surfaces"]]
    assert [line[0], line[-1]] == pytest.approx(centres, rel=1e-12)


def test_killed_it_goes_on_and_ends_with_the_same(runs, whole, tmp_path):
    out = tmp_path / "broken"

    def done() -> int:
        return sum(path.read_text().count("\n") for path in out.rglob("rank-*.jsonl")) + (out / NAME).exists() * 1000

    for ranks in (2, 1):
        processes, _ = start_ranks(ranks, look, runs[0][:2], runs[1], out)
        before, end = done(), time.monotonic() + 60
        while done() < before + 3 and time.monotonic() < end and all(process.is_alive() for process in processes):
            time.sleep(0.002)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    run_ranks(2, look, runs[0][:2], runs[1], out)
    assert content(out) == content(whole)
    assert sorted(path.name for path in out.iterdir()) == [NAME]


def refused(*argv: object) -> str:
    [(code, error)] = run_ranks(1, quietly, landscape.main, argv)
    assert code == 2 and error.count("\n") == 1, error
    return error


def test_what_does_not_go_together_is_one_line(runs, whole, tmp_path):
    chosen, data = runs
    on = ["--data", data, "--out", tmp_path / "out", *QUICK]
    assert "model.backbone.width" in refused(chosen[0], chosen[2], *on)
    assert "two or more" in refused(chosen[0], *on, "--parts", "churn")
    assert "--events 9" in refused(chosen[0], *on, "--events", "9")
    assert "no run has a loss 'edges'" in refused(chosen[0], *on, "--hessian-loss", "edges")
    assert "grid" in refused(*chosen[:2], "--data", data, "--out", whole, *QUICK, "--grid", "4")
    assert "other runs" in refused(*chosen[1::-1], "--data", data, "--out", whole, *QUICK)
    assert "no module is called head" in refused(chosen[0], *on, "--parts", "similarity", "--layers", "head")
    run_ranks(1, look, chosen[::2], data, tmp_path / "unlike", "--parts", "similarity", "churn")


def test_the_report_shows_it_and_refuses_what_is_damaged(whole, tmp_path):
    page = tmp_path / "page.html"
    assert report.main(["--landscape", str(whole), "--out", str(page)]) == 0
    text = page.read_text()
    for title in ("The loss around each run", "Whether runs are connected", "How alike", "On how many decisions"):
        assert title in text
    values = load_landscape(whole)
    values["parts"]["landscape"]["surfaces"][0]["run"] = 9
    (tmp_path / NAME).write_text(json.dumps(values))
    code, error = quietly(report.main, ["--landscape", tmp_path, "--out", page])
    assert code == 2 and error.count("\n") == 1 and "parts must be of the 2 runs" in error
