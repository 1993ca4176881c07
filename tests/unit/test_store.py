"""The store: exact round trips, whatever the sharding and the process; damage is refused with one line."""

import multiprocessing
import pickle
import shutil
import threading

import h5py
import numpy as np
import pytest
from helpers import assert_same_event, random_event
from hypothesis import given, settings
from hypothesis import strategies as st

from hpctrack.errors import InputError
from hpctrack.storage import hdf5, schema, shard_writer, store

COLUMNS = ["hits.x", "truth.particle_id", "particles.px"]


def write(folder, events, per_shard=2):
    """A dataset of the events, in shards of `per_shard`."""
    folder.mkdir(parents=True)
    shards = []
    for number, start in enumerate(range(0, len(events), per_shard)):
        shards.append(shard_writer.shard_name(number))
        with shard_writer.ShardWriter(folder / shards[-1]) as writer:
            for event in events[start : start + per_shard]:
                writer.add(event)
    shard_writer.write_index(folder, shards)
    return store.open_dataset(folder)


@pytest.fixture(scope="module")
def events():
    return [
        random_event(10 + i, n_hits, n_particles) for i, (n_hits, n_particles) in enumerate([(30, 4), (1, 0), (7, 1)])
    ]


@pytest.fixture
def dataset(tmp_path, events):
    return write(tmp_path / "data", events)


sizes = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), min_size=1, max_size=6)


@settings(max_examples=12)
@given(sizes=sizes, seed=st.integers(0, 99), per_shard=st.integers(1, 7), shuffle=st.randoms())
def test_round_trip_of_any_events_in_any_sharding(tmp_path_factory, sizes, seed, per_shard, shuffle):
    events = [random_event(3 * i, *size, seed) for i, size in enumerate(sizes)]
    folder = tmp_path_factory.mktemp("store")
    dataset = write(folder / "a", events, per_shard)
    assert dataset.event_ids.tolist() == [event.event_id for event in events]
    for i, event in enumerate(events):
        noise = int(np.sum(event.column("truth.particle_id") == 0))
        assert (dataset.n_hits[i], dataset.n_noise[i], dataset.n_particles[i]) == (sizes[i][0], noise, sizes[i][1])
        assert_same_event(dataset.read(i, verify=True), event)
    shuffled = list(events)
    shuffle.shuffle(shuffled)
    other = write(folder / "b", shuffled, 3)
    assert store.digest(other) == store.digest(dataset)
    assert store.digest(dataset).startswith(dataset.fingerprint) and other.fingerprint == dataset.fingerprint
    assert np.array_equal(other.checksums, dataset.checksums)
    shutil.rmtree(folder)


def test_every_column_counts_in_the_digest(tmp_path, events):
    digests = {write(tmp_path / "same", events).fingerprint}
    for number, name in enumerate(schema.all_columns()):
        table, column = name.split(".")
        values = events[0].column(name).copy()
        values.view(np.uint8)[0] ^= 1
        tables = {t: dict(c) for t, c in events[0].tables.items()}
        tables[table][column] = values
        changed = [schema.Event(events[0].event_id, tables), *events[1:]]
        digests.add(write(tmp_path / str(number), changed, 3).fingerprint)
    renamed = [schema.Event(77, events[0].tables), *events[1:]]
    digests.add(write(tmp_path / "id", renamed).fingerprint)
    assert len(digests) == len(schema.all_columns()) + 2


def test_projected_read(dataset, events):
    event = dataset.read(0, COLUMNS, verify=True)
    assert {f"{t}.{c}" for t, columns in event.tables.items() for c in columns} == set(COLUMNS)
    assert np.array_equal(event.column("hits.x"), events[0].column("hits.x")) and event.n_hits == 30
    with pytest.raises(KeyError):
        event.column("hits.y")
    with pytest.raises(InputError, match=r"unknown column 'hits.w'; one of hits.hit_id, "):
        dataset.read(0, ["hits.w"])
    with pytest.raises(IndexError):
        dataset.read(3)
    assert_same_event(dataset.read(-1), events[-1])


def read_all(dataset, events):
    for _ in range(3):
        for i, event in enumerate(events):
            assert_same_event(dataset.read(i, verify=True), event)


def child(dataset, events, queue):
    read_all(dataset, events)
    queue.put(dataset.fingerprint)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_readers_in_other_processes(dataset, events, method):
    read_all(dataset, events)  # so that handles are open when the children start
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [
        context.Process(target=child, args=(dataset, events, queue)) for _ in range(3 if method == "fork" else 1)
    ]
    for process in children:
        process.start()
    read_all(dataset, events)
    assert {queue.get(timeout=60) for _ in children} == {dataset.fingerprint}
    for process in children:
        process.join()
        assert process.exitcode == 0
    read_all(dataset, events)


def test_threads_and_pickles_and_few_open_files(dataset, events, monkeypatch):
    monkeypatch.setattr(store, "MAX_OPEN", 1)
    copies = [dataset, pickle.loads(pickle.dumps(dataset))]
    threads = [threading.Thread(target=read_all, args=(copy, events)) for copy in copies * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(dataset._files) == 1
    dataset.close()
    assert not dataset._files
    read_all(dataset, events)


def test_nothing_is_written_when_the_block_fails(tmp_path, events):
    with pytest.raises(RuntimeError, match="stop"), shard_writer.ShardWriter(tmp_path / "events-00000.h5") as writer:
        writer.add(events[0])
        raise RuntimeError("stop")
    assert not list(tmp_path.iterdir())


def test_an_event_of_wrong_shape_or_type_is_refused(tmp_path, events):
    for column, values in (("x", np.zeros(30)), ("x", np.zeros(29, np.float32))):
        tables = {t: dict(c) for t, c in events[0].tables.items()}
        tables["hits"][column] = values
        with pytest.raises(ValueError, match=r"event 10: hits\.x is|event 10: hits\.y is"):
            shard_writer.ShardWriter(tmp_path / "s.h5").add(schema.Event(10, tables))


# ------------------------------------------------------------------------------------------------ damage


def refused(folder) -> str:
    """What open_dataset or reading everything with verification says."""
    with pytest.raises(InputError) as caught:
        store.digest(store.open_dataset(folder))
    return str(caught.value)


def set_attribute(path, key, value):
    with h5py.File(path, "r+") as file:
        file.attrs[key] = value


def test_no_dataset(tmp_path, dataset):
    assert "does not exist" in refused(tmp_path / "none")
    assert "is not a folder" in refused(dataset.folder / "index.h5")
    (dataset.folder / "index.h5").unlink()
    assert "no index.h5" in refused(dataset.folder)


@pytest.mark.parametrize("name", ["index.h5", "events-00001.h5"])
def test_unknown_format_version_kind_or_no_hdf5(dataset, name):
    path = dataset.folder / name
    whole = path.read_bytes()
    kind = "index" if name == "index.h5" else "shard"
    for key, value, what in (("format", "else", "hpctrack-events"), ("version", 2, "1"), ("kind", "other", kind)):
        path.write_bytes(whole)
        set_attribute(path, key, value)
        line = refused(dataset.folder)
        if path.stat().st_size == len(whole):
            assert name in line and f"{key} is '{value}'" in line and what in line, line
    with h5py.File(path, "w") as file:
        file["x"] = np.zeros(3)
    assert name in refused(dataset.folder)
    with pytest.raises(InputError, match="format is 'None'"):
        hdf5.open_h5(path, kind)
    path.write_text("no HDF5")
    with pytest.raises(InputError, match="not a whole HDF5 file"):
        hdf5.open_h5(path, kind)
    path.write_bytes(whole[: len(whole) // 2])
    assert name in refused(dataset.folder)
    with pytest.raises(InputError, match="not a whole HDF5 file"):
        hdf5.open_h5(path, kind)


def test_missing_swapped_and_foreign_shards(tmp_path, dataset, events):
    first, second = (dataset.folder / shard_writer.shard_name(i) for i in (0, 1))
    other = write(tmp_path / "other", [random_event(10, 30, 4, seed=5), random_event(11, 1, 0, seed=5), events[2]])
    shutil.copy(other.folder / first.name, first)  # the same ids and sizes, other content
    assert "does not hold the events that index.h5 says (checksum)" in refused(dataset.folder)
    shutil.copy(second, first)
    assert str(first) in refused(dataset.folder)
    first.unlink()
    assert "missing, but index.h5 names it" in refused(dataset.folder)
    with pytest.raises(InputError, match="event 12 stands in events-00001.h5 and in copy.h5"):
        shutil.copy(second, dataset.folder / "copy.h5")
        shard_writer.write_index(dataset.folder, [second.name, "copy.h5"])


@pytest.mark.parametrize("name", schema.all_columns())
def test_a_changed_value_is_found(dataset, name):
    with h5py.File(dataset.folder / "events-00000.h5", "r+") as file:
        values = file[name.replace(".", "/")]
        values[0] = values[0] + 1 if values[0] < 100 else 0
    assert name not in COLUMNS or dataset.read(0, [name]) is not None
    with pytest.raises(InputError, match=rf"event 10: {name} fails its checksum"):
        dataset.read(0, [name], verify=True)
    assert "event 10 does not match its checksum" in refused(dataset.folder)


def test_missing_parts(dataset):
    with h5py.File(dataset.folder / "events-00000.h5", "r+") as file:
        del file["hits/x"]
    assert "events-00000.h5: damaged, or not made by hpctrack" in refused(dataset.folder)
    with h5py.File(dataset.folder / "index.h5", "r+") as file:
        del file["n_noise"]
    assert "index.h5: damaged, or not made by hpctrack" in refused(dataset.folder)


def test_a_changed_index_is_found(dataset):
    path = dataset.folder / "index.h5"
    whole = path.read_bytes()
    for key in store.INDEX_COLUMNS:
        with h5py.File(path, "r+") as file:
            values = file[key][:]
            values.view(np.uint8)[0] ^= 1
            file[key][:] = values
        assert "index.h5: fails its checksum" in refused(dataset.folder)
        path.write_bytes(whole)


def test_full_disk(small_disk, events):
    for kib in (16, 64, 100, 150):
        disk = small_disk(kib)
        with (
            pytest.raises(OSError, match="No space left on device"),
            shard_writer.ShardWriter(disk / "events-00000.h5") as writer,
        ):
            for i in range(20):
                writer.add(random_event(i, 100, 10))
        assert not list(disk.iterdir())
