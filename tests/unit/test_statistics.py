"""`hpctrack inspect DATA --statistics`: counted by hand on a small event; the same of CSV files and their dataset."""

import json

import numpy as np
import pytest

from hpctrack import convert, inspect, simulate
from hpctrack.errors import InputError
from hpctrack.inspection.statistics import statistics
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.simulation.writer import write_detectors, write_event

BARREL, ALL, HARD = "abs(eta) < 1", "abs(eta) < 4", "abs(eta) < 1, pT > 1 GeV"


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """In the barrel: 4 hits, two on a layer, at 2 GeV; 8 hits from r = 50 mm; 2 hits; noise; and one at eta = 3."""
    folder = tmp_path_factory.mktemp("by hand") / "csv"
    folder.mkdir()
    layers = [2, 2, 4, 6, *[2, 4, 6, 8] * 2, 2, 4, 2, *[2, 4, 6, 8, 10, 12, 14]]
    volumes = [8] * 4 + [8] * 4 + [13] * 4 + [8] * 3 + [7] * 7
    owner = [1] * 4 + [2] * 8 + [3] * 2 + [0] + [4] * 7
    n = len(owner)
    zero = np.zeros(n)
    hit_id = np.arange(1, n + 1)
    hits = {"hit_id": hit_id, "x": zero + 30, "y": zero, "z": zero, "volume_id": np.array(volumes)}
    hits |= {"layer_id": np.array(layers), "module_id": np.ones(n, int)}
    truth = {"hit_id": hit_id, "particle_id": np.array(owner)}
    truth |= {name: zero for name in ("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight")}
    particles = {"particle_id": np.arange(1, 5), "particle_type": np.full(4, 211)}
    particles |= {"vx": np.array([0, 50.0, 0, 0.01]), "vy": np.zeros(4), "vz": np.array([-4.0, 250.0, 0, 4.0])}
    particles |= {"px": np.array([2.0, 0.5, 1, 0.2]), "py": np.zeros(4), "pz": np.array([0.1, 0, 0, 2.0])}
    particles |= {"q": np.ones(4, int), "nhits": np.array([4, 8, 2, 7])}
    cells = {"hit_id": hit_id, "ch0": np.ones(n, int), "ch1": np.ones(n, int), "value": zero + 0.1}
    write_event(folder, 7, {"hits": hits, "cells": cells, "particles": particles, "truth": truth}, False)
    write_detectors(folder, trackml_geometry(), False)
    return folder


def test_what_is_counted(by_hand) -> None:
    found = statistics(by_hand)
    assert (found["events"], found["hits"], found["noise"]["numerator"]) == (1, 22, 1)
    parts = {
        name: (number.get("numerator"), number["denominator"]) for name, number in found["regions"][BARREL].items()
    }
    assert parts["particles an event"] == (2, 1)
    assert [parts[f"fewer than {k} hits"] for k in (5, 7, 9)] == [(1, 2), (1, 2), (2, 2)]
    assert [parts[f"created at r > {r} mm"] for r in (5, 30, 100)] == [(1, 2), (1, 2), (0, 2)]
    assert parts["created at abs(z) > 200 mm"] == (1, 2)
    assert parts["second hits on a layer, of hits"] == (1, 12)
    assert found["regions"][BARREL]["median pT, GeV"]["value"] == pytest.approx(1.25)
    assert found["regions"][ALL]["fewer than 9 hits"]["denominator"] == 3
    assert found["regions"][ALL]["sigma z of prompt vertices, mm"]["denominator"] == 2
    assert found["regions"][HARD]["pT > 5 GeV"] | {"lo": 0, "hi": 0} == {
        "value": 0.0, "error": pytest.approx(0.25), "lo": 0, "hi": 0, "numerator": 0, "denominator": 1
    }  # fmt: skip


def test_files_and_datasets_side_by_side(tmp_path, capsys) -> None:
    assert simulate.main([str(tmp_path / "csv"), "--source", "helix", "--particles", "40", "--events", "2"]) == 0
    assert convert.main([str(tmp_path / "csv"), str(tmp_path / "data")]) == 0
    capsys.readouterr()
    options = ["--statistics", "--beside", str(tmp_path / "csv"), "--json", str(tmp_path / "out.json")]
    assert inspect.main([str(tmp_path / "data"), *options]) == 0
    said, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())["datasets"]
    assert found["data"] == found["csv"]
    row = next(line for line in said.splitlines() if line.startswith("created at r > 30 mm"))
    assert row.count("±") == 2


def test_what_it_refuses(tmp_path, by_hand, capsys) -> None:
    with pytest.raises(InputError, match="no TrackML events"):
        statistics(tmp_path)
    assert inspect.main([str(by_hand), "--beside", str(by_hand)]) == 2
    assert "--beside is for --statistics" in capsys.readouterr().err
    assert inspect.main([str(by_hand), "--statistics", "--beside", str(by_hand)]) == 2
    assert "twice" in capsys.readouterr().err
