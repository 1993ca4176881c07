"""A hit filter in front: its hits are written, trained on, passed on, and the same on one and two ranks."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hpctrack import evaluate, infer, train
from hpctrack.events.kept_hits import PASSED_ON
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.hits import HitStore
from hpctrack.storage.store import Dataset
from hpctrack.testing.ranks import run_ranks
from hpctrack.testing.toys import toy_dataset
from hpctrack.training import checkpoint

MLP = "{name: mlp, width: 16, layers: 2}"
SHORT = ["train.steps=6", "train.valid_every=6", "train.log_every=1", "optim.warmup_steps=2", "optim.lr=0.02"]
FILTER = [f"model.backbone={MLP}", "loss.neighbours=0", "loss.balance=true"]
INFLUENCER = [f"model.backbone={MLP}", "loss.neighbours=0", "builder.radius=4.0"]
INFLUENCER += ["train.start_from=null", "plan.events_per_step=4"]
EMBEDDING = [f"model.backbone={MLP}", "model.embedding=4", "loss.mined=10"]


@pytest.fixture(scope="module")
def folder(helix, tmp_path_factory) -> Path:
    """A dataset `data` with the hits of a filter, whose run is `filter`, and a model trained on them, `influencer`."""
    room = tmp_path_factory.mktemp("filtered")
    shutil.copytree(helix, room / "data", ignore=shutil.ignore_patterns("edges", "sizes"))
    teach("hit-filter", room, "filter", *FILTER, "data.selection.pt_min_gev=0.5")
    run_ranks(2, reconstruct, room, "data/hits/hit-filter", "filter")
    for n in (1, 2):
        values = [*INFLUENCER, "data.hits.stored=hit-filter"]
        run_ranks(n, teach, "influencer-full", room, f"influencer-{n}", *values)
    return room


def teach(recipe: str, room: Path, run: str, *values: str) -> None:
    words = [f"run={room / run}", f"data.train={room / 'data'}", f"data.valid={room / 'data'}"]
    assert train.main([recipe, *words, *SHORT, "data.augment.sector_rad=null", "data.augment.outside=0", *values]) == 0


def reconstruct(room: Path, out: str, *runs: str, values: tuple[str, ...] = ()) -> None:
    checkpoints = [word for run in runs for word in ("--checkpoint", str(room / run))]
    assert infer.main([*checkpoints, "--data", str(room / "data"), "--out", str(room / out), *values]) == 0


def line(capsys, verb, *words: object) -> str:
    """The one line with which a verb refuses its input."""
    capsys.readouterr()
    assert verb.main([str(word) for word in words]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def same(a: CandidateStore, b: CandidateStore) -> bool:
    columns = ("hit_offsets", "hit_rows", "scores", "track_ids")
    pairs = [(a.read(i), b.read(i)) for i in range(4)]
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for one, other in pairs for name in columns)


def test_the_filter_keeps_what_it_was_tuned_to_on_any_number_of_ranks(folder, tmp_path):
    run_ranks(1, reconstruct, folder, tmp_path / "alone", "filter")
    stored, data = HitStore(folder / "data/hits/hit-filter"), Dataset(folder / "data")
    assert HitStore(tmp_path / "alone").digest == stored.digest
    assert (stored.n_kept > 0).all() and (stored.n_kept < data.n_hits).any()
    words = [stored.folder, "--data", data.folder, "--out", tmp_path / "hits.json", "--pt-min-gev", 0.5]
    assert not evaluate.main([str(word) for word in words])
    results = json.loads((tmp_path / "hits.json").read_text())
    cut = checkpoint.read_meta(checkpoint.find(folder / "filter"))["tuned"]["cut"]
    first, *higher = results["cuts"].values()
    assert results["cut"] == cut == stored.attributes["builder"]["cut"] and higher
    assert first["hit_efficiency"]["denominator"] > 200 and 0.995 <= first["hit_efficiency"]["value"] < 1
    assert first["hits_kept"]["numerator"] == stored.n_kept.sum() and first["hits_kept"]["denominator"] == sum(
        data.n_hits
    )
    timings = [json.loads(text) for text in (stored.folder / "timings.jsonl").read_text().splitlines()]
    assert [timing["n_kept"] for timing in timings] == stored.n_kept.tolist()
    assert [timing["n_hits"] for timing in timings] == data.n_hits.tolist()


def test_a_model_trained_on_kept_hits_sees_these_alone(folder):
    stored = HitStore(folder / "data/hits/hit-filter")
    seen = []
    for n in (1, 2):
        log = (folder / f"influencer-{n}/metrics.jsonl").read_text().splitlines()
        steps = [row for row in map(json.loads, log) if row["kind"] == "train"]
        assert [row["hits"] for row in steps] == [row["hits_planned"] for row in steps]
        seen.append([(row["hits"], pytest.approx(row["loss"], rel=1e-4)) for row in steps])
    assert seen[0] == seen[1] and all(0 < hits < stored.n_kept.sum() for hits, _ in seen[0])
    kept = [json.loads(path.read_text())["about"] for path in (folder / "data/sizes").glob("*.json")]
    assert sorted("kept" in about for about in kept) == [False, True]


def test_a_chain_finds_what_its_stages_find_one_by_one(folder, tmp_path):
    run_ranks(1, reconstruct, folder, tmp_path / "alone", "influencer-1")
    for n in (1, 2):
        run_ranks(n, reconstruct, folder, tmp_path / f"chain-{n}", "filter", "influencer-1")
    alone, one, two = (CandidateStore(tmp_path / name) for name in ("alone", "chain-1", "chain-2"))
    stored = HitStore(folder / "data/hits/hit-filter")
    assert one.digest == two.digest and same(alone, one) and sum(len(one.read(i)) for i in range(4))
    assert all(set(one.read(i).hit_rows) <= set(stored.read(i).row.tolist()) for i in range(4))
    assert alone.attributes["hits_digest"] == stored.digest and one.attributes["hits_digest"] == PASSED_ON
    assert one.attributes["stages"][0]["builder"]["cut"] > 0 and "hits" not in one.attributes["stages"][0]
    [timing, *_] = [json.loads(text) for text in (tmp_path / "chain-1/timings.jsonl").read_text().splitlines()]
    assert len(timing["stage_s"]) == 2 and timing["n_hits"] == Dataset(folder / "data").n_hits[0]


def test_edges_among_kept_hits_are_judged_among_these_and_two_filters_go_together(folder, tmp_path, capsys):
    stored, data = HitStore(folder / "data/hits/hit-filter"), folder / "data"
    teach("pipeline/embedding", folder, "embedding", *EMBEDDING)
    reconstruct(folder, tmp_path / "edges", "embedding", values=("hits.stored=hit-filter",))
    words = [tmp_path / "edges", "--data", data, "--out", tmp_path / "edges.json", "--pt-min-gev", 0.5]
    assert not evaluate.main([str(word) for word in words])
    judged = json.loads((tmp_path / "edges.json").read_text())
    assert judged["hits"] == stored.n_kept.sum() and judged["cuts"]["0.0"]["efficiency"]["value"] > 0
    reconstruct(folder, tmp_path / "passed", "filter", "embedding")
    said = line(capsys, evaluate, tmp_path / "passed", *words[1:])
    assert "made among the hits that a filter passed on, which are not stored; let the filter write them" in said

    middle = f"builder.cut={np.median(stored.read(0).score)}"
    reconstruct(folder, tmp_path / "twice", "filter", "filter", values=(middle,))
    twice = HitStore(tmp_path / "twice")
    assert len(twice.read(0))
    assert all(set(twice.read(i).row.tolist()) < set(stored.read(i).row.tolist()) for i in range(4))
    call = ["--data", data, "--out", tmp_path / "none"]
    said = line(capsys, infer, "--checkpoint", folder / "influencer-1", "--checkpoint", folder / "filter", *call)
    assert "its builder makes candidates, but the next stage needs hits or edges" in said
    said = line(capsys, infer, "--checkpoint", folder / "filter", *call, "--submission", tmp_path / "s.csv")
    assert "--submission: is written from candidates, but" in said and said.endswith("makes hits\n")


def test_hits_that_are_not_there_or_others_are_one_line(folder, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(folder / "data", data)
    shutil.copytree(folder / "influencer-1", tmp_path / "run")
    stored, out = data / "hits/hit-filter", tmp_path / "out"
    alone = ["--checkpoint", tmp_path / "run", "--data", data]
    resumed = load_words(tmp_path / "run", data, "data.hits.stored=hit-filter")
    assert not infer.main([str(word) for word in (*alone, "--out", out)])

    middle = f"builder.cut={np.median(HitStore(stored).read(0).score)}"
    reconstruct(tmp_path, "data/hits/other", str(folder / "filter"), values=(middle,))
    assert "data.hits.stored='hit-filter', now 'other'" in line(capsys, train, *resumed, "data.hits.stored=other")
    shutil.move(stored, tmp_path / "before")
    shutil.move(data / "hits/other", stored)  # as if the filter had been run anew with another cut
    assert "was trained on other hits than those that data.hits names" in line(capsys, train, *resumed)
    assert "out: holds candidates made with hits_digest=" in line(capsys, infer, *alone, "--out", out)
    shutil.rmtree(stored)
    said = line(capsys, infer, *alone, "--out", tmp_path / "new")
    assert (
        f"{stored}: not a hits folder, index.h5 is missing; a hit filter writes it (hpctrack infer --checkpoint" in said
    )
    assert said.endswith("), or give it as the first --checkpoint\n") and not (tmp_path / "new").exists()
    assert "not a hits folder, index.h5 is missing; a hit filter writes it" in line(capsys, train, *resumed)
    assert not infer.main([str(word) for word in (*alone, "--out", tmp_path / "every", "hits=null")])

    shutil.move(tmp_path / "before", stored)
    store = HitStore(stored)
    row = store.read(0).row.tobytes()
    store.close()
    file = stored / "hits-00000.h5"
    file.write_bytes(file.read_bytes().replace(row, row[:4] + row[8:12] + row[8:], 1))
    said = line(capsys, infer, *alone, "--out", tmp_path / "new")
    assert f"{file}: event 0: row must rise from 0 or more, each hit once; run the inference again" in said
    small = toy_dataset(tmp_path / "small", sizes=(3, 2))
    shutil.copytree(stored, small / "hits/hit-filter")
    said = line(capsys, infer, "--checkpoint", tmp_path / "run", "--data", small, "--out", tmp_path / "new")
    assert "made for a dataset with fingerprint" in said and said.endswith("run the stage before on it\n")


def load_words(run: Path, data: Path, *values: str) -> list[str]:
    words = [f"run={run}", f"data.train={data}", f"data.valid={data}", *SHORT]
    return ["influencer-full", *words, "data.augment.sector_rad=null", "data.augment.outside=0", *INFLUENCER, *values]
