"""Methods without a checkpoint: ACTS' Kalman filter on simulated events, clustering of directions, refusals."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_run import as_candidates, write_candidates

from hpctrack import convert, evaluate, fit, infer, inspect, simulate
from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.evaluation.matching import check_candidates
from hpctrack.registry import Lazy, Registry
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset
from hpctrack.tracking import methods
from hpctrack.tracking.methods import METHODS, ByMethod, MethodConfig

HARD = ("selection.pt_min_gev=1", "selection.noise=false", "selection.other_hits=false")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    for package in ("acts", "pythia8mc", "sklearn"):
        pytest.importorskip(package, reason=f"{package} is not installed (extras `sim`, `reference`)")
    folder = tmp_path_factory.mktemp("mu")
    simulated = ["--events", "6", "--mu", "8", "--seed", "5", "--jobs", "1"]
    assert simulate.main([str(folder / "csv"), *simulated]) == 0
    assert convert.main([str(folder / "csv"), str(folder / "data"), "--jobs", "1"]) == 0
    return folder / "data"


def run(dataset: Path, out: Path, method: str, *overrides: str) -> CandidateStore:
    assert infer.main(["--method", method, "--data", str(dataset), "--out", str(out), *overrides]) == 0
    return CandidateStore(out)


def figures(dataset: Path, out: Path, *cuts: str) -> dict[str, float]:
    assert evaluate.main([str(out), "--data", str(dataset), "--out", str(out / "r.json"), "--jobs", "1", *cuts]) == 0
    metrics = json.loads((out / "r.json").read_text())["candidates"]["metrics"]
    return {name: number["value"] for name, number in metrics.items()}


def test_kalman_filter_finds_the_tracks(dataset, tmp_path):
    store = run(dataset, tmp_path / "ckf", "ckf")
    found = figures(dataset, tmp_path / "ckf", "--eta-max", "2.5")
    assert found["efficiency"] > 0.9 and found["double_majority_efficiency"] > 0.9
    assert found["fake_rate"] < 0.01 and found["duplicate_rate"] < 0.01
    assert store.attributes["method"]["min_measurements"] == 7 and store.attributes["versions"]["pyacts"]
    lines = [json.loads(line) for line in (tmp_path / "ckf" / "timings.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and all(0 < line["ckf_s"] < line["model_s"] for line in lines)

    everything = run(dataset, tmp_path / "all", "ckf", "method.resolve=false")
    assert sum(len(everything.read(i)) for i in range(6)) > sum(len(store.read(i)) for i in range(6))
    assert run(dataset, tmp_path / "again", "ckf").digest == store.digest


def test_it_sees_the_selected_hits_only(dataset, tmp_path):
    store, data = run(dataset, tmp_path / "hard", "ckf", *HARD), Dataset(dataset)
    for i in range(len(store)):
        event = data.read(i)
        momentum = np.hypot(event.column("particles.px"), event.column("particles.py"))
        owner = event.column("truth.particle_row")[store.read(i).hit_rows]
        assert (owner >= 0).all() and (momentum[owner] >= 1).all()
    assert figures(dataset, tmp_path / "hard", "--eta-max", "2.5")["efficiency"] > 0.9


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_hardly_any_hits(dataset, n):
    event = some_hits(dataset, n)
    for name in METHODS.own:
        found, seconds = method(name, dataset).reconstruct(event, np.arange(n))
        check_candidates(found, n)
        assert len(found) == 0 and min(seconds.values()) >= 0


@pytest.mark.parametrize("column, value", [("x", 5000.0), ("x", np.nan), ("layer_id", 3), ("module_id", 60000)])
def test_hits_off_the_detector_are_refused(dataset, column, value):
    event = some_hits(dataset, 50)
    event.tables["hits"][column][7] = value
    with pytest.raises(InputError, match=rf"event {event.event_id}: hit row 7 at .* TrackML's detector"):
        method("ckf", dataset).reconstruct(event, np.arange(50))


def test_no_method_reads_the_truth(dataset):
    assert all(column.startswith("hits.") for name in METHODS.own for column in method(name, dataset).COLUMNS)


def test_clusters_of_straight_tracks_are_found():
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    cls = METHODS["dbscan"]
    track = np.repeat(np.arange(40), 8)
    rng = np.random.default_rng(1)
    phi, eta = rng.uniform(-3, 3, 40)[track], (np.arange(40) / 10 - 2)[track]
    event = Event(4, {"hits": {"phi": phi + rng.normal(0, 1e-4, 320), "eta": eta}})
    found, _ = cls(cls.Options(eps=0.01)).reconstruct(event, np.arange(320))
    check_candidates(found, 320)
    assert len(found) == 40 and (found.scores == 8).all()
    for a, b in zip(found.hit_offsets[:-1], found.hit_offsets[1:], strict=True):
        assert len(set(track[found.hit_rows[a:b]])) == 1


def test_refusals(dataset, tmp_path, capsys, monkeypatch):
    def refused(*arguments: str) -> str:
        assert infer.main(["--data", str(dataset), "--out", str(tmp_path / "no"), *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert "\n" not in error
        return error

    assert "unknown 'kalman'; one of: ckf, dbscan" in refused("--method", "kalman")
    assert "'method.pt_min'; did you mean 'method.pt_min_gev'?" in refused("--method", "ckf", "method.pt_min=2")
    assert "key 'method.branches': " in refused("--method", "ckf", "method.branches=0")
    assert "takes selection.key=value and method.key=value" in refused("--method", "ckf", "builder.radius=1")
    missing = table(Lazy("hpctrack.tracking.ckf:Ckf", "no-such-acts", "reference"))
    broken = table(Lazy("hpctrack.tracking.no_such_file:Ckf", "numpy", "reference"))
    monkeypatch.setattr(methods, "METHODS", missing)
    assert "needs no-such-acts, which is not installed: pip install 'hpctrack[reference]'" in refused("--method", "ckf")
    monkeypatch.setattr(methods, "METHODS", broken)
    assert "method 'ckf' needs numpy, which does not load" in refused("--method", "ckf")
    assert not (tmp_path / "no").exists()


def table(ckf: Lazy) -> Registry:
    return Registry("hpctrack.methods", "method", {"ckf": ckf})


def some_hits(dataset: Path, n: int) -> Event:
    event = Dataset(dataset).read(0)
    return Event(event.event_id, {"hits": {name: values[:n].copy() for name, values in event.tables["hits"].items()}})


def method(name: str, dataset: Path):
    return ByMethod(MethodConfig(method=Named(name=name)), Dataset(dataset), 0)._method


# ------------------------------------------------------------------------------------------------ Kalman fit


@pytest.fixture(scope="module")
def mixed(dataset, tmp_path_factory) -> tuple[Path, int]:
    """Candidates: tracks of 7 hits or more and pT > 1 GeV, and as many of halves of two; how many tracks there are."""
    data, found, number = Dataset(dataset), [], 0
    for i in range(len(data)):
        event = data.read(i)
        owner, hits = event.column("truth.particle_row"), event.column("particles.nhits")
        pt = np.hypot(event.column("particles.px"), event.column("particles.py"))
        tracks = [np.flatnonzero(owner == p) for p in np.flatnonzero((pt > 1) & (hits >= 7))]
        number += len(tracks)
        halves = [np.union1d(a[: len(a) // 2], b[len(b) // 2 :]) for a, b in zip(tracks, tracks[1:], strict=False)]
        found.append(as_candidates(event.event_id, [*tracks, *halves], np.zeros(event.n_hits, np.int32)))
    return write_candidates(tmp_path_factory.mktemp("mixed") / "c", data, found), number


def test_a_fit_is_of_the_candidate_whose_measurements_it_has():
    """Two candidates of the same hits but one; the first, which has them all, could not be fitted."""
    pytest.importorskip("acts", reason="extra `reference`")
    from hpctrack.tracking.kalman_fit import Copies, collected

    rows, modules = np.array([4, 4, 5, 5, 6, 6, 7]), np.array([10, 10, 11, 11, 12, 12, 12])
    copies = Copies(np.array([1, 3, 1, 3, 1, 3, 1]), rows, modules)
    columns = {name: np.arange(8, 0, -1).astype(np.float32) for name in "xyz"}
    assert copies.outwards(Event(0, {"hits": columns})) == [[6, 4, 2, 0], [5, 3, 1]]
    track = ([0.0, 0.0, 0.0, 1.0, 1.0], np.eye(5).tolist(), 2.0, 1, [(3, False), (1, True)])
    fits = collected([track], copies)
    assert fits.candidate.tolist() == [3] and fits.missed.tolist() == [1] and fits.measurements.tolist() == [1]
    assert fits.outliers[0].tolist() == [4]
    given = as_candidates(0, [np.arange(3), np.arange(4, 8), np.arange(3), np.arange(4, 7)], np.zeros(8, np.int32))
    found = fit.written(Event(0, {"hits": columns}), given, fits, np.array([1, 3]), as_it_was=True)
    assert found.track_ids.tolist() == [0, 0, 0, 0, 1, 1, 1, 0]  # though it is shorter, and a hit of it was set aside


def test_true_tracks_fit_and_pulls_are_one(dataset, mixed, tmp_path, capsys):
    folder, number = mixed
    command = [str(folder), "--data", str(dataset), "--out", str(tmp_path / "all")]
    assert fit.main([*command, "--tracks", str(tmp_path / "t.parquet")] if has("pyarrow") else command) == 0
    assert "of the fit:" in capsys.readouterr().out
    figures(dataset, tmp_path / "all")
    found = json.loads((tmp_path / "all/r.json").read_text())["resolutions"]
    assert 0.95 * number <= found["matched"] <= number > 100  # a half may be better fitted than its track
    for name, parameter in found["parameters"].items():
        assert abs(parameter["pull_mean"]) < 0.35 and 0.7 < parameter["pull_width"] < 1.4, name
    lines = [json.loads(line) for line in (tmp_path / "all/fits.jsonl").read_text().splitlines()]
    store = CandidateStore(tmp_path / "all")
    assert [len(store.read(i)) for i in range(6)] == [len(line["chi2"]) for line in lines]
    if has("pyarrow"):
        import pyarrow.parquet as pq

        rows = pq.read_table(tmp_path / "t.parquet").to_pylist()
        own = store.read(0)
        np.testing.assert_allclose(rows[0]["d0"], own.parameters[:, 3], rtol=1e-6)
        np.testing.assert_allclose(rows[0]["qop"], own.parameters[:, 0] * np.sin(own.parameters[:, 2]), rtol=1e-5)
        assert np.concatenate(rows[0]["hit_ids"]).tolist() == own.hit_rows.tolist()


def test_cuts_on_the_fit_clean_candidates(dataset, mixed, tmp_path):
    folder, number = mixed
    command = [str(folder), "--data", str(dataset)]
    share = ["--keep", "--outlier-share-max", "0.5", "--measurements-min", "3"]
    assert fit.main([*command, "--out", str(tmp_path / "kept"), *share]) == 0
    assert fit.main([*command, "--out", str(tmp_path / "two"), *share, "--jobs", "2"]) == 0
    kept = CandidateStore(tmp_path / "kept")
    assert (
        kept.digest == CandidateStore(tmp_path / "two").digest
        and kept.attributes["fit"]["keep"]["outlier_share"] == 0.5
    )
    numbers = [line["candidate"] for line in map(json.loads, (tmp_path / "kept/fits.jsonl").read_text().splitlines())]
    given = CandidateStore(folder)
    true = [(len(given.read(i)) + 1) // 2 for i in range(6)]
    tracks = sum(sum(c < n for c in own) for own, n in zip(numbers, true, strict=True))
    fakes = sum(map(len, numbers)) - tracks
    assert tracks > 0.95 * number and fakes < 0.3 * number


def test_short_candidates_that_are_no_track_are_left_out_and_all_others_stay_as_they_were(dataset, mixed, tmp_path):
    """Three hits of three tracks go; tracks stay whole, and so do those without a fit, whose parameters are NaN."""
    folder, _ = mixed
    data, store, found, right = Dataset(dataset), CandidateStore(folder), [], []
    for i in range(len(data)):
        event, given = data.read(i), store.read(i)
        tracks = np.split(given.hit_rows, given.hit_offsets[1:-1])[: (len(given) + 1) // 2]
        by_layer = [rows[np.argsort(np.abs(event.column("hits.r")[rows]))] for rows in tracks]
        threes = zip(by_layer, by_layer[1:], by_layer[2:], strict=False)
        fakes = [np.unique([a[0], b[1], c[2]]) for a, b, c in threes]
        beside = [np.flatnonzero(event.column("truth.particle_row") < 0)[:3]] if i == 0 else []
        found.append(as_candidates(event.event_id, [*tracks, *fakes, *beside], np.zeros(event.n_hits, np.int32)))
        right.append((tracks, len(fakes)))
    write_candidates(tmp_path / "c", data, found)
    assert fit.main([str(tmp_path / "c"), "--data", str(dataset), "--out", str(tmp_path / "f"), "--keep"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "f/fits.jsonl").read_text().splitlines()]
    kept = CandidateStore(tmp_path / "f")
    for i, (line, (tracks, fakes)) in enumerate(zip(lines, right, strict=True)):
        written, numbers = kept.read(i), np.array(line["candidate"])
        assert (numbers < len(tracks)).sum() >= 0.98 * len(tracks)
        no_track = (numbers >= len(tracks)) & (numbers < len(tracks) + fakes)
        assert (no_track & [chi2 is not None for chi2 in line["chi2_of_all_hits"]]).sum() < 0.1 * fakes
        for c, rows in zip(numbers.tolist(), np.split(written.hit_rows, written.hit_offsets[1:-1]), strict=True):
            assert np.array_equal(rows, found[i].hit_rows[slice(*found[i].hit_offsets[c : c + 2])])
        unknown = np.isnan(written.parameters)
        assert [chi2 is None for chi2 in line["chi2"]] == unknown.all(axis=1).tolist() == unknown.any(axis=1).tolist()
    assert inspect.main([str(tmp_path / "f"), "--verify"]) == 0
    figures(dataset, tmp_path / "f")


@pytest.mark.parametrize("n", [0, 2])
def test_events_without_candidates_of_three_hits(dataset, tmp_path, n):
    data = Dataset(dataset)
    found = [
        as_candidates(int(e), [np.arange(2)] * n, np.zeros(k, np.int32))
        for e, k in zip(data.event_ids, data.n_hits, strict=True)
    ]
    write_candidates(tmp_path / "c", data, found)
    assert fit.main([str(tmp_path / "c"), "--data", str(dataset), "--out", str(tmp_path / "f")]) == 0
    assert all(len(CandidateStore(tmp_path / "f").read(i)) == 0 for i in range(6))
    assert fit.main([str(tmp_path / "c"), "--data", str(dataset), "--out", str(tmp_path / "f")]) == 2  # is there


def has(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None
