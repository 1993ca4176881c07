"""ACTS' CSV: what its writers write comes in exactly, equal to the same events in TrackML's files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from acts_files import converted, trackml_of
from helpers import quietly

from hpctrack import convert
from hpctrack.formats.acts_csv import BITS, PARTS
from hpctrack.storage.columns import axis_of
from hpctrack.storage.store import open_dataset


@pytest.fixture
def csv(acts_files, tmp_path) -> Path:
    """ACTS' files, to be changed: with the pitches that its geometry does not know, of the modules that are hit."""
    out = Path(shutil.copytree(acts_files / "csv", tmp_path / "csv"))
    surfaces = pd.read_csv(out / "detectors.csv")
    hit = pd.concat([pd.read_csv(path).geometry_id for path in out.glob("*-measurements.csv")])
    surfaces = surfaces[surfaces.geometry_id.isin(hit)].copy()
    surfaces[["pitch_u", "pitch_v"]] = 0.05, 0.05625
    surfaces.to_csv(out / "detectors.csv", index=False)
    return out


def particle_ids(table: pd.DataFrame) -> np.ndarray:
    ids = np.zeros(len(table), np.uint64)
    for part, bits in zip(PARTS, BITS, strict=True):
        ids = (ids << np.uint64(bits)) | table[f"particle_id_{part}"].to_numpy(np.uint64)
    return ids


def test_measurements_are_equal_to_the_csv_route(csv, tmp_path):
    dataset = converted(csv, tmp_path / "out")
    other = converted(trackml_of(csv, tmp_path / "trackml"), tmp_path / "other", "--without", "weights")
    assert dataset.event_ids.tolist() == other.event_ids.tolist() == [0, 1, 2]
    assert dataset.lacks == other.lacks and dataset.columns == other.columns
    for i in range(3):
        one, two = dataset.read(i, verify=True), other.read(i, verify=True)
        to_hit = pd.read_csv(csv / f"event{i:09d}-measurement-simhit-map.csv").sort_values("measurement_id")
        order = {"hits": to_hit.hit_id.to_numpy(), "particles": np.arange(one.n_particles)}
        for name in set(dataset.columns) - {"hits.hit_id", "truth.particle_id", "particles.particle_id"}:
            assert np.array_equal(one.column(name), two.column(name)[order[axis_of(name)]]), name
        particles = pd.read_csv(csv / f"event{i:09d}-particles.csv")
        assert np.array_equal(one.column("particles.particle_id").view(np.uint64), particle_ids(particles))
        assert one.column("cells.cell_count").any()


def test_space_points_are_measurements_of_the_pixels(csv, tmp_path):
    whole = converted(csv, tmp_path / "whole").read(0)
    dataset = converted(csv, tmp_path / "points", "--option", "hits=spacepoints")
    points = dataset.read(0)
    of = pd.read_csv(csv / "event000000000-spacepoint.csv").measurement_id_1.to_numpy()
    assert "cells.cell_count" in dataset.lacks and len(of) == points.n_hits > 0
    for name in ("x", "y", "z", "volume_id", "layer_id", "module_id"):
        assert np.array_equal(points.column(f"hits.{name}"), whole.column(f"hits.{name}")[of]), name
    assert np.array_equal(points.column("truth.particle_id"), whole.column("truth.particle_id")[of])


def test_strip_points_of_two_particles_are_noise(csv, tmp_path):
    path = csv / "event000000000-spacepoint.csv"
    points, to_hit = pd.read_csv(path), pd.read_csv(csv / "event000000000-measurement-simhit-map.csv")
    owner = particle_ids(pd.read_csv(csv / "event000000000-hits.csv"))[to_hit.sort_values("measurement_id").hit_id]
    second = points.measurement_id_1.to_numpy()[::-1].copy()
    points["measurement_id_2"] = second
    points.to_csv(path, index=False)
    found = converted(csv, tmp_path / "out", "--option", "hits=spacepoints", "--limit", 1).read(0)
    same = owner[points.measurement_id_1] == owner[second]
    assert 0 < same.sum() < len(same)
    assert np.array_equal(found.column("truth.particle_row") >= 0, same)


def test_ids_of_64_bits_are_exact(csv, tmp_path):
    """A primary vertex beyond 2^11 sets the topmost bit."""
    for path in (*csv.glob("*-particles.csv"), *csv.glob("*-hits.csv")):
        table = pd.read_csv(path)
        table["particle_id_pv"] += 4000
        table["particle_id_subpart"] += 65535
        table.to_csv(path, index=False)
    found = converted(csv, tmp_path / "out").read(0)
    expected = particle_ids(pd.read_csv(csv / "event000000000-particles.csv"))
    assert (expected > 2**63).all() and np.array_equal(found.column("particles.particle_id").view(np.uint64), expected)


def test_without_truth_hits_alone_are_enough(csv, tmp_path):
    for path in csv.iterdir():
        if "measurements" not in path.name:
            path.unlink()
    assert (
        "no file event000000000-measurement-simhit-map.csv; --no-truth"
        in quietly(convert.main, [csv, tmp_path / "out", "--jobs", 1])[1]
    )
    assert quietly(convert.main, [csv, tmp_path / "out", "--jobs", 1, "--no-truth"])[0] == 0
    assert {"cells.cell_count", "truth.particle_id", "truth.weight"} <= open_dataset(tmp_path / "out").lacks
