"""Where ranks meet: who does not come is said in time, strangers are refused, and ranks end with their launcher."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch.distributed as dist
from helpers import quietly
from test_faults import SIZES, saved_step, slow_infer, wait_for_steps, words
from test_faults import trained as trained

from hpctrack import infer
from hpctrack.config import RunConfig, dump_yaml
from hpctrack.inference import run
from hpctrack.parallel import rendezvous
from hpctrack.storage.candidates import CandidateStore
from hpctrack.testing.ranks import start_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.train import main as train_verb
from hpctrack.training import checkpoint
from hpctrack.training.ledger import problems

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def written(folder: Path, name: str, **sections: dict) -> tuple[RunConfig, Path]:
    """A toy run and its file."""
    data = folder / "data"
    if not data.exists():
        toy_dataset(data, sizes=SIZES)
    config = toy_config(folder / "run", data, **sections)
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml(config))
    return config, path


def at(port: int, rank: int, world: int = 2) -> dict[str, str]:
    """Variables of a rank that meets the others at a port of this machine."""
    place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in place.items()}


def as_rank(place: dict[str, str], verb, argv: list[str]) -> tuple[int, str]:
    """A verb at a place, in a process of its own."""
    os.environ.pop("HPCTRACK_INIT_METHOD", None)
    os.environ.update(place)
    return quietly(verb, argv)


def start(place: dict[str, str], verb, argv: list[str]):
    """A process with a verb at a place, and the pipe that gives what came of it."""
    [process], [pipe] = start_ranks(1, as_rank, place, verb, argv)
    return process, pipe


# ------------------------------------------------------------------------------------------------ who does not come


@pytest.mark.parametrize("by", ["file", "port"])
def test_a_rank_that_never_comes_ends_inference_in_time(trained, tmp_path, capfd, monkeypatch, by):
    monkeypatch.setattr(infer, "START_S", 3.0, raising=False)
    monkeypatch.setattr(rendezvous, "WORD_S", 1.0)
    place = at(free_port(), 0, 3)
    if by == "file":
        place["HPCTRACK_INIT_METHOD"] = f"file://{tmp_path}/meeting"
    process, pipe = start(place, infer.main, words(trained, tmp_path / "out", "--timeout-s", "3"))
    try:
        assert pipe.poll(40), "it waits without a limit"
        code, error = pipe.recv()[1]
    finally:
        process.kill()
    where = f"{tmp_path}/meeting" if by == "file" else "127.0.0.1:"
    assert code == 1 and "rank 0 of 3 did not meet the others at " + where in error, error
    assert "within --timeout-s=3 s: waited for ranks 1-2 of 3; here on " in error
    said = capfd.readouterr().err
    assert said.count("hpctrack [rank 0]: waits at") == 1 and "for ranks 1-2 of 3" in said


def test_training_says_where_rank_0_is_missing_and_what_holds_its_port(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(rendezvous, "WORD_S", 1.0)
    monkeypatch.setattr(rendezvous, "HELD_S", 1.0)
    _, path = written(tmp_path, "config", parallel={"rendezvous_timeout_s": 3.0})
    port = free_port()
    _, pipe = start(at(port, 1), train_verb, [str(path)])
    assert pipe.poll(40)
    code, error = pipe.recv()[1]
    assert code == 1 and "waited for rank 0 (Connection refused)" in error and f"127.0.0.1:{port}" in error, error
    assert "for rank 0 (Connection refused)" in capfd.readouterr().err
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        _, pipe = start(at(port, 0), train_verb, [str(path)])
        assert pipe.poll(40)
        code, error = pipe.recv()[1]
        assert code == 1 and f"port {port} of " in error and "is held by another process" in error, error


# ------------------------------------------------------------------------------------------------ strangers


def test_a_rank_with_other_settings_is_refused_and_the_run_goes_on_meeting(tmp_path):
    """It comes first, and is the same rank of as many: what a killed launcher has left."""
    config, own = written(tmp_path, "own", train={"steps": 12, "checkpoint_every": 6})
    port = free_port()
    _, stranger = start(at(port, 1), train_verb, [str(own), "seed=7"])
    time.sleep(0.5)
    ranks = [start(at(port, 0), train_verb, [str(own)])[1]]
    time.sleep(1.0)  # 0.1.0 lets the stranger in now
    ranks.append(start(at(port, 1), train_verb, [str(own)])[1])
    for pipe in (*ranks, stranger):
        assert pipe.poll(90)
    assert [pipe.recv()[1] for pipe in ranks] == [(0, "")] * 2
    code, error = stranger.recv()[1]
    assert code == 1 and error.count("\n") == 1, error
    assert "came to another run's meeting" in error and "settings differ" in error or "has gone" in error, error
    assert problems(Path(config.run)) == [] and saved_step(config) == 12
    assert checkpoint.read_meta(checkpoint.find(Path(config.run)))["config"]["seed"] == config.seed


def test_what_a_killed_run_has_left_in_the_file_is_no_rank(tmp_path):
    config, path = written(tmp_path, "own", train={"steps": 300, "checkpoint_every": 3})
    for _ in range(2):
        place = [at(1, rank) | {"HPCTRACK_INIT_METHOD": f"file://{tmp_path}/meeting"} for rank in (0, 1)]
        started = [start(one, train_verb, [str(path)]) for one in place]
        wait_for_steps(config, 4)
        for process, _ in started:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
        assert problems(Path(config.run)) == []


@pytest.mark.parametrize("missing", [[], [0], [999], [3, *range(480, 488)], [*range(1000)]])
def test_who_is_missing_among_a_thousand_takes_few_questions(missing):
    store, asked = dist.HashStore(), []
    for rank in set(range(1000)) - {*missing}:
        store.set(f"rank/{rank}", "here")

    class Asked:
        def check(self, keys: list[str]) -> bool:
            asked.append(keys)
            return store.check(keys)

    assert rendezvous.without(Asked(), "rank/", range(1000)) == missing
    assert len(asked) <= 1 + 2 * min(999, 20 * len(missing))


# ------------------------------------------------------------------------------------------------ launchers


LAUNCHER = """
import os, subprocess, sys, torch
place = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
command = [sys.executable, "-m", "hpctrack.train", sys.argv[2]]
environment = os.environ | place
ranks = [
    subprocess.Popen(command, env=environment | {"RANK": str(r), "LOCAL_RANK": str(r)}, start_new_session=True)
    for r in (0, 1)
]
print(*(rank.pid for rank in ranks), flush=True)
ranks[0].wait()
"""


@pytest.mark.parametrize("moment", ["importing", "meeting"])
def test_ranks_end_with_their_launcher(tmp_path, moment):
    """Rank 2 never comes, so the others wait for it; as do ranks whose launcher was killed while they imported."""
    _, path = written(tmp_path, "config")
    port = free_port()
    command = [sys.executable, "-c", LAUNCHER, str(port), str(path)]
    with open(tmp_path / "log", "w") as log:
        launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=ROOT)
    ranks = [int(pid) for pid in launcher.stdout.readline().split()]
    try:
        if moment == "importing":
            time.sleep(0.3)
        else:
            until(lambda: served(port), "they do not meet", 90)
        assert all(alive(pid) for pid in ranks), (tmp_path / "log").read_text()
        launcher.kill()
        launcher.wait()
        until(lambda: not any(alive(pid) for pid in ranks), "ranks go on without their launcher", 20)
    finally:
        for pid in ranks:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
    assert (tmp_path / "log").read_text().count("gone") == 2


def until(condition, otherwise: str, seconds: float) -> None:
    """Wait for it."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)


def served(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------ inference


def test_a_frozen_rank_is_noticed_with_its_event(trained, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(infer, "START_S", 2.0, raising=False)
    out = tmp_path / "out"
    processes, _ = start_ranks(2, slow_infer, words(trained, out, "--timeout-s", "2"))
    try:
        until(lambda: any(path.stat().st_size for path in out.glob(".parts/rank-00001.journal")), "no event", 60)
        time.sleep(0.5)  # until it has told of an event
        os.kill(processes[1].pid, signal.SIGSTOP)
        processes[0].join(40)
        assert processes[0].exitcode == 1, "rank 0 waits on"
    finally:
        for process in processes:
            process.kill()
            process.join()
    error = capfd.readouterr().err
    assert "rank 1 on " in error and "has not been heard of for --timeout-s=2 s, at event " in error, error
    assert infer.main(words(trained, out)) == 0 and infer.main(words(trained, tmp_path / "whole")) == 0
    assert CandidateStore(out).digest == CandidateStore(tmp_path / "whole").digest


def test_many_parts_look_at_once_for_a_call_that_was_killed(tmp_path):
    """None takes another one's look for that call."""
    folder = tmp_path / ".parts" / run.FOR_ALL
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run.check_not_running, [folder] * 400)) == [None] * 400


def test_parts_and_a_call_for_all_refuse_each_other(trained, tmp_path):
    """Neither waits for the other in silence, nor removes what the other still writes; what is left is done later."""
    out = tmp_path / "out"

    def under_way(*more: str):
        [process], [pipe] = start_ranks(1, slow_infer, words(trained, out, *more))
        pattern = f"part-{more[1][0]:0>5}-*.journal" if more else "rank-*.journal"
        until(lambda: any(path.stat().st_size for path in out.glob(f".parts/{pattern}")), "no event", 60)
        return process, pipe

    def refused(*more: str) -> None:
        code, error = quietly(infer.main, words(trained, out, *more))
        assert code == 2 and "is under way" in error and error.count("\n") == 1, error

    part, done = under_way("--part", "0/2")
    refused()
    refused("--part", "0/3")
    assert done.poll(60) and done.recv() == (True, 0)
    everything, done = under_way()
    refused("--part", "1/2")
    everything.kill()
    everything.join()
    assert quietly(infer.main, words(trained, out, "--part", "0/1")) == (0, "")  # another division, nothing done twice
    assert infer.main(words(trained, tmp_path / "whole")) == 0
    assert CandidateStore(out).digest == CandidateStore(tmp_path / "whole").digest
