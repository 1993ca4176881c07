"""A conversion that is run again: with other options, after a fault of the machine or of an event, over a dataset."""

from __future__ import annotations

import errno
import os
import shutil

import faults
import h5py
import pandas as pd
import pytest
from helpers import make_detectors_csv, make_event_csv, make_trackml

from hpctrack import convert, inspect
from hpctrack.events.subevents import SubEventReader
from hpctrack.formats import conversion, trackml
from hpctrack.formats.conversion import plan_tasks
from hpctrack.storage import store
from hpctrack.storage.detector import NOT_KNOWN, UNKNOWN


def run(*args: object) -> int:
    return convert.main([*map(str, args), "--jobs", "1"])


def content(folder) -> dict[str, bytes]:
    """Every file below."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ sub-events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Five events of ever more particles."""
    folder = tmp_path_factory.mktemp("data")
    make_detectors_csv(folder / "csv")
    for event_id, n in enumerate((20, 24, 28, 32, 36)):
        make_event_csv(folder / "csv", event_id, n_particles=n)
    assert run(folder / "csv", folder / "data") == 0
    return store.open_dataset(folder / "data")


def test_recipes_of_sub_events_name_their_events(dataset, tmp_path, capsys):
    """The last shards of two calls hold one event each, but not the same one."""
    options = ["--tracks", 3, "--draws", 2]
    assert run(dataset.folder, tmp_path / "out", *options, "--events-per-shard", 2, "--limit", 3) == 0
    assert run(dataset.folder, tmp_path / "right", *options, "--events-per-shard", 4) == 0
    for name in ("index.h5", "events-00000.h5"):
        (tmp_path / "out" / name).unlink()
    capsys.readouterr()
    assert run(dataset.folder, tmp_path / "out", *options, "--events-per-shard", 4) == 2
    assert "events-00001.h5: left by a convert of other input or options" in capsys.readouterr().err
    assert run(dataset.folder, tmp_path / "out", *options, "--events-per-shard", 4, "--overwrite") == 0
    assert content(tmp_path / "out") == content(tmp_path / "right")


def test_a_dataset_learns_what_is_known_of_its_detector(dataset, tmp_path, capsys, monkeypatch):
    """As one of an older version, which knew less: the shards stay, the index is new."""
    call = [dataset.folder.parent / "csv", tmp_path / "out"]
    with monkeypatch.context() as older:
        older.setattr(conversion.TrackmlReader, "detector", UNKNOWN)
        assert run(*call) == 0
    before = content(tmp_path / "out")
    assert run(*call) == 0 and "complete already" not in capsys.readouterr().err
    found = store.open_dataset(tmp_path / "out")
    assert found.detector == dataset.detector != NOT_KNOWN
    changed = {name for name, bytes_ in content(tmp_path / "out").items() if before[name] != bytes_}
    assert changed == {"index.h5"} and found.fingerprint == dataset.fingerprint
    assert run(*call) == 0 and "complete already" in capsys.readouterr().err


def test_the_cost_of_sub_events_is_their_hits(dataset, tmp_path):
    reader = SubEventReader(dataset, 3, None, 0.0, 3, remove_noise=False, seed=0)
    tasks = plan_tasks(reader, tmp_path, 2, None, False)
    assert [task.cost for task in tasks] == [float(dataset.n_hits[k : k + 2].sum()) for k in (0, 2, 4)]
    assert len({task.recipe() for task in tasks}) == 3


# ------------------------------------------------------------------------------------------------ what was left out


def test_a_bad_event_is_recorded_and_tried_again(tmp_path, capsys):
    source, out = make_trackml(tmp_path / "csv", range(4)), tmp_path / "out"
    path = source / "event000000002-truth.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    options = ["--skip-bad", "--events-per-shard", 2]
    assert run(source, out, *options) == 0
    (out / "skipped.json").unlink()  # a copy for people: the index has it, too
    capsys.readouterr()
    assert run(source, out, *options) == 0
    said = capsys.readouterr()
    assert "complete already" in said.err and "left out: event 2: " in said.out
    assert inspect.main([str(out), "--verify"]) == 0
    assert "event 2: " in capsys.readouterr().out
    before = content(out)
    assert run(source, out, "--events-per-shard", 2) == 2  # now that none may be left out
    assert "event 2: " in capsys.readouterr().err and content(out) == before

    path.write_bytes(whole)
    kept = (out / "events-00000.h5").stat().st_mtime_ns
    assert run(source, out, *options) == 0
    assert "left out" not in capsys.readouterr().out
    assert store.open_dataset(out).event_ids.tolist() == [0, 1, 2, 3]
    assert (out / "events-00000.h5").stat().st_mtime_ns == kept and not list(out.glob(".*"))
    assert run(source, tmp_path / "unbroken", "--events-per-shard", 2) == 0
    assert content(out) == content(tmp_path / "unbroken")


def out_of_memory_in_pandas(*_: object, **__: object) -> None:
    raise pd.errors.ParserError("Error tokenizing data. C error: out of memory")


def lack_of_memory(*_: object, **__: object) -> None:
    raise MemoryError


def disk_that_fails(*_: object, **__: object) -> None:
    raise OSError(errno.EIO, os.strerror(errno.EIO), "event000000003-hits.csv")


@pytest.mark.parametrize(
    ("where", "fault", "said"),
    [
        ("hpctrack.formats.csvtable.pd.read_csv", out_of_memory_in_pandas, "event 3: out of memory"),
        ("hpctrack.formats.trackml.cell_features", lack_of_memory, "event 3: out of memory"),
        ("hpctrack.formats.trackml_files.unpack", disk_that_fails, "Input/output error"),
    ],
)
def test_faults_of_the_machine_are_none_of_the_events(tmp_path, capsys, monkeypatch, where, fault, said):
    source, out = make_trackml(tmp_path / "csv", range(4)), tmp_path / "out"
    options = ["--skip-bad", "--events-per-shard", 1]
    read = trackml.read_event

    def read_event(source, event_id, *args):
        with monkeypatch.context() as patch:
            if event_id == 3:
                patch.setattr(where, fault)
            return read(source, event_id, *args)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "read_event", read_event)
        assert run(source, out, *options) == 1
    assert said in capsys.readouterr().err and not (out / "index.h5").exists()
    assert len(list(out.glob("events-*.h5"))) == 3
    assert run(source, out, *options) == 0
    assert len(store.open_dataset(out)) == 4 and not (out / "skipped.json").exists()


def test_many_events_left_out(tmp_path, capsys):
    """Reasons of more than the 64 kB that an attribute of HDF5's can hold."""
    source = make_trackml(tmp_path / ("long" * 50), [0])
    for event_id in range(1, 250):
        (source / f"event{event_id:09d}-hits.csv").write_text("hit_id\n")
    assert run(source, tmp_path / "out", "--skip-bad", "--events-per-shard", 1000) == 0
    assert store.open_dataset(tmp_path / "out").attributes["n_skipped"] == 249
    assert inspect.main([str(tmp_path / "out")]) == 0 and capsys.readouterr().out.count(": missing") == 2 * 249


# ------------------------------------------------------------------------------------------------ replacing


def test_overwrite_keeps_the_old_dataset_until_the_new_one_is_whole(tmp_path, capsys):
    old, new, out = (
        make_trackml(tmp_path / "old", range(3)),
        make_trackml(tmp_path / "new", range(5, 9)),
        tmp_path / "out",
    )
    assert run(old, out, "--events-per-shard", 1) == 0
    before = content(out)
    (new / "event000000008-hits.csv").write_text("hit_id\n")
    assert run(new, out, "--overwrite", "--events-per-shard", 2) == 2
    assert {name: data for name, data in content(out).items() if not name.startswith(".")} == before
    assert run(new, out, "--overwrite", "--events-per-shard", 2, "--skip-bad") == 0
    assert store.open_dataset(out).event_ids.tolist() == [5, 6, 7] and not list(out.glob(".*"))
    assert run(old, out, "--overwrite", "--events-per-shard", 1) == 0
    assert content(out) == before
    assert inspect.main([str(out), "--verify"]) == 0


def test_only_datasets_are_replaced(tmp_path, capsys):
    source = make_trackml(tmp_path / "csv", [1])
    candidates = tmp_path / "candidates"
    candidates.mkdir()
    with h5py.File(candidates / "index.h5", "w") as file:
        file.attrs["format"] = "hpctrack-candidates"
    (tmp_path / "home").mkdir()
    (tmp_path / "home/letter.txt").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, what in {
        "candidates": "holds 'hpctrack-candidates', which is no dataset",
        "home": "holds letter.txt, but no dataset",
        "csv": "but no dataset",
        "dangling": "is a link to nowhere, which does not exist",
    }.items():
        before = content(tmp_path / name) if name != "dangling" else None
        assert run(source, tmp_path / name, "--overwrite") == 2
        err = capsys.readouterr().err
        assert what in err and err.count("error") == 1
        assert before is None or content(tmp_path / name) == before


@pytest.mark.parametrize("how", [faults.KILL, faults.FAIL])
def test_moving_a_new_dataset_survives_a_fault_at_every_step(tmp_path, how, monkeypatch):
    """The old one or the new one, or neither said to be whole; whoever comes next finishes what has begun."""
    from hpctrack.formats import replacement

    old, new = make_trackml(tmp_path / "old", [0, 1]), make_trackml(tmp_path / "new", [5])
    was, is_now = (tmp_path / name for name in ("was", "is"))
    for folder, source in ((was, old), (is_now, new)):
        assert run(source, folder, "--events-per-shard", 1) == 0
    right = content(is_now)
    with monkeypatch.context() as patch:
        patch.setattr(replacement, "move", lambda out: None)
        assert run(new, was, "--events-per-shard", 1, "--overwrite") == 0
    assert len(store.open_dataset(was)) == 2 and (was / ".new/index.h5").exists()

    def fresh(name):
        return shutil.copytree(was, tmp_path / "outs" / str(name))

    out = fresh("count")
    n = len(faults.operations(lambda: replacement.move(out), [tmp_path]))
    assert n > 6 and content(out) == right
    for k in range(n):
        out = fresh(k)
        outcome = faults.strike(lambda out=out: replacement.move(out), [tmp_path], faults.Fault(k, how))
        assert outcome.struck
        found = {name: data for name, data in content(out).items() if not name.startswith(".")}
        if "index.h5" in found:
            assert len(store.open_dataset(out)) in (1, 2)
        else:
            assert (out / ".new/index.h5").exists()
        assert run(new, out, "--events-per-shard", 1) == 0
        assert content(out) == right


def test_new_shards_that_a_kill_left_are_kept_or_cleared(tmp_path, capsys):
    old, new, out = make_trackml(tmp_path / "old", [0]), make_trackml(tmp_path / "new", [5, 6]), tmp_path / "out"
    assert run(old, out) == 0
    before = content(out)
    (new / "event000000006-hits.csv").rename(tmp_path / "hidden")
    (new / "event000000006-hits.csv").write_text("hit_id\n")
    options = ["--overwrite", "--events-per-shard", 1]
    assert run(new, out, *options) == 2
    staged = out / ".new/events-00000.h5"
    made = staged.stat().st_mtime_ns
    (tmp_path / "hidden").rename(new / "event000000006-hits.csv")
    assert run(new, out, *options) == 0 and (out / "events-00000.h5").stat().st_mtime_ns == made
    assert run(old, out, "--overwrite") == 0 and content(out) == before
