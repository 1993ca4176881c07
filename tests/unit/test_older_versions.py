"""What an older version has written is read, verified, gone on with, inferred with and exported (tests/fixtures)."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.edges import EdgeStore
from hpctrack.storage.store import Dataset, digest
from hpctrack.training.ledger import problems, read

FIXTURES = Path(__file__).parents[1] / "fixtures" / "v0_1_0"
DIGESTS = {line.split()[0]: line.split()[2] for line in (FIXTURES / "digests.txt").read_text().splitlines()[::-1]}


@pytest.fixture
def older(tmp_path, monkeypatch) -> Path:
    """A copy of the fixtures, which is the working folder, as paths in them are relative."""
    shutil.copytree(FIXTURES, tmp_path / "older")
    monkeypatch.chdir(tmp_path / "older")
    return tmp_path / "older"


def main(args: list[str]) -> int:
    """`hpctrack VERB …` in this process."""
    return importlib.import_module(f"hpctrack.{args[0]}").main(args[1:])


def losses(path: Path) -> dict[tuple[str, int], float]:
    """Loss by kind of line and step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return {(row["kind"], row["step"]): row["loss"] for row in rows if "loss" in row}


def test_stores_are_read_and_have_their_digests(older):
    assert digest(Dataset("data")) == DIGESTS["data"]
    assert EdgeStore(Path("data/edges/embedding")).digest == DIGESTS["data/edges/embedding"]
    assert CandidateStore(Path("candidates")).digest == DIGESTS["candidates"]
    data = Dataset("data", verify=True)
    assert sum(data.read(row).n_hits for row in range(len(data))) == 208


@pytest.mark.parametrize("what", ["data", "data/edges/embedding", "candidates"])
def test_stores_pass_verification(older, what, capsys):
    assert main(["inspect", "--verify", what]) == 0
    assert "verified: ok" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["influencer", "influencer-done", "filter"])
def test_runs_pass_verification(older, what, capsys):
    assert main(["inspect", "--verify", what]) == 0, capsys.readouterr().out
    assert "verified: ok" in capsys.readouterr().out


@pytest.mark.parametrize("run", ["influencer", "filter"])
def test_runs_go_on_as_if_there_had_been_one_version(older, run, capsys):
    assert main(["train", f"{run}.yaml"]) == 0, capsys.readouterr().err
    assert "resumed at step 2" in capsys.readouterr().out
    found, expected = losses(older / run / "metrics.jsonl"), losses(older / "expected" / f"{run}.jsonl")
    assert found.keys() == expected.keys()
    for line, loss in expected.items():
        assert found[line] == pytest.approx(loss, rel=1e-4), line  # another version may round otherwise
    assert problems(older / run) == [] and [entry["step"] for entry in read(older / run)] == [1, 2, 3, 4]
    assert main(["inspect", "--verify", run]) == 0, capsys.readouterr().out


def test_a_run_that_has_ended_stays_as_it_is(older, capsys):
    before = (older / "influencer-done/checkpoints/step-00000004/state.pt").read_bytes()
    assert main(["train", "influencer.yaml", "run=influencer-done"]) == 0, capsys.readouterr().err
    assert (older / "influencer-done/checkpoints/step-00000004/state.pt").read_bytes() == before


def test_their_checkpoints_are_inferred_with_exported_and_begun_from(older, capsys):
    infer = ["infer", "--checkpoint", "influencer-done", "--data", "data", "builder.radius=0.6", "--out"]
    assert main([*infer, "again"]) == 0, capsys.readouterr().err
    then, now = CandidateStore(Path("candidates")), CandidateStore(Path("again"))
    for row in range(len(then)):
        assert np.array_equal(then.read(row).hit_rows, now.read(row).hit_rows)
    assert main([*infer, "candidates"]) == 0, capsys.readouterr().err  # of the same settings: nothing to do
    assert main([*infer, "candidates-begun"]) == 0, capsys.readouterr().err
    assert CandidateStore(Path("candidates-begun")).digest == DIGESTS["candidates"]
    assert main(["export", "influencer-done", "given-away"]) == 0
    assert main(["infer", "--checkpoint", "given-away", "--data", "data", "--out", "third"]) == 0
    assert main(["train", "influencer.yaml", "run=new", "train.start_from=influencer-done", "train.steps=1"]) == 0
    assert main(["evaluate", "candidates", "--data", "data", "--out", "results.json"]) == 0


def test_other_settings_of_the_same_inference_are_refused(older, capsys):
    infer = ["infer", "--checkpoint", "influencer-done", "--data", "data", "builder.radius=0.5", "--out"]
    assert main([*infer, "candidates-begun"]) == 2
    assert "builder" in capsys.readouterr().err
