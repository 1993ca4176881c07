"""ColliderML's parquet: what ACTS writes comes in exactly, in little memory; what is odd is one line."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from acts_files import converted, refused, trackml_of

from hpctrack.errors import InputError
from hpctrack.formats.colliderml import contributors, parquet_files, volumes
from hpctrack.formats.colliderml import schema as tables
from hpctrack.storage.detector import TRACKML

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


def release_2(folder, out):
    """The same events in the tables of Release 2: crossings in another order, and in a table of their own.

    Each hit also names a crossing of the particle before it, which lost less energy there.
    """
    rng = np.random.default_rng(0)
    for kind, place in (("particles", "truth/particles"), ("tracker_hits", "reco/tracker_hits")):
        (out / place).mkdir(parents=True)
        (out / "truth/tracker_simhits").mkdir(exist_ok=True)
        for path in (folder / kind).iterdir():
            table = parquet.read_table(path)
            if kind == "particles":
                parquet.write_table(table, out / place / path.name)
                continue
            rows = table.to_pylist()
            simhits = []
            for row in rows:
                n = len(row["x"])
                place_of = rng.permutation(n)
                crossed = {name: [0.0] * n for name in ("true_x", "true_y", "true_z", "dE", "tpx", "tpy", "tpz")}
                crossed["particle_id"] = [0] * n
                for hit, at in enumerate(place_of):
                    for name in ("true_x", "true_y", "true_z", "particle_id"):
                        crossed[name][at] = row[name][hit]
                    crossed["dE"][at], crossed["tpx"][at] = 1e-4 * (1 + hit), 0.5 * hit
                simhits.append({"event_id": row["event_id"], **crossed})
                before = [[*place_of[k - 1 : k].tolist(), int(place_of[k])] for k in range(n)]
                row["simhit_ids"] = before
                row["particle_ids"] = [[crossed["particle_id"][at] for at in of] for of in before]
                for name in ("true_x", "true_y", "true_z", "particle_id"):
                    del row[name]
            kept = [arrow.field(f.name, f.type) for f in table.schema if f.name in rows[0]]
            nested = [
                arrow.field("simhit_ids", arrow.list_(arrow.list_(arrow.uint32()))),
                arrow.field("particle_ids", arrow.list_(arrow.list_(arrow.uint64()))),
            ]
            parquet.write_table(arrow.Table.from_pylist(rows, arrow.schema([*kept, *nested])), out / place / path.name)
            types = {"particle_id": arrow.uint64()} | {
                name: arrow.float32() for name in crossed if name != "particle_id"
            }
            schema = [("event_id", arrow.uint32()), *((name, arrow.list_(of)) for name, of in types.items())]
            simulated = arrow.Table.from_pylist(simhits, arrow.schema(schema))
            parquet.write_table(simulated, out / "truth/tracker_simhits" / path.name)
    return out


def test_merged_clusters_of_release_2_belong_to_whom_lost_most(acts_files, tmp_path):
    one = converted(acts_files / "parquet", tmp_path / "one")
    folder = release_2(acts_files / "parquet", tmp_path / "in")
    two = converted(folder, tmp_path / "two")
    assert one.lacks - two.lacks == {"truth.tpx", "truth.tpy", "truth.tpz"}
    for i in range(len(one)):
        for name in one.columns:
            assert np.array_equal(one.read(i).column(name), two.read(i).column(name)), name
    event = two.read(0)
    assert np.array_equal(event.column("truth.tpx"), 0.5 * event.column("hits.hit_id").astype(np.float32))
    shutil.rmtree(folder / "truth/tracker_simhits")
    assert "--without crossings converts files without" in refused(folder, tmp_path / "none")
    named = converted(folder, tmp_path / "named", "--without", "crossings").read(0)
    owner = event.column("truth.particle_id")
    first = np.concatenate([owner[:1], owner[:-1]])  # the first of two that are named once each
    assert np.array_equal(named.column("truth.particle_id"), first)


def test_most_named_and_strongest():
    none = np.uint64(tables.NO_PARTICLE)
    nested = np.array([0, 0, 3, 4, 6]), np.array([5, 9, 9, 0, 7, 3], np.uint64)
    assert contributors.most_named(nested, none).tolist() == [tables.NO_PARTICLE, 9, 0, 7]
    rows = np.array([0, 0, 3, 4, 6]), np.array([0, 1, 2, 2, 1, 0], np.uint64)
    lost = np.array([1.0, 3.0, 3.0], np.float32)
    assert contributors.strongest(rows, lost, "here").tolist() == [-1, 1, 2, 1]
    with pytest.raises(InputError, match="here: entry 1 of simhit_ids has 2, but there are 2 rows"):
        contributors.strongest(rows, lost[:2], "here")


def test_column_detector_names_the_volumes(acts_files, tmp_path):
    """Not those of a file of modules, which knows where they are; not names that contradict each other."""
    found = converted(acts_files / "parquet", tmp_path / "named").detector
    assert set(found.volumes) <= set(TRACKML.volumes) and not found.mirrors and not found.frames
    assert found.names() == {volume: TRACKML.names()[volume] for volume in found.volumes}
    surfaces = acts_files / "csv/detectors.csv"
    both = converted(acts_files / "parquet", tmp_path / "both", "--detectors", surfaces).detector
    assert both is TRACKML
    wrong = tmp_path / "wrong"
    for kind in ("particles", "tracker_hits"):
        (wrong / kind).mkdir(parents=True)
        for path in (acts_files / "parquet" / kind).iterdir():
            table = parquet.read_table(path)
            if kind == "tracker_hits":
                swapped = [[8 - number for number in row] for row in table.column("detector").to_pylist()]
                at = table.schema.get_field_index("detector")
                table = table.set_column(at, "detector", arrow.array(swapped, arrow.list_(arrow.uint8())))
            parquet.write_table(table, wrong / kind / path.name)
    assert not converted(wrong, tmp_path / "out").detector.is_known


def test_rare_volumes_are_looked_for_until_there_are_no_new_ones(monkeypatch):
    seen = []

    def hits(found):
        for k in range(1000):
            seen.append(k)
            volume = 7 if k < 19 else 8 if k < 30 else 9
            yield np.array([volume - 7, 0]), np.array([volume, 7]), np.array([0.0, -1.0])

    monkeypatch.setattr(volumes, "_hits", hits)
    number, signs = volumes._volumes(parquet_files.Found(None))
    assert number == {7: 0, 8: 1, 9: 2} and signs[7] == {-1}
    assert len(seen) == 31 + volumes.EVENTS


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
