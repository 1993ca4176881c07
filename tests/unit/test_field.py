"""The magnetic field belongs to a dataset: from the simulation's options to all that is computed with it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import make_trackml

from hpctrack import convert, inspect, simulate
from hpctrack.config import AugmentConfig, Named, SelectionConfig
from hpctrack.evaluation import resolutions
from hpctrack.evaluation.tally import Cuts
from hpctrack.events.loader import EventLoader
from hpctrack.storage import schema
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builder import from_lists

OPTIONS = ["--source", "helix", "--particles", "150", "--events", "1", "--seed", "5", "--noise", "0"]


def simulated(folder: Path, field: float) -> Path:
    assert simulate.main([str(folder), *OPTIONS, "--field", str(field)]) == 0
    return folder


@pytest.fixture(scope="module")
def strong(tmp_path_factory) -> Path:
    """Events in 4 T as TrackML files, and as a dataset beside them."""
    folder = simulated(tmp_path_factory.mktemp("field") / "csv", 4.0)
    assert convert.main([str(folder), str(folder.parent / "data"), "--jobs", "1"]) == 0
    return folder


def nearest_to_the_beam(event: schema.Event, field_t: float) -> np.ndarray:
    """|d0| [P] of the event's particles, from the circle's centre and radius."""
    vx, vy, px, py, q = (event.column(f"particles.{n}").astype(np.float64) for n in ("vx", "vy", "px", "py", "q"))
    radius = np.hypot(px, py) / (schema.GEV_PER_T_MM * field_t)
    centre_x, centre_y = vx + q * radius * py / np.hypot(px, py), vy - q * radius * px / np.hypot(px, py)
    return np.abs(np.hypot(centre_x, centre_y) - radius)


def test_true_parameters_are_those_of_the_simulated_field(strong):
    dataset = Dataset(strong.parent / "data")
    event = dataset.read(0)
    load = EventLoader(
        dataset, ["x", "y"], SelectionConfig(min_hits=1), AugmentConfig(), (1, 0), of_tracks=["parameters"]
    )
    data = load(0, 0)
    tracks = np.unique(event.column("truth.particle_row"))
    truth = nearest_to_the_beam(event, 4.0)[tracks]
    assert np.abs(truth - nearest_to_the_beam(event, 2.0)[tracks]).max() > 1  # mm: it makes a difference
    np.testing.assert_allclose(np.abs(data.parameters[:, 3].numpy()), truth, rtol=1e-3, atol=1e-2)


def test_resolutions_are_measured_in_the_same_field(strong):
    event = Dataset(strong.parent / "data").read(0)
    row = event.column("truth.particle_row")
    own = [np.flatnonzero(row == particle) for particle in range(row.max() + 1)]
    table = np.ones((len(own), len(schema.ESTIMATE)), np.float32)
    table[:, 3] = 0  # so that the residual of d0 is -d0
    found = from_lists(own, [1.0] * len(own), event.n_hits, event.event_id, 1)
    residual = resolutions.deviations(event, replace(found, parameters=table), Cuts(0.0, 1))[:, 2 + 3]
    truth = nearest_to_the_beam(event, 4.0)[np.unique(row)]
    np.testing.assert_allclose(np.abs(residual), truth, rtol=1e-3, atol=1e-2)


def test_sub_events_keep_it_and_the_content_does_not_depend_on_it(strong, tmp_path):
    weak = simulated(tmp_path / "weak", 2.0)
    for name in ("with", "without"):
        if name == "without":
            (weak / "simulation.json").unlink()
        assert convert.main([str(weak), str(tmp_path / name), "--jobs", "1"]) == 0
    with_it, without = (Dataset(tmp_path / name) for name in ("with", "without"))
    assert with_it.fingerprint == without.fingerprint and "field_t" not in without.attributes
    assert convert.main([str(strong.parent / "data"), str(tmp_path / "sub"), "--tracks", "20", "--jobs", "1"]) == 0
    sub, whole = Dataset(tmp_path / "sub"), Dataset(strong.parent / "data")
    assert sub.attributes["field_t"] == whole.attributes["field_t"] == 4.0
    assert [d.read(0).field_t for d in (sub, whole, with_it, without)] == [4.0, 4.0, 2.0, 2.0]
    whole.keep_in_memory(["hits.x"])
    assert whole.read(0, ["hits.x"]).field_t == 4.0
    shown = inspect.describe(strong.parent / "data", "dataset")
    assert shown["field_t"] == 4.0


def test_a_zip_says_it_too_and_two_fields_are_refused(strong, tmp_path, capsys):
    packed = shutil.make_archive(str(tmp_path / "events"), "zip", strong)
    assert convert.main([packed, str(tmp_path / "data"), "--jobs", "1"]) == 0
    assert Dataset(tmp_path / "data").attributes["field_t"] == 4.0
    both = tmp_path / "both"
    shutil.copytree(strong, both / "a")
    make_trackml(both / "b", [7])
    (both / "b" / "simulation.json").write_text((strong / "simulation.json").read_text().replace("4.0", "3.0"))
    capsys.readouterr()
    assert convert.main([str(both), str(tmp_path / "no"), "--jobs", "1"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "a field of 4.0 T, but 3.0 T in" in error and "simulation.json" in error
    (both / "b" / "simulation.json").write_text('{"format": "hpctrack-simulation", "settings": {"field_t": "NaN"}}')
    assert convert.main([str(both), str(tmp_path / "no"), "--jobs", "1"]) == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "not a record of hpctrack simulate" in error


def test_the_kalman_filter_takes_the_datasets_field(strong):
    pytest.importorskip("acts", reason="pyacts is not installed")
    from hpctrack.tracking.methods import ByMethod, MethodConfig

    data = Dataset(strong.parent / "data")

    def filter_(**options: object) -> ByMethod:
        return ByMethod(MethodConfig(method=Named(name="ckf", **options)), data, 0)

    assert json.loads(json.dumps(filter_().recipe))["method"]["field_t"] == 4.0
    assert filter_(field_t=3.0).recipe["method"]["field_t"] == 3.0
    event = data.read(0)
    momentum = np.hypot(event.column("particles.px"), event.column("particles.py"))
    found, _ = filter_(pt_min_gev=0.5)(0)
    owner = event.column("truth.particle_row")[found.hit_rows]
    prompt = np.hypot(event.column("particles.vx"), event.column("particles.vy")) < 1
    hard = np.flatnonzero((momentum > 0.7) & (event.column("particles.nhits") >= 8) & prompt)
    assert np.isin(hard, owner).mean() > 0.8
