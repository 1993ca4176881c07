"""Signals, lost ranks, hangs, full disks: a run goes on from its checkpoint with an exact ledger, or says why not."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaigns.ranks_killed import children
from helpers import quietly

from hpctrack import infer
from hpctrack.config import RunConfig, dump_yaml
from hpctrack.errors import EXIT_PREEMPTED
from hpctrack.events.loader import EventLoader
from hpctrack.parallel.env import distributed
from hpctrack.storage.candidates import CandidateStore
from hpctrack.testing.ranks import run_ranks, start_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.train import main as train_verb
from hpctrack.training import checkpoint
from hpctrack.training.ledger import problems
from hpctrack.training.loop import train

ROOT = Path(__file__).parents[2]
SIZES = (4, 6, 5, 7, 3)


def run(config: RunConfig) -> int:
    with distributed(config.parallel, 1) as env:
        return train(config, env)


def logged(config: RunConfig) -> list[dict]:
    """What the run has logged, without what a clock or the machine decides."""
    path = Path(config.run) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    chosen = ("kind", "step", "loss", "grad_norm", "events", "hits")
    return [{k: v for k, v in line.items() if k in chosen} for line in lines if line["kind"] != "waste"]


def ledger_lines(config: RunConfig) -> int:
    path = Path(config.run) / "ledger.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_steps(config: RunConfig, steps: int, seconds: float = 60) -> None:
    """Until the run has taken `steps` more."""
    until, end = ledger_lines(config) + steps, time.monotonic() + seconds
    while ledger_lines(config) < until:
        assert time.monotonic() < end, f"not {steps} steps in {seconds} s"
        time.sleep(0.002)


def saved_step(config: RunConfig) -> int:
    return checkpoint.read_meta(checkpoint.find(Path(config.run)))["step"]


# ------------------------------------------------------------------------------------------------ signals


@pytest.mark.parametrize("told", ["one rank", "all ranks"])
def test_told_to_end_all_ranks_save_and_the_rest_is_bit_equal(tmp_path, told, capfd):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    settings = {"steps": 60, "checkpoint_every": 1000, "valid_every": 2}
    whole, broken = (
        toy_config(tmp_path / name, data, valid=data, train=settings, builder={"radius": None})
        for name in ("whole", "broken")
    )
    run_ranks(2, run, whole)
    rng = random.Random(told)
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
        processes, pipes = start_ranks(2, run, broken)
        wait_for_steps(broken, rng.randint(1, 8))
        time.sleep(rng.random() * 0.02)
        for process in processes if told == "all ranks" else processes[1:]:
            os.kill(process.pid, number)
        assert [pipe.recv() for pipe in pipes] == [(True, EXIT_PREEMPTED)] * 2
        assert saved_step(broken) == ledger_lines(broken) - 1
    assert "preempted (" in capfd.readouterr().out
    assert run_ranks(2, run, broken) == [0, 0]
    assert logged(broken) == logged(whole) and problems(Path(broken.run)) == []
    assert digest(broken) == digest(whole)


def digest(config: RunConfig) -> list:
    """Weights, and what was tuned after the last step."""
    path = checkpoint.find(Path(config.run))
    state = checkpoint.read_state(path)["model"]
    return [checkpoint.read_meta(path)["tuned"], {name: value.tolist() for name, value in state.items()}]


def test_reader_processes_leave_the_signals_to_their_rank(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, train={"steps": 100_000}, reading={"workers": 2})
    [process], [pipe] = start_ranks(1, run, config)
    wait_for_steps(config, 3)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        for pid in (*children(process.pid), process.pid):
            os.kill(pid, number)
    assert pipe.recv() == (True, EXIT_PREEMPTED)
    assert saved_step(config) == ledger_lines(config) - 1 and problems(Path(config.run)) == []


# ------------------------------------------------------------------------------------------------ hangs


def stuck_reading(config: RunConfig) -> int:
    """Train, but rank 1 never comes back from reading its events."""

    def read_for_ever(*_: object) -> None:
        time.sleep(1000)

    if os.environ["RANK"] == "1":
        EventLoader.__call__ = read_for_ever
    return run(config)


def test_a_rank_that_hangs_ends_all_with_every_stack(tmp_path, capfd):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, parallel={"timeout_s": 8.0})
    processes, _ = start_ranks(2, stuck_reading, config)
    for process in processes:
        process.join(40)
    assert [process.exitcode for process in processes] == [1, 1]
    text = capfd.readouterr().err
    for rank in (0, 1):
        assert f"hpctrack [rank {rank}]: error: step 1 has not finished within parallel.timeout_s=8 s" in text
    assert "in read_for_ever" in text and "in train_step" in text


def test_a_stopped_rank_is_noticed_by_the_others(tmp_path, capfd):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, train={"steps": 100_000}, parallel={"timeout_s": 8.0})
    processes, _ = start_ranks(2, run, config)
    wait_for_steps(config, 3)
    os.kill(processes[1].pid, signal.SIGSTOP)
    processes[0].join(40)
    os.kill(processes[1].pid, signal.SIGKILL)
    processes[1].join()
    assert processes[0].exitcode == 1
    assert "has not finished within parallel.timeout_s=8 s" in capfd.readouterr().err


# ------------------------------------------------------------------------------------------------ losses


def test_the_others_of_a_killed_rank_say_so_and_the_run_goes_on(tmp_path):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, train={"steps": 100, "checkpoint_every": 5})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    processes, pipes = start_ranks(3, quietly, train_verb, [str(tmp_path / "config.yaml")])
    wait_for_steps(config, 12)
    os.kill(processes[2].pid, signal.SIGKILL)
    for pipe in pipes[:2]:
        assert pipe.poll(60)
        ok, (code, error) = pipe.recv()
        assert ok and code == 1 and error.count("\n") == 1 and "a rank was lost, or did not answer" in error, error
    run_ranks(2, run, config)
    assert problems(Path(config.run)) == [] and saved_step(config) == 100


def test_a_disk_that_fills_up_is_one_line_and_the_run_goes_on_once_there_is_room(tmp_path, small_disk):
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    disk = small_disk(1024)
    config = toy_config(disk / "run", data, train={"steps": 100, "checkpoint_every": 5})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    argv = [str(tmp_path / "config.yaml")]
    processes, pipes = start_ranks(2, quietly, train_verb, argv)
    wait_for_steps(config, 20)
    with open(disk / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while ballast.write(bytes(1024)):
            pass
    results = []
    for process, pipe in zip(processes, pipes, strict=True):
        assert pipe.poll(60)
        ok, result = pipe.recv()
        assert ok, result
        results.append(result)
        process.join()
    assert [code for code, _ in results] == [1, 1]
    assert results[0][1].count("\n") == 1 and ("space" in results[0][1] or "disk" in results[0][1]), results
    assert results[1][1] == "" or "a rank was lost" in results[1][1]  # the latter: a line of the ledger failed
    (disk / "ballast").unlink()
    run_ranks(2, run, config)
    assert problems(Path(config.run)) == [] and saved_step(config) == 100


def test_a_lost_node_leaves_the_other_to_go_on(tmp_path):
    """Two launchers, --nnodes 1:2: one and its rank are killed; the other goes on alone."""
    data = toy_dataset(tmp_path / "data", sizes=SIZES)
    config = toy_config(tmp_path / "run", data, train={"steps": 150, "checkpoint_every": 10, "valid_every": 500})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    meeting = "keep_alive_interval=1,keep_alive_max_attempt=2,last_call_timeout=5,join_timeout=60"
    command = [sys.executable, "launch/node.py", "--nnodes", "1:2", "--nproc-per-node", "1"]
    command += ["--max-restarts", "3", "--rdzv-backend", "c10d", "--rdzv-id", "faults"]
    command += ["-m", "hpctrack.train", str(tmp_path / "config.yaml")]
    with open(tmp_path / "log", "w") as log:

        def start(endpoint: str, serves: bool) -> subprocess.Popen:
            conf = ["--rdzv-conf", f"{meeting},is_host={serves}"]  # the one that is left must serve the meeting
            words = [*command[:2], "--rdzv-endpoint", endpoint, *conf, *command[2:]]
            return subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

        port = free_port()
        first = start(f"localhost:{port}", True)
        time.sleep(1)
        second = start(f"localhost:{port}", False)
        try:
            wait_for_steps(config, 30, 120)
            assert "ranks: 2 from torchrun" in (tmp_path / "log").read_text()
            ranks = children(second.pid)
            os.killpg(second.pid, signal.SIGKILL)
            for pid in ranks:  # they have sessions of their own
                os.kill(pid, signal.SIGKILL)
            assert first.wait(150) == 0, (tmp_path / "log").read_text()[-3000:]
        finally:
            for process in (first, second):
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
    assert problems(Path(config.run)) == [] and saved_step(config) == 150
    assert (tmp_path / "log").read_text().count("resumed at step") == 1


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


# ------------------------------------------------------------------------------------------------ inference


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    data = toy_dataset(folder / "data", sizes=(4, 0, 9, 5, 1, 2, 6, 7, 3), n_noise=2, per_shard=2)
    run(toy_config(folder / "run", data, train={"precision": "fp32", "steps": 5}))
    return folder / "run", data


def words(trained: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(trained[0]), "--data", str(trained[1]), "--out", str(out), *more]


def slow_infer(argv: list[str]) -> int:
    """Inference that takes its time to read."""
    read = EventLoader.__call__

    def slowly(*args: object) -> object:
        time.sleep(0.3)
        return read(*args)

    EventLoader.__call__ = slowly
    return infer.main(argv)


def test_inference_ends_between_events_and_goes_on(trained, tmp_path, capfd):
    assert infer.main(words(trained, tmp_path / "whole")) == 0
    out = tmp_path / "out"
    processes, pipes = start_ranks(2, slow_infer, words(trained, out))
    while not any(path.stat().st_size for path in out.glob(".parts/*.journal")):
        time.sleep(0.01)
    for process in processes:
        os.kill(process.pid, signal.SIGTERM)
    assert [pipe.recv() for pipe in pipes] == [(True, EXIT_PREEMPTED)] * 2
    assert not (out / "index.h5").exists() and "events are left" in capfd.readouterr().out
    assert run_ranks(2, infer.main, words(trained, out)) == [0, 0]
    assert CandidateStore(out).digest == CandidateStore(tmp_path / "whole").digest


def test_shares_of_a_job_array_run_side_by_side_and_the_last_one_joins(trained, tmp_path, capfd):
    assert infer.main(words(trained, tmp_path / "whole")) == 0
    out, fork = tmp_path / "out", multiprocessing.get_context("fork")
    tasks = [fork.Process(target=infer.main, args=(words(trained, out, "--part", f"{i}/4"),)) for i in range(4)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(60)
    assert CandidateStore(out).digest == CandidateStore(tmp_path / "whole").digest
    assert capfd.readouterr().out.count("candidates of 9 events, digest") == 2
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_a_share_that_is_missing_can_be_made_up_for_by_a_call_for_all(trained, tmp_path, capsys):
    assert infer.main(words(trained, tmp_path / "whole")) == 0
    out = tmp_path / "out"
    assert infer.main(words(trained, out, "--part", "0/2")) == 0
    assert "1 of 2 parts done" in capsys.readouterr().out and not (out / "index.h5").exists()
    assert infer.main(words(trained, out)) == 0
    assert CandidateStore(out).digest == CandidateStore(tmp_path / "whole").digest
    with pytest.raises(SystemExit):
        infer.main(words(trained, out, "--part", "2/2"))
    assert "'2/2' must be I/N" in capsys.readouterr().err


END = """
import os
import sys

import torch
import torch._dynamo  # DDP imports it
import torch.distributed as dist

from hpctrack.config import ParallelConfig
from hpctrack.parallel.env import distributed

ranks = {}
for rank in map(str, range(4)):
    if (child := os.fork()) == 0:
        break
    ranks[child] = rank
else:
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in ranks))
    sys.exit()

os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
sys.setswitchinterval(5)  # no thread takes Python from the main one, which goes on from its last collective to the end
with distributed(ParallelConfig(), 1):
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(10, 10))
    model(torch.zeros(3, 10)).sum().backward()
    kept = torch.zeros(1000)
    dist.all_reduce(kept)
    dist.barrier()
    sys.exit(7)
"""


def test_ranks_end_with_their_own_exit_code(tmp_path):
    """Threads of gloo that meet the end of the interpreter abort their rank."""
    place = {"WORLD_SIZE": "4", "HPCTRACK_INIT_METHOD": f"file://{tmp_path}/meeting"}
    done = subprocess.run(
        [sys.executable, "-c", END], env=os.environ | place, stdout=subprocess.PIPE, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-1] == "7 7 7 7"
