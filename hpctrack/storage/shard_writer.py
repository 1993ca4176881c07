"""Writing shards of events, and the index over them; docs/reference/data-format.md has the layout."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpctrack.errors import InputError
from hpctrack.files.atomic import os_errors_with
from hpctrack.files.reading import read_into, write_all
from hpctrack.storage import schema
from hpctrack.storage.columns import AXES, axis_of, column_checksum, event_checksum, stored_type, table_checksum
from hpctrack.storage.hdf5 import INDEX, atomic_h5, damage, open_h5, small_array, write_header
from hpctrack.storage.store import INDEX_COLUMNS


def shard_name(number: int) -> str:
    """The file name of shard `number`."""
    return f"events-{number:05d}.h5"


class ShardWriter:
    """Writes one shard; memory is that of one column of one event, whatever the shard's size.

    Events wait in an unnamed file in the shard's folder until `close`, because a column of the shard is one contiguous
    dataset and its length is known only then. `attributes` go to the shard as they are (strings and numbers), `texts`
    may be long. Used as a context manager, nothing is written when the block fails.
    """

    def __init__(self, path: str | Path, attributes: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.attributes = dict(attributes or {})
        self._waiting: io.FileIO | None = None
        self._begin()

    def _begin(self) -> None:
        """Nothing has been added."""
        self.texts: dict[str, str] = {}
        self._event_ids: list[int] = []
        self._lengths: dict[str, list[int]] = {"hits": [], "particles": []}
        self._n_noise: list[int] = []
        self._checksums: dict[str, list[int]] = {name: [] for name in schema.all_columns()}
        self._positions: dict[str, list[int]] = {name: [] for name in schema.all_columns()}  # in the unnamed file

    def add(self, event: schema.Event) -> None:
        """Add a whole event: every column of the schema, in its type; ValueError otherwise."""
        lengths: dict[str, int] = {}
        for table, columns in schema.TABLES.items():
            for column, dtype in columns.items():
                values = event.tables[table][column]
                if values.dtype != dtype or values.shape != (lengths.setdefault(AXES[table], len(values)),):
                    raise ValueError(f"event {event.event_id}: {table}.{column} is {values.dtype}{values.shape}")
        if self._waiting is None:
            self._waiting = tempfile.TemporaryFile(dir=self.path.parent, buffering=0)  # noqa: SIM115 - until close
        for name in schema.all_columns():
            values = np.ascontiguousarray(event.column(name), dtype=stored_type(name))
            self._checksums[name].append(column_checksum(values))
            self._positions[name].append(self._waiting.tell())
            with os_errors_with(self.path):
                write_all(self._waiting, values)
        for axis, length in lengths.items():
            self._lengths[axis].append(length)
        self._n_noise.append(int(np.sum(event.column("truth.particle_id") == 0)))
        self._event_ids.append(event.event_id)

    def close(self) -> None:
        """Write the shard (nothing if it has no event)."""
        waiting = self._waiting
        if waiting is None:
            return
        rows = [{name: sums[i] for name, sums in self._checksums.items()} for i in range(len(self._event_ids))]
        offsets = {axis: np.append(0, np.cumsum(n)).astype(np.int64) for axis, n in self._lengths.items()}
        with atomic_h5(self.path) as file:
            write_header(file, "shard", self.attributes, self.texts)
            for axis, values in offsets.items():
                file[f"offsets/{axis}"] = values
            for name in schema.all_columns():
                self._write_column(file, name, offsets[axis_of(name)], waiting)
            file["event_id"] = np.array(self._event_ids, dtype=np.int64)
            file["n_noise"] = np.array(self._n_noise, dtype=np.int64)
            file["checksum"] = np.array([event_checksum(row) for row in rows], dtype=np.uint64)
        self.discard()

    def discard(self) -> None:
        """Forget what was added."""
        if self._waiting is not None:
            self._waiting.close()
        self._waiting = None
        self._begin()

    def _write_column(self, file: h5py.File, name: str, offsets: np.ndarray, waiting: io.FileIO) -> None:
        path, dtype = name.replace(".", "/"), stored_type(name)
        dataset = file.create_dataset(path, shape=(int(offsets[-1]),), dtype=dtype)
        for i, position in enumerate(self._positions[name]):
            values = np.empty(offsets[i + 1] - offsets[i], dtype)
            if len(values):
                read_into(waiting.fileno(), values, position, self.path)
                dataset.write_direct(values, dest_sel=np.s_[offsets[i] : offsets[i + 1]])
        file[f"checksums/{path}"] = np.array(self._checksums[name], dtype=np.uint64)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def write_index(
    folder: str | Path,
    shards: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
    texts: Mapping[str, str] | None = None,
    beside: Path | None = None,
) -> None:
    """Write `index.h5` over the named shards of `folder` (or, where it has none, of `beside`), events by their ids.

    Raises InputError for a file that is no shard and for an event id that two shards hold.
    """
    folder = Path(folder)
    paths = [folder / name if beside is None or (folder / name).exists() else beside / name for name in shards]
    columns: dict[str, list[np.ndarray]] = {}
    for number, path in enumerate(paths):
        with open_h5(path, "shard") as file, damage(path):
            part = {key: small_array(file, key) for key in ("event_id", "n_noise", "checksum")}
            n = len(part["event_id"])
            part |= {"shard": np.full(n, number, np.int32), "row": np.arange(n)}
            part |= {f"n_{axis}": np.diff(small_array(file, f"offsets/{axis}")) for axis in ("hits", "particles")}
        for key, values in part.items():
            columns.setdefault(key, []).append(values)
    table = {key: np.concatenate(values) for key, values in columns.items()}
    order = np.argsort(table["event_id"], kind="stable")
    table = {key: values[order] for key, values in table.items()}
    twice = np.flatnonzero(np.diff(table["event_id"]) == 0)
    if len(twice):
        first, second = (shards[table["shard"][twice[0] + k]] for k in (0, 1))
        raise InputError(f"{folder}: event {table['event_id'][twice[0]]} stands in {first} and in {second}")
    table["shard_files"] = np.array(list(shards), dtype="S")
    table["shard_bytes"] = np.array([path.stat().st_size for path in paths], dtype=np.int64)
    with atomic_h5(folder / INDEX) as file:
        write_header(file, "index", attributes or {}, texts or {})
        for key, values in table.items():
            file[key] = values
        file["index_checksum"] = np.uint64(table_checksum(table, INDEX_COLUMNS))
