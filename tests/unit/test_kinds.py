"""Kinds of track: metrics in their bins against counts by hand, and results beside each other on the terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import synthetic_run as make

from hpctrack import evaluate, report
from hpctrack.evaluation import kinds
from hpctrack.evaluation.kinds import KINDS, Crowd
from hpctrack.evaluation.matching import exclusive_lists, match
from hpctrack.evaluation.metrics import METRICS, double_matched, particles_of
from hpctrack.evaluation.tally import Cuts, add_up, tally_event
from hpctrack.results.comparison import aligned, bin_text
from hpctrack.storage.schema import Event


def with_particles(event: Event, **columns: np.ndarray) -> Event:
    particles = dict(event.tables["particles"]) | columns
    return replace(event, tables={**event.tables, "particles": particles})


def displaced(event_id: int, n: int) -> Event:
    """An event whose particles were created anywhere."""
    event, rng = make.make_event(event_id, n), np.random.default_rng(event_id)
    radius, angle = 10 ** rng.uniform(-1, 3, n), rng.uniform(-np.pi, np.pi, n)
    vertex = {"vx": radius * np.cos(angle), "vy": radius * np.sin(angle), "vz": rng.normal(0, 300, n)}
    return with_particles(event, **{name: values.astype(np.float32) for name, values in vertex.items()})


def test_every_metric_in_every_bin_adds_up():
    event = displaced(0, 80)
    found, cuts = make.imperfect_candidates(event), Cuts(pt_min_gev=0.5)
    summed = add_up([tally_event(event, found, cuts)], cuts)
    for reading in summed.values():
        for name, metric in METRICS.items():
            expected = {v for v, kind in KINDS.items() if kind.of_candidate or not metric.of_candidates} | {"n_tracks"}
            assert set(reading["binned"][name]) == expected
            for rows in reading["binned"][name].values():
                for key in ("numerator", "denominator"):
                    assert sum(row[key] for row in rows) == reading["metrics"][name][key]
                assert all(row["error"] > 0 for row in rows if row["denominator"])


def test_bins_against_counts_by_hand():
    event = displaced(1, 120)
    found, cuts = make.imperfect_candidates(event), Cuts(pt_min_gev=0.5)
    target = cuts.targets(event)
    row = event.column("truth.particle_row")
    matched = match(*exclusive_lists(found.track_ids), row, len(target))
    good = target & particles_of(matched, double_matched(matched))
    binned = add_up([tally_event(event, found, cuts)], cuts)["exclusive"]["binned"]["double_majority_efficiency"]
    px, py, pz, vx, vy, vz = (
        event.column(f"particles.{c}").astype(float) for c in ("px", "py", "pz", "vx", "vy", "vz")
    )
    values = {"hits": np.bincount(row[row >= 0], minlength=len(target)), "pt": np.hypot(px, py)}
    values |= {"abs_eta": np.abs(np.arcsinh(pz / np.hypot(px, py)))}
    values |= {"vertex_r": np.hypot(vx, vy), "vertex_z": np.abs(vz)}
    for variable, value in values.items():
        rows = binned[variable]
        assert sum(r["denominator"] > 0 for r in rows) > 2
        for r in rows:
            inside = (value >= r["from"]) & (value < (np.inf if r["to"] is None else r["to"]))
            assert (r["numerator"], r["denominator"]) == ((good & inside).sum(), (target & inside).sum())


def slow_distance(event: Event, hits: list[int], others: list[list[int]]) -> float:
    """From the outermost of `hits` to the nearest outermost hit of the others, in eta and phi."""
    x, y, z = (event.column(f"hits.{axis}").astype(float) for axis in "xyz")

    def direction(rows: list[int]) -> tuple[float, float]:
        hit = max(rows, key=lambda k: x[k] ** 2 + y[k] ** 2 + z[k] ** 2)
        return np.arcsinh(z[hit] / np.hypot(x[hit], y[hit])), np.arctan2(y[hit], x[hit])

    eta, phi = direction(hits)
    apart = [(eta - e, (phi - p + np.pi) % (2 * np.pi) - np.pi) for e, p in map(direction, others)]
    return min((float(np.hypot(*pair)) for pair in apart), default=np.inf)


def test_distance_to_the_nearest_other_target():
    event = make.make_event(4, 40)
    target, row = Cuts(pt_min_gev=0.8).targets(event), event.column("truth.particle_row")
    hits = {p: np.flatnonzero(row == p).tolist() for p in np.flatnonzero(target)}
    crowd = Crowd(event, target)
    found = kinds.of_particles(event, target, crowd)["distance"]
    assert np.isnan(found[~target]).all() and target.sum() > 10
    for p in hits:
        expected = slow_distance(event, hits[p], [hits[other] for other in hits if other != p])
        assert found[p] == pytest.approx(expected, abs=1e-5)
    lists = make.imperfect_candidates(event)
    majority = match(lists.hit_offsets, lists.hit_rows, row, len(target)).majority
    own = crowd.distance_of_candidates(lists.hit_offsets, lists.hit_rows, majority)
    for c in range(0, len(lists), 5):
        mine = lists.hit_rows[lists.hit_offsets[c] : lists.hit_offsets[c + 1]].tolist()
        expected = slow_distance(event, mine, [hits[other] for other in hits if other != majority[c]])
        assert own[c] == pytest.approx(expected, abs=1e-5)


def test_one_target_none_and_the_edge_of_azimuth():
    event = make.make_event(5, 30)
    alone = np.zeros(30, dtype=bool)
    assert np.isnan(kinds.of_particles(event, alone, Crowd(event, alone))["distance"]).all()
    alone[Cuts().targets(event).argmax()] = True
    assert np.isinf(kinds.of_particles(event, alone, Crowd(event, alone))["distance"][alone]).all()
    phi = np.array([-1e-9, 1e-9, np.pi, -np.pi], np.float32)
    hits = {"x": np.cos(phi), "y": np.sin(phi), "z": np.zeros(4), "phi": phi, "eta": np.zeros(4)}
    seam = Event(0, {"hits": hits, "truth": {"particle_row": np.arange(4)}})
    crowd = Crowd(seam, np.ones(4, dtype=bool))
    assert crowd.distances(crowd.targets_T2, np.arange(4)) == pytest.approx(0, abs=1e-6)


def test_what_an_event_lacks_is_left_out():
    event = displaced(2, 20)
    particles = {name: v for name, v in event.tables["particles"].items() if name not in ("vx", "vy", "vz", "pz")}
    event = replace(event, tables={**event.tables, "particles": particles})
    cuts, hidden = Cuts(), kinds.not_told(kinds.columns_of(event))
    assert set(hidden) == {"eta", "abs_eta", "vertex_r", "vertex_z"} and hidden["vertex_r"] == "vertices"
    binned = add_up([tally_event(event, make.truth_candidates(event), cuts)], cuts, hidden)["exclusive"]["binned"]
    assert set(binned["efficiency"]) == {"hits", "pt", "distance", "n_tracks"}
    assert set(binned["fake_rate"]) == {"hits", "pt", "eta", "abs_eta", "distance", "n_tracks"}


def test_bins_begin_at_the_cuts_and_are_said_in_words():
    cuts = Cuts(pt_min_gev=0.9, min_hits=4)
    assert cuts.begins("hits") == [4, 5, 7, 9] and cuts.begins("hits", of_candidates=True) == [3, 4, 5, 7, 9]
    assert cuts.begins("pt")[:2] == [0.9, 1.0] and cuts.begins("pt")[-1] == 100
    rows = [(3, 4), (5, 7), (9, None), (None, None)]
    assert [bin_text({"from": a, "to": b}, "hits") for a, b in rows[:3]] == ["3", "5–6", "9+"]
    rows = [(0.0, 1.0), (None, -3.5), (1.0, 5.0), (100.0, None), (None, None)]
    assert [bin_text({"from": a, "to": b}, "pt") for a, b in rows] == ["< 1", "< -3.5", "1–5", "≥ 100", "all"]
    one, two = [{"from": 0, "to": 1}, {"from": 1, "to": None}], [{"from": 0, "to": 1}, {"from": 1, "to": 2}]
    assert [[bool(row) for row in line] for line in aligned([one, two])] == [[1, 1], [0, 1], [1, 0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("kinds")
    for name, n in (("simulated", 30), ("real", 50)):
        events = [displaced(k, n) for k in range(2)]
        dataset = make.write_dataset(path / f"{name}-data", events)
        make.write_candidates(path / name, dataset, [make.imperfect_candidates(event) for event in events])
        options = ["--data", str(path / f"{name}-data"), "--out", str(path / f"{name}.json"), "--kinds"]
        assert evaluate.main([str(path / name), *options]) == 0
    return path


def test_on_the_terminal(folder: Path, capsys):
    assert evaluate.main(["--compare", str(folder / "simulated.json"), f"mine={folder / 'real.json'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["simulated", "mine"]
    at = next(k for k, line in enumerate(lines) if line.startswith("Radius of creation (mm)"))
    assert "simulated: double majority" in lines[at] and "fakes" not in lines[at]
    results = json.loads((folder / "real.json").read_text())
    row = results["exclusive"]["binned"]["double_majority_efficiency"]["vertex_r"][0]
    shown = next(line for line in lines[at:] if line.strip().startswith("< 1 "))
    assert shown.endswith(f"{row['value']:.4f} ± {row['error']:.4f}")
    assert f"{row['denominator'] / results['target_particles']:.2%}" in shown
    options = ["--data", str(folder / "real-data"), "--out", str(folder / "again.json")]
    assert evaluate.main([str(folder / "real"), *options, "--compare", str(folder / "simulated.json")]) == 0
    printed = capsys.readouterr().out
    assert "again: fakes" in printed and "simulated: fakes" in printed and "written" in printed


def test_a_dataset_without_vertices_and_momenta(tmp_path: Path, capsys):
    """Its tables are left out, and one line says so; nothing is counted as created at 0."""
    gone = {"vx", "vy", "vz", "px", "py", "pz"}
    events = []
    for k in range(2):
        event = displaced(k, 20)
        left = {name: values for name, values in event.tables["particles"].items() if name not in gone}
        events.append(replace(event, tables={**event.tables, "particles": left}))
    dataset = make.write_dataset(tmp_path / "data", events)
    make.write_candidates(tmp_path / "found", dataset, [make.truth_candidates(event) for event in events])
    options = ["--data", str(tmp_path / "data"), "--out", str(tmp_path / "r.json"), "--pt-min-gev", "0", "--kinds"]
    assert evaluate.main([str(tmp_path / "found"), *options]) == 0
    titles = "transverse momentum, |pseudorapidity|, radius of creation, |z| of creation"
    lines = [line for line in capsys.readouterr().out.splitlines() if "not told" in line]
    assert lines == [f"note: not told by {titles}: the dataset has no momenta, vertices"]
    binned = json.loads((tmp_path / "r.json").read_text())["exclusive"]["binned"]
    assert set(binned["efficiency"]) == {"hits", "distance", "n_tracks"} and "pt" in binned["fake_rate"]
    assert report.main(["--results", str(tmp_path / "r.json"), "--out", str(tmp_path / "page.html")]) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give CANDIDATES, --data and --out"),
        (["real", "--out", "x.json"], "no data"),
        (["--compare", "real.json", "--out", "x.json"], "no --data, --out"),
        (["--compare", "no.json"], "no.json: no such file"),
        (["--compare", "real.json", "real.json"], "two results are named"),
    ],
)
def test_options_that_do_not_fit(folder: Path, capsys, monkeypatch, options: list[str], says: str):
    monkeypatch.chdir(folder)
    assert evaluate.main(options) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and "\n" not in error
