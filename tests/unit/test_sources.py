"""What a source of TrackML events may look like: linked folders, events without hits, modules without geometry, files
that unpack to more than there is memory for; and faults of the machine, which are no faults of the data."""

from __future__ import annotations

import gzip
import os
import shutil
import zipfile

import numpy as np
import pandas as pd
from helpers import make_event_csv, make_event_tables, make_trackml, write_csv, write_event_csv

from hpctrack import convert, inspect, simulate
from hpctrack.formats.trackml_files import find_events
from hpctrack.storage import store


def run(capsys, *args: object) -> tuple[int, str, str]:
    code = convert.main([*map(str, args), "--jobs", "1"])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *args: object, code: int = 2) -> str:
    """The one line of a refusal."""
    found, _, err = run(capsys, *args)
    lines = [line for line in err.splitlines() if "error" in line]
    assert found == code and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


# ------------------------------------------------------------------------------------------------ links


def test_linked_folders_are_read_each_real_one_once(tmp_path, capsys):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    make_trackml(source, [1])
    make_event_csv(source / "part", 2)
    make_event_csv(elsewhere / "deep", 3)
    (source / "a_link").symlink_to("part")  # the same events again, before their own folder by name
    (source / "linked").symlink_to(elsewhere)
    (elsewhere / "again").symlink_to(source)  # a circle
    (elsewhere / "deep" / "up").symlink_to("..")
    for path in source.glob("event000000001-*"):
        (source / "part" / path.name).symlink_to(path)  # a link to the same file is not another event
    assert run(capsys, source, tmp_path / "out")[0] == 0
    assert store.open_dataset(tmp_path / "out").event_ids.tolist() == [1, 2, 3]
    assert find_events(source).events[2]["hits"].startswith("part/")
    shutil.copy(source / "event000000001-hits.csv", elsewhere)
    assert "event 1: also in" in refused(capsys, source, tmp_path / "again")


def test_lost_and_found_at_the_root_of_a_file_system_is_no_part_of_a_source(tmp_path, monkeypatch):
    make_trackml(tmp_path, [1])
    make_event_csv(tmp_path / "lost+found", 2)
    assert list(find_events(tmp_path).events) == [1, 2]
    monkeypatch.setattr(os.path, "ismount", lambda path: path == str(tmp_path))
    assert list(find_events(tmp_path).events) == [1]


def test_links_alone_and_links_to_nothing(tmp_path, capsys):
    make_trackml(tmp_path / "real", [1])
    source = tmp_path / "source"
    source.mkdir()
    (source / "part").symlink_to(tmp_path / "real")
    assert run(capsys, source, tmp_path / "out")[0] == 0
    (source / "gone").symlink_to(tmp_path / "nowhere")
    line = refused(capsys, source, tmp_path / "other")
    assert f"{source}/gone: a link to {tmp_path}/nowhere, which does not exist" in line
    (source / "gone").unlink()
    (source / ".#hidden").symlink_to("somebody@somewhere.1")  # of an editor
    (tmp_path / "real/event000000001-truth.csv").unlink()
    (tmp_path / "real/event000000001-truth.csv").symlink_to("nothing")
    line = refused(capsys, source, tmp_path / "other")
    assert "event 1" in line and "-truth.csv: event 1: a link to nothing, which does not exist" in line
    (tmp_path / "real/event000000001-truth.csv").unlink()
    os.mkfifo(tmp_path / "real/event000000001-truth.csv")
    assert "no regular file" in refused(capsys, source, tmp_path / "other")


# ------------------------------------------------------------------------------------------------ modules


def acts_detectors(folder, **columns):
    """detectors.csv with a passive surface, twice, and the given columns in place of those of `make_trackml`."""
    frame = pd.read_csv(folder / "detectors.csv").assign(**columns)
    passive = frame[:1].assign(volume_id=3, module_id=0, module_t=-1.0, pitch_u=-1.0, pitch_v=-1.0)
    write_csv(folder / "detectors.csv", pd.concat([passive, passive, frame]))


def test_modules_need_geometry_for_cells_only(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [1])
    acts_detectors(folder, pitch_u=-1.0, pitch_v=-1.0)
    line = refused(capsys, folder, tmp_path / "out")
    assert "-cells.csv: event 1: a cell is on module 8/" in line and "pitch_u is -1.0 in row" in line
    (folder / "event000000001-cells.csv").unlink()
    assert run(capsys, folder, tmp_path / "out")[0] == 0
    frame = pd.read_csv(folder / "detectors.csv")[["volume_id", "layer_id", "module_id"]]
    write_csv(folder / "detectors.csv", frame)
    assert run(capsys, folder, tmp_path / "ids")[0] == 0
    write_csv(folder / "detectors.csv", frame[:5])  # hits are still looked up
    assert "is not in" in refused(capsys, folder, tmp_path / "other")


def test_passive_surfaces_do_not_matter_where_no_cell_is(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [1])
    assert run(capsys, folder, tmp_path / "before")[0] == 0
    acts_detectors(folder)
    assert run(capsys, folder, tmp_path / "after")[0] == 0
    assert len({store.open_dataset(tmp_path / name).fingerprint for name in ("before", "after")}) == 1


# ------------------------------------------------------------------------------------------------ events and columns


def test_an_event_without_hits_is_kept(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [1, 3])
    write_event_csv(folder, 2, {kind: table[:0] for kind, table in make_event_tables().items()})
    assert run(capsys, folder, tmp_path / "out")[0] == 0
    dataset = store.open_dataset(tmp_path / "out")
    assert dataset.event_ids.tolist() == [1, 2, 3] and dataset.n_hits[1] == 0
    assert inspect.main([str(tmp_path / "out"), "--verify"]) == 0
    write_event_csv(folder, 2, {"cells": make_event_tables()["cells"]})
    assert "-cells.csv: event 2: row 1: hit_id" in refused(capsys, folder, tmp_path / "cells")


def test_what_simulate_writes_is_converted_and_verified(tmp_path, capsys):
    options = ["--source", "helix", "--particles", "1", "--events", "6", "--seed", "1"]
    assert simulate.main([str(tmp_path / "csv"), *options]) == 0
    assert run(capsys, tmp_path / "csv", tmp_path / "out")[0] == 0
    assert (store.open_dataset(tmp_path / "out").n_hits == 0).any()
    assert inspect.main([str(tmp_path / "out"), "--verify"]) == 0


def test_what_is_converted_is_verified(tmp_path, capsys):
    """Cut-down files keep the nhits of whole events; files without nhits have them counted."""
    folder = make_trackml(tmp_path / "csv", [1])
    tables = make_event_tables(seed=1)
    kept = tables["hits"]["layer_id"] < 5
    ids = tables["hits"]["hit_id"][kept]
    cut = {kind: table[table["hit_id"].isin(ids)] for kind, table in tables.items() if kind != "particles"}
    write_event_csv(folder, 1, cut | {"particles": tables["particles"]})
    write_event_csv(folder, 2, cut | {"particles": tables["particles"].drop(columns="nhits")})
    assert run(capsys, folder, tmp_path / "out")[0] == 0
    dataset = store.open_dataset(tmp_path / "out")
    whole, counted = (dataset.read(i).column("particles.nhits") for i in (0, 1))
    assert (whole == 4).all() and (counted == 2).all()
    capsys.readouterr()
    assert inspect.main([str(tmp_path / "out"), "--verify"]) == 0
    said = f"{len(whole)} of {len(whole) + len(counted)} particles have fewer hits here than their nhits"
    assert said in capsys.readouterr().out


def test_cutting_down_is_said_once_and_only_where_it_is(tmp_path, capsys):
    """The note outlives a rerun and sub-events; weights stay as given; what nothing was cut of has no note."""
    folder, tables = make_trackml(tmp_path / "csv", [1, 2]), make_event_tables(seed=1)
    assert "cut down" not in run(capsys, folder, tmp_path / "whole")[1]
    assert "n_cut_particles" not in store.open_dataset(tmp_path / "whole").attributes
    kept = tables["hits"]["hit_id"][tables["hits"]["layer_id"] != 4]
    cut = {kind: table[table["hit_id"].isin(kept)] for kind, table in tables.items() if kind != "particles"}
    write_event_csv(folder, 1, cut | {"particles": tables["particles"]})
    for _ in range(2):
        code, text, _ = run(capsys, folder, tmp_path / "out")
        assert code == 0 and "cut down: " in text
    weight = store.open_dataset(tmp_path / "out").read(0).column("truth.weight")
    assert np.array_equal(weight, cut["truth"]["weight"].to_numpy(np.float32))
    code, text, _ = run(capsys, tmp_path / "out", tmp_path / "sub", "--tracks", "all", "--min-hits", "3")
    assert code == 0 and "cut down: " in text
    assert inspect.main([str(tmp_path / "sub"), "--verify"]) == 0


def test_more_hits_than_nhits_says_are_refused(tmp_path, capsys):
    folder, tables = make_trackml(tmp_path / "csv", [1]), make_event_tables(seed=1)
    particles = tables["particles"].copy()
    particles.loc[2, "nhits"] = 3
    write_event_csv(folder, 1, {"particles": particles})
    line = refused(capsys, folder, tmp_path / "out")
    assert f"-particles.csv: event 1: row 3: nhits of particle {particles.particle_id[2]} is 3, but 4 hits" in line


# ------------------------------------------------------------------------------------------------ what unpacks


def bomb(size: int) -> bytes:
    """A gzip of `size` spaces."""
    return gzip.compress(b"hit_id,x\n" + b" " * size)


def test_files_that_unpack_beyond_the_limit(tmp_path, capsys, monkeypatch):
    folder = make_trackml(tmp_path / "csv", [1])
    (folder / "event000000001-hits.csv").unlink()
    (folder / "event000000001-hits.csv.gz").write_bytes(bomb(3_000_000))
    monkeypatch.setenv("HPCTRACK_MAX_UNPACKED_GB", "0.002")
    line = refused(capsys, folder, tmp_path / "out")
    assert "-hits.csv.gz: event 1: unpacks to" in line and "raise HPCTRACK_MAX_UNPACKED_GB" in line
    for packed in (True, False):
        with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(folder.glob("event*")):
                if "hits" not in path.name or packed:
                    archive.write(path, path.name)
                else:
                    archive.writestr(path.name.removesuffix(".gz"), gzip.decompress(path.read_bytes()))
        line = refused(capsys, tmp_path / "one.zip", tmp_path / "out")
        assert "event000000001-hits.csv" in line and "unpacks to" in line
    monkeypatch.setenv("HPCTRACK_MAX_UNPACKED_GB", "0.004")
    assert "no column 'y'" in refused(capsys, folder, tmp_path / "out")
    for wrong in ("two", "0", "nan"):
        monkeypatch.setenv("HPCTRACK_MAX_UNPACKED_GB", wrong)
        assert f"HPCTRACK_MAX_UNPACKED_GB='{wrong}': must be" in refused(capsys, folder, tmp_path / "out")


def test_a_gzip_of_several_parts_is_read_whole(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [1])
    assert run(capsys, folder, tmp_path / "one")[0] == 0
    path = folder / "event000000001-hits.csv"
    data = path.read_bytes()
    path.unlink()
    path.with_suffix(".csv.gz").write_bytes(gzip.compress(data[:100]) + gzip.compress(data[100:]) + bytes(7))
    assert run(capsys, folder, tmp_path / "two")[0] == 0
    digests = {store.digest(store.open_dataset(tmp_path / name)) for name in ("one", "two")}
    assert len(digests) == 1
