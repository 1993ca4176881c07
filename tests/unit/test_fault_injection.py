"""The injector of file faults itself: it counts, fails, kills and tears where it says so."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import tempfile

import h5py
import numpy as np
import pytest
from faults import AFTER, BEFORE, FAIL, HALF, KILL, Fault, faults, operations, strike

from hpctrack.files.atomic import write_text
from hpctrack.storage.hdf5 import atomic_h5


def test_operations_are_counted_by_kind_and_only_below_the_folder(tmp_path):
    inside = tmp_path / "inside"

    def act():
        inside.mkdir(exist_ok=True)
        (tmp_path / "outside").write_text("a")
        (inside / "a").write_text("a")
        with h5py.File(inside / "b.h5", "w") as file:
            file["x"] = 1
        (inside / "a").rename(inside / "c")
        shutil.rmtree(inside)

    steps = ["mkdir inside", "open a", "write a", "close a", "h5open b.h5", "h5close b.h5", "rename c"]
    names = operations(act, [inside])
    assert names[:7] == steps and sorted(names[7:]) == ["rmdir inside", "unlink b.h5", "unlink c"]


@pytest.mark.parametrize(
    ("how", "when", "left"), [(FAIL, BEFORE, b""), (FAIL, HALF, b"abc"), (KILL, HALF, b"abc"), (KILL, AFTER, b"abcdef")]
)
def test_a_write_fails_or_is_torn(tmp_path, how, when, left):
    path = tmp_path / "a"
    outcome = strike(lambda: path.write_bytes(b"abcdef") and None, [tmp_path], Fault(1, how, when))
    assert outcome.struck and path.read_bytes() == left
    assert outcome.code == -signal.SIGKILL if how == KILL else "No space left" in outcome.said


def test_a_full_disk_stays_full_and_lets_files_be_removed(tmp_path):
    (tmp_path / "old").write_text("")

    def act():
        for name in "ab":
            with pytest.raises(OSError, match="device") as error:
                (tmp_path / name).write_text("x")
            assert error.value.errno == errno.ENOSPC
        os.unlink(tmp_path / "old")

    outcome = strike(act, [tmp_path], Fault(0, FAIL, lasting=True))
    assert outcome.code == 0, outcome.said
    assert not list(tmp_path.iterdir())


def test_a_text_is_whole_or_not_there_whatever_goes_wrong(tmp_path):
    path = tmp_path / "text"
    path.write_text("old")
    ways = list(faults(operations(lambda: write_text(path, "new" * 9), [tmp_path])))
    assert len(ways) > 20
    for fault in ways:
        path.write_text("old")
        strike(lambda: write_text(path, "new" * 9), [tmp_path], fault)
        assert path.read_text() in ("old", "new" * 9), fault


def test_what_hdf5_writes_through_a_python_file_counts_and_so_do_unnamed_files(tmp_path):
    def act():
        with atomic_h5(tmp_path / "a.h5") as file:
            file["x"] = np.arange(9)
        with tempfile.TemporaryFile(dir=tmp_path, buffering=0) as file:
            file.write(b"abc")

    kinds = [name.split()[0] for name in operations(act, [tmp_path])]
    hdf5, unnamed = kinds[: kinds.index("unlink") + 1], kinds[kinds.index("unlink") + 1 :]
    assert hdf5[0] == "open" and hdf5.count("write") >= 2 and hdf5[-4:] == ["fsync", "replace", "fsync", "unlink"]
    assert unnamed == ["open", "write", "close"]
    outcome = strike(act, [tmp_path], Fault(kinds.index("write"), KILL, HALF))
    assert outcome.code == -signal.SIGKILL and {path.suffix for path in tmp_path.iterdir()} == {".h5", ".tmp"}


def test_reads_fail_if_they_are_asked_for(tmp_path):
    (tmp_path / "a").write_text("a")

    def act():
        (tmp_path / "a").read_text()
        os.listdir(tmp_path)

    assert operations(act, [tmp_path]) == []
    steps = operations(act, [tmp_path], reads=True)
    assert steps == ["read a", f"listdir {tmp_path.name}"]
    assert [(fault.how, fault.error) for fault in list(faults(steps))[:2]] == [(FAIL, errno.EIO)] * 2
    assert "Input/output error" in strike(act, [tmp_path], Fault(0, FAIL, error=errno.EIO), reads=True).said


def test_a_file_that_is_written_clears_what_killed_writers_of_it_left(tmp_path):
    path, other = tmp_path / "results[1].json", tmp_path / ".other.json.1-0123456789ab.tmp"
    other.write_text("")
    ways = [fault for fault in faults(operations(lambda: write_text(path, "x"), [tmp_path])) if fault.how == KILL]
    left = 0
    for fault in ways:
        strike(lambda: write_text(path, "x"), [tmp_path], fault)
        left += bool(list(tmp_path.glob(".results*.tmp")))
        write_text(path, "y")
        assert sorted(one.name for one in tmp_path.iterdir()) == sorted([path.name, other.name])
    assert left >= 3
