"""ColliderML's parquet: what ACTS writes comes in exactly, in little memory; what is odd is one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import quietly

from hpctrack import convert, inspect
from hpctrack.formats.colliderml import parquet_files
from hpctrack.formats.colliderml import schema as tables
from hpctrack.storage.store import Dataset, open_dataset

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")


def converted(source: Path, out: Path, *options: object) -> Dataset:
    """The dataset, checked."""
    code, text = quietly(convert.main, [source, out, "--jobs", 1, *options])
    assert code == 0, text
    assert quietly(inspect.main, [out, "--verify"])[0] == 0
    return open_dataset(out)


def trackml_of(csv: Path, out: Path) -> Path:
    """The same events in TrackML's files, made of ACTS' CSV: a row a simulated hit, particles numbered from 1."""
    out.mkdir()
    for file in csv.glob("event*-hits.csv"):
        stem = file.name.removesuffix("-hits.csv")
        hits, found, particles, to_hit = (
            pd.read_csv(csv / f"{stem}-{kind}.csv")
            for kind in ("hits", "measurements", "particles", "measurement-simhit-map")
        )
        found = found.iloc[to_hit.sort_values("hit_id").measurement_id].reset_index(drop=True)
        code = [f"particle_id_{part}" for part in ("pv", "sv", "part", "gen", "subpart")]
        particles["particle_id"] = np.arange(1, len(particles) + 1)
        owner = hits.merge(particles[[*code, "particle_id"]], on=code, how="left").particle_id
        table = pd.DataFrame({"hit_id": np.arange(len(hits))})
        for axis in "xyz":
            table[axis] = found[f"global_{axis}"]
        geometry = found.geometry_id.to_numpy()
        table["volume_id"] = geometry >> 56
        table["layer_id"] = (geometry >> 36) & 0xFFF
        table["module_id"] = (geometry >> 8) & 0xFFFFF
        truth = pd.concat([table[["hit_id"]], owner, hits[["tx", "ty", "tz", "tpx", "tpy", "tpz"]]], axis=1)
        table.to_csv(out / f"{stem}-hits.csv", index=False)
        truth.to_csv(out / f"{stem}-truth.csv", index=False)
        particles.to_csv(out / f"{stem}-particles.csv", index=False)
    return out


@pytest.mark.parametrize("source", ["", "tracker_hits"])
def test_what_acts_writes_is_equal_to_the_csv_route(acts_files, tmp_path, source):
    dataset = converted(acts_files / "parquet" / source, tmp_path / "out")
    other = converted(trackml_of(acts_files / "csv", tmp_path / "csv"), tmp_path / "other", "--without", "weights")
    assert dataset.event_ids.tolist() == other.event_ids.tolist() == [0, 1, 2]
    lacking = {"truth.tpx", "truth.tpy", "truth.tpz"}
    assert set(other.columns) - set(dataset.columns) == lacking
    assert dataset.lacks == other.lacks | lacking
    for i in range(3):
        one, two = dataset.read(i, verify=True), other.read(i, verify=True)
        for name in dataset.columns:
            assert np.array_equal(one.column(name), two.column(name)), name


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
