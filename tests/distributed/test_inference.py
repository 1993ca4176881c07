"""Inference on real ranks: each event once, the same bytes on any number of ranks and after kills."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import quietly

from hpctrack import infer
from hpctrack.files.atomic import with_checksum
from hpctrack.files.lock import only_writer
from hpctrack.parallel.env import distributed
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.journals import committed
from hpctrack.storage.store import Dataset
from hpctrack.testing.ranks import run_ranks, start_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.loop import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("trained")
    data = toy_dataset(folder / "data", sizes=(4, 0, 9, 5, 1, 2, 6, 7, 3), n_noise=2, per_shard=2)
    config = toy_config(folder / "run", data, train={"precision": "fp32", "steps": 20})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    return folder / "run", data


def run(checkpoint: Path, data: Path, out: Path, *more: str) -> None:
    code = infer.main(["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(out), *more])
    assert code == 0, code


def test_the_same_bytes_on_one_two_and_four_ranks(trained, tmp_path):
    digests = []
    for n in (1, 2, 4):
        run_ranks(n, run, *trained, tmp_path / str(n))
        store = CandidateStore(tmp_path / str(n))
        assert store.event_ids.tolist() == list(range(9))
        digests.append(store.digest)
    assert len(set(digests)) == 1
    assert any(len(store.read(i)) for i in range(9))
    data = Dataset(trained[1])
    assert all(len(store.read(i).track_ids) == data.n_hits[i] for i in range(9))


def test_killed_at_random_moments_it_still_ends_with_the_same_bytes(trained, tmp_path):
    run_ranks(1, run, *trained, tmp_path / "whole")
    out, rng = tmp_path / "broken", random.Random(0)
    for ranks in (2, 1, 3, 2, 1):
        processes, _ = start_ranks(ranks, run, *trained, out)
        done = progress(out)
        while all(p.is_alive() for p in processes) and progress(out) == done and done < 9:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.01)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    run_ranks(2, run, *trained, out)
    assert CandidateStore(out).digest == CandidateStore(tmp_path / "whole").digest
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in (tmp_path / "whole").iterdir())


def test_a_full_disk_is_one_line_and_the_rest_can_be_done_elsewhere(trained, small_disk):
    checkpoint, data = trained
    out = small_disk(8) / "out"
    [(code, error)] = run_ranks(
        1, quietly, infer.main, ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(out)]
    )
    assert code == 1 and error.count("\n") == 1 and "space" in error and str(out) in error, error
    assert not (out / "index.h5").exists() and not list(out.glob("candidates-*"))


def test_two_at_once_are_refused_on_every_rank(trained, tmp_path):
    checkpoint, data = trained
    argv = ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "out")]
    with only_writer(tmp_path / "out"):
        [(code, error)] = run_ranks(1, quietly, infer.main, argv)
        assert code == 2 and error.count("\n") == 1 and f"{tmp_path}/out: process {os.getpid()} on " in error
        results = run_ranks(2, quietly, infer.main, argv)
    assert [code for code, _ in results] == [2, 2] and results[1][1] == ""
    assert "writes here" in results[0][1]


def progress(out: Path) -> int:
    return 9 if (out / "index.h5").exists() else len(committed(out))


def test_submission_and_refusals(trained, tmp_path, capsys):
    checkpoint, data = trained
    run(checkpoint, data, tmp_path / "c", "--submission", str(tmp_path / "s.csv"))
    lines = (tmp_path / "s.csv").read_text().splitlines()
    assert lines[0] == "event_id,hit_id,track_id" and len(lines) == 1 + Dataset(data).n_hits.sum()
    ids = np.array([line.split(",") for line in lines[1:]], dtype=np.int64)
    expected = np.concatenate([CandidateStore(tmp_path / "c").read(i).track_ids for i in range(9)])
    assert np.array_equal(ids[:, 2], expected)
    capsys.readouterr()
    for more, message in (
        (["builder.radius=0.1"], "holds candidates made with builder.radius=0.4, now 0.1"),
        (["optim.lr=1"], "override 'optim.lr=1': inference takes selection.key=value"),
        (["builder.radios=0.1"], "builder.radios"),
    ):
        args = ["--checkpoint", str(checkpoint), "--data", str(data), "--out", str(tmp_path / "c"), *more]
        assert infer.main(args) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error


def another_model(path) -> None:
    """Meta data with a checksum that fits, of a model that the state is not of."""
    meta = json.loads(path.read_text())
    meta["config"]["model"]["embedding"] = 4
    path.write_text(json.dumps(with_checksum(meta)))


def test_bad_checkpoints_are_named(trained, tmp_path, capsys):
    checkpoint, data = trained
    step = next((checkpoint / "checkpoints").glob("step-*"))
    for damage, message in (
        (lambda d: (d / "state.pt").write_bytes(b"nonsense"), "state.pt: not a whole checkpoint"),
        (
            lambda d: (d / "state.pt").write_bytes((step / "state.pt").read_bytes()[:900]),
            "state.pt: not a whole checkpoint",
        ),
        (lambda d: (d / "meta.json").unlink(), "meta.json: missing; not a whole checkpoint"),
        (
            lambda d: (d / "meta.json").write_text(
                (step / "meta.json").read_text().replace('"embedding": 3', '"embedding": 4')
            ),
            "meta.json: fails its checksum",
        ),
        (lambda d: another_model(d / "meta.json"), "holds another model than the configuration says"),
        (lambda d: (d / "state.pt").unlink(), "no checkpoint here"),
    ):
        broken = tmp_path / message[:12].replace(" ", "-").replace("/", "-")
        broken.mkdir(exist_ok=True)
        for name in ("state.pt", "meta.json"):
            (broken / name).write_bytes((step / name).read_bytes())
        damage(broken)
        args = ["--checkpoint", str(broken), "--data", str(data), "--out", str(tmp_path / "out")]
        assert infer.main(args) == 2, message
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
