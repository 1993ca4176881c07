"""Events without a hit go through the whole chain: conversion, training, inference, evaluation, report."""

from __future__ import annotations

import json

from helpers import make_event_tables, make_trackml, write_event_csv
from toys import losses

from hpctrack import convert, evaluate, infer, inspect, report
from hpctrack.parallel.env import distributed
from hpctrack.storage import store
from hpctrack.testing.toys import toy_config
from hpctrack.training.loop import train


def test_the_whole_chain_with_events_without_hits(tmp_path, capsys):
    source = make_trackml(tmp_path / "csv", range(8))
    for event_id in (1, 4, 5, 7):
        write_event_csv(source, event_id, {kind: table[:0] for kind, table in make_event_tables().items()})
    data, run, found = (str(tmp_path / name) for name in ("data", "run", "candidates"))
    assert convert.main([str(source), data, "--jobs", "1", "--events-per-shard", "3"]) == 0
    assert (store.open_dataset(data).n_hits == 0).sum() == 4
    assert inspect.main([data, "--verify"]) == 0

    plan = {"events_per_step": 2, "hits_per_micro_batch": 30}
    config = toy_config(tmp_path / "run", tmp_path / "data", tmp_path / "data", plan=plan, train={"steps": 12})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    assert len(losses(tmp_path / "run")) == 12

    assert infer.main(["--checkpoint", run, "--data", data, "--out", found, "--submission", f"{found}.csv"]) == 0
    assert inspect.main([found, "--verify", "--data", data]) == 0
    assert evaluate.main([found, "--data", data, "--out", str(tmp_path / "r.json"), "--pt-min-gev", "0"]) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert results["events"] == 8 and sum(row["n_hits"] == 0 for row in results["per_event"]) == 4
    page = ["--results", str(tmp_path / "r.json"), "--out", str(tmp_path / "r.html"), "--candidates", found]
    assert report.main([*page, "--data", data, "--run", run]) == 0
    assert report.main([*page, "--data", data, "--event", "4"]) == 0
    for words in (["--method", "dbscan"], ["--method", "dbscan", "selection.pt_min_gev=0.5"]):
        assert infer.main([*words, "--data", data, "--out", f"{found}-{len(words)}"]) == 0
    assert convert.main([data, str(tmp_path / "sub"), "--tracks", "2", "--jobs", "1"]) == 0
    assert (store.open_dataset(tmp_path / "sub").n_hits > 0).all()
