"""The convert verb: jobs, reruns after a kill, full disks, OUT in the way; and sub-events."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from helpers import make_trackml
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack import convert
from hpctrack.events.selection import target_particles
from hpctrack.events.subevents import SubEventReader
from hpctrack.files.lock import only_writer
from hpctrack.storage import hdf5, schema, store

ROOT = Path(__file__).parents[2]


def run(capsys, *args: object) -> tuple[int, str, str]:
    code = convert.main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return code, out, err


def command(*args: object) -> dict:
    """Arguments for subprocess: the verb as a user calls it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {"args": [sys.executable, "-m", "hpctrack.convert", *map(str, args)], "env": environment, "text": True}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = make_trackml(tmp_path_factory.mktemp("csv"), range(100, 107))
    (folder / "event000000103-hits.csv").rename(folder / "hidden.csv")  # a bad event, until it is mended
    return folder


@pytest.fixture
def whole(source):
    (source / "hidden.csv").rename(source / "event000000103-hits.csv")
    yield source
    (source / "event000000103-hits.csv").rename(source / "hidden.csv")


def test_jobs_and_shards_do_not_change_the_content(whole, tmp_path, capsys):
    digests, bytes_of = set(), {}
    for name, options in {"a": (1, 16), "b": (1, 2), "c": (2, 2)}.items():
        jobs, per_shard = options
        assert run(capsys, whole, tmp_path / name, "--jobs", jobs, "--events-per-shard", per_shard)[0] == 0
        digests.add(store.digest(store.open_dataset(tmp_path / name)))
        bytes_of[name] = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
    assert len(digests) == 1 and len(bytes_of["a"]) == 2
    assert bytes_of["b"] == bytes_of["c"] and len(bytes_of["b"]) == 5


def test_progress_summary_limit_and_permissions(whole, tmp_path, capsys):
    code, out, err = run(capsys, whole, tmp_path / "out", "--jobs", 1, "--limit", 3)
    assert code == 0 and "convert: 3/3 events" in err
    fingerprint = store.open_dataset(tmp_path / "out").fingerprint
    assert out == f"{tmp_path}/out: 3 events, 72 hits (12 noise), 15 particles, 1 shards, fingerprint {fingerprint}\n"
    mask = os.umask(0)
    os.umask(mask)
    assert all(path.stat().st_mode & 0o777 == 0o666 & ~mask for path in (tmp_path / "out").iterdir())


def test_skip_bad_keeps_the_rest(source, tmp_path, capsys):
    code, _, err = run(capsys, source, tmp_path / "out")
    assert code == 2 and "event000000103-hits.csv: event 103: missing" in err and not (tmp_path / "out").exists()
    code, out, _ = run(capsys, source, tmp_path / "out", "--skip-bad", "--jobs", 1, "--events-per-shard", 2)
    dataset = store.open_dataset(tmp_path / "out")
    assert code == 0 and dataset.event_ids.tolist() == [100, 101, 102, 104, 105, 106]
    skipped = json.loads((tmp_path / "out/skipped.json").read_text())
    assert [entry["event_id"] for entry in skipped] == [103] and skipped[0]["reason"] in out
    assert len(dataset.shards) == 4
    again = run(capsys, source, tmp_path / "out", "--skip-bad", "--events-per-shard", 2)
    assert again[0] == 0 and again[1] == out and "complete already" in again[2]


def test_all_bad(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", [1, 2])
    for path in folder.glob("*-truth.csv"):
        path.unlink()
    code, _, err = run(capsys, folder, tmp_path / "out", "--skip-bad", "--jobs", 1)
    assert code == 2 and "none of the 2 events can be used; the first: " in err
    assert not (tmp_path / "out").exists()
    assert run(capsys, folder, tmp_path / "out", "--no-truth", "--jobs", 1)[0] == 0


def test_the_first_error_in_order_whatever_the_jobs(tmp_path, capsys):
    folder = make_trackml(tmp_path / "csv", range(6))
    for event_id in (2, 3, 4):
        (folder / f"event00000000{event_id}-hits.csv").write_text("hit_id\n")
    lines = set()
    for jobs in (1, 2):
        code, _, err = run(capsys, folder, tmp_path / "out", "--jobs", jobs, "--events-per-shard", 1)
        assert code == 2
        lines.add(next(line for line in err.splitlines() if "error" in line))
    assert len(lines) == 1 and "event 2: no column 'x'" in lines.pop()


def test_out_in_the_way(whole, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(capsys, whole, out, "--limit", 2, "--jobs", 1)[0] == 0
    first = store.open_dataset(out).fingerprint
    code, _, err = run(capsys, whole, out, "--jobs", 1)
    assert code == 2 and "holds a dataset of other input or options" in err
    assert store.open_dataset(out).fingerprint == first
    assert run(capsys, whole, out, "--jobs", 1, "--overwrite", "--events-per-shard", 2)[0] == 0
    assert len(store.open_dataset(out)) == 7
    (out / "index.h5").write_text("damaged")
    assert "convert again with --overwrite" in run(capsys, whole, out, "--jobs", 1)[2]
    (out / "index.h5").unlink()
    code, _, err = run(capsys, whole, out, "--jobs", 1)
    assert code == 2 and "events-00000.h5: left by a convert of other input or options" in err
    (tmp_path / "file").write_text("")
    assert "file: is a file; OUT must be a folder" in run(capsys, whole, tmp_path / "file")[2]
    assert "OUT is SOURCE" in run(capsys, out, out, "--tracks", 2)[2]


def test_a_rerun_keeps_whole_shards_and_redoes_the_rest(whole, tmp_path, capsys):
    options = ["--jobs", 1, "--events-per-shard", 2]
    assert run(capsys, whole, tmp_path / "out", *options)[0] == 0
    expected = store.digest(store.open_dataset(tmp_path / "out"))
    (tmp_path / "out/index.h5").unlink()
    (tmp_path / "out/events-00002.h5").unlink()
    (tmp_path / "out/.events-00002.h5.1-00.tmp").write_text("half")
    kept = (tmp_path / "out/events-00001.h5").stat().st_mtime_ns
    assert run(capsys, whole, tmp_path / "out", *options)[0] == 0
    assert store.digest(store.open_dataset(tmp_path / "out")) == expected
    assert (tmp_path / "out/events-00001.h5").stat().st_mtime_ns == kept
    assert sorted(p.name for p in (tmp_path / "out").glob(".*")) == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("jobs", [1, 2])
def test_kill_and_rerun_equals_an_unbroken_run(whole, tmp_path, jobs, capsys):
    out, options = tmp_path / "out", ["--events-per-shard", 1]
    process = subprocess.Popen(**command(whole, out, *options, "--jobs", jobs), stderr=subprocess.DEVNULL)
    while process.poll() is None and len(list(out.glob("events-*.h5"))) < jobs:
        time.sleep(0.001)
    workers = children_of(process.pid)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and (jobs == 1 or len(workers) >= jobs)
    deadline = time.monotonic() + 30
    while any(is_running(worker) for worker in workers):  # they end by themselves
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not (out / "index.h5").exists()
    for path in out.glob("events-*.h5"):
        assert store.shard_attributes(path)["n_events"] == 1
    assert run(capsys, whole, out, *options, "--jobs", 1)[0] == 0
    assert not list(out.glob(".*"))
    assert run(capsys, whole, tmp_path / "unbroken", *options, "--jobs", 1)[0] == 0
    assert store.digest(store.open_dataset(out)) == store.digest(store.open_dataset(tmp_path / "unbroken"))


def test_two_at_once_and_a_damaged_shard(whole, tmp_path, capsys):
    out, options = tmp_path / "out", ["--jobs", 1, "--events-per-shard", 2]
    assert run(capsys, whole, out, *options)[0] == 0
    expected = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "index.h5").unlink()
    with only_writer(out):
        code, _, err = run(capsys, whole, out, *options)
        assert code == 2 and err.count("\n") == 1 and f"{out}: process {os.getpid()} on " in err
    assert not (out / ".lock").exists()
    content = bytearray(expected["events-00001.h5"])
    with h5py.File(out / "events-00001.h5") as file:
        content[file["hits/phi"].id.get_offset() + 5] ^= 4
    (out / "events-00001.h5").write_bytes(content)
    (out / "events-00002.h5").write_bytes(expected["events-00002.h5"][:1000])
    (out / ".lock").write_text("process 1 on nowhere")  # of a killed run
    kept = (out / "events-00000.h5").stat().st_mtime_ns
    assert run(capsys, whole, out, *options)[0] == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
    assert (out / "events-00000.h5").stat().st_mtime_ns == kept


def test_full_disk(whole, small_disk, tmp_path):
    for jobs in (1, 2):
        out = small_disk(150) / "out"
        done = subprocess.run(
            **command(whole, out, "--jobs", jobs, "--events-per-shard", 2), check=False, capture_output=True
        )
        lines = done.stderr.splitlines()
        assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
        assert "No space left on device" in lines[-1] and "events-0000" in lines[-1]
        assert not (out / "index.h5").exists() and not list(out.glob(".*"))
        for path in out.glob("events-*.h5"):
            hdf5.open_h5(path, "shard").close()


@pytest.mark.parametrize("option", ["--jobs=0", "--limit=x", "--seed=-1", "--pt-min-gev=nan", "--events-per-shard=1.5"])
def test_bad_options(whole, tmp_path, option, capsys):
    with pytest.raises(SystemExit) as caught:
        convert.main([str(whole), str(tmp_path / "out"), option])
    assert caught.value.code == 2 and "must be a" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------ sub-events


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sub")
    make_trackml(folder / "csv", [3, 9, 12], n_particles=23, n_noise=60)
    make_trackml(folder / "csv", [20], n_particles=2, n_noise=9)
    assert convert.main([str(folder / "csv"), str(folder / "data"), "--jobs", "1"]) == 0
    return store.open_dataset(folder / "data")


def test_the_verb_makes_sub_events(dataset, tmp_path, capsys):
    options = ["--pt-min-gev", 1, "--tracks", 4, "--seed", 7]
    code, out, _ = run(capsys, dataset.folder, tmp_path / "a", *options, "--jobs", 1)
    assert code == 0 and "from 3 events; 1 have too few tracks for a sub-event" in out
    made = store.open_dataset(tmp_path / "a")
    assert run(capsys, dataset.folder, tmp_path / "b", *options, "--jobs", 1, "--events-per-shard", 1)[0] == 0
    assert store.digest(made) == store.digest(store.open_dataset(tmp_path / "b"))
    expected = []
    for i, event_id in enumerate(dataset.event_ids):
        n = int(target_particles(dataset.read(i), 1.0, 3).sum()) // 4
        expected += [1000 * int(event_id) + draw for draw in range(n)]
    assert made.event_ids.tolist() == expected and (made.n_particles == 4).all()
    origin = json.loads(made.attributes["origin"])
    assert origin["of"] == dataset.fingerprint and origin["tracks"] == 4 and origin["seed"] == 7
    assert run(capsys, dataset.folder, tmp_path / "c", *options, "--draws", 2, "--jobs", 1)[0] == 0
    few = store.open_dataset(tmp_path / "c")
    assert set(few.event_ids.tolist()) == {i for i in expected if i % 1000 < 2}
    one = int(np.searchsorted(made.event_ids, few.event_ids[1]))
    assert few.checksums[1] == made.checksums[one]
    assert run(capsys, dataset.folder, tmp_path / "d", *options, "--remove-noise", "--jobs", 1)[0] == 0
    assert not store.open_dataset(tmp_path / "d").n_noise.any()
    assert "eta_max" not in origin  # which came later
    options = ["--tracks", "all", "--eta-max", 1.5]
    assert run(capsys, dataset.folder, tmp_path / "e", *options, "--jobs", 1)[0] == 0
    central = store.open_dataset(tmp_path / "e")
    assert json.loads(central.attributes["origin"])["eta_max"] == 1.5 and central.n_particles.any()
    for k in range(len(central)):
        px, py, pz = (central.read(k).column(f"particles.p{axis}") for axis in "xyz")
        assert (np.abs(np.arcsinh(pz / np.hypot(px, py))) <= 1.5).all()


@settings(max_examples=20)
@given(tracks=st.integers(1, 12), pt=st.sampled_from([0, 0.8, 1.5]), seed=st.integers(0, 9), noise=st.booleans())
def test_sub_events_are_disjoint_whole_and_consistent(dataset, tracks, pt, seed, noise):
    reader = SubEventReader(dataset, tracks, None, pt, 3, remove_noise=not noise, seed=seed)
    event = dataset.read(0)
    target = target_particles(event, pt, 3)
    ids_of_targets = set(event.column("particles.particle_id")[target].tolist())
    seen = set()
    for sub in reader.read(int(dataset.event_ids[0])):
        known, row = sub.column("particles.particle_id"), sub.column("truth.particle_row")
        drawn = set(known.tolist())
        assert len(known) == tracks and drawn <= ids_of_targets and not drawn & seen
        seen |= drawn
        assert np.array_equal(np.where(row >= 0, known[row], 0), sub.column("truth.particle_id"))
        assert np.array_equal(np.bincount(row[row >= 0], minlength=tracks), sub.column("particles.nhits"))
        assert (np.diff(sub.column("hits.hit_id")) > 0).all()
        assert noise or (row >= 0).all()
        at = np.searchsorted(event.column("hits.hit_id"), sub.column("hits.hit_id"))
        for name in schema.all_columns():
            if not name.startswith("particles.") and name != "truth.particle_row":
                assert np.array_equal(sub.column(name), event.column(name)[at]), name
            assert sub.column(name).dtype == event.column(name).dtype
    assert len(seen) == len(ids_of_targets) // tracks * tracks


def test_sub_events_of_all_tracks(dataset):
    event = dataset.read(0)
    (whole,) = SubEventReader(dataset, 0, None, 0.8, 3, remove_noise=True, seed=1).read(int(dataset.event_ids[0]))
    target = target_particles(event, 0.8, 3)
    assert np.array_equal(whole.column("particles.particle_id"), event.column("particles.particle_id")[target])
    assert not list(SubEventReader(dataset, 0, None, 1e6, 3, remove_noise=True, seed=1).read(int(dataset.event_ids[0])))


def test_sub_events_refused(dataset, tmp_path, capsys):
    def line(*options):
        code, _, err = run(capsys, dataset.folder, tmp_path / "out", *options, "--jobs", 1)
        assert code == 2
        return err

    assert "--tracks T makes sub-events of it" in line()
    assert "--detectors and --no-truth are for TrackML files" in line("--no-truth", "--tracks", 3)
    assert "--draws is 1001, must be at most 1000" in line("--tracks", 3, "--draws", 1001)
    assert "no event has enough tracks" in line("--tracks", 500)
    code, _, err = run(capsys, dataset.folder.parent / "csv", tmp_path / "out", "--tracks", 3)
    assert code == 2 and "--tracks is for a dataset" in err


def test_ids_of_sub_events_that_overflow(tmp_path, capsys):
    make_trackml(tmp_path / "csv", [10**16])
    assert run(capsys, tmp_path / "csv", tmp_path / "data", "--jobs", 1)[0] == 0
    code, _, err = run(capsys, tmp_path / "data", tmp_path / "sub", "--tracks", 2, "--jobs", 1)
    assert code == 2 and f"event {10**16}: the ids of its sub-events (1000 * id + draw) exceed 64 bits" in err


SHOW_METHOD = """
import multiprocessing, sys
context = multiprocessing.get_context
multiprocessing.get_context = lambda method=None: print("begun by", method) or context(method)
from hpctrack import convert
sys.exit(convert.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere processes are spawned")
def test_processes_begin_without_new_imports(tmp_path):
    """The thread that beats for the folder's owner is no reason to import everything once more for each process."""
    source = make_trackml(tmp_path / "csv", [1, 2])
    arguments = [str(source), str(tmp_path / "out"), "--jobs", "2", "--events-per-shard", "1"]
    process = command() | {"args": [sys.executable, "-c", SHOW_METHOD, *arguments]}
    found = subprocess.run(**process, capture_output=True, check=False)
    assert found.returncode == 0, found.stderr
    assert {line for line in found.stdout.splitlines() if "begun by" in line} == {"begun by fork"}
