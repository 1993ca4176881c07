"""A run's folder: one owner, nothing lost whatever ends the run, and what is verified can be gone on with."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import torch
from faults import KILL, Fault, operations, strike
from helpers import quietly
from toys import losses

from hpctrack import export, infer, inspect
from hpctrack.config import dump_yaml
from hpctrack.errors import MachineError
from hpctrack.files.atomic import with_checksum
from hpctrack.files.lock import LOCK, only_writer
from hpctrack.parallel.env import distributed
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.journals import PARTS
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.train import main as train_verb
from hpctrack.training import checkpoint, ledger
from hpctrack.training.loop import train
from hpctrack.training.trainer import Trainer

STEPS = {"steps": 6, "checkpoint_every": 2, "valid_every": 3}


def run(config) -> None:
    with distributed(config.parallel, 1) as env:
        train(config, env)


def said_by(verb, argv) -> tuple[int, str]:
    """Exit code, standard error and what else was said, of a verb in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        code, error = quietly(verb, argv)
    return code, error + said.getvalue()


def by_verb(config_file) -> tuple[int, str]:
    return said_by(train_verb, [config_file])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a dataset and a run of six steps, tuned at its end."""
    root = tmp_path_factory.mktemp("trained")
    data = toy_dataset(root / "data")
    run_ranks(1, run, toy_config(root / "run", data, valid=data, train=STEPS, builder={"radius": None}))
    return root


@pytest.fixture
def again(trained, tmp_path):
    """A copy of that run that can go on: (its folder, its recipe)."""
    shutil.copytree(trained / "run", tmp_path / "run")
    config = toy_config(
        tmp_path / "run", trained / "data", valid=trained / "data", train=STEPS, builder={"radius": None}
    )
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    return tmp_path / "run", tmp_path / "run.yaml"


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_second_training_in_a_folder_is_refused_before_it_writes(trained, tmp_path, ranks):
    config = toy_config(tmp_path / "run", trained / "data")
    (tmp_path / "run.yaml").write_text(dump_yaml(config))
    with only_writer(tmp_path / "run"):
        ended = run_ranks(ranks, by_verb, tmp_path / "run.yaml")
        assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    assert [code for code, _ in ended] == [2] * ranks
    assert "writes here; wait for its end or choose another folder" in ended[0][1]
    assert sum(said.count("error:") for _, said in ended) == 1


def test_one_that_was_taken_over_notices_before_it_writes(trained, tmp_path, monkeypatch):
    config = toy_config(tmp_path / "run", trained / "data", train={"steps": 6, "checkpoint_every": 2})
    observe, others = Trainer.observe, contextlib.ExitStack()

    def then_another_comes(trainer, *args, **more):
        observe(trainer, *args, **more)
        if trainer.step == 4:
            (tmp_path / "run" / LOCK).unlink(missing_ok=True)
            others.enter_context(only_writer(tmp_path / "run"))

    monkeypatch.setattr(Trainer, "observe", then_another_comes)
    with pytest.raises(MachineError, match="has taken over .* ends without writing more"):
        run(config)
    assert checkpoint.find(tmp_path / "run").name == "step-00000002"
    assert (tmp_path / "run" / LOCK).exists()


class Broken(Exception):
    pass


@pytest.mark.parametrize("where", ["validate", "tune"])
def test_what_follows_a_step_may_fail_without_losing_it(trained, tmp_path, monkeypatch, where):
    config = toy_config(
        tmp_path / "run",
        trained / "data",
        valid=trained / "data",
        train={"steps": 3, "checkpoint_every": 3, "valid_every": 3},
        builder={"radius": None},
    )
    with monkeypatch.context() as patch, pytest.raises(Broken):
        patch.setattr(Trainer, where, lambda self: (_ for _ in ()).throw(Broken()))
        run(config)
    found = checkpoint.find(tmp_path / "run")
    assert found.name == "step-00000003" and checkpoint.read_meta(found)["pending"]
    state = (found / "state.pt").stat()
    run(config)
    meta = checkpoint.read_meta(checkpoint.find(tmp_path / "run"))
    assert not meta["pending"] and meta["tuned"]
    assert (found / "state.pt").stat().st_ino == state.st_ino  # the weights were not written twice
    assert ledger.problems(tmp_path / "run") == [] and len(losses(tmp_path / "run")) == 3
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert kinds.count("valid") == 1


def test_a_kill_at_any_file_operation_of_a_run_is_gone_on_from(trained, tmp_path):
    settings = {"valid": trained / "data", "builder": {"radius": None}, "train": STEPS | {"keep_checkpoints": 1}}
    whole, broken = (toy_config(tmp_path / name, trained / "data", **settings) for name in ("whole", "broken"))
    made = operations(lambda: run(whole), [tmp_path / "whole"], ignore=["tensorboard"])
    for at in range(3, len(made), len(made) // 7):
        outcome = strike(lambda: run(broken), [tmp_path / "broken"], Fault(at, KILL), ignore=["tensorboard"])
        assert outcome.struck and outcome.code == -9, outcome.said
        outcome = strike(lambda: run(broken), [], None)
        assert outcome.code == 0, (made[at], outcome.said)
        assert losses(tmp_path / "broken") == losses(tmp_path / "whole"), made[at]
        assert ledger.problems(tmp_path / "broken") == [] and not list((tmp_path / "broken").rglob("*.tmp"))
        states = [checkpoint.read_state(checkpoint.find(tmp_path / name))["model"] for name in ("whole", "broken")]
        assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
        shutil.rmtree(tmp_path / "broken")


def test_leftovers_of_killed_runs_go(again):
    folder, recipe = again
    stale = [
        folder / ".checkpoints.1-0123456789ab.tmp",
        folder / "checkpoints/.step-00000008.1-01234567.tmp",
        folder / "checkpoints/.latest.1-01234567.tmp",
        folder / "checkpoints/.step-00000008.tmp",
        folder / ".metrics.jsonl.1-01234567.tmp",
    ]
    for path in stale:
        path.mkdir()
    mine = folder / ".notes.tmp"
    mine.write_text("")
    assert by_verb(recipe)[0] == 0
    assert not any(path.exists() for path in stale) and mine.exists()


def change(path: Path, edit) -> None:
    """Change meta data and seal them again."""
    meta = json.loads(path.read_text())
    edit(meta)
    path.write_text(json.dumps(with_checksum(meta)))


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


def flip(path: Path, at: bytes) -> None:
    """One bad byte, that is no UTF-8 either, after `at`."""
    content = bytearray(path.read_bytes())
    content[content.index(at) + len(at)] = 0xFF
    path.write_bytes(content)


NEWEST = "checkpoints/step-00000006"
REFUSED = (
    {  # what is done to a run, and the file that both verification and a training that would go on name
        "ledger cut short": ("ledger.jsonl", cut),
        "ledger removed": ("ledger.jsonl", Path.unlink),
        "ledger changed": ("ledger.jsonl", lambda path: path.write_text(path.read_text().replace("[", "[ ", 1))),
        "metrics removed": ("metrics.jsonl", Path.unlink),
        "metrics changed": ("metrics.jsonl", lambda path: path.write_text(path.read_text().replace("0.", "1.", 1))),
        "metrics with a bad byte": ("metrics.jsonl", lambda path: flip(path, b'"loss": ')),
        "latest removed": ("checkpoints/latest", Path.unlink),
        "latest names none": ("checkpoints/latest", lambda path: path.write_text("step-00000007")),
        "meta data changed": (
            f"{NEWEST}/meta.json",
            lambda path: path.write_text(path.read_text().replace("0.", "1.", 1)),
        ),
        "state cut short": (f"{NEWEST}/state.pt", lambda path: path.write_bytes(path.read_bytes()[:-100])),
    }
    | {
        f"without {key}": (f"{NEWEST}/meta.json", lambda path, key=key: change(path, lambda meta: meta.pop(key)))
        for key in ("cost", "memory", "plan", "precision")
    }
)


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_run_cannot_go_on_with_is_no_verified_one(again, what):
    folder, recipe = again
    name, damage = REFUSED[what]
    damage(folder / name)
    for code, said in (said_by(inspect.main, [folder, "--verify", "--jobs", "1"]), by_verb(recipe)):
        assert code == 2 and "Traceback" not in said and str(folder / name) in said, said
    error = [line for line in said.splitlines() if "error:" in line]
    assert len(error) == 1
    if "latest" in what:
        assert "step-00000006" in error[0]  # what could be written into it


def without_optimizer(folder: Path) -> None:
    path = checkpoint.find(folder)
    meta, state = checkpoint.read_meta(path), checkpoint.read_state(path)
    del state["optimizer"]
    checkpoint.write(path, state, meta)


def test_a_checkpoint_without_its_optimizer_is_no_whole_one(again):
    folder, recipe = again
    without_optimizer(folder)
    for code, said in (said_by(inspect.main, [folder, "--verify"]), by_verb(recipe)):
        assert code == 2 and "lacks the optimizer's state; no run can go on from here" in said


@pytest.mark.parametrize("name", ["config.yaml", "versions.json"])
@pytest.mark.parametrize("how", ["a bad byte", "another value"])
def test_changed_files_of_a_run_are_found(again, name, how):
    folder, _ = again
    path = folder / name
    if how == "a bad byte":
        flip(path, b"torch") if name == "versions.json" else flip(path, b"lr: ")
    else:
        path.write_text(path.read_text().replace("1", "2", 1))
    code, said = said_by(inspect.main, [folder, "--verify"])
    assert code == 2 and "Traceback" not in said and f"{path}: " in said, said


def test_what_is_whole_is_verified_and_says_what_it_is_good_for(again, tmp_path):
    folder, _ = again
    code, said = said_by(inspect.main, [folder, "--verify"])
    assert code == 0 and "verified: ok" in said and "of all files" in said, said
    assert said_by(export.main, [folder, tmp_path / "given"])[0] == 0
    code, said = said_by(inspect.main, [tmp_path / "given", "--verify"])
    assert code == 0 and "exported: for inference and train.start_from" in said, said
    with open(folder / "metrics.jsonl", "a") as file:  # a kill while the next line is written
        file.write('{"kind": "tr')
    assert said_by(inspect.main, [folder, "--verify"])[0] == 0


def test_no_run_goes_on_from_an_exported_checkpoint(again, tmp_path):
    folder, recipe = again
    assert said_by(export.main, [folder, tmp_path / "given"])[0] == 0
    shutil.rmtree(folder / NEWEST)
    shutil.copytree(tmp_path / "given", folder / NEWEST)
    code, said = by_verb(recipe)
    assert code == 2 and "was exported, without the optimizer's state" in said and "Traceback" not in said


def test_back_to_an_older_checkpoint_and_on_from_there(again):
    folder, recipe = again
    before = losses(folder)
    (folder / "checkpoints/latest").write_text("step-00000004")
    assert by_verb(recipe)[0] == 0
    assert losses(folder) == before and ledger.problems(folder) == []
    assert (folder / "checkpoints/latest").read_text() == "step-00000006"
    assert said_by(inspect.main, [folder, "--verify"])[0] == 0


def test_a_cut_timing_does_not_end_inference(trained, tmp_path):
    words = ["--checkpoint", trained / "run", "--data", trained / "data"]
    assert said_by(infer.main, [*words, "--out", tmp_path / "whole"])[0] == 0
    argv = [*words, "--out", tmp_path / "out"]
    made = operations(lambda: infer.main([str(word) for word in argv]), [tmp_path / "out"])
    shutil.rmtree(tmp_path / "out")
    writes = [at for at, what in enumerate(made) if what == "write rank-00000.timings"]
    strike(lambda: infer.main([str(word) for word in argv]), [tmp_path / "out"], Fault(writes[2], KILL, "half"))
    assert not (tmp_path / "out" / PARTS / "rank-00000.timings").read_text().endswith("\n")
    code, said = said_by(infer.main, argv)
    assert code == 0, said
    assert CandidateStore(tmp_path / "out").digest == CandidateStore(tmp_path / "whole").digest
    rows = [json.loads(line) for line in (tmp_path / "out/timings.jsonl").read_text().splitlines()]
    assert [row["event_id"] for row in rows] == list(range(6))
