"""Stores that were changed or made by others: attributes, values elsewhere, claims beyond what a file can hold, numbers
that cannot be; what reads them says so in one line, and so does verification."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from hpctrack import convert, evaluate, infer, inspect
from hpctrack.errors import InputError
from hpctrack.storage import columns, schema, shard_writer, store
from hpctrack.storage.columns import table_checksum
from hpctrack.storage.verify import check_dataset
from hpctrack.testing.toys import toy_dataset, toy_event


def problems(folder) -> list[str]:
    return [str(problem) for problem in check_dataset(folder, jobs=0)]


def of_one_line(capsys, code: int) -> str:
    err = capsys.readouterr().err
    assert code == 2 and err.count("error") == 1 and "Traceback" not in err, err
    return err


# ------------------------------------------------------------------------------------------------ attributes


@pytest.mark.parametrize("name", ["index.h5", "events-00000.h5"])
def test_changed_attributes_are_found(tmp_path, name):
    folder = toy_dataset(tmp_path / "data", sizes=(3, 4), per_shard=1)
    with h5py.File(folder / name, "r+") as file:
        file.attrs.modify("writer", "9.9.9")  # of the same length, so the file keeps its size
    assert any("attributes fail their checksum" in one and name in one for one in problems(folder))
    with pytest.raises(InputError, match="attributes fail their checksum"):
        store.open_dataset(folder).read(0)


def test_the_attributes_digest_covers_every_kind_of_value(tmp_path):
    from hpctrack.storage import hdf5

    def digest(texts, **attributes):
        with h5py.File(tmp_path / "file.h5", "w") as file:
            hdf5.write_header(file, "index", attributes, texts)
            assert hdf5.read_attributes(file).items() >= (attributes | texts).items()
            return file.attrs[hdf5.ATTRIBUTES_DIGEST]

    values = [{"a": 1}, {"a": 2}, {"a": 0.1}, {"a": "1"}, {"b": 1}, {}]
    found = [digest({}, **attributes) for attributes in values] + [digest({"a": text}) for text in ("", "x" * 100_000)]
    assert len(set(found)) == len(found) and digest({}, a=1) == found[0]


def test_stores_without_the_digest_are_read_and_said_to_be_so(tmp_path, capsys):
    folder = toy_dataset(tmp_path / "data", sizes=(3,))
    fingerprint = store.open_dataset(folder).fingerprint
    for path in folder.iterdir():
        with h5py.File(path, "r+") as file:
            del file.attrs["attributes_digest"]
    dataset = store.open_dataset(folder)
    assert dataset.fingerprint == fingerprint and dataset.read(0, verify=True).n_hits
    assert inspect.main([str(folder)]) == 0
    assert "have no checksum: written before there was one" in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------ values elsewhere


def elsewhere(how: str, shard, name: str) -> None:
    """Let the column `name` of a shard have its values, which stay the same, outside of it or by a link."""
    with h5py.File(shard, "r+") as file:
        values = file[name][:]
        outside = shard.parent.parent / "outside"
        del file[name]
        if how == "external":
            outside.write_bytes(values.tobytes())
            file.create_dataset(name, values.shape, values.dtype, external=[(str(outside), 0, values.nbytes)])
        elif how == "soft link":
            file["other"] = values
            file[name] = h5py.SoftLink("/other")
        else:
            with h5py.File(outside, "w") as other:
                other["values"] = values
            if how == "external link":
                file[name] = h5py.ExternalLink(str(outside), "/values")
            else:
                layout = h5py.VirtualLayout(values.shape, values.dtype)
                layout[:] = h5py.VirtualSource(str(outside), "values", values.shape)
                file.create_virtual_dataset(name, layout)


@pytest.mark.parametrize("how", ["external", "virtual", "soft link", "external link"])
@pytest.mark.parametrize("name", ["hits/x", "event_id", "checksums/hits/x"])
def test_values_outside_of_the_file_are_refused(tmp_path, how, name):
    folder = toy_dataset(tmp_path / "data", sizes=(3, 4), per_shard=1)
    elsewhere(how, folder / "events-00000.h5", name)
    with h5py.File(folder / "index.h5", "r+") as file:  # so that the index agrees
        file["shard_bytes"][0] = (folder / "events-00000.h5").stat().st_size
        table = {key: file[key][:] for key in store.INDEX_COLUMNS}
        file["index_checksum"][()] = table_checksum(table, store.INDEX_COLUMNS)
    with pytest.raises(InputError, match="is a link, which may lead out|has its values in other files"):
        store.open_dataset(folder).read(0, ["hits.x"])
    assert any("is a link" in one or "in other files" in one for one in problems(folder))


@pytest.mark.parametrize("name", ["../outside.h5", "/etc/passwd", "..", "a\0b"])
def test_shards_outside_of_the_folder_are_refused(tmp_path, name):
    folder = toy_dataset(tmp_path / "data", sizes=(3,))
    with h5py.File(folder / "index.h5", "r+") as file:
        table = {key: file[key][:] for key in store.INDEX_COLUMNS}
        table["shard_files"] = np.array([name], dtype="S20")
        del file["shard_files"]
        file["shard_files"] = table["shard_files"]
        file["index_checksum"][()] = table_checksum(table, store.INDEX_COLUMNS)
    if "\0" not in name:  # an HDF5 string ends there
        with pytest.raises(InputError, match="no file's name in this folder"):
            store.open_dataset(folder)


# ------------------------------------------------------------------------------------------------ claims


def claiming(folder, rows: int, chunk: int, **options) -> None:
    """A dataset of one event that says it has `rows` hits, index and shard agreeing, all columns but ids unwritten."""
    folder.mkdir()
    shard = folder / "events-00000.h5"
    n = np.int64
    with h5py.File(shard, "w") as file:
        file.attrs.update({"format": schema.FORMAT, "version": schema.VERSION, "kind": "shard"})
        file["offsets/hits"], file["offsets/particles"] = np.array([0, rows], n), np.array([0, 0], n)
        file["event_id"], file["n_noise"], file["checksum"] = (
            np.array([0], n),
            np.array([0], n),
            np.array([1], np.uint64),
        )
        for name in schema.all_columns():
            path, size = name.replace(".", "/"), 0 if name.startswith("particles") else rows
            dtype = columns.stored_type(name)
            if size:
                file.create_dataset(path, (size,), dtype, chunks=(chunk,), maxshape=(None,), **options)
                file[path][:1] = 1
            else:
                file.create_dataset(path, (0,), dtype)
            file[f"checksums/{path}"] = np.array([0], np.uint64)
    shard_writer.write_index(folder, [shard.name])


@pytest.mark.parametrize(
    ("rows", "chunk", "limit_gb", "said"),
    [
        (2**36, 2**10, "1", "more than the file can hold"),
        (2**30, 2**20, "1", "more than the file can hold"),
        (1000, 1000, "1e-6", "a chunk unpacks to"),
        (1000, 100, "1e-6", "of an event unpacks to"),
    ],
)
def test_claims_beyond_the_file_or_the_limit_are_refused(tmp_path, rows, chunk, limit_gb, said, monkeypatch):
    claiming(tmp_path / "data", rows, chunk, compression="gzip")
    monkeypatch.setenv("HPCTRACK_MAX_UNPACKED_GB", limit_gb)
    with pytest.raises(InputError, match=said):
        store.open_dataset(tmp_path / "data").read(0)
    assert said.startswith("of an event") or any(said in one for one in problems(tmp_path / "data"))


# ------------------------------------------------------------------------------------------------ numbers


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("hits.z", 1e30, "event 1: hits.z: row 2 is 1e+30, must be within 1e+09 mm"),
        ("hits.phi", np.inf, "event 1: hits.phi: row 2 is inf, must be a finite number"),
        ("truth.weight", np.nan, "event 1: truth.weight: row 2 is nan, must be a finite number"),
    ],
)
def test_numbers_that_cannot_be_name_file_and_event(tmp_path, capsys, column, value, said):
    """Under right checksums; by verification and by every verb that reads them."""
    folder, sound = tmp_path / "data", toy_dataset(tmp_path / "sound", sizes=(4, 5))
    folder.mkdir()
    with shard_writer.ShardWriter(folder / "events-00000.h5") as writer:
        for event_id, size in enumerate((4, 5)):
            event = toy_event(event_id, size)
            if event_id == 1:
                event.column(column)[2] = value
            writer.add(event)
    shard_writer.write_index(folder, ["events-00000.h5"])
    assert any(said in one and "events-00000.h5" in one for one in problems(folder))
    with pytest.raises(InputError, match="events-00000.h5: event 1: "):
        store.open_dataset(folder).read(1, verify=True)
    words = ["--method", "dbscan", "--data", str(folder), "--out", str(tmp_path / "c")]
    if column == "hits.phi":
        assert said in of_one_line(capsys, infer.main(words))
    elif column == "truth.weight":
        assert infer.main(words) == 0
        code = evaluate.main([str(tmp_path / "c"), "--data", str(folder), "--out", str(tmp_path / "r.json")])
        assert said in of_one_line(capsys, code)
    assert said in of_one_line(
        capsys, convert.main([str(folder), str(tmp_path / "sub"), "--tracks", "2", "--jobs", "1"])
    )
    assert not problems(sound)
