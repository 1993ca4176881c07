"""A real TrackML event through the whole chain; needs HPCTRACK_TRACKML_DIR."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from helpers import commit

from hpctrack import convert, evaluate, infer, inspect, report
from hpctrack.evaluation.matching import exclusive_lists
from hpctrack.evaluation.metrics import trackml_score
from hpctrack.formats.trackml import write_submission
from hpctrack.parallel.env import distributed
from hpctrack.storage import journals
from hpctrack.storage.candidates import CANDIDATES, CandidateStore
from hpctrack.storage.schema import Candidates
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_config
from hpctrack.training.loop import train

COUNTS = {"n_hits": 5527, "n_noise": 829, "n_particles": 548}


@pytest.fixture(scope="module")
def dataset(request, tmp_path_factory):
    source = request.getfixturevalue("trackml_dir")
    out = tmp_path_factory.mktemp("real") / "data"
    assert convert.main([str(source), str(out)]) == 0
    return out


def test_counts(dataset):
    data = Dataset(dataset)
    assert {name: int(getattr(data, name).sum()) for name in COUNTS} == COUNTS
    assert data.read(0).column("cells.cell_count").sum() == 18564


def test_a_part_of_it_with_the_particles_of_the_whole(trackml_dir, dataset, tmp_path, capsys):
    """The barrel alone: nhits stays that of the whole event, hits are counted, weights are as given."""
    tables = {
        kind: pd.read_csv(trackml_dir / f"event000000001-{kind}.csv.gz") for kind in ("hits", "truth", "particles")
    }
    kept = tables["hits"]["hit_id"][tables["hits"]["volume_id"].isin([8, 13, 17])]
    for kind, table in tables.items():
        part = table if kind == "particles" else table[table["hit_id"].isin(kept)]
        part.to_csv(tmp_path / f"event000000001-{kind}.csv", index=False)
    assert convert.main([str(tmp_path), str(tmp_path / "out")]) == 0
    whole, event = Dataset(dataset).read(0), Dataset(tmp_path / "out").read(0)
    row, nhits = event.column("truth.particle_row"), event.column("particles.nhits")
    assert np.array_equal(nhits, whole.column("particles.nhits"))
    cut = np.count_nonzero(np.bincount(row[row >= 0], minlength=len(nhits)) < nhits)
    assert cut and f"cut down: {cut} of {len(nhits)} particles" in capsys.readouterr().out
    weight = tables["truth"]["weight"][tables["truth"]["hit_id"].isin(kept)]
    assert np.array_equal(event.column("truth.weight"), weight.to_numpy(np.float32))
    assert inspect.main([str(tmp_path / "out"), "--verify"]) == 0
    assert f"{cut} of {len(nhits)} particles have fewer hits" in capsys.readouterr().out


def test_train_infer_evaluate_report(dataset, tmp_path):
    config = toy_config(tmp_path / "run", dataset, train={"steps": 3, "precision": "fp32", "valid_every": 3})
    with distributed(config.parallel, 1) as env:
        train(config, env)
    paths = {name: str(tmp_path / name) for name in ("candidates", "submission.csv", "results.json", "report.html")}
    assert not infer.main(
        ["--checkpoint", str(tmp_path / "run"), "--data", str(dataset), "--out", paths["candidates"],
         "--submission", paths["submission.csv"]]
    )  # fmt: skip
    assert not evaluate.main([paths["candidates"], "--data", str(dataset), "--out", paths["results.json"]])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["candidates"]["metrics"]["efficiency"]["denominator"] > 0
    submission = pd.read_csv(paths["submission.csv"])
    assert list(submission) == ["event_id", "hit_id", "track_id"]
    assert np.array_equal(submission.hit_id, Dataset(dataset).read(0).column("hits.hit_id"))
    assert not report.main(
        ["--run", str(tmp_path / "run"), "--results", paths["results.json"], "--candidates", paths["candidates"],
         "--data", str(dataset), "--out", paths["report.html"]]
    )  # fmt: skip


@pytest.mark.parametrize(("label", "score"), [("truth", 1.0), ("one", 0.0)])
def test_score_of_an_exported_submission(dataset, tmp_path, label, score):
    """From truth labels 1; with one label for all hits no particle owns most of the track, so 0."""
    event = Dataset(dataset).read(0)
    row = event.column("truth.particle_row")
    track_ids = (row + 1 if label == "truth" else np.ones_like(row)).astype(np.int32)
    offsets, rows = exclusive_lists(track_ids)
    found = Candidates(event.event_id, offsets, rows, np.ones(len(offsets) - 1, dtype=np.float32), track_ids)
    journal = journals.Journal(tmp_path, "labels")
    commit(journal, found)
    journal.close()
    digest = CANDIDATES.write_shard(tmp_path, "c.h5", [event.event_id], journals.committed(tmp_path))
    CANDIDATES.write_index(tmp_path, [("c.h5", [event.event_id], digest)], {})
    stored = CandidateStore(tmp_path).read(0)
    write_submission(tmp_path / "s.csv", [(event.event_id, event.column("hits.hit_id"), stored.track_ids)])
    exported = pd.read_csv(tmp_path / "s.csv").track_id.to_numpy()
    n_particles = COUNTS["n_particles"]
    assert trackml_score(exported, row, event.column("truth.weight"), n_particles) == score
