"""How commands end that cannot do what they are asked, and the `hpctrack` command itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def shell(*words: str | Path, code: int = 0, **environment: str) -> str:
    """Run a command; its standard output and error."""
    env = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    command = [str(word) for word in words]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, cwd=ROOT, check=False)
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def hpctrack(verb: str, *words: str | Path, **keywords) -> str:
    return shell(sys.executable, "-m", f"hpctrack.{verb}", *words, **keywords)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, quick_commands) -> Path:
    folder, quick = tmp_path_factory.mktemp("helix"), quick_commands / "hpctrack"
    shell(quick, "simulate", folder / "csv", "--source", "helix", "--events", "4", "--particles", "60", "--jobs", "2")
    shell(quick, "convert", folder / "csv", folder / "data", "--jobs", "2")
    return folder / "data"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "configs/none.yaml"], "configs/none.yaml: no such configuration file"),
        (["train", "configs/influencer.yaml", "optim.lrr=1"], "unknown key 'optim.lrr'"),
        (["train", "configs/influencer.yaml", "data.train=/nowhere"], "/nowhere: does not exist"),
        (["infer", "--checkpoint", "/nowhere", "--data", "x", "--out", "y"], "/nowhere: no checkpoint here"),
        (
            ["export", "/nowhere", "y"],
            "or a shipped model: condensation-500, greedy-500, influencer-500, influencer-every-hit, influencer-full, "
            "pipeline-embedding, pipeline-filter, pipeline-gnn)",
        ),
        (["evaluate", "/nowhere", "--data", "x", "--out", "y"], "/nowhere"),
        (["convert", "/nowhere", "y"], "/nowhere"),
        (["simulate", "/proc/nowhere", "--source", "helix", "--events", "1"], "/proc/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(words, message, quick_commands):
    code = 1 if words[0] == "simulate" else 2  # a folder that cannot be made is a fault of the machine
    text = shell(quick_commands / "hpctrack", *words, code=code)
    assert message in text and text.count("\n") == 1, text


def test_the_console_command_lists_and_dispatches_its_verbs(quick_commands):
    command = Path(sys.executable).with_name("hpctrack")
    text = shell(command, "--help")
    assert all(verb in text for verb in ("simulate", "convert", "train", "infer", "evaluate", "report", "bench"))
    assert "unknown verb 'fly'" in shell(command, "fly", code=2)
    assert "build_over_greedy" in shell(command, "bench", "inference", "--quick")
    for verb in ("simulate", "convert", "train", "infer", "evaluate", "report", "bench"):
        assert "usage: hpctrack" in shell(quick_commands / "hpctrack", verb, "--help")


def test_a_half_set_launcher_environment_is_named(dataset, tmp_path):
    words = ["configs/influencer.yaml", f"run={tmp_path}", f"data.train={dataset}", "builder.radius=0.3"]
    text = hpctrack("train", *words, code=2, RANK="0", WORLD_SIZE="2")
    assert "environment: RANK, WORLD_SIZE set but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in text
