"""Tables of protons as T. Kortus et al. have them: frames, hits, truth, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from hpctrack.convert import main
from hpctrack.evaluation.calorimeter import COLUMNS, of_protons
from hpctrack.formats import proton_ct
from hpctrack.formats.recognise import format_of
from hpctrack.graphs.planes import Planes
from hpctrack.storage.store import open_dataset

NAMES = ("eventID", "trackID", "parentID", "edep", "posX", "posY", "posZ", "level1ID", "level2ID")


def table(rows, names=NAMES):
    """An array with named columns: whole numbers but for deposits and places."""
    ids = np.uint64 if rows[0][0] > 2**31 else np.int32
    types = [(name, np.float64 if name[:3] in ("ede", "pos", "spo") else np.int32) for name in names]
    types = [(name, ids if name == "eventID" else dtype) for name, dtype in types]
    return np.array([tuple(row) for row in rows], dtype=types)


def proton(event, planes, x=0.0, track=1, parent=0, edep=0.1):
    """A deposit in each of `planes`: 0 and 1 are trackers, from 2 on layers of the calorimeter."""
    of = [(plane, -1) if plane < 2 else (0, plane - 2) for plane in planes]
    return [(event, track, parent, edep, x, 1.0, 10.0 * p, *ids) for p, ids in zip(planes, of, strict=True)]


def converted(tmp_path, rows, *options, names=NAMES):
    (tmp_path / "in").mkdir(exist_ok=True)
    np.savez(tmp_path / "in" / "water.npz", table(rows, names))
    return main([str(tmp_path / "in"), str(tmp_path / "data"), "--jobs", "1", *options])


def test_frames_are_of_merged_deposits_up_to_an_empty_plane(tmp_path, capsys):
    rows = proton(7, range(6)) + proton(7, (4, 5), x=2.0, track=9, parent=1)
    rows += proton(7, (3,), x=1.0)  # the same track deposits twice in a plane: one hit between
    rows += proton(8, range(5), x=30.0) + proton(8, (5,), x=30.0, edep=1e-4)  # one pixel
    rows += proton(8, (8,), x=30.0)  # behind an empty plane
    rows += proton(11, range(4), x=-30.0) + proton(12, range(4)) + proton(13, range(4))  # 13 is left over
    assert converted(tmp_path, rows[::-1], "--option", "protons=2") == 0
    data = open_dataset(tmp_path / "data")
    assert [int(i) for i in data.event_ids] == [0, 1]
    event = data.read(0, COLUMNS)
    row, plane = event.column("truth.particle_row"), event.column("hits.layer_id")
    assert [sorted(plane[row == r].tolist()) for r in (0, 1)] == [[0, 1, 2, 3, 4, 4, 5, 5], [0, 1, 2, 3, 4]]
    assert event.column("hits.x")[(plane == 3) & (row == 0)] == 0.5
    assert event.column("cells.cell_charge")[(plane == 3) & (row == 0)] == pytest.approx(0.2)
    assert (event.column("hits.volume_id") == np.where(plane < 2, 1, 2)).all()
    assert (event.column("truth.weight") > 0).sum() == 11 and event.column("truth.weight").sum() == pytest.approx(1)
    assert event.column("particles.particle_id").tolist() == [8, 9]
    assert len(Planes(Planes.Options())(event, np.arange(event.n_hits)).T) == 13  # the angles part the two protons
    one = np.flatnonzero(row == 1)
    assert of_protons(event, (np.array([0, len(one)]), one))["purity"] == (1, 1)
    assert "2 events" in capsys.readouterr().out


def test_spots_are_apart(tmp_path):
    rows = [(*row, spot, 0.0) for spot in (0.0, 5.0) for e in (1, 2, 3) for row in proton(10 * spot + e, range(3))]
    names = (*NAMES, "spotX", "spotY")
    assert converted(tmp_path, rows, "--option", "protons=2", names=names) == 0
    data = open_dataset(tmp_path / "data")
    found = [data.read(k, ["particles.particle_id"]) for k in range(len(data))]
    assert [event.column("particles.particle_id").tolist() for event in found] == [[2, 3], [52, 53]]
    assert {"particles.vx", "particles.vz"} <= data.lacks  # a spot has no z


@pytest.mark.parametrize(
    "rows,options,names,text",
    [
        (proton(1, range(3)), (), NAMES, "no spot has 100 primaries"),
        ([row[:-1] for row in proton(1, range(3))], (), NAMES[:-1], "level1ID and level2ID"),
        (proton(1, range(3), edep=np.nan), (), NAMES, "row 0 of edep is nan"),
        (proton(1, range(3), edep=-1.0), (), NAMES, "row 0 of edep is -1.0"),
        (proton(1, (400,)), ("--option", "protons=1"), NAMES, "plane 400, must be from 0 to 255"),
        (proton(-1, range(3)), (), NAMES, "row 0 of eventID is -1, must be a whole number"),
        (proton(2**63, range(3)), (), NAMES, "row 0 of eventID is 9223372036854775808, must be"),
        (proton(1, range(1, 3)), ("--option", "protons=1"), NAMES, "frame 0: plane 0 is empty"),
    ],
)
def test_what_is_refused(tmp_path, capsys, rows, options, names, text):
    assert converted(tmp_path, rows, *options, names=names) == 2
    assert text in capsys.readouterr().err and not (tmp_path / "data" / "index.h5").exists()


def test_other_files_are_refused(tmp_path, capsys):
    (tmp_path / "a.npz").write_bytes(b"PK no zip")
    assert main([str(tmp_path / "a.npz"), str(tmp_path / "data")]) == 2
    assert "no .npz file" in capsys.readouterr().err
    assert main([str(tmp_path / "none.npz"), str(tmp_path / "data")]) == 2
    assert "none.npz: is not there" in capsys.readouterr().err
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert main([str(tmp_path / "a.npz"), str(tmp_path / "data")]) == 2
    assert "no .npz file of numbers (it is one array" in capsys.readouterr().err
    np.savez_compressed(tmp_path / "a.npz", table(proton(1, range(3))))
    whole = (tmp_path / "a.npz").read_bytes()
    at = whole.index(b"arr_0.npy") + 40
    (tmp_path / "a.npz").write_bytes(whole[:at] + bytes(b ^ 255 for b in whole[at : at + 20]) + whole[at + 20 :])
    assert main([str(tmp_path / "a.npz"), str(tmp_path / "data")]) == 2
    assert "truncated, damaged" in capsys.readouterr().err
    np.savez(tmp_path / "a.npz", other=np.zeros(3))
    assert main([str(tmp_path / "a.npz"), str(tmp_path / "data")]) == 2
    assert "no array 'arr_0'" in capsys.readouterr().err


def test_a_bad_file_is_left_out_and_files_are_read_once(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "acd":
        np.savez(tmp_path / "in" / f"{name}.npz", table(proton(1, range(3)) + proton(2, range(3))))
    (tmp_path / "in/b.npz").write_bytes(b"no zip")
    seen = []
    read = proton_ct.read
    monkeypatch.setattr(proton_ct, "read", lambda path: seen.append(path.name) or read(path))
    call = [str(tmp_path / "in"), "--jobs", "1", "--option", "protons=1"]
    assert main([*call, str(tmp_path / "none")]) == 2
    assert main([*call, str(tmp_path / "two"), "--limit", "2"]) == 0  # both of a.npz
    assert seen == ["a.npz", "b.npz", "c.npz", "d.npz", "a.npz"]
    assert main([*call, str(tmp_path / "all"), "--skip-bad"]) == 0
    data = open_dataset(tmp_path / "all")
    assert data.event_ids.tolist() == [k * proton_ct.FRAMES + frame for k in (0, 2, 3) for frame in range(2)]
    assert data.attributes["n_skipped"] == 1
    assert seen[5:] == [f"{name}.npz" for name in "abcdacd"]  # each to count its frames, then those that are good


def test_arrays_beside_other_files_are_passed_over(tmp_path):
    (tmp_path / "more.npz").write_bytes(b"")
    assert format_of(tmp_path) == "proton-ct"
    (tmp_path / "event000000001-hits.csv").write_text("")
    assert format_of(tmp_path) == "trackml"
