"""The reader: its own memory handed out once at a time, faults named, any layout, many shards, many readers."""

import os
import pickle
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from helpers import assert_same_event, random_event
from hypothesis import given
from hypothesis import strategies as st
from test_store import write
from torch_geometric.data import Batch, Data

from hpctrack.config import AugmentConfig, CurriculumStage, SelectionConfig
from hpctrack.errors import InputError, MachineError
from hpctrack.events.loader import EventLoader
from hpctrack.events.readers import Readers, pack, unpack
from hpctrack.files import reading
from hpctrack.storage import schema, shard_writer, store

EVENTS = [random_event(i, 50 + 7 * i, 4) for i in range(5)]


@pytest.fixture
def dataset(tmp_path):
    return write(tmp_path / "data", EVENTS)


def change(path, name, values, **options):
    """Replace a dataset of a shard."""
    with h5py.File(path, "r+") as file:
        del file[name]
        file.create_dataset(name, data=values, **options)


def reindexed(dataset):
    """The dataset with an index that fits what its shards have become."""
    shard_writer.write_index(dataset.folder, dataset.shards)
    return store.open_dataset(dataset.folder)


# ------------------------------------------------------------------------------------------------ memory


def test_arrays_stay_as_they_were_read(dataset):
    kept = [dataset.read(i % 5) for i in range(20)]  # more than the pool has
    tensors = [torch.from_numpy(dataset.read(i % 5).column("hits.x")) for i in range(20)]
    for i in range(20):
        dataset.read(i % 5)
        assert_same_event(kept[i], EVENTS[i % 5])
        assert tensors[i].numpy().tobytes() == EVENTS[i % 5].column("hits.x").tobytes()


def test_memory_is_used_again_only_when_nobody_has_it():
    pool = reading.BufferPool(keep=2)
    first = pool.take(100)
    address = first.ctypes.data
    view = first[10:20].view(np.uint8)
    del first
    assert pool.take(50).ctypes.data != address
    del view
    assert address in {pool.take(50).ctypes.data, pool.take(100).ctypes.data}
    held = [pool.take(100) for _ in range(5)]
    assert len({buffer.ctypes.data for buffer in held}) == 5 and len(pool._buffers) == 2
    del held
    assert len(pool.take(10**6)) >= 10**6 and len(pool._buffers) == 2


@given(data=st.binary(min_size=1, max_size=200), cuts=st.lists(st.integers(0, 199), max_size=6))
def test_ranges_of_a_file(tmp_path_factory, data, cuts):
    path = tmp_path_factory.mktemp("ranges") / "f"
    path.write_bytes(data)
    ends = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    parts = [(np.empty(b - a, np.uint8), a) for a, b in zip(ends, ends[1:], strict=False)]
    descriptor = os.open(path, os.O_RDONLY)
    reading.read_ranges(descriptor, parts, path)
    assert b"".join(part.tobytes() for part, _ in parts) == data
    with pytest.raises(InputError, match=f"ends at byte {len(data)}, cut short"):
        reading.read_ranges(descriptor, [(np.empty(5, np.uint8), len(data) - 1)], path)
    os.close(descriptor)


# ------------------------------------------------------------------------------------------------ layouts and faults


@pytest.mark.parametrize("options", [{"chunks": (16,)}, {"chunks": (64,), "compression": "gzip", "shuffle": True}])
def test_columns_in_chunks(dataset, options):
    for shard in dataset.shards:
        path = dataset.folder / shard
        with h5py.File(path) as file:
            columns = {name: file[name.replace(".", "/")][:] for name in schema.all_columns()}
        for name, values in columns.items():
            if len(values):
                chunks = (min(options["chunks"][0], len(values)),)
                change(path, name.replace(".", "/"), values, **(options | {"chunks": chunks}))
    dataset = reindexed(dataset)
    for i, event in enumerate(EVENTS):
        assert_same_event(dataset.read(i, verify=True), event)
        assert_same_event(pickle.loads(pickle.dumps(dataset)).read(i), event)
    dataset.keep_in_memory(schema.all_columns())
    assert_same_event(dataset.read(4), EVENTS[4])


def test_wrong_types_shapes_and_offsets(dataset):
    path = dataset.folder / dataset.shards[0]
    whole = path.read_bytes()
    with h5py.File(path) as file:
        x, offsets, sums = file["hits/x"][:], file["offsets/hits"][:], file["checksums/hits/x"][:]
    for name, values, line in (
        ("hits/x", x.astype(np.float64), r"hits.x is float64 .*, must be float32"),
        ("hits/x", x.view(np.int32), r"hits.x is int32"),
        ("hits/x", x[:-1], r"hits.x is float32 \(106,\), must be float32 \(107,\)"),
        ("hits/x", x[None], r"hits.x is float32 \(1, 107\)"),
        ("offsets/hits", offsets + 1, "its offsets begin at 1, not 0"),
        ("offsets/hits", offsets[None], "offsets/hits is no 1-d array"),
        ("offsets/hits", np.array([0, 60, 107]), "does not hold the events that index.h5 says"),
        ("checksums/hits/x", sums[:-1], "1 checksums of hits.x"),
    ):
        path.write_bytes(whole)
        change(path, name, values)
        own = pickle.loads(pickle.dumps(dataset))
        with pytest.raises(InputError, match=rf"events-00000.h5: .*{line}"):
            own.read(0, ["hits.x"])


def test_a_shard_cut_short_or_replaced_while_it_is_read(dataset, tmp_path):
    path = dataset.folder / dataset.shards[0]
    dataset.read(0, ["hits.x"])
    other = tmp_path / "other.h5"
    other.write_bytes(path.read_bytes())
    os.replace(other, path)
    assert dataset.read(1, ["hits.x"]).n_hits == 57  # the file that was opened
    with pytest.raises(InputError, match="was replaced while it was read"):
        dataset.read(0, ["hits.y"])
    dataset.close()
    dataset.read(0, ["hits.y"])
    os.truncate(path, 100)
    with pytest.raises(InputError, match=r"events-00000.h5: ends at byte \d+, cut short"):
        dataset.read(0, ["hits.y"])


def test_many_shards_open(tmp_path):
    events = [random_event(i, 5, 1) for i in range(64)]
    dataset = write(tmp_path / "data", events, per_shard=1)
    for _ in range(2):
        for i in np.random.default_rng(0).permutation(64):
            assert_same_event(dataset.read(int(i), verify=True), events[i])
    assert len(dataset._files) == 64
    before = len(os.listdir("/proc/self/fd"))
    dataset.close()
    assert before - len(os.listdir("/proc/self/fd")) == 64


# ------------------------------------------------------------------------------------------------ batches


def loader_of(dataset):
    return EventLoader(dataset, ["x", "y", "z"], SelectionConfig(), AugmentConfig(rotate=True), (1, 0))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_bring_the_same_batches(dataset, workers):
    plan = [(0, np.array([0, 3]), None), (0, np.array([1]), None), (1, np.array([4, 2, 0]), None)]
    here = list(Readers(loader_of(dataset))(plan))
    there = list(Readers(loader_of(dataset), workers, prefetch_factor=1)(plan))
    assert len(here) == len(there) == 3
    for a, b in zip(here, there, strict=True):
        assert a.keys() == b.keys() and a.num_graphs == b.num_graphs
        for key in a.keys():  # noqa: SIM118 - a Batch iterates over pairs
            assert torch.equal(a[key], b[key]) if isinstance(a[key], torch.Tensor) else a[key] == b[key]
        assert torch.equal(a[0].x, b[0].x)


def test_curriculum_draws_fewer_tracks_at_first(dataset):
    stages = [CurriculumStage(until_epoch=2, tracks=1), CurriculumStage(until_epoch=3, tracks=2)]
    selection = SelectionConfig(tracks=3)
    load = EventLoader(dataset, ["x", "y", "z"], selection, AugmentConfig(), (1, 0), curriculum=stages)
    assert [int(load(0, epoch).n_tracks) for epoch in range(5)] == [1, 1, 2, 3, 3]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_fault_keeps_its_one_line(dataset, workers):
    path = dataset.folder / dataset.shards[1]
    with h5py.File(path, "r+") as file:
        file["hits/x"][3] += 1
    dataset.verify = True
    batches = Readers(loader_of(dataset), workers)([(0, np.array([0]), None), (0, np.array([2]), None)])
    assert next(batches).num_graphs == 1
    with pytest.raises(InputError, match=r"^[^\n]*events-00001.h5: event 2: hits.x fails its checksum[^\n]*$"):
        next(batches)


def test_a_dead_worker_is_the_machines_fault(dataset):
    class Deadly(EventLoader):
        def __call__(self, row, epoch):
            os._exit(9)

    load = Deadly(dataset, ["x"], SelectionConfig(), AugmentConfig(), (1, 0))
    with pytest.raises(MachineError, match=r"reader process \d+ ended with exit code 9 \(key .data\.workers. is 1\)"):
        list(Readers(load, workers=1)([(0, np.array([0]), None)]))


def test_packing():
    one = Data(x=torch.rand(4, 3), n=torch.tensor([2]), empty=torch.zeros(0, 2, dtype=torch.int64), name="a")
    batch = Batch.from_data_list([one, one.clone()])
    back = unpack(pack(batch))
    assert torch.equal(back.x, batch.x) and torch.equal(back.ptr, batch.ptr) and back.name == batch.name
    assert back.empty.shape == (0, 2) and back[1].x.tolist() == one.x.tolist()
    odd = {
        "t": torch.arange(10)[::2],
        "transposed": torch.rand(3, 4).T,
        "bool": torch.tensor([True, False]),
        "none": None,
    }
    again = unpack(pack(odd))
    assert all(torch.equal(again[key], odd[key]) for key in ("t", "transposed", "bool")) and again["none"] is None


@pytest.mark.parametrize("held", ["batches", "an error"])
def test_reader_processes_that_somebody_holds_do_not_keep_a_process_from_ending(dataset, held):
    """Python ends processes with SIGTERM, which readers ignore, and waits for them."""
    script = f"""
import sys
import numpy as np
from hpctrack.events.loader import EventLoader
from hpctrack.events.readers import Readers
from hpctrack.storage.store import Dataset
from hpctrack.config import AugmentConfig, SelectionConfig
load = EventLoader(Dataset({str(dataset.folder)!r}), ["r"], SelectionConfig(), AugmentConfig(), (0, 0))
batches = Readers(load, workers=2)([(0, np.array([0]), None), (0, np.array([99]), None)])
sys.batches = [next(batches)]
if {held == "batches"}:
    sys.batches.append(batches)
else:
    try:
        next(batches)
    except IndexError as error:
        sys.batches.append(error)
print("done")
"""
    done = subprocess.run([sys.executable, "-c", script], timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
