"""`hpctrack evaluate` on synthetic candidates: sums, bins, jobs, and bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import synthetic_run as make

from hpctrack import evaluate
from hpctrack.evaluation import kinds
from hpctrack.evaluation.matching import exclusive_lists
from hpctrack.evaluation.tally import Cuts, tally_event, track_edges


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("evaluate")
    events = [make.make_event(k, 20 + 5 * k) for k in range(6)]
    dataset = make.write_dataset(path / "data", events)
    make.write_candidates(path / "truth", dataset, [make.truth_candidates(e) for e in events])
    make.write_candidates(path / "found", dataset, [make.imperfect_candidates(e) for e in events])
    return path


def run(folder: Path, name: str, *options: str) -> dict:
    out = folder / f"{name}-results.json"
    assert evaluate.main([str(folder / name), "--data", str(folder / "data"), "--out", str(out), *options]) == 0
    return json.loads(out.read_text())


def test_truth_is_perfect(folder: Path, capsys):
    results = run(folder, "truth")
    for reading in ("candidates", "exclusive"):
        numbers = results[reading]["metrics"]
        for name, number in numbers.items():
            assert number["value"] == (0 if name in ("fake_rate", "duplicate_rate") else 1), name
        assert numbers["efficiency"]["denominator"] == results["target_particles"] > 50
        assert numbers["efficiency"]["events"] == 6
    assert results["exclusive"]["metrics"]["trackml_score"]["value"] == 1.0
    printed = capsys.readouterr().out
    assert "Efficiency" in printed and f"/ {results['target_particles']:,}" in printed


def test_bins_and_events_add_up_to_the_total(folder: Path):
    results = run(folder, "found")
    for reading in ("candidates", "exclusive"):
        part = results[reading]
        for metric, variables in part["binned"].items():
            total = part["metrics"][metric]
            assert total["denominator"] > 0
            for rows in variables.values():
                assert sum(row["numerator"] for row in rows) == total["numerator"]
                assert sum(row["denominator"] for row in rows) == total["denominator"]
        for name in part["metrics"].keys() - {"trackml_score"}:
            counts = np.array([event[reading][name] for event in results["per_event"]]).sum(axis=0)
            number = part["metrics"][name]
            assert counts.tolist() == [number["numerator"], number["denominator"]]
            assert number["value"] == counts[0] / counts[1] and number["lo"] <= number["value"] <= number["hi"]
        parts = part["census"]
        kinds = ("first_of_target", "duplicates_of_target", "of_other_particles", "fakes")
        assert parts["counted"] == sum(parts[kind] for kind in kinds)
    score = results["exclusive"]["metrics"]["trackml_score"]
    assert score["value"] == pytest.approx(np.mean([event["trackml_score"] for event in results["per_event"]]))


def test_processes_and_order_do_not_matter(folder: Path):
    one, two = run(folder, "found"), run(folder, "found", "--jobs", "2")
    assert {**one, "command": 0} == {**two, "command": 0}


def test_what_inference_did_not_see_is_said(tmp_path: Path, capsys):
    event = make.make_event(0, 8)
    dataset = make.write_dataset(tmp_path / "data", [event, make.make_event(1, 8)])
    seen = {"selection": {"noise": False, "other_hits": False, "pt_min_gev": 1.0, "min_hits": 3, "tracks": None}}
    make.write_candidates(tmp_path / "seen", dataset, [make.truth_candidates(event)], **seen)
    run(tmp_path, "seen")
    printed = capsys.readouterr().out
    assert "saw no noise" in printed and "pT >= 1 GeV" in printed and "1 of the dataset's events" in printed


def test_cuts(folder: Path):
    loose, tight = (run(folder, "found", "--pt-min-gev", cut) for cut in ("0", "2"))
    assert loose["target_particles"] > tight["target_particles"]
    assert loose["candidates"]["metrics"]["fake_rate"] | {"selection": 0} == tight["candidates"]["metrics"][
        "fake_rate"
    ] | {"selection": 0}
    central = run(folder, "found", "--eta-max", "1")
    assert central["target_particles"] < loose["target_particles"]
    assert "|eta| <= 1" in central["selection"]["text"]


def test_no_candidates_at_all(folder: Path, tmp_path: Path):
    events = [make.make_event(0, 5), make.make_event(1, 0, noise=0)]
    dataset = make.write_dataset(tmp_path / "data", events)
    nothing = [make.as_candidates(e.event_id, [], np.zeros(e.n_hits)) for e in events]
    make.write_candidates(tmp_path / "none", dataset, nothing)
    numbers = run(tmp_path, "none")["candidates"]["metrics"]
    assert numbers["efficiency"]["value"] == 0
    assert numbers["fake_rate"]["value"] is None and numbers["fake_rate"]["denominator"] == 0


def test_estimates_see_the_true_helix():
    event = make.make_event(3, 60, noise=0)
    row = event.column("truth.particle_row")
    offsets, rows = exclusive_lists(row + 1)
    x, y, z = (event.column(f"hits.{axis}") for axis in "xyz")
    have = np.unique(row)[np.diff(offsets) >= 3]
    pt = np.hypot(event.column("particles.px"), event.column("particles.py"))[have]
    eta = np.arcsinh(event.column("particles.pz")[have] / pt)
    assert kinds.pt_estimate(offsets, rows, x, y, 2.0)[np.diff(offsets) >= 3] == pytest.approx(pt, rel=1e-3)
    found = kinds.eta_estimate(offsets, rows, x, y, z)[np.diff(offsets) >= 3]
    assert np.abs(found - eta).max() < 0.25  # vertex spread, and bending of the softest
    along = np.array([1.0, 2, 3])
    straight = kinds.pt_estimate(np.array([0, 3, 3]), np.arange(3), along, along, 2.0)
    assert straight[0] > 1e6 and np.isnan(straight[1])


def test_track_edges():
    assert track_edges(np.array([50, 50])) == [50, 51]
    assert track_edges(np.array([], int)) == []
    for tracks in ([0, 7], [3, 90], [1400, 1731], [0, 10**6]):
        edges = track_edges(np.array(tracks))
        assert edges[0] <= tracks[0] and edges[-1] > tracks[1] and 2 <= len(edges) <= 11


def test_a_cut_off_line_of_timings_is_counted(folder: Path, tmp_path: Path):
    path = tmp_path / "timings.jsonl"
    whole = (folder / "found" / "timings.jsonl").read_text()
    path.write_text(whole + whole.splitlines()[0] + "\n" + '{"event_id": 5, "n_h')
    timings = evaluate.read_timings(path)
    assert timings["events"] == 6 and timings["ranks"] == 2 and timings["unreadable_lines"] == 1
    assert timings["hits_per_s"] == pytest.approx(timings["hits"] / timings["steps"]["total_s"]["sum"])


class TestBadInput:
    def fails(self, capsys, *argv: object) -> str:
        assert evaluate.main([str(a) for a in argv]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("hpctrack evaluate: error: ")
        return lines[0]

    def test_other_dataset(self, folder: Path, tmp_path: Path, capsys):
        make.write_dataset(tmp_path / "other", [make.make_event(0, 3)])
        line = self.fails(capsys, folder / "found", "--data", tmp_path / "other", "--out", tmp_path / "r.json")
        assert "fingerprint" in line
        assert not (tmp_path / "r.json").exists()

    def test_a_random_draw_of_tracks(self, folder: Path, tmp_path: Path, capsys):
        event = make.make_event(0, 4)
        dataset = make.write_dataset(tmp_path / "data", [event])
        drawn = {"selection": {"tracks": 3}}
        make.write_candidates(tmp_path / "drawn", dataset, [make.truth_candidates(event)], **drawn)
        line = self.fails(capsys, tmp_path / "drawn", "--data", tmp_path / "data", "--out", tmp_path / "r.json")
        assert "selection.tracks=3" in line and "convert" in line

    def test_missing_folders(self, folder: Path, tmp_path: Path, capsys):
        line = self.fails(capsys, tmp_path / "no", "--data", folder / "data", "--out", tmp_path / "r.json")
        assert "not a candidates folder" in line
        line = self.fails(capsys, folder / "found", "--data", tmp_path / "no", "--out", tmp_path / "r.json")
        assert "does not exist" in line
        line = self.fails(capsys, folder / "found", "--data", folder / "data", "--out", tmp_path / "no" / "r.json")
        assert "folder does not exist" in line

    def test_candidates_of_another_shape(self, folder: Path, tmp_path: Path, capsys):
        events = [make.make_event(k, 4) for k in range(2)]
        dataset = make.write_dataset(tmp_path / "data", events)
        wrong = make.as_candidates(1, [np.array([0, 1, 10**6])], np.zeros(events[1].n_hits))
        make.write_candidates(tmp_path / "bad", dataset, [make.truth_candidates(events[0]), wrong])
        line = self.fails(capsys, tmp_path / "bad", "--data", tmp_path / "data", "--out", tmp_path / "r.json")
        assert "event 1" in line and "1000000" in line
        assert list(tmp_path.glob("*r.json*")) == []


def test_tally_of_one_event_is_integers():
    event = make.make_event(1, 12)
    tally = tally_event(event, make.imperfect_candidates(event), Cuts(pt_min_gev=0.5))
    for reading in tally.readings.values():
        assert all(isinstance(k, int) for counts in reading.metrics.values() for k in counts)
        assert all(array.dtype.kind == "i" for array in reading.binned.values())
