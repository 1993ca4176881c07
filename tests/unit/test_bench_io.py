"""The I/O benchmarks: the figures that are asked for are there, and all ways of reading give the same."""

import sys

import numpy as np
import pytest
from helpers import random_event
from test_store import write

from hpctrack.benchmarks import io, layout, measure
from hpctrack.storage import hdf5, schema, store

ASKED = {"shuffled_over_sequential", "store_over_pt_files", "store_over_pt_all", "store_over_csv"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    simulated = [sys.executable, "-m", "hpctrack.simulate", str(folder / "csv"), "--source", "helix"]
    measure.command([*simulated, "--particles", "60", "--events", "2"])
    converted = [sys.executable, "-m", "hpctrack.convert", str(folder / "csv"), str(folder / "data")]
    measure.command([*converted, "--jobs", "1", "--events-per-shard", "1"])
    return io.Readings(store.open_dataset(folder / "data"), folder / "csv", folder)


def test_reading_figures(bench):
    with bench.workers(1) as one, bench.workers(2) as two:
        figures = {figure.name: figure for figure in io.reading(bench, one, two, repeats=2)}
    assert figures.keys() >= ASKED and all(np.all(np.array(figure.values) > 0) for figure in figures.values())
    worse = min(np.median(figures[f"shuffled_over_sequential_{k}"].values) for k in (1, 2))
    assert np.median(figures["shuffled_over_sequential"].values) == worse
    assert len(io.ALL) == 24 and len(io.SOME) == 8 and set(io.SOME) < set(io.ALL) < set(schema.all_columns())
    cold = io.cold(bench, repeats=1)
    assert [figure.name for figure in cold] == ["cold_shuffled_over_sequential", "cold_store_over_pt_files"]


def test_a_failed_command_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="exit code 3: why"):
        measure.command([sys.executable, "-c", "import sys; print('why'); sys.exit(3)"])
    seconds, mebibytes = measure.command([sys.executable, "-c", "x = bytearray(200 * 2**20)"])
    assert seconds > 0 and mebibytes > 200


def test_layouts_hold_the_same(tmp_path):
    events = [random_event(i, 300 + i, 9) for i in range(3)]
    figures = {}
    for way in layout.layouts():
        written = layout.Written(tmp_path / f"{way.name}.h5", way, events)
        with hdf5.open_h5(written.path, "shard") as file:
            for name in schema.all_columns():
                stored = file[name.replace(".", "/")][:]
                assert np.array_equal(stored, np.concatenate([event.column(name) for event in events])), (way, name)
        figures[way.name] = written.read(io.SOME, np.random.default_rng(0))
    assert {"contiguous", "contiguous_f8", "chunks_4096", "lzf", "shuffle_gzip_4"} <= figures.keys()
    names = [figure.name for figure in layout.shard_sizes(events, tmp_path, 1)]
    assert "shards_of_16_read" in names
    reopened = store.open_dataset(tmp_path / "per-4")
    again = write(tmp_path / "again", [schema.Event(k, event.tables) for k, event in enumerate(events)])
    assert reopened.fingerprint == again.fingerprint
