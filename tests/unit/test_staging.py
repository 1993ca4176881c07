"""Node-local copies: made once, checked, completed, mended, and never taken for whole when they are not."""

import multiprocessing
import os
import shutil
import threading

import numpy as np
import pytest
from helpers import assert_same_event, random_event
from test_store import write

from hpctrack.config import DataConfig
from hpctrack.errors import InputError, MachineError
from hpctrack.events.loader import columns_read, open_events
from hpctrack.storage import schema, shard_writer, staging, store
from hpctrack.storage.hdf5 import INDEX

EVENTS = [random_event(i, 20 + i, 3) for i in range(6)]


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "scratch").mkdir()
    return write(tmp_path / "data", EVENTS)


def check_copy(folder):
    copy = store.open_dataset(folder)
    for i, event in enumerate(EVENTS):
        assert_same_event(copy.read(i, verify=True), event)


def test_a_copy_is_made_once(tmp_path, dataset):
    copy = staging.stage(dataset.folder, tmp_path / "scratch")
    check_copy(copy)
    before = {path.name: path.stat().st_ino for path in copy.glob("*.h5")}
    assert staging.stage(dataset.folder, tmp_path / "scratch", first=1) == copy
    assert {path.name: path.stat().st_ino for path in copy.glob("*.h5")} == before
    assert not list(copy.glob("*.tmp"))


def test_an_old_copy_is_checked_and_a_damaged_one_is_made_anew(tmp_path, dataset, monkeypatch, capsys):
    copy = staging.stage(dataset.folder, tmp_path / "scratch")
    for damage in (flip_last_byte, lambda path: os.truncate(path, 100), lambda path: path.unlink()):
        for name in (shard_writer.shard_name(0), INDEX):
            damage(copy / name)
            staging.stage(dataset.folder, tmp_path / "scratch")
            check_copy(copy)
    assert "the copy is made anew" in capsys.readouterr().err
    monkeypatch.setattr(staging, "STARTED", staging.STARTED + 2 * staging.FRESH_S)
    staging.stage(dataset.folder, tmp_path / "scratch")
    check_copy(copy)


def flip_last_byte(path):
    """In the first column of a shard, or somewhere in an index."""
    data = bytearray(path.read_bytes())
    at = data.find(EVENTS[0].column("hits.x").tobytes()) if path.name != INDEX else len(data) // 2
    data[at] ^= 1
    path.write_bytes(data)


def test_a_changed_dataset_is_another_copy(tmp_path, dataset):
    first = staging.stage(dataset.folder, tmp_path / "scratch")
    shutil.rmtree(dataset.folder)
    write(dataset.folder, [random_event(i, 30, 3, seed=1) for i in range(6)])
    second = staging.stage(dataset.folder, tmp_path / "scratch")
    assert first != second and store.open_dataset(second).fingerprint != store.open_dataset(first).fingerprint


def stage(folder, scratch, first, queue):
    queue.put(str(staging.stage(folder, scratch, first)))


def test_ranks_of_a_node_share_the_work(tmp_path, dataset):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    ranks = [context.Process(target=stage, args=(dataset.folder, tmp_path / "scratch", k, queue)) for k in range(4)]
    for rank in ranks:
        rank.start()
    folders = {queue.get(timeout=60) for _ in ranks}
    for rank in ranks:
        rank.join()
        assert rank.exitcode == 0
    assert len(folders) == 1
    check_copy(folders.pop())


def test_faults_are_named(tmp_path, dataset, monkeypatch):
    with pytest.raises(InputError, match=r"key 'data.stage_to': .*none is no folder"):
        staging.stage(dataset.folder, tmp_path / "none")
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    with monkeypatch.context() as patch, pytest.raises(MachineError, match=r"GB free, but .* GB are to be copied"):
        patch.setattr(staging.shutil, "disk_usage", lambda path: usage)
        staging.stage(dataset.folder, tmp_path / "scratch")
    flip_last_byte(dataset.folder / shard_writer.shard_name(0))
    with pytest.raises(InputError, match=r"data/events-00000.h5: its copy is damaged.*event 0 does not match"):
        staging.stage(dataset.folder, tmp_path / "scratch")
    copies = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert not [path for path in copies if path.name in (shard_writer.shard_name(0), INDEX)]


def test_full_scratch(small_disk, dataset, monkeypatch):
    disk = small_disk(16)
    usage = shutil.disk_usage(disk)._replace(free=10**12)
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match="No space left on device"):
        staging.stage(dataset.folder, disk)
    assert not [path for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"]


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_open_events(tmp_path, dataset, in_memory, staged):
    stage_to = str(tmp_path / "scratch") if staged else None
    config = DataConfig(
        train=str(dataset.folder), in_memory=in_memory, stage_to=stage_to, features=["x", "cell_charge"]
    )
    opened = open_events(config, store.Dataset(config.train), local_rank=1)
    assert (opened.folder == dataset.folder) is not staged and opened.fingerprint == dataset.fingerprint
    names = columns_read(config.features)
    for i, event in enumerate(EVENTS):
        read = opened.read(i, names)
        for name in names:
            assert np.array_equal(read.column(name), event.column(name))
            assert read.column(name).flags.writeable is not in_memory
    assert_same_event(opened.read(0), EVENTS[0])


def test_columns_in_memory_are_shared_with_threads_and_checked(dataset):
    flip_last_byte(dataset.folder / shard_writer.shard_name(0))
    with pytest.raises(InputError, match=r"event 0: hits.x fails its checksum"):
        dataset.keep_in_memory(["hits.x"])
    other = store.open_dataset(dataset.folder)
    other.keep_in_memory(["hits.y"])
    threads = [threading.Thread(target=other.read, args=(0, ["hits.y"])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with pytest.raises(InputError, match="unknown column 'hits.w'"):
        other.keep_in_memory(["hits.w"])
    assert set(schema.all_columns()) > {"hits.y"}
