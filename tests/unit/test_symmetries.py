"""Augmented events are events: their features are those of an event whose hits and modules were moved for real."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from hpctrack import convert, simulate, train
from hpctrack.config import AugmentConfig, SelectionConfig, dump_yaml
from hpctrack.errors import InputError
from hpctrack.events import features as inputs
from hpctrack.events.features import FEATURES, Feature, compute_features
from hpctrack.events.loader import EventLoader
from hpctrack.formats.detectors import cell_features
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.storage.store import Dataset
from hpctrack.testing.toys import toy_config, toy_dataset

NAMES = list(FEATURES)


@pytest.fixture(scope="module")
def csv(tmp_path_factory) -> Path:
    """One simulated event on TrackML's detector, and its dataset beside it."""
    folder = tmp_path_factory.mktemp("symmetries") / "csv"
    assert simulate.main([str(folder), "--source", "helix", "--particles", "250", "--events", "1"]) == 0
    assert convert.main([str(folder), str(folder.parent / "data"), "--jobs", "1"]) == 0
    return folder


class Moved:
    """The simulated hits and their modules, before and after a move.

    Modules that change sides are those that the detector has there, with their own volumes, layers and frames. A
    detector that is seen in a mirror has its frames' v and w in the mirror, too, and u such that they are right-handed.
    """

    def __init__(self, folder: Path) -> None:
        hits, self.cells = (pd.read_csv(folder / f"event000000000-{kind}.csv") for kind in ("hits", "cells"))
        geometry = trackml_geometry()
        self.columns = geometry.columns
        known = {key: i for i, key in enumerate(zip(*(geometry.columns[k] for k in MODULE), strict=True))}
        self.module = np.array([known[key] for key in zip(*(hits[k] for k in MODULE), strict=True)])
        self.place, self.rotation = hits[["x", "y", "z"]].to_numpy(np.float64), geometry.rotation
        centre = np.round(geometry.centre, 3)
        distance, self.partner = cKDTree(centre).query(centre * [1, 1, -1])
        assert distance.max() < 10  # mm: sides differ in how modules overlap

    def features(self, flip_y: float, flip_z: float, angle: float) -> np.ndarray:
        """[N, F] of the moved event."""
        module = self.module if flip_z > 0 else self.partner[self.module]
        rotation = self.rotation[module]
        if flip_y < 0:
            v, w = (rotation[:, :, k] * [1, -1, 1] for k in (1, 2))
            rotation = np.stack([np.cross(v, w), v, w], axis=2)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        x, y, z = turn @ (self.place * [1, flip_y, flip_z]).T
        about = {name: self.columns[name][module] for name in ("pitch_u", "pitch_v")}
        about |= {"thickness": 2 * self.columns["module_t"][module], "rotation": turn @ rotation}
        row = self.cells["hit_id"].to_numpy() - 1
        found = cell_features(len(x), row, *(self.cells[k].to_numpy() for k in ("ch0", "ch1", "value")), module=about)
        columns = {f"cells.{name}": values for name, values in found.items()}
        columns |= {"hits.x": x, "hits.y": y, "hits.z": z, "hits.r": np.hypot(x, y), "hits.phi": np.arctan2(y, x)}
        columns |= {"hits.eta": np.arcsinh(z / np.hypot(x, y))}
        columns |= {f"hits.{name}": self.columns[name][module] for name in ("volume_id", "layer_id")}
        return compute_features(columns, NAMES)


MODULE = ("volume_id", "layer_id", "module_id")


@pytest.mark.parametrize("rotate", [False, True])
def test_features_of_augmented_events_are_those_of_moved_events(csv, rotate):
    moved, dataset = Moved(csv), Dataset(csv.parent / "data")
    load = EventLoader(dataset, NAMES, SelectionConfig(), AugmentConfig(rotate=rotate, mirror=True), (1, 0))
    volumes = np.unique(dataset.read(0).column("hits.volume_id"))
    assert len(volumes) == 9  # each of the detector's has hits
    before, seen = moved.features(1, 1, 0), set()
    for epoch in range(16):
        x = load(0, epoch).x.numpy().astype(np.float64)
        phi, phi_before = (np.arctan2(f[:, NAMES.index("sin_phi")], f[:, NAMES.index("cos_phi")]) for f in (x, before))
        flip_z = np.sign(x[0, NAMES.index("z")] / before[0, NAMES.index("z")])
        spread = [np.abs(np.exp(1j * (phi - flip * phi_before)).mean()) for flip in (1, -1)]  # 1 for equal angles
        flip_y = 1 if spread[0] > spread[1] else -1
        angle = (phi - flip_y * phi_before)[0]
        expected = moved.features(flip_y, flip_z, angle)
        for k, name in enumerate(NAMES):
            difference = x[:, k] - expected[:, k]
            if name.endswith("phi") and not name.startswith(("cos", "sin")):
                difference = (difference + 1) % 2 - 1  # in units of pi
            assert np.abs(difference).max() < 1e-3, (name, flip_y, flip_z, angle)
        seen.add((float(flip_y), float(flip_z)))
    assert len(seen) == 4 and (rotate or abs(angle) < 1e-6)


def test_hits_without_cells_stay_without_a_direction(tmp_path):
    folder = tmp_path / "csv"
    assert simulate.main([str(folder), "--source", "helix", "--particles", "20", "--events", "1"]) == 0
    file = folder / "event000000000-cells.csv"
    head, *rows = file.read_text().splitlines()
    file.write_text("\n".join([head, *(row for row in rows if int(row.split(",")[0]) % 2)]) + "\n")
    assert convert.main([str(folder), str(tmp_path / "data"), "--jobs", "1"]) == 0
    cells = [name for name in NAMES if name.startswith(("cell", "size", "local", "global"))]
    load = EventLoader(
        Dataset(tmp_path / "data"), cells, SelectionConfig(), AugmentConfig(rotate=True, mirror=True), (1, 0)
    )
    for epoch in range(4):
        event = load(0, epoch)
        has_cells = event.hit_row % 2 == 0  # hit_id counts from 1
        assert not event.x[~has_cells].any() and event.x[has_cells].any(dim=1).all()


def refused(config, tmp_path: Path, capsys) -> str:
    """The one line by which training ends."""
    path = tmp_path / "run.yaml"
    path.write_text(dump_yaml(config))
    assert train.main([str(path)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert not any("Traceback" in line for line in lines)
    return lines[-1]


def test_what_an_augmentation_does_not_know_is_refused(tmp_path, capsys, monkeypatch):
    data = toy_dataset(tmp_path / "data", sizes=(3, 3))
    monkeypatch.setitem(
        FEATURES, "module", Feature(("hits.module_id",), lambda c: c["hits.module_id"] / np.float32(9), "module_id / 9")
    )
    assert inputs.feature_columns(["module"]) == ["hits.module_id"]
    wanted = ["r", "cos_phi", "sin_phi", "z", "module"]
    for which in ({"rotate": True, "mirror": False}, {"rotate": False, "mirror": True}):
        config = toy_config(tmp_path / "run", data, reading={"features": wanted, "augment": which})
        line = refused(config, tmp_path, capsys)
        assert "key 'data.augment': feature 'module' of data.features reads hits.module_id" in line
    plain = {"rotate": False, "mirror": False, "sector_rad": 1.0}
    EventLoader(Dataset(data), wanted, SelectionConfig(), AugmentConfig(**plain), (1, 0))(0, 0)


def test_volumes_and_their_mirror_images_go_together(tmp_path, capsys):
    data = toy_dataset(tmp_path / "data", sizes=(3, 3))
    config = toy_config(tmp_path / "run", data, reading={"selection": {"volumes": [7, 8, 9, 14]}})
    line = refused(config, tmp_path, capsys)
    assert "key 'data.selection.volumes': [7, 8, 9, 14] has 14 without 12" in line
    for volumes in ([8, 13, 17], [7, 9], [12, 14, 16, 18, 8]):
        EventLoader(Dataset(data), ["x"], SelectionConfig(volumes=volumes), AugmentConfig(mirror=True), (1, 0))


def test_volumes_of_another_detector_are_refused_where_they_matter(tmp_path):
    dataset = Dataset(toy_dataset(tmp_path / "data", sizes=(3,)))
    read = dataset.read

    def other(*args):
        event = read(*args)
        if "volume_id" in event.tables["hits"]:
            event.tables["hits"]["volume_id"][2] = 33
        return event

    dataset.read = other
    about = (SelectionConfig(), AugmentConfig(mirror=True), (1, 0))
    for name in ("volume", "layer", "global_eta", "global_phi"):
        with pytest.raises(InputError, match=rf"event 0: volume 33 is none of TrackML's, so feature '{name}'"):
            EventLoader(dataset, ["x", name], *about)(0, 0)
    EventLoader(dataset, ["x", "z", "cell_count", "local_phi"], *about)(0, 0)
