"""Writing shards of events, and the index over them; docs/reference/data-format.md has the layout."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpctrack.errors import InputError
from hpctrack.files.atomic import os_errors_with
from hpctrack.files.reading import read_into, write_all
from hpctrack.storage import schema
from hpctrack.storage.columns import (
    LACKS,
    TYPES,
    axis_of,
    column_checksum,
    event_checksum,
    lacks_as_text,
    lacks_of,
    stored_type,
    table_checksum,
)
from hpctrack.storage.hdf5 import INDEX, atomic_h5, damage, open_h5, small_array, write_header
from hpctrack.storage.store import INDEX_COLUMNS

TOGETHER = 1 << 20  # bytes: small events one by one would take HDF5 a millisecond a column


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
        self._lacks: frozenset[str] = frozenset()
        self._checksums: dict[str, list[int]] = {}
        self._positions: dict[str, list[int]] = {}  # in the unnamed file

    def add(self, event: schema.Event) -> None:
        """Add a whole event: every column of the schema, in its type, but for what its source lacks.

        ValueError otherwise, InputError if the events before it lack something else.
        """
        lacks = lacking(event)
        names = schema.stored_columns(lacks)
        lengths: dict[str, int] = {}
        for name in names:
            values = event.column(name)
            if values.dtype != TYPES[name] or values.shape != (lengths.setdefault(axis_of(name), len(values)),):
                raise ValueError(f"event {event.event_id}: {name} is {values.dtype}{values.shape}")
        if self._waiting is None:
            self._waiting = tempfile.TemporaryFile(dir=self.path.parent, buffering=0)  # noqa: SIM115 - until close
            self._lacks = lacks
            self._checksums, self._positions = {name: [] for name in names}, {name: [] for name in names}
        elif lacks != self._lacks:
            raise InputError(f"event {event.event_id}: {differs(lacks, self._lacks)} event {self._event_ids[0]}")
        for name in names:
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
            write_header(file, "shard", self.attributes | {LACKS: lacks_as_text(self._lacks)}, self.texts)
            for axis, values in offsets.items():
                file[f"offsets/{axis}"] = values
            for name in self._checksums:
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
        for first, end in _together(offsets * dtype.itemsize):
            values = np.empty(offsets[end] - offsets[first], dtype)
            for i in range(first, end):
                part = values[offsets[i] - offsets[first] : offsets[i + 1] - offsets[first]]
                if len(part):
                    read_into(waiting.fileno(), part, self._positions[name][i], self.path)
            if len(values):
                dataset.write_direct(values, dest_sel=np.s_[offsets[first] : offsets[end]])
        file[f"checksums/{path}"] = np.array(self._checksums[name], dtype=np.uint64)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def _together(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of events, first and end, that are written at once: of TOGETHER bytes at most, or one event."""
    first = 0
    while first < len(offsets) - 1:
        end = max(first + 1, int(np.searchsorted(offsets, offsets[first] + TOGETHER, side="right")) - 1)
        yield first, end
        first = end


def lacking(event: schema.Event) -> frozenset[str]:
    """The columns that an event's source lacks: those it names, and those that are not there.

    ValueError for a column without which there is no event.
    """
    missing = {name for name in TYPES if name.split(".")[1] not in event.tables.get(name.split(".")[0], {})}
    needed = {f"hits.{name}" for name in schema.HITS} | set(schema.PARTS["truth"])
    if needed & missing:
        raise ValueError(f"event {event.event_id}: no {min(needed & missing)}")
    return event.lacks | missing


def differs(lacks: frozenset[str], others: frozenset[str]) -> str:
    """How events that lack something are unlike others; the others' name follows."""
    more, less = schema.parts_of(lacks - others), schema.parts_of(others - lacks)
    what = f"has no {' and '.join(more)}, unlike" if more else f"has {' and '.join(less)}, unlike"
    return f"a dataset's events have the same columns, but it {what}"


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
    lacks: list[frozenset[str] | None] = []
    for number, path in enumerate(paths):
        with open_h5(path, "shard") as file, damage(path):
            lacks.append(lacks_of(file.attrs))
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
    common = lacks_of_all(folder, shards, lacks)
    said = {} if None in lacks else {LACKS: lacks_as_text(common)}
    with atomic_h5(folder / INDEX) as file:
        write_header(file, "index", said | dict(attributes or {}), texts or {})
        for key, values in table.items():
            file[key] = values
        file["index_checksum"] = np.uint64(table_checksum(table, INDEX_COLUMNS))


def lacks_of_all(folder: Path, shards: Sequence[str], lacks: Sequence[frozenset[str] | None]) -> frozenset[str]:
    """What the events of all these shards lack; InputError if they are not alike.

    None is of a shard that version 0.1.0 made, which has every column.
    """
    found = [one or frozenset[str]() for one in lacks]
    for name, other in zip(shards, found, strict=True):
        if other != found[0]:
            raise InputError(f"{folder / name}: {differs(other, found[0])} {shards[0]}; convert again with --overwrite")
    return found[0] if found else frozenset()
