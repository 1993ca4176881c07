"""TrackML files: every layout reads alike and exactly; every fault is one line that names file, event and row."""

import gzip
import shutil
import zipfile

import numpy as np
import pandas as pd
import pytest
from helpers import make_detectors_csv, make_event_csv, make_event_tables, make_trackml, write_csv, write_event_csv

from hpctrack.convert import main
from hpctrack.formats.trackml import write_submission
from hpctrack.storage import schema, store

EVENT = "event000000007"


def convert(capsys, *args: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the verb."""
    code = main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, *args: object) -> str:
    """The one line of a refusal."""
    code, _, err = convert(capsys, *args, "--jobs", 1)
    lines = [line for line in err.splitlines() if "error" in line]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    return lines[0]


def read(folder, tmp_path, capsys, *options) -> schema.Event:
    out = tmp_path / "read"
    shutil.rmtree(out, ignore_errors=True)
    code, _, err = convert(capsys, folder, out, "--jobs", 1, *options)
    assert code == 0, err
    return store.open_dataset(out).read(0, verify=True)


# ------------------------------------------------------------------------------------------------ good events


def test_every_value_is_exact(tmp_path, capsys):
    event = read(make_trackml(tmp_path / "csv", [7]), tmp_path, capsys)
    tables = make_event_tables(seed=7)
    for name in schema.all_columns():
        table, column = name.split(".")
        values = event.column(name)
        assert values.dtype == schema.TABLES[table][column]
        if column in tables[table] and table != "cells":
            assert np.array_equal(values, tables[table][column].to_numpy().astype(values.dtype)), name
    hits, truth = tables["hits"], tables["truth"]
    x, y, z = (event.column(f"hits.{c}").astype(np.float64) for c in "xyz")
    np.testing.assert_allclose(event.column("hits.r"), np.hypot(x, y), rtol=1e-6)
    np.testing.assert_allclose(event.column("hits.phi"), np.arctan2(y, x), rtol=1e-6)
    np.testing.assert_allclose(event.column("hits.eta"), np.arctanh(z / np.sqrt(x**2 + y**2 + z**2)), rtol=1e-5)
    row, known = event.column("truth.particle_row"), event.column("particles.particle_id")
    assert np.array_equal(row < 0, truth["particle_id"] == 0)
    assert np.array_equal(known[row[row >= 0]], truth["particle_id"][row >= 0])
    count = tables["cells"].groupby("hit_id").size().reindex(hits["hit_id"], fill_value=0)
    assert np.array_equal(event.column("cells.cell_count"), count)


def layouts(tmp_path):
    """The same event in every layout the reader knows."""
    plain = make_trackml(tmp_path / "plain", [7])
    yield "plain", plain, ()
    yield "gz", make_trackml(tmp_path / "gz", [7], suffix=".csv.gz"), ()
    nested = tmp_path / "nested"
    make_event_csv(nested / "train_100_events", 7)
    make_detectors_csv(nested, "detectors.csv.gz")
    yield "sub-folder, detectors.csv.gz", nested, ()
    make_event_csv(tmp_path / "beside/train", 7)
    make_detectors_csv(tmp_path / "beside")
    yield "detectors in the parent", tmp_path / "beside/train", ()
    make_event_csv(tmp_path / "alone/train", 7)
    yield "--detectors", tmp_path / "alone/train", ("--detectors", plain / "detectors.csv")
    with zipfile.ZipFile(tmp_path / "detectors.zip", "w") as archive:
        archive.write(plain / "detectors.csv", "detectors.csv")
    with zipfile.ZipFile(tmp_path / "train_100_events.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(plain.glob("event*")):
            archive.write(path, f"train_100_events/{path.name}")
            archive.writestr(f"__MACOSX/train_100_events/._{path.name}", b"\0")
    yield "zip with a folder, detectors.zip beside it", tmp_path / "train_100_events.zip", ()
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in sorted((tmp_path / "gz").iterdir()):
            archive.write(path, path.name)
    yield "zip of gz with detectors", tmp_path / "whole.zip", ()
    tables = make_event_tables(seed=7)
    shuffled = tables | {kind: tables[kind].sample(frac=1, random_state=3) for kind in ("truth", "cells")}
    shuffled["hits"] = shuffled["hits"][sorted(shuffled["hits"].columns)].assign(comment="a b")
    folder = tmp_path / "order"
    write_event_csv(folder, 7, shuffled)
    make_detectors_csv(folder)
    yield "rows of truth and cells, and columns, in another order; a column more", folder, ()
    folder = make_trackml(tmp_path / "crlf", [7])
    for path in folder.glob("event*"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    yield "Windows line ends", folder, ()


def test_every_layout_reads_alike(tmp_path, capsys):
    digests = {}
    for number, (name, source, options) in enumerate(layouts(tmp_path)):
        code, _, err = convert(capsys, source, tmp_path / f"out-{number}", "--jobs", 1, *options)
        assert code == 0, (name, err)
        digests[name] = store.digest(store.open_dataset(tmp_path / f"out-{number}"))
    assert len(set(digests.values())) == 1, digests


def test_without_cells_particle_type_truth_noise_or_particles(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [7])
    whole = read(folder, tmp_path, capsys)
    particles = folder / f"{EVENT}-particles.csv"
    write_csv(particles, pd.read_csv(particles).drop(columns="particle_type"))
    assert not read(folder, tmp_path, capsys).column("particles.particle_type").any()
    (folder / f"{EVENT}-cells.csv").unlink()
    bare = read(folder, tmp_path, capsys)
    assert all(not values.any() for values in bare.tables["cells"].values())
    (folder / "detectors.csv").unlink()
    assert np.array_equal(read(folder, tmp_path, capsys).column("hits.x"), whole.column("hits.x"))
    for kind in ("truth", "particles"):
        (folder / f"{EVENT}-{kind}.csv").unlink()
    test = read(folder, tmp_path, capsys, "--no-truth")
    assert not test.column("truth.particle_id").any() and (test.column("truth.particle_row") == -1).all()
    assert len(test.column("particles.q")) == 0 and test.n_hits == whole.n_hits
    for number, sizes in enumerate([dict(n_particles=0, n_noise=1), dict(n_particles=1, n_noise=0)]):
        event = read(make_trackml(tmp_path / f"n{number}", [7], **sizes), tmp_path, capsys)
        assert event.n_hits == 4 * sizes["n_particles"] + sizes["n_noise"]


def test_the_real_event(trackml_dir, tmp_path, capsys):
    code, out, err = convert(capsys, trackml_dir, tmp_path / "out")
    assert code == 0, err
    dataset = store.open_dataset(tmp_path / "out")
    assert [int(n[0]) for n in (dataset.n_hits, dataset.n_noise, dataset.n_particles)] == [5527, 829, 548]
    assert "1 events, 5527 hits (829 noise), 548 particles" in out
    event = dataset.read(0, verify=True)
    assert event.event_id == 1 and int(event.column("cells.cell_count").sum()) == 18564
    for table in ("hits", "truth", "particles"):
        with gzip.open(next(trackml_dir.glob(f"*-{table}.csv.gz")), "rt") as file:
            header, *rows = [line.rstrip("\n").split(",") for line in file]
        for column, texts in zip(header, zip(*rows, strict=True), strict=True):
            if f"{table}.{column}" == "truth.hit_id":
                assert event.column("hits.hit_id").tolist() == [int(text) for text in texts]
                continue
            dtype = schema.TABLES[table][column]
            convert_text = int if np.issubdtype(dtype, np.integer) else float
            expected = np.array([convert_text(text) for text in texts]).astype(dtype)
            assert np.array_equal(event.column(f"{table}.{column}"), expected), (table, column)
    assert all(np.isfinite(event.column(name)).all() for name in schema.all_columns())
    row, nhits = event.column("truth.particle_row"), event.column("particles.nhits")
    assert np.array_equal(np.bincount(row[row >= 0], minlength=548), nhits)
    charge = pd.read_csv(next(trackml_dir.glob("*-cells.csv.gz"))).groupby("hit_id").value.sum()
    np.testing.assert_allclose(event.column("cells.cell_charge"), charge, rtol=1e-6)


# ------------------------------------------------------------------------------------------------ bad events


def lines_of(folder, kind):
    return (folder / f"{EVENT}-{kind}.csv").read_bytes().splitlines(keepends=True)


def edit(kind, change):
    """Change the lines of a file of the event; line 0 is the header."""

    def apply(folder):
        lines = lines_of(folder, kind)
        lines = change(lines) or lines
        (folder / f"{EVENT}-{kind}.csv").write_bytes(b"".join(lines))

    return apply


def put(kind, row, column, value):
    """Set one value; row counts from 1."""

    def change(lines):
        names = lines[0].decode().strip().split(",")
        fields = lines[row].decode().strip().split(",")
        fields[names.index(column)] = str(value)
        lines[row] = (",".join(fields) + "\n").encode()

    return edit(kind, change)


def drop_column(kind, column):
    def apply(folder):
        path = folder / f"{EVENT}-{kind}.csv"
        write_csv(path, pd.read_csv(path).drop(columns=column))

    return apply


def add_duplicate_event(folder):
    make_event_csv(folder / "again", 7)


FAULTS = {
    # name: (change, what the line must hold besides the file's and the event's name)
    "missing column": (drop_column("hits", "y"), ["-hits.csv", "no column 'y'"]),
    "missing column of truth": (drop_column("truth", "weight"), ["-truth.csv", "no column 'weight'"]),
    "header only of hits": (edit("hits", lambda lines: lines[:1]), ["-truth.csv", "row 1", "is not in the hits file"]),
    "position of 1e30": (put("hits", 6, "z", "1e30"), ["-hits.csv", "row 6", "z is 1e+30", "within 1e+09 mm"]),
    "radius beyond float32": (put("hits", 6, "x", "3e38"), ["-hits.csv", "row 6", "x is 3e+38", "within 1e+09 mm"]),
    "vertex of 1e30": (put("particles", 2, "vx", "-1e30"), ["-particles.csv", "row 2", "vx is -1e+30"]),
    "negative weight": (put("truth", 6, "weight", "-0.5"), ["-truth.csv", "row 6", "weight is -0.5", "negative"]),
    "weight that is no number": (put("truth", 6, "weight", "nan"), ["-truth.csv", "row 6", "weight is 'nan'"]),
    "negative nhits": (put("particles", 2, "nhits", -1), ["-particles.csv", "row 2", "nhits is '-1'"]),
    "short last row": (edit("hits", lambda lines: lines[:-1] + [b"24,1.0,2.0\n"]), ["-hits.csv", "row 24", "3 values"]),
    "short last row without its end": (edit("truth", lambda lines: lines[:-1] + [lines[-1][:9]]), ["-truth", "end"]),
    "cut within the last value": (edit("hits", lambda lines: lines[:-1] + [lines[-1][:-2]]), ["-hits", "truncated"]),
    "cut between rows of truth": (edit("truth", lambda lines: lines[:-3]), ["-truth.csv", "row 22", "hit_id 22"]),
    "cut between rows of hits": (edit("hits", lambda lines: lines[:-3]), ["-truth.csv", "row 22", "hit_id 22", "hits"]),
    "long row": (edit("hits", lambda lines: [*lines[:3], b"3,1,2,3,8,2,1,9\n", *lines[4:]]), ["row 3", "8 values"]),
    "long first row": (edit("hits", lambda lines: [lines[0], b"1,1,2,3,8,2,1,9\n", *lines[2:]]), ["row 1", "8 values"]),
    "all rows long": (edit("cells", lambda lines: [lines[0]] + [x[:-1] + b",\n" for x in lines[1:]]), ["row 1"]),
    "open quote": (put("hits", 5, "x", '"2.0'), ["-hits.csv", "row 5"]),
    "binary": (edit("hits", lambda lines: [lines[0], b"\0\xff\xfe\n", *lines[1:]]), ["-hits.csv", "row 1"]),
    "duplicate hit_id": (put("hits", 5, "hit_id", 4), ["-hits.csv", "row 5", "hit_id 4", "twice"]),
    "unsorted hit_id": (put("hits", 5, "hit_id", 2), ["-hits.csv", "row 5", "hit_id 2", "increase"]),
    "duplicate hit_id of truth": (put("truth", 5, "hit_id", 4), ["-truth.csv", "row 5", "hit_id 4", "twice", "row 4"]),
    "truth of no hit": (put("truth", 5, "hit_id", 99), ["-truth.csv", "row 5", "hit_id 99"]),
    "hit without truth": (edit("truth", lambda lines: lines[:5] + lines[6:]), ["-truth.csv", "hit_id 5"]),
    "NaN": (put("hits", 6, "x", "nan"), ["-hits.csv", "row 6", "x is 'nan'", "finite"]),
    "empty value": (put("hits", 6, "z", ""), ["-hits.csv", "row 6", "z is ''", "finite"]),
    "infinite": (put("hits", 6, "y", "-inf"), ["-hits.csv", "row 6", "y is '-inf'", "finite"]),
    "too large for float32": (put("truth", 6, "tx", "1e39"), ["-truth.csv", "row 6", "tx is '1e39'"]),
    "infinite momentum": (put("particles", 2, "px", "inf"), ["-particles.csv", "row 2", "px is 'inf'"]),
    "text": (put("cells", 9, "value", "abc"), ["-cells.csv", "row 9", "value is 'abc'"]),
    "text in an id": (put("hits", 9, "module_id", "A1"), ["-hits.csv", "row 9", "module_id is 'A1'", "whole"]),
    "1.5 as hit_id": (put("hits", 2, "hit_id", "1.5"), ["-hits.csv", "row 2", "hit_id is '1.5'", "whole number"]),
    "1e3 as hit_id": (put("truth", 2, "hit_id", "1e3"), ["-truth.csv", "row 2", "hit_id is '1e3'", "whole number"]),
    "particle_id as a float": (put("truth", 2, "particle_id", "1152921504606846977.0"), ["row 2", "whole"]),
    "negative particle_id": (put("truth", 2, "particle_id", -1), ["row 2", "particle_id is '-1'"]),
    "particle_id of 64 bits": (put("truth", 2, "particle_id", 2**63), ["row 2", "particle_id", "9223372036854775807"]),
    "particle_id of 70 bits": (put("truth", 2, "particle_id", 2**70), ["row 2", "particle_id", "9223372036854775807"]),
    "hit_id of 32 bits": (put("cells", 2, "hit_id", 2**31), ["-cells.csv", "row 2", "hit_id", "2147483647"]),
    "volume_id too large": (put("hits", 3, "volume_id", 256), ["-hits.csv", "row 3", "volume_id is '256'", "255"]),
    "charge too large": (put("particles", 3, "q", 128), ["-particles.csv", "row 3", "q is '128'", "127"]),
    "unknown particle": (put("truth", 3, "particle_id", 5), ["-truth.csv", "row 3", "particle_id 5", "-particles.csv"]),
    "duplicate particle": (
        edit("particles", lambda lines: lines + [lines[1]]), ["-particles.csv", "row 6", "row 1", "twice"]
    ),
    "noise as a particle": (put("particles", 1, "particle_id", 0), ["-particles.csv", "row 1", "particle_id is '0'"]),
    "unknown module": (put("hits", 3, "module_id", 99), ["-hits.csv", "row 3", "/99", "detectors.csv"]),
    "cell of no hit": (put("cells", 3, "hit_id", 0), ["-cells.csv", "row 3", "hit_id 0"]),
    "negative channel": (put("cells", 3, "ch0", -4), ["-cells.csv", "row 3", "ch0 is '-4'"]),
    "empty file": (edit("particles", lambda lines: [b""]), ["-particles.csv", "empty"]),
    "only blanks": (edit("cells", lambda lines: [b" \n\n"]), ["-cells.csv", "empty"]),
    "column twice": (edit("hits", lambda lines: [lines[0].replace(b"z", b"y"), *lines[1:]]), ["-hits.csv", "column"]),
    "missing truth": (lambda folder: (folder / f"{EVENT}-truth.csv").unlink(), ["-truth.csv", "missing", "--no-truth"]),
    "missing hits": (lambda folder: (folder / f"{EVENT}-hits.csv").unlink(), ["-hits.csv", "missing"]),
    "missing cells": (lambda folder: (folder / f"{EVENT}-cells.csv").unlink(), ["-cells.csv", "missing"]),
    "duplicate event": (add_duplicate_event, [f"again/{EVENT}", "also in"]),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_can_be_skipped(name, tmp_path, capsys):
    change, parts = FAULTS[name]
    folder, out = make_trackml(tmp_path / "csv", [6, 7]), tmp_path / "out"
    change(folder)
    line = refused(capsys, folder, out, "--events-per-shard", 1)
    for part in [EVENT, "event 7", *parts]:
        assert part in line, (part, line)
    assert not list(out.glob("index.h5")) and not list(out.glob(".*"))

    code, stdout, _ = convert(capsys, folder, out, "--events-per-shard", 1, "--jobs", 1, "--skip-bad")
    dataset = store.open_dataset(out)
    assert code == 0 and dataset.event_ids.tolist() == [6] and "left out: event 7: " in stdout
    assert '"event_id": 7' in (out / "skipped.json").read_text()


def test_damaged_gz(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [7], suffix=".csv.gz")
    path = folder / f"{EVENT}-truth.csv.gz"
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    for data, what in (
        (whole[:-40], "truncated"),
        (bytes(flipped), "corrupt"),
        (b"", "empty"),
        (b"hit_id\n", "corrupt"),
    ):
        path.write_bytes(data)
        line = refused(capsys, folder, tmp_path / "out")
        assert path.name in line and "event 7" in line and what in line


def test_damaged_zip(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [7])
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    data = (tmp_path / "whole.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[:-100])
    assert "cut.zip: not a whole zip" in refused(capsys, tmp_path / "cut.zip", tmp_path / "out")
    (tmp_path / "text.zip").write_text("no zip\n")
    assert "text.zip: not a whole zip" in refused(capsys, tmp_path / "text.zip", tmp_path / "out")
    at = data.index(f"{EVENT}-truth.csv".encode()) + 200
    (tmp_path / "bad.zip").write_bytes(data[:at] + b"7777" + data[at + 4 :])
    line = refused(capsys, tmp_path / "bad.zip", tmp_path / "out")
    assert f"bad.zip:{EVENT}-truth.csv" in line and "event 7" in line and "damaged" in line


def test_no_source(tmp_path, capsys):
    assert "nowhere: does not exist" in refused(capsys, tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    assert "empty: no TrackML events" in refused(capsys, tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_detectors(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [7])
    path = folder / "detectors.csv"
    frame = pd.read_csv(path)
    bad = {
        "stands twice": pd.concat([frame, frame]),
        "pitch_u is 0.0 in row ": frame.assign(pitch_u=0.0),
        "no column 'rot_xu'": frame.drop(columns="rot_xu"),
        "no modules": frame[:0],
    }
    for what, changed in bad.items():
        write_csv(path, changed)
        line = refused(capsys, folder, tmp_path / "out", "--skip-bad")
        assert "detectors.csv" in line and what in line
    path.unlink()
    assert "no detectors.csv found" in refused(capsys, folder, tmp_path / "out")
    assert "--detectors" in refused(capsys, folder, tmp_path / "out", "--detectors", tmp_path / "none.csv")


# ------------------------------------------------------------------------------------------------ submissions


@pytest.mark.parametrize("name", ["submission.csv", "submission.csv.gz"])
def test_submission(tmp_path, name):
    blocks = [(5, np.array([1, 2, 9]), np.array([1, 0, 1])), (6, np.array([4]), np.array([3]))]
    write_submission(tmp_path / name, iter(blocks))
    frame = pd.read_csv(tmp_path / name)
    assert frame.columns.tolist() == ["event_id", "hit_id", "track_id"]
    assert frame.to_numpy().tolist() == [[5, 1, 1], [5, 2, 0], [5, 9, 1], [6, 4, 3]]

    def broken():
        yield blocks[0]
        raise ValueError("no more")

    before = (tmp_path / name).read_bytes()
    with pytest.raises(ValueError, match="no more"):
        write_submission(tmp_path / name, broken())
    assert (tmp_path / name).read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["submission.csv", "submission.csv.gz"])
def test_submission_to_a_full_disk(small_disk, name):
    rng = np.random.default_rng(0)
    many = ((i, np.arange(9000), rng.integers(0, 1000, 9000)) for i in range(20))
    disk = small_disk(64)
    with pytest.raises(OSError, match=f"No space left on device.*{name}"):
        write_submission(disk / name, many)
    assert not list(disk.iterdir())
