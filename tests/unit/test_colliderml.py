"""ColliderML's parquet: what ACTS writes comes in exactly, in little memory; what is odd is one line."""

from __future__ import annotations

import numpy as np
import pytest
from acts_files import converted, trackml_of

from hpctrack.formats.colliderml import parquet_files
from hpctrack.formats.colliderml import schema as tables

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def test_what_acts_writes_is_equal_to_the_csv_route(acts_files, tmp_path):
    dataset = converted(acts_files / "parquet", tmp_path / "out")
    without = ("--without", "weights", "--without", "cells")
    csv = trackml_of(acts_files / "csv", tmp_path / "csv")
    (csv / "detectors.csv").unlink()
    other = converted(csv, tmp_path / "other", *without)
    assert dataset.event_ids.tolist() == other.event_ids.tolist() == [0, 1, 2]
    lacking = {"truth.tpx", "truth.tpy", "truth.tpz"}
    assert set(other.columns) - set(dataset.columns) == lacking
    assert dataset.lacks == other.lacks | lacking
    for i in range(3):
        one, two = dataset.read(i, verify=True), other.read(i, verify=True)
        for name in dataset.columns:
            assert np.array_equal(one.column(name), two.column(name)), name


def test_particles_are_found_beside_the_hits(acts_files, tmp_path):
    whole = converted(acts_files / "parquet", tmp_path / "whole", "--limit", 2)
    hits = acts_files / "parquet/tracker_hits"
    assert converted(hits, tmp_path / "folder", "--limit", 2).fingerprint == whole.fingerprint
    assert converted(min(hits.iterdir()), tmp_path / "file").fingerprint == whole.fingerprint


def test_ids_up_to_the_largest_are_exact():
    ids = np.array([0, 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 2, tables.NO_PARTICLE], np.uint64)
    stored = tables.stored_ids(ids)
    assert stored.dtype == np.int64 and (stored == 0).tolist() == [False] * 6 + [True]
    assert np.array_equal(tables.source_ids(stored), ids)


def test_memory_is_that_of_an_event(tmp_path, monkeypatch):
    """A row group of 60 events is read in the memory of a few, each column right."""
    n, events = 5000, 60
    rng = np.random.default_rng(0)
    numbers = {"event_id": arrow.array(np.arange(events), arrow.uint32())}
    for name, dtype in tables.TRACKER_HITS.items():
        values = rng.integers(0, 100, (events, n)).astype(dtype)
        numbers[name] = arrow.FixedSizeListArray.from_arrays(arrow.array(values.ravel()), n).cast(
            arrow.list_(arrow.from_numpy_dtype(dtype))
        )
    table = arrow.table(numbers)
    path = tmp_path / "train-00000-of-00001.parquet"
    parquet.write_table(table, path, row_group_size=events, data_page_size=1 << 14)
    whole, x = table.nbytes, table.column("x").combine_chunks().flatten().to_numpy().reshape(events, n)
    del table, numbers, values
    monkeypatch.setattr(parquet_files, "STREAM", 1 << 14)
    found = parquet_files.find_tables(path, with_truth=False)
    rows = parquet_files.Rows(found.files["tracker_hits"][0], list(tables.TRACKER_HITS))
    before, most = arrow.total_allocated_bytes(), 0
    for row in [*range(events), 3]:
        assert rows.lists(row, "here")["x"].to_numpy().tolist() == x[row].tolist()
        most = max(most, arrow.total_allocated_bytes() - before)
    assert most < whole / 5
