"""The studies: points are kept and not measured again, tables and plots come from them."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpctrack.config import dump_yaml, load_config
from hpctrack.parallel.env import distributed
from hpctrack.reporting import studies
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.loop import train
from tests.campaigns import assignment, costs, edge_growth, tracks
from tests.campaigns.points import Points

ROOT = Path(__file__).parents[2]
RECIPES = ("influencer-500", "greedy", "condensation")


def test_points_are_kept_and_a_cut_line_is_dropped(tmp_path):
    points = Points(tmp_path / "out" / "p.jsonl", ("a",))
    points.add({"a": 1, "b": 2})
    with open(points.path, "a") as file:
        file.write('{"a": 2, "b"')
    again = Points(points.path, ("a",))
    assert again.done == {(1,)} and again.rows == [{"a": 1, "b": 2}]
    again.add({"a": 2, "b": 0})
    assert Points(points.path, ("a",)).done == {(1,), (2,)}


def test_study_of_the_assignment_has_settings_that_can_be_run_and_a_cell_for_each(monkeypatch):
    for setting in assignment.SETTINGS.values():
        config = load_config(f"assignment/{setting.recipe}", [*assignment.COMMON, *setting.overrides])
        assert setting.begins in (None, *assignment.SETTINGS) and config.train.steps <= 300
    asked = []

    def found(study, run, *cell):
        asked.append((run, *cell))
        value = 0.8 if run.endswith("2") else 0.7
        return {name: {"value": value, "error": 0.01} for name in assignment.SHOWN}

    monkeypatch.setattr(assignment.Study, "results", found)
    text = assignment.tables(assignment.Study(ROOT), ["ptt"], 2, 5, [(100, 150)])
    assert asked == [("follow", 150, 100, 5), ("ptt-1", 150, 100, 5), ("ptt-2", 150, 100, 5)]
    assert "| 100 mm, 150 | 70.0 ± 1.0 / 70.0 ± 1.0 | 75.0 ± 7.1 / 75.0 ± 7.1 |" in text
    assert assignment.parted("pat-0.1-2") == ("pat-0.1", 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    data = toy_dataset(folder / "data")
    config = toy_config(folder / "run", data, train={"steps": 2, "valid_every": 2})
    with contextlib.redirect_stdout(io.StringIO()), distributed(config.parallel, 1) as env:
        train(config, env)
    return folder / "run", data


def test_tracks_study_resumes_and_draws_alike(run, tmp_path, capsys, monkeypatch):
    folder, data = run
    command = ["--checkpoints", f"one={folder}", f"two={folder}", "--data", str(data), "--out", str(tmp_path)]
    tracks.main([*command, "--points", "3,all", "--events", "2"])
    lines = (tmp_path / "tracks.jsonl").read_text()
    assert len(lines.splitlines()) == 8  # systems x points x events
    first = [row for row in Points(tmp_path / "tracks.jsonl", ()).rows if row["tracks"] == "3"]
    assert {row["n_tracks"] for row in first} == {3}
    assert first[0]["candidates"] == first[2]["candidates"]  # the same model on the same draw
    again = [*command, "--points", "3,all", "--events", "2"]
    monkeypatch.setattr(tracks.ByModel, "__call__", None)  # nothing may be reconstructed again
    tracks.main(again)
    assert (tmp_path / "tracks.jsonl").read_text() == lines
    assert (tmp_path / "tracks.png").stat().st_size > 1000
    text = (tmp_path / "tracks.md").read_text()
    [section] = studies.sections(tmp_path)
    assert "<h2>Efficiency and fake rate against tracks</h2>" in section and section.count("<table>") == 2
    assert text.count("| one | 3 |") == 2 and text.count("| two | ") == 4 and "after" in text.lower()


def test_events_with_too_few_tracks_are_left_out(run, tmp_path):
    folder, data = run
    tracks.main(["--checkpoints", f"x={folder}", "--data", str(data), "--out", str(tmp_path), "--points", "6"])
    rows = Points(tmp_path / "tracks.jsonl", ()).rows
    assert len(rows) == 3 and all(row["n_tracks"] == 6 for row in rows)  # of 4, 6, 5, 7, 3, 6 tracks


def test_costs_study_resumes(run, tmp_path, monkeypatch):
    data = str(run[1])
    command = ["--data", data, "--points", "3,all", "--events", "1", "--repeats", "1", "--out", str(tmp_path)]
    costs.main(command)
    lines = (tmp_path / "costs.jsonl").read_text()
    assert len(lines.splitlines()) == 2
    monkeypatch.setattr(costs, "measure", None)
    costs.main(command)
    assert (tmp_path / "costs.jsonl").read_text() == lines
    text = (tmp_path / "costs.md").read_text()
    assert all(peak > 0 for row in Points(tmp_path / "costs.jsonl", ()).rows for peak in row["loss_mib"].values())
    assert text.count("| loop |") == 8 and text.count("| radius |") == 2
    assert (tmp_path / "costs.png").stat().st_size > 1000
    assert "data:image/png;base64," in studies.sections(tmp_path)[0]


def test_growth_of_edges(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 9, 12))
    config = toy_config(tmp_path / "run", data, reading={"graph": {"name": "truth"}})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    command = ["--config", str(tmp_path / "config.yaml"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert edge_growth.main(command) == 0 and (tmp_path / "out" / "edges.png").stat().st_size > 1000
    text = (tmp_path / "out" / "edges.md").read_text()
    assert "4 events" in text and "| data | 4 |" in text
    rows = Points(tmp_path / "out" / "edges.jsonl", ()).rows
    assert edge_growth.main(command) == 0 and Points(tmp_path / "out" / "edges.jsonl", ()).rows == rows
    x = np.array([10.0, 20.0, 50.0, 100.0])
    assert edge_growth.exponent(x, 3 * x**1.5) == pytest.approx((1.5, 0, 3), abs=1e-6)


def test_the_launcher_runs_every_verb(tmp_path):
    for name in ("torchrun", "python", "hpctrack"):  # in place of these, what they would be told
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    command = ["bash", str(ROOT / "launch" / "studies.sh"), "A", "B", "C", "OUT"]
    small = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "STUDIES_STEPS": "6",
        "STUDIES_POINTS": "3",
        "STUDIES_EVENTS": "2",
    }
    said = subprocess.run(
        [*command, "seed=2"], env=os.environ | small, capture_output=True, text=True, check=True
    ).stdout
    lines = [line for line in said.splitlines() if line and not line.startswith("==")]
    trained = [line for line in lines if "hpctrack.train" in line]
    assert [line.split("configs/")[1].split()[0] for line in trained] == [f"{name}.yaml" for name in RECIPES]
    assert all((ROOT / "configs" / f"{name}.yaml").is_file() for name in RECIPES)
    assert all("data.train=A data.valid=B data.selection.tracks=500 train.steps=6 seed=2" in line for line in trained)
    systems = "influencer=OUT/influencer greedy=OUT/greedy condensation=OUT/condensation"
    assert f"python -m tests.campaigns.tracks --checkpoints {systems} --data C --points 3 --events 2" in said
    assert sum("hpctrack.infer" in line for line in lines) == sum(" evaluate " in line for line in lines) == 3
    assert "--study OUT/tracks --study OUT/costs --out OUT/report.html" in lines[-1]
    wrong = subprocess.run(command[:3], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and wrong.stderr.startswith("usage: launch/studies.sh TRAIN VALID TEST OUT")
