"""`hpctrack simulate`: the files, the detector, weights and noise, and what survives jobs, restarts and kills."""

import errno
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from hpctrack import simulate
from hpctrack.simulation import event, writer
from hpctrack.simulation.digitization import TRACKML_SHARE, add_noise, digitize
from hpctrack.simulation.event import Cells, Crossings, Measurements
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.simulation.run import Simulation
from hpctrack.simulation.settings import Settings

GEOMETRY = trackml_geometry()
COLUMNS = {
    "hits": "hit_id,x,y,z,volume_id,layer_id,module_id",
    "cells": "hit_id,ch0,ch1,value",
    "particles": "particle_id,particle_type,vx,vy,vz,px,py,pz,q,nhits",
    "truth": "hit_id,particle_id,tx,ty,tz,tpx,tpy,tpz,weight",
}
MODULE = ["volume_id", "layer_id", "module_id"]


def _simulate(folder: Path, *options: str) -> int:
    return simulate.main([str(folder), "--source", "helix", "--particles", "60", *options])


def _digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("[!.]*.csv*"))}


def _read(folder: Path, event_id: int) -> dict[str, pd.DataFrame]:
    return {kind: pd.read_csv(folder / f"event{event_id:09d}-{kind}.csv") for kind in COLUMNS}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("events")
    assert _simulate(out, "--events", "3", "--first-event", "5", "--seed", "3") == 0
    return out


@pytest.mark.parametrize("event_id", [5, 6, 7])
def test_files_are_trackml(folder: Path, event_id: int) -> None:
    for kind, columns in COLUMNS.items():
        with open(folder / f"event{event_id:09d}-{kind}.csv") as file:
            assert file.readline().strip() == columns
    tables = _read(folder, event_id)
    hits, cells, particles, truth = tables.values()
    n = len(hits)
    assert n > 300
    np.testing.assert_array_equal(hits.hit_id, np.arange(1, n + 1))
    np.testing.assert_array_equal(truth.hit_id, hits.hit_id)
    assert (np.diff(np.lexsort([hits.module_id, hits.layer_id, hits.volume_id])) == 1).all()
    assert cells.hit_id.is_monotonic_increasing
    assert set(cells.hit_id) == set(hits.hit_id)
    assert not cells.duplicated(["hit_id", "ch0", "ch1"]).any()
    assert particles.particle_id.is_unique
    assert particles.particle_id.dtype == truth.particle_id.dtype == np.int64
    assert (particles.particle_id > 0).all()
    counts = truth[truth.particle_id != 0].particle_id.value_counts()
    assert set(counts.index) <= set(particles.particle_id)
    np.testing.assert_array_equal(particles.nhits, particles.particle_id.map(counts).fillna(0))
    assert truth.weight.sum() == pytest.approx(1, abs=1e-5)
    assert (truth.weight[truth.particle_id == 0] == 0).all()
    assert np.isfinite(pd.concat([hits, truth], axis=1)).all().all()


def test_hits_lie_on_their_modules_and_cells_within(folder: Path) -> None:
    detectors = pd.read_csv(folder / "detectors.csv")
    assert len(detectors) == 18728
    assert not detectors.duplicated(MODULE).any()
    rotation = detectors[[f"rot_{i}{j}" for i in "xyz" for j in "uvw"]].to_numpy().reshape(-1, 3, 3)
    np.testing.assert_allclose(
        rotation @ rotation.transpose(0, 2, 1), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-6
    )
    hits, cells, _, truth = _read(folder, 5).values()
    rows = hits.merge(detectors.reset_index(), on=MODULE, how="left", validate="many_to_one")
    assert len(rows) == len(hits)
    for points in (hits[["x", "y", "z"]], truth[["tx", "ty", "tz"]]):
        offset = points.to_numpy() - rows[["cx", "cy", "cz"]].to_numpy()
        u, v, w = np.einsum("nij,ni->jn", rotation[rows["index"]], offset)
        assert np.abs(w).max() < 2e-3
        assert (np.abs(u) < rows.module_maxhu + 0.1).all()
        assert (np.abs(v) < rows.module_hv + 0.1).all()
    cells = cells.merge(rows, on="hit_id")
    assert (cells.ch0 * cells.pitch_u < 2 * cells.module_maxhu).all()
    assert (cells.ch1 * cells.pitch_v < 2 * cells.module_hv).all()
    assert ((cells.ch0 >= 0) & (cells.ch1 >= 0) & (cells.value > 0)).all()


@pytest.mark.skipif("HPCTRACK_TRACKML_DIR" not in os.environ, reason="HPCTRACK_TRACKML_DIR names no TrackML files")
def test_detector_is_trackmls(folder: Path) -> None:
    theirs = pd.read_csv(Path(os.environ["HPCTRACK_TRACKML_DIR"]) / "detectors.csv.gz")
    ours = pd.read_csv(folder / "detectors.csv")
    assert list(ours) == list(theirs)
    pd.testing.assert_frame_equal(ours[MODULE], theirs[MODULE])
    assert np.abs(ours[["cx", "cy", "cz"]] - theirs[["cx", "cy", "cz"]]).max().max() < 0.005
    rest = [name for name in theirs if name not in (*MODULE, "cx", "cy", "cz")]
    np.testing.assert_allclose(ours[rest], theirs[rest], atol=1e-6)


@pytest.mark.skipif("HPCTRACK_TRACKML_DIR" not in os.environ, reason="HPCTRACK_TRACKML_DIR names no TrackML files")
def test_weights_are_trackmls() -> None:
    """The event there is thinned, so its weights are ours up to a factor, and of the challenge's second phase, where
    secondaries (generation > 0 in their particle_id) weigh nothing."""
    stem = Path(os.environ["HPCTRACK_TRACKML_DIR"]) / "event000000001-"
    truth, particles = (pd.read_csv(f"{stem}{kind}.csv.gz") for kind in ("truth", "particles"))
    row = truth.particle_id.map(pd.Series(particles.index, particles.particle_id)).fillna(-1).astype(int).to_numpy()
    columns = {name: particles[name].to_numpy() for name in ("vz", "px", "py")}
    ours = event.hit_weights(row, truth.tz.to_numpy(), columns)
    primary = truth.particle_id.to_numpy() % 2**36 == 0
    ours, theirs = ours[primary], truth.weight.to_numpy()[primary]
    np.testing.assert_array_equal(ours > 0, theirs > 0)
    np.testing.assert_allclose(ours / ours.sum(), theirs / theirs.sum(), rtol=2e-5)


def test_same_events_for_any_jobs_order_and_restart(folder: Path, tmp_path: Path) -> None:
    options = ("--seed", "3", "--first-event")
    assert _simulate(tmp_path / "jobs", "--events", "3", *options, "5", "--jobs", "2") == 0
    assert _digest(tmp_path / "jobs") == _digest(folder)
    assert _simulate(tmp_path / "parts", "--events", "1", *options, "7") == 0
    (tmp_path / "parts" / "event000000005-hits.csv").write_text("half\n")
    (tmp_path / "parts" / ".event000000006-hits.csv.999.tmp").write_text("half\n")
    (tmp_path / "parts" / ".event000000099-hits.csv.999.tmp").write_text("another run's\n")
    made = (tmp_path / "parts" / "event000000007-hits.csv").stat().st_mtime_ns
    assert _simulate(tmp_path / "parts", "--events", "3", *options, "5") == 0
    assert (tmp_path / "parts" / "event000000007-hits.csv").stat().st_mtime_ns == made
    assert _digest(tmp_path / "parts") == _digest(folder)
    assert [p.name for p in (tmp_path / "parts").glob(".*")] == [".event000000099-hits.csv.999.tmp"]
    assert _simulate(tmp_path / "seed", "--events", "1", "--first-event", "5", "--seed", "4") == 0
    assert _digest(tmp_path / "seed")["event000000005-hits.csv"] != _digest(folder)["event000000005-hits.csv"]


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_killed_run_is_continued(tmp_path: Path, jobs: str) -> None:
    options = ["--events", "12", "--seed", "9", "--jobs", jobs]
    command = [sys.executable, "-m", "hpctrack.simulate", str(tmp_path / "killed"), "--source", "helix"]
    with subprocess.Popen([*command, "--particles", "60", *options], stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list((tmp_path / "killed").glob("*-truth.csv"))) < 2:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert _simulate(tmp_path / "killed", *options) == 0
    assert _simulate(tmp_path / "whole", *options[:4]) == 0
    assert _digest(tmp_path / "killed") == _digest(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*"))


def test_gzip_and_smearing(folder: Path, tmp_path: Path) -> None:
    assert _simulate(tmp_path / "gz", "--events", "1", "--first-event", "5", "--seed", "3", "--gzip") == 0
    for path in (tmp_path / "gz").glob("*.gz"):
        assert gzip.decompress(path.read_bytes()) == (folder / path.stem).read_bytes()
    assert len(list((tmp_path / "gz").glob("*.gz"))) == 5
    assert _simulate(tmp_path / "smeared", "--events", "1", "--digitization", "smearing") == 0
    tables = _read(tmp_path / "smeared", 0)
    assert list(tables["cells"]) == COLUMNS["cells"].split(",")
    assert not len(tables["cells"])
    assert (tables["truth"].particle_id == 0).mean() == pytest.approx(0.15, abs=0.05)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--noise", "1"], ["--noise 1.0", "between 0 and 0.9"]),
        (["--noise", "nan"], ["--noise nan", "finite"]),
        (["--field", "0"], ["--field 0.0", "0.1"]),
        (["--pt-min-gev", "-1"], ["--pt-min-gev -1.0"]),
        (["--events", "0"], ["--events 0", "at least 1"]),
        (["--jobs", "0"], ["--jobs 0"]),
        (["--first-event", "-1"], ["--first-event -1", "999999999"]),
        (["--mu", "10"], ["--mu", "--source acts", "not of helix"]),
        (["--seed", "-4"], ["--seed -4"]),
    ],
)
def test_bad_options_are_one_line(tmp_path: Path, capsys, options: list[str], words: list[str]) -> None:
    assert _simulate(tmp_path / "out", *options) == 2
    _one_line(capsys, words)
    assert not (tmp_path / "out").exists()


def test_folder_of_other_settings_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    before = _digest(folder)
    for options, words in (
        (("--seed", "4"), ["settings.seed", "3", "4"]),
        (("--seed", "3", "--noise", "0.2"), ["settings.noise"]),
        (("--seed", "3", "--gzip"), ["settings.gzip"]),
    ):
        assert _simulate(folder, *options) == 2
        _one_line(capsys, ["simulation.json", *words])
    assert _digest(folder) == before
    (tmp_path / "file").write_text("")
    assert _simulate(tmp_path / "file") == 2
    _one_line(capsys, ["is a file"])
    (tmp_path / writer.RECORD).write_text("[]")
    assert _simulate(tmp_path) == 2
    _one_line(capsys, ["not a record"])
    (tmp_path / writer.RECORD).write_text(json.dumps({"format": "x", "version": 9, "settings": {}, "versions": {}}))
    assert _simulate(tmp_path) == 2
    _one_line(capsys, ["format"])


def _one_line(capsys, words: list[str]) -> None:
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    for word in ("hpctrack simulate: error: ", *words):
        assert word in lines[0]


def test_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch, capsys) -> None:
    assert _simulate(tmp_path, "--events", "1") == 0
    capsys.readouterr()
    written, fsync = [], os.fsync

    def fails_at_third(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails_at_third)
    assert _simulate(tmp_path, "--events", "2") == 1
    _one_line(capsys, ["No space left", "event000000001-particles.csv"])
    assert sorted(p.name for p in tmp_path.glob("*000000001*")) == [
        "event000000001-cells.csv",
        "event000000001-hits.csv",
    ]
    assert not list(tmp_path.glob(".*"))
    monkeypatch.undo()
    assert _simulate(tmp_path, "--events", "2") == 0
    assert writer.is_finished(tmp_path, 1, False)


def test_missing_package_says_what_to_install(tmp_path: Path, monkeypatch, capsys) -> None:
    def not_there(name: str) -> str:
        raise simulate_metadata.PackageNotFoundError(name)

    from importlib import metadata as simulate_metadata

    monkeypatch.setattr(simulate_metadata, "version", not_there)
    assert simulate.main([str(tmp_path / "out")]) == 2
    _one_line(capsys, ["pyacts", "pip install 'hpctrack[sim]'"])
    assert not (tmp_path / "out").exists()


def test_noise_has_trackmls_shares() -> None:
    """With the true hits where TrackML's events have them, each layer gets its share."""
    simulation = Simulation(Settings(source="helix", particles=3000, noise=0.15))
    tables = simulation.tables(0)
    noise = tables["truth"]["particle_id"] == 0
    assert noise.mean() == pytest.approx(0.15, abs=0.01)
    volume, layer = tables["hits"]["volume_id"], tables["hits"]["layer_id"]
    for key, share in TRACKML_SHARE.items():
        chosen = (volume == key[0]) & (layer == key[1]) if isinstance(key, tuple) else volume == key
        assert noise[chosen].mean() == pytest.approx(share, rel=0.25, abs=0.01), key


@given(st.integers(0, 2**32), st.integers(0, len(GEOMETRY) - 1))
@hypothesis_settings(max_examples=30, deadline=None)
def test_noise_stays_on_its_module(seed: int, module: int) -> None:
    rng = np.random.default_rng(seed)
    centre = GEOMETRY.centre[[module] * 20]
    crossings = Crossings(np.full(20, module), np.arange(1, 21), centre, rng.normal(size=(20, 3)))
    for method in ("geometric", "smearing"):
        measured = add_noise(digitize(crossings, GEOMETRY, method, 1.0, rng), GEOMETRY, 0.5, rng)
        local = GEOMETRY.to_local(measured.truth.module, measured.position)
        assert (measured.truth.particle_id[:20] > 0).all()
        assert (measured.truth.particle_id[20:] == 0).all()
        assert (GEOMETRY.layer[measured.truth.module] == GEOMETRY.layer[module]).all()
        assert np.abs(local[:, 2]).max() < 1e-9
        assert (np.abs(local[:, :2]) <= GEOMETRY.half[measured.truth.module]).all()
        if method == "geometric":
            assert (measured.cells.counts > 0).all()
            limit = np.repeat(GEOMETRY.n_channels[measured.truth.module], measured.cells.counts, axis=0)
            assert ((measured.cells.ch0 < limit[:, 0]) & (measured.cells.ch1 < limit[:, 1])).all()


@pytest.mark.parametrize("nhits", [1, 3, 4, 9, 20, 23])
def test_weights_by_hand(nhits: int) -> None:
    particles = {"vz": np.array([5.0, 0.0]), "px": np.array([3.0, 0.3]), "py": np.array([4.0, 0.0])}
    row = np.array([0] * nhits + [1] * 4 + [-1])
    tz = np.concatenate([5.0 - np.arange(nhits), np.arange(4) * 10.0, [7.0]])
    weight = event.hit_weights(row, tz, particles)
    assert weight.sum() == pytest.approx(1)
    assert weight[-1] == 0
    if nhits < 4:
        assert (weight[:nhits] == 0).all()
    else:  # pT 5 GeV against 0.3 GeV
        assert weight[:nhits].sum() == pytest.approx(1 / 1.2)
        assert weight[0] == weight[:nhits].max()
        assert (weight[20:nhits] == 0).all()
    if nhits == 9:
        np.testing.assert_allclose(weight[:9] * 1.2 * 49, [10, 8, 6, 5, 3, 3, 3, 5, 6])


def test_digitization_by_hand() -> None:
    """A path at 45 degrees through a pixel endcap, 0.3 mm deep: 6 cells of 0.05 mm, hit at their mean."""
    module = int(np.flatnonzero(GEOMETRY.layer == 9002)[0])
    u, _, w = GEOMETRY.rotation[module].T
    start = GEOMETRY.to_global(np.array([module]), np.array([[0.0, 0.01]]))
    crossings = Crossings(np.array([module]), np.array([1]), start, (u + w)[None])
    measured = digitize(crossings, GEOMETRY, "geometric", 1.0, np.random.default_rng(0))
    first = 168 - 3  # the middle of 336 channels, minus half the cluster
    np.testing.assert_array_equal(measured.cells.ch0, np.arange(first, first + 6))
    np.testing.assert_array_equal(measured.cells.ch1, np.full(6, 640))
    np.testing.assert_allclose(measured.cells.value, 0.05 * 2**0.5, rtol=0.3)
    local = GEOMETRY.to_local(np.array([module]), measured.position)[0]
    np.testing.assert_allclose(local, [0.0, 0.5 * 0.05625, 0.0], atol=0.01)


def test_cells_take_and_append() -> None:
    cells = Cells(np.array([0, 2, 2, 3]), np.array([1, 2, 3]), np.array([4, 5, 6]), np.array([0.1, 0.2, 0.3]))
    taken = cells.take(np.array([2, 0, 1, 0]))
    np.testing.assert_array_equal(taken.offsets, [0, 1, 3, 3, 5])
    np.testing.assert_array_equal(taken.ch0, [3, 1, 2, 1, 2])
    both = taken.append(cells)
    np.testing.assert_array_equal(both.counts, [1, 2, 0, 2, 2, 0, 1])
    empty = Measurements(
        Crossings(*(np.zeros((0, 3)[: 1 + (i > 1)], np.int64) for i in range(4))), np.zeros((0, 3)), Cells.none(0)
    )
    assert add_noise(empty, GEOMETRY, 0.15, np.random.default_rng(0)) is empty


def test_particle_ids_are_trackmls() -> None:
    assert event.particle_ids(1, 33) == 4505867370102784  # of the challenge
    assert event.particle_ids(2000, 65535, 4095, 4095) > 0
