"""What a detector's file says of it: the numbers that TrackML's tables in the code have, from both formats."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from hpctrack.events.symmetries import BARRELS, ENDCAPS, LAYERS
from hpctrack.formats.geometry import describe
from hpctrack.geometry import main
from hpctrack.graphs.doublets import BARREL
from hpctrack.simulation.geometry import trackml_geometry


@pytest.fixture(scope="module")
def trackml(tmp_path_factory):
    path = tmp_path_factory.mktemp("trackml") / "detectors.csv"
    pd.DataFrame(dict(trackml_geometry().columns)).to_csv(path, index=False)
    return describe(path)


def test_the_detector_of_trackml(trackml):
    kinds = {volume["volume_id"]: volume["kind"] for volume in trackml["volumes"]}
    assert kinds == dict.fromkeys(BARRELS, "barrel") | dict.fromkeys(ENDCAPS, "endcap")
    mirrors = {volume["volume_id"]: volume["mirror"] for volume in trackml["volumes"]}
    assert mirrors == {volume: volume for volume in BARRELS} | ENDCAPS
    for volume in trackml["volumes"]:
        for layer in volume["layers"] if volume["kind"] == "endcap" else ():
            number = volume["volume_id"]
            assert layer["mirror"] == [ENDCAPS[number], LAYERS[number] - layer["layer_id"]]
    assert [tuple(pair) for pair in trackml["neighbours"]] == [
        (*a, *b) for a, b in zip(BARREL, BARREL[1:], strict=False)
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
