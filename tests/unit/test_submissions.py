"""Candidates as files of others: their readers read them, and their scorers give what is right."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from synthetic_run import imperfect_candidates, make_event, truth_candidates, write_candidates, write_dataset

from hpctrack import evaluate, export_candidates
from hpctrack.storage.schema import ESTIMATE, Event
from hpctrack.storage.store import Dataset

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `parquet`)")
import pyarrow.parquet as pq  # noqa: E402 - after the question whether it is there

EVENTS = [make_event(90_000 + k, 40 + 7 * k) for k in range(3)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("data") / "d", EVENTS)


@pytest.fixture(scope="module")
def candidates(dataset, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("found")
    made = {"truth": truth_candidates, "found": imperfect_candidates}
    return {n: write_candidates(folder / n, dataset, [make(event) for event in EVENTS]) for n, make in made.items()}


def written(dataset: Dataset, found: Path, out: Path, name: str, *more: str) -> Path:
    where = [str(found), "--data", str(dataset.folder), "--out", str(out), "--format", name]
    assert export_candidates.main([*where, *more]) == 0
    return out


def test_colliderml_scores_the_truth_perfectly_and_ours_as_we_do(dataset, candidates, tmp_path):
    metrics = scorer()
    hits = pa.concat_tables([truth_table(event) for event in EVENTS])
    perfect = pq.read_table(written(dataset, candidates["truth"], tmp_path / "t.parquet", "colliderml"))
    assert metrics.trackml_weighted_efficiency(perfect, hits) == 1.0
    assert metrics.fake_rate(perfect, hits) == 0 and metrics.duplicate_rate(perfect, hits) == 0
    particles = pa.table({"particle_id": np.arange(1000, 1054), "px": np.full(54, 2.0), "py": np.zeros(54)})
    assert metrics.physics_eff_pt1(perfect, particles) == 1.0

    found = pq.read_table(
        written(dataset, candidates["found"], tmp_path / "f.parquet", "colliderml", "--n-params", "5")
    )
    assert set(found.column("n_params").to_pylist()) == {5} and found.column("majority_particle_id").type == pa.uint64()
    results = tmp_path / "r.json"
    asked = [str(candidates["found"]), "--data", str(dataset.folder), "--out", str(results), "--pt-min-gev", "0"]
    assert evaluate.main([*asked, "--min-hits", "1"]) == 0
    own = json.loads(results.read_text())["exclusive"]["metrics"]["trackml_score"]["value"]
    on_tracks = np.mean(np.concatenate([on(event) for event in EVENTS]))
    theirs = metrics.trackml_weighted_efficiency(found, hits)  # which divides by what is on tracks alone
    assert theirs * on_tracks == pytest.approx(own, abs=0.03) and theirs > own


def on(event: Event) -> np.ndarray:
    """Which hits of particles are on a track of the imperfect candidates."""
    return imperfect_candidates(event).track_ids[event.column("truth.particle_row") >= 0] > 0


def truth_table(event: Event) -> pa.Table:
    hit_id, particle = event.column("hits.hit_id"), event.column("truth.particle_id")
    return pa.table({"event_id": np.full(len(hit_id), event.event_id), "hit_id": hit_id, "particle_id": particle})


def scorer():
    """ColliderML's own metrics, which need pyarrow alone."""
    if importlib.util.find_spec("colliderml") is None:
        pytest.skip("colliderml is not installed: pip install --no-deps colliderml")
    place = Path(importlib.util.find_spec("colliderml").submodule_search_locations[0]) / "tasks/tracking/metrics.py"
    spec = importlib.util.spec_from_file_location("colliderml_metrics", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_latency_is_the_slowest_rank(dataset, candidates, tmp_path, capsys):
    folder = candidates["found"]
    lines = [
        {"event_id": 90_000 + k, "rank": k % 2, "n_hits": 9, "read_s": 1.0, "model_s": 2.0, "build_s": k}
        for k in range(3)
    ]
    (folder / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = pq.read_table(written(dataset, folder, tmp_path / "l.parquet", "colliderml-latency")).to_pylist()
    assert row == [{"wallclock_s": 8.0, "n_events": 3}]


def test_plain_parquet_and_trackml(dataset, candidates, tmp_path):
    frame = pd.read_parquet(written(dataset, candidates["found"], tmp_path / "p.parquet", "parquet"))
    table = pd.read_csv(written(dataset, candidates["found"], tmp_path / "s.csv.gz", "trackml"))
    assert list(table.columns) == ["event_id", "hit_id", "track_id"] and not set(ESTIMATE) & set(frame.columns)
    for event in EVENTS:
        own, hit_id = imperfect_candidates(event), event.column("hits.hit_id")
        of_event = frame[frame.event_id == event.event_id]
        assert len(of_event) == len(own)
        np.testing.assert_array_equal(np.concatenate(of_event.hit_ids.to_numpy()), hit_id[own.hit_rows])
        np.testing.assert_array_equal(of_event.score, own.scores)
        np.testing.assert_array_equal(table[table.event_id == event.event_id].track_id, own.track_ids)


def test_acts_proto_tracks(dataset, candidates, tmp_path):
    folder = written(dataset, candidates["found"], tmp_path / "acts", "acts")
    assert sorted(path.name for path in folder.iterdir()) == [f"event0000900{k:02d}-prototracks.csv" for k in range(3)]
    for event in EVENTS:
        table = pd.read_csv(folder / f"event{event.event_id:09d}-prototracks.csv")
        own = imperfect_candidates(event)
        assert list(table.columns) == ["trackId", "measurementId", "x", "y", "z"]
        np.testing.assert_array_equal(table.measurementId, own.hit_rows)
        np.testing.assert_array_equal(np.bincount(table.trackId), np.diff(own.hit_offsets))
        np.testing.assert_allclose(table.x, event.column("hits.x")[own.hit_rows], rtol=1e-7)


@pytest.mark.parametrize(
    "arguments, what",
    [
        (["--format", "acts", "--out", "."], "exists"),
        (["--format", "parquet", "--out", "nowhere/x"], "its folder does not exist"),
        (["--format", "trackml", "--out", "x.csv", "--n-params", "3"], "--n-params"),
        (["--format", "colliderml", "--out", "x", "--data", "other"], "fingerprint"),
        (["--format", "colliderml-latency", "--out", "x"], "timings.jsonl: missing"),
    ],
)
def test_what_cannot_be_is_one_line(dataset, candidates, tmp_path, capsys, monkeypatch, arguments, what):
    monkeypatch.chdir(tmp_path)
    (candidates["truth"] / "timings.jsonl").unlink(missing_ok=True)
    write_dataset(tmp_path / "other", [make_event(1, 3)])
    where = [] if "--data" in arguments else ["--data", str(dataset.folder)]
    assert export_candidates.main([str(candidates["truth"]), *where, *arguments]) == 2
    err = capsys.readouterr().err
    assert what in err and len(err.splitlines()) == 1
    assert not (tmp_path / "x").exists() and not list(tmp_path.glob(".*"))
