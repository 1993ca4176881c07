"""Reader processes: a batch crosses once; what ends them, or fills what they need, is one line, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from campaigns.ranks_killed import children
from helpers import quietly
from test_faults import run, saved_step, wait_for_steps

from hpctrack.config import dump_yaml
from hpctrack.testing.ranks import run_ranks, start_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.train import main as train_verb
from hpctrack.training.ledger import problems

NO_ROOM = "unable to write to file </torch_1_2_3>: No space left on device (28)"
NO_FILE = "unable to open shared memory object </torch_1_2_3> in read-write mode: Too many open files (24)"


def written(tmp_path: Path, **sections) -> tuple:
    data = toy_dataset(tmp_path / "data", sizes=(4, 6, 5, 7, 3))
    config = toy_config(tmp_path / "run", data, **sections)
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    return config, [str(tmp_path / "config.yaml")]


def test_a_killed_reader_is_named_all_ranks_end_and_the_run_goes_on(tmp_path):
    config, argv = written(tmp_path, train={"steps": 80, "checkpoint_every": 10}, reading={"workers": 1})
    processes, pipes = start_ranks(2, quietly, train_verb, argv)
    wait_for_steps(config, 12)
    [reader] = children(processes[1].pid)
    os.kill(reader, signal.SIGKILL)
    results = []
    for pipe in pipes:
        assert pipe.poll(60)
        ok, result = pipe.recv()
        assert ok, result
        results.append(result)
    assert [code for code, _ in results] == [1, 1]
    assert [error.count("\n") for _, error in results] == [1, 1], results
    assert f"[rank 1]: error: reader process {reader} was killed by SIGKILL (out of memory?)" in results[1][1]
    assert "a rank was lost" in results[0][1] and saved_step(config) < 80
    run_ranks(2, run, config)
    assert problems(Path(config.run)) == [] and saved_step(config) == 80


def failing(message: str, argv: list[str]) -> tuple[int, str]:
    """Train where shared memory cannot be had."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    torch.UntypedStorage._new_shared = refuse
    return quietly(train_verb, argv)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (NO_ROOM, ["/dev/shm is full", "data.workers", "data.prefetch_factor", " free, but a batch of "]),
        (NO_FILE, ["out of file numbers (ulimit -n)"]),
    ],
)
def test_shared_memory_that_cannot_be_had_is_one_line(tmp_path, message, words):
    _, argv = written(tmp_path, reading={"workers": 2})
    [(code, error)] = run_ranks(1, failing, message, argv)
    assert code == 1 and error.count("\n") == 1 and len(error) < 300, error
    assert all(word in error for word in words), error


def sharing(folder: Path, config) -> None:
    """Train, and note each piece of shared memory that a reader asks for, one line in a file of its own."""
    of_torch = torch.UntypedStorage._new_shared.__func__

    def noted(cls: type, size: int, **kwargs: object) -> object:
        with open(folder / str(os.getpid()), "a") as file:
            file.write("piece\n")
        return of_torch(cls, size, **kwargs)

    torch.UntypedStorage._new_shared = classmethod(noted)
    run(config)


def test_a_batch_crosses_once(tmp_path):
    config, _ = written(tmp_path, reading={"workers": 2}, plan={"hits_per_micro_batch": 60}, train={"steps": 8})
    (tmp_path / "shared").mkdir()
    run_ranks(1, sharing, tmp_path / "shared", config)
    pieces = sum(path.read_text().count("piece") for path in (tmp_path / "shared").iterdir())
    batches = 4 * 4  # two steps an epoch, of four events and of one; one to three fit into a micro-batch
    assert 8 < pieces <= batches, pieces


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory) -> Path:
    return toy_dataset(tmp_path_factory.mktemp("many") / "data", sizes=(4,) * 56, per_shard=1)


@pytest.mark.parametrize("verb", ["train", "infer", "convert"])
def test_few_file_numbers_are_enough_or_one_line(tmp_path, many_shards, verb):
    """A dataset of many shards, each a file; `ulimit -n` is 60, which the readers' pipes may use up."""
    data = many_shards
    config = toy_config(tmp_path / "run", data, reading={"workers": 2}, train={"steps": 30})
    (tmp_path / "config.yaml").write_text(dump_yaml(config))
    words = {
        "train": [str(tmp_path / "config.yaml")],
        "infer": ["--method", "dbscan", "--data", str(data), "--out", str(tmp_path / "out")],
        "convert": [str(data), str(tmp_path / "out"), "--tracks", "2", "--jobs", "2"],
    }[verb]
    shell = f'ulimit -n 60; exec "{sys.executable}" -m hpctrack.{verb} "$@"'
    done = subprocess.run(
        ["bash", "-c", shell, "bash", *words], timeout=120, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 or (
        done.returncode == 1 and done.stderr.count("\n") == 1 and "file numbers" in done.stderr and "60" in done.stderr
    ), done.stderr
    assert done.returncode == 0 or verb == "train", done.stderr
