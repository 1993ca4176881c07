"""What a detector's file says of it: the numbers that TrackML's tables in the code have, from both formats."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from helpers import make_detectors_csv, make_trackml

from hpctrack import convert, inspect
from hpctrack.config import Named
from hpctrack.errors import InputError
from hpctrack.events.symmetries import check_volumes
from hpctrack.formats.detectors import find_detectors
from hpctrack.formats.geometry import describe, text_of
from hpctrack.formats.trackml_files import list_files
from hpctrack.geometry import main
from hpctrack.graphs import build_graph
from hpctrack.simulation.geometry import trackml_geometry
from hpctrack.storage.detector import TRACKML, UNKNOWN, Detector
from hpctrack.storage.store import Dataset


@pytest.fixture(scope="module")
def trackml(tmp_path_factory):
    path = tmp_path_factory.mktemp("trackml") / "detectors.csv"
    pd.DataFrame(dict(trackml_geometry().columns)).to_csv(path, index=False)
    return describe(path)


def test_the_detector_of_trackml(trackml):
    kinds = {volume["volume_id"]: volume["kind"] for volume in trackml["volumes"]}
    assert kinds == dict.fromkeys(TRACKML.barrels, "barrel") | dict.fromkeys(TRACKML.endcaps, "endcap")
    mirrors = {volume["volume_id"]: volume["mirror"] for volume in trackml["volumes"]}
    assert mirrors == {volume: volume for volume in TRACKML.barrels} | TRACKML.sides
    for volume in trackml["volumes"]:
        for layer in volume["layers"] if volume["kind"] == "endcap" else ():
            number = volume["volume_id"]
            assert tuple(layer["mirror"]) == TRACKML.mirrors[number, layer["layer_id"]]
    assert [tuple(pair) for pair in trackml["neighbours"]] == [
        (*a, *b) for a, b in zip(TRACKML.neighbours, TRACKML.neighbours[1:], strict=False)
    ]
    first = trackml["volumes"][1]["layers"][0]
    assert (first["layer_id"], first["pitch_u_mm"], first["half_thickness_mm"]) == (2, [0.05, 0.05], [0.15, 0.15])


def test_acts_describes_the_same_detector(acts_files, trackml, tmp_path, capsys):
    out = tmp_path / "detector.json"
    assert main([str(acts_files / "csv/detectors.csv"), "--json", str(out)]) == 0
    assert "volume 7: endcap, z negative, 756 modules, mirrors volume 9" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["modules"] == trackml["modules"] and found["neighbours"] == trackml["neighbours"]
    for one, two in zip(found["volumes"], trackml["volumes"], strict=True):
        assert all(one[key] == two[key] for key in ("volume_id", "kind", "side", "modules", "mirror"))
        for ours, theirs in zip(one["layers"], two["layers"], strict=True):
            assert ours["mirror"] == theirs["mirror"] and ours["pitch_u_mm"] is None
            assert ours["r_mm"] == pytest.approx(theirs["r_mm"], abs=0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("volume_id,layer_id,module_id\n", "no column 'cx'"),
        ("volume_id,layer_id,module_id,cx,cy,cz,rot_xw,rot_yw,rot_zw\n", "no modules"),
        ("volume_id,layer_id,module_id,cx,cy,cz,rot_xw,rot_yw,rot_zw\n1,2,3,nan,0,0,0,0,1\n", "row 1: cx is 'nan'"),
        (None, "no such file"),
    ],
)
def test_no_detector(tmp_path, capsys, text, message):
    path = tmp_path / "detectors.csv"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 2
    error = capsys.readouterr().err
    assert message in error and str(path) in error and error.count("\n") == 1


# ------------------------------------------------------------------------------------------- what a dataset says of it


def text(folder, table):
    """What is said of the detector of these modules."""
    folder.mkdir()
    pd.DataFrame(table).to_csv(folder / "detectors.csv", index=False)
    return text_of(find_detectors(list_files(folder), folder / "detectors.csv"))


def test_of_trackmls_detector_and_of_parts_of_it_nothing_is_said(tmp_path):
    table = dict(trackml_geometry().columns)
    assert text(tmp_path / "all", table) is None
    barrel = np.isin(table["volume_id"], TRACKML.barrels)
    assert text(tmp_path / "barrel", {name: values[barrel] for name, values in table.items()}) is None


def test_another_detector_is_known_by_its_modules(tmp_path):
    table = dict(trackml_geometry().columns)
    renamed = {7: 1, 8: 2, 9: 3}
    table = {name: values[table["volume_id"] < 10] for name, values in table.items()}
    table["layer_id"] = np.where(table["volume_id"] == 8, table["layer_id"], 20 - table["layer_id"])
    table["volume_id"] = np.vectorize(renamed.get)(table["volume_id"])
    said = text(tmp_path / "renamed", table)
    found = Detector.parse(said)
    assert (found.barrels, found.below, found.above, found.frames) == ((2,), (1,), (3,), True)
    assert found.parts == {"pixel": (1, 2, 3)} and found.names()[3] == "pixel positive endcap"
    assert found.neighbours == ((2, 2), (2, 4), (2, 6), (2, 8)) and Detector.parse(found.text()) == found
    volume, layer = np.array([1, 2, 3, 1], np.uint8), np.array([18, 4, 6, 7], np.uint8)
    assert found.reflected_layers(volume, layer).tolist() == [6, 4, 18, 7]  # nobody knows a layer 7
    turned = table | {"rot_xu": -table["rot_xu"], "rot_yu": -table["rot_yu"], "rot_zw": -table["rot_zw"]}
    assert not Detector.parse(text(tmp_path / "turned", turned)).frames
    table["volume_id"] = np.where(table["volume_id"] == 3, 1, table["volume_id"])
    assert text(tmp_path / "both sides", table) == UNKNOWN


@pytest.mark.parametrize(
    ("said", "feature", "message"),
    [
        (UNKNOWN, "layer", r"the detector is not known .* so feature 'layer' cannot be reflected"),
        (None, "volume", "volume 1 is none of TrackML's, so feature 'volume'"),
        ("part", "volume", "volume 3 is none of those whose mirror image is known"),
        ("part", "volume", r"is known \(`hpctrack convert --detectors` names its file\), so feature"),
        ("turned", "global_eta", "the axes of its modules are not as TrackML's, so feature 'global_eta'"),
    ],
)
def test_what_needs_the_detector_refuses_another(said, feature, message):
    mirrors = {(1, 2): (3, 4), (3, 4): (1, 2)} if said != "part" else {}
    known = Detector((2,), (1,), (3,), mirrors, (), frames=said != "turned")
    detector = known if said in ("part", "turned") else Detector.parse(said)
    columns = {"hits.volume_id": np.array([2, 3] if said in ("part", "turned") else [1], np.uint8)}
    with pytest.raises(InputError, match=message):
        check_volumes(columns, ["r", feature], "data: event 3", detector)
    check_volumes(columns, ["r", "z"], "data: event 3", detector)


def test_a_dataset_keeps_it_and_hands_it_on(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [1])
    table = pd.read_csv(make_detectors_csv(folder)).assign(volume_id=2)
    table.to_csv(folder / "detectors.csv", index=False)
    for path in folder.glob("*-hits.csv"):
        pd.read_csv(path).assign(volume_id=2).to_csv(path, index=False)
    assert convert.main([str(folder), str(tmp_path / "data"), "--jobs", "1"]) == 0
    assert convert.main([str(tmp_path / "data"), str(tmp_path / "sub"), "--tracks", "2", "--jobs", "1"]) == 0
    for name in ("data", "sub"):
        assert Dataset(tmp_path / name).detector.neighbours == ((2, 2), (2, 4), (2, 6), (2, 8))
    data = Dataset(tmp_path / "data")
    graph = build_graph(Named(name="doublets", phi_slope_max_per_mm=0.02, z0_max_mm=500.0), data.folder, data)
    assert graph(data.read(0), np.arange(data.n_hits[0])).shape[1] > 0
    capsys.readouterr()
    assert inspect.main([str(data.folder)]) == 0
    assert "barrels: volumes 2" in capsys.readouterr().out
