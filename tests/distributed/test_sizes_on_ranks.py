"""Caps, balance and start-up go by exact sizes and one rank's look, on real ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from unit import synthetic_run as make

from hpctrack import infer
from hpctrack.config import RunConfig
from hpctrack.parallel.env import distributed
from hpctrack.storage import shard_writer
from hpctrack.storage.schema import Event
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.build import build
from hpctrack.training.loop import train

HARD = {"pt_min_gev": 1.5, "noise": False, "other_hits": False}


def run(config: RunConfig) -> None:
    with distributed(config.parallel, 1) as env:
        train(config, env)


def batches_of(config: RunConfig) -> list[list[list[int]]]:
    """Hits of each event of each micro-batch of this rank, step by step."""
    with distributed(config.parallel, 1) as env:
        trainer, out = build(config, env), []
        trainer.resume()
        batches = trainer.batches()
        while trainer.step < config.train.steps:
            out.append([batch.ptr.diff().tolist() for batch in next(batches)[0]])
            trainer.step += 1
        trainer.end()
    return out


@pytest.mark.parametrize(
    ("drawn", "cap", "workers"),
    [({"tracks": 10}, 260, 0), ({"tracks": 4, "noise": True, "other_hits": True}, 200, 1), ({}, 260, 0)],
)
def test_no_micro_batch_is_above_the_cap_where_events_allow(tmp_path, drawn, cap, workers):
    """Full events, of which few tracks are drawn anew in each epoch; epochs are short, readers far ahead."""
    data = make.write_dataset(tmp_path / "data", [make.make_event(k, 20 + 15 * (k % 4)) for k in range(8)])
    config = toy_config(
        tmp_path / "run",
        data.folder,
        plan={"events_per_step": 4, "hits_per_micro_batch": cap},
        reading={"selection": HARD | drawn, "workers": workers},
        train={"steps": 12},
    )
    steps = [sum(parts, []) for parts in zip(*run_ranks(2, batches_of, config), strict=True)]
    assert [sum(len(batch) for batch in step) for step in steps] == [4] * 12
    packed = [batch for step in steps for batch in step]
    assert all(sum(batch) <= cap or len(batch) == 1 for batch in packed)
    assert max(map(len, packed)) > 1 and max(map(sum, packed)) > 0.6 * cap


def test_the_log_says_what_was_planned_and_what_was_seen(tmp_path, capfd):
    data = make.write_dataset(tmp_path / "data", [make.make_event(k, 25) for k in range(6)])
    config = toy_config(
        tmp_path / "run",
        data.folder,
        plan={"events_per_step": 4, "hits_per_micro_batch": 200},
        reading={"selection": HARD | {"tracks": 5}, "augment": {"sector_rad": 4.0}},
    )
    run_ranks(2, run, config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["hits_planned"] for line in steps] == [line["hits"] for line in steps]
    assert len({line["hits"] for line in steps}) > 3
    assert " hits an event after selection, " in capfd.readouterr().out


def lopsided(event_id: int) -> Event:
    """As many hits as others, but of every other event most are in another volume."""
    event = make.make_event(event_id, 30)
    if event_id % 2:
        event.column("hits.volume_id")[event.column("hits.r") > 40] = 13
    return event


def test_ranks_share_the_hits_that_are_left(tmp_path):
    data = make.write_dataset(tmp_path / "data", [lopsided(k) for k in range(16)])
    selection = {"volumes": [8], "min_hits": 1}
    config = toy_config(
        tmp_path / "run", data.folder, plan={"events_per_step": 8}, reading={"selection": selection}, train={"steps": 8}
    )
    ranks = [[sum(map(sum, step)) for step in steps] for steps in run_ranks(2, batches_of, config)]
    loads = np.array(ranks)
    assert (loads.mean(axis=0) / loads.max(axis=0)).min() > 0.8, ranks


def test_ranks_of_inference_share_the_hits_that_are_left(tmp_path):
    pytest.importorskip("sklearn")
    data, out = make.write_dataset(tmp_path / "data", [lopsided(k) for k in range(12)]), tmp_path / "out"
    words = ["--method", "dbscan", "--data", str(data.folder), "--out", str(out), "selection.volumes=[8]"]
    assert run_ranks(2, infer.main, words) == [0, 0]
    rows = [json.loads(line) for line in (out / "timings.jsonl").read_text().splitlines()]
    loads = np.bincount([row["rank"] for row in rows], [row["n_hits"] for row in rows])
    assert len(rows) == 12 and loads.mean() / loads.max() > 0.9, loads


def test_inference_that_would_see_nothing_is_refused(tmp_path, capfd):
    pytest.importorskip("sklearn")
    data, out = make.write_dataset(tmp_path / "data", [make.make_event(k, 9) for k in range(3)]), tmp_path / "out"
    words = ["--method", "dbscan", "--data", str(data.folder), "--out", str(out)]
    nothing = ["selection.pt_min_gev=1000", "selection.noise=false", "selection.other_hits=false"]
    assert infer.main([*words, *nothing]) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "key 'selection.pt_min_gev': " in error and "; the largest is " in error
    assert infer.main([*words, *nothing[:1]]) == 0


def test_events_without_a_target_are_named_before_the_first_step(tmp_path, capfd):
    data = toy_dataset(tmp_path / "data", sizes=(4, 0, 6, 0, 5))
    run(toy_config(tmp_path / "run", data))
    said = capfd.readouterr().out
    assert "warning: 2 of 5 events have no target in epoch 0 (section data.selection), the first is event 1" in said
    assert said.index("warning: ") < said.index("step 1/")
    run(toy_config(tmp_path / "narrow", data, reading={"augment": {"sector_rad": 0.01}}, train={"steps": 2}))
    assert "warning: no event has a target in epoch 0" in capfd.readouterr().out


def looked_at(config: RunConfig) -> int:
    """How often this rank looks at a shard's name before the first step."""
    seen, stat = [], os.stat

    def counting(path, *args, **kwargs):
        if isinstance(path, (str, os.PathLike)) and Path(path).name.startswith("events-"):
            seen.append(path)
        return stat(path, *args, **kwargs)

    os.stat = counting
    with distributed(config.parallel, 1) as env:
        build(config, env)
    return len(seen)


def test_one_rank_looks_for_the_shards_and_tells_the_others(tmp_path):
    sizes = (2, 3) * 6
    data, valid = (toy_dataset(tmp_path / name, sizes, per_shard=1) for name in ("data", "valid"))
    config = toy_config(tmp_path / "run", data, valid, reading={"graph": {"name": "truth"}})
    first = run_ranks(3, looked_at, config)  # counts sizes, too: each rank those of its share of the events
    assert max(first[1:]) <= 2 * len(sizes) / 3
    assert run_ranks(3, looked_at, config) == [2 * len(sizes), 0, 0]
    assert run_ranks(1, looked_at, config) == [2 * len(sizes)]
    (valid / shard_writer.shard_name(7)).unlink()
    with pytest.raises(AssertionError, match=r"events-00007.h5: missing, but index.h5 names it"):
        run_ranks(2, looked_at, config)
