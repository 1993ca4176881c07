"""The event store: shards `events-00000.h5` of columnar tables, and one `index.h5` that plans read instead of shards.

In a shard, each column of schema.TABLES is one 1-d contiguous dataset, concatenated over the shard's events; event i
has rows `offsets/hits[i]:offsets/hits[i + 1]` of the hit tables, and likewise of `particles`. The whole layout
is in docs/reference/data-format.md.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import stat
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpctrack.errors import InputError
from hpctrack.files.reading import BufferPool, aligned, max_unpacked, read_into, read_ranges, too_large
from hpctrack.storage import schema
from hpctrack.storage.columns import (
    TYPES,
    KeptShard,
    as_tables,
    axis_of,
    column_checksum,
    combined_digest,
    event_checksum,
    lacks_of,
    stored_type,
    table_checksum,
)
from hpctrack.storage.detector import TEXT, Detector
from hpctrack.storage.hdf5 import INDEX, check_size, damage, open_h5, own, plain_name, read_attributes, small_array
from hpctrack.storage.schema import faults_of_numbers

MAX_OPEN = 128  # shards one process keeps open, a file descriptor each; at most a quarter of what it may have
_OF_PROCESS = ("_pid", "_lock", "_files", "_pool", "_kept")
INDEX_COLUMNS = (
    "event_id",
    "shard",
    "row",
    "n_hits",
    "n_noise",
    "n_particles",
    "checksum",
    "shard_files",
    "shard_bytes",
)


class Dataset:
    """A dataset folder: the index in memory, the shards opened lazily, once a process, at most MAX_OPEN at a time.

    Picklable, and usable before and after fork and spawn, and from several threads; a copy looks for no file.
    Attributes: `event_ids`, `n_hits`, `n_noise`, `n_particles`, `shard`, `row`, `checksums` (numpy, one entry an event,
    in the order of the ids); `shards` (file names), `shard_bytes`, `attributes` (of the index), `columns` (that are
    stored), `field_t` (magnetic field along z, Tesla; `field_is_known` says whether the source has said it) and
    `detector` (what is known of it).
    `verify` is what `read` does unless told otherwise. Raises InputError if the folder is no whole dataset.
    """

    def __init__(self, folder: str | Path, verify: bool = False) -> None:
        self.folder = Path(folder)
        self.verify = verify
        if not self.folder.is_dir():
            what = "is not a folder" if self.folder.exists() else "does not exist"
            raise InputError(f"{self.folder}: {what}; a dataset is a folder that `hpctrack convert` made")
        if not (self.folder / INDEX).is_file():
            raise InputError(f"{self.folder}: no {INDEX}; `hpctrack convert` writes it last, so run it (again)")
        with open_h5(self.folder / INDEX, "index") as file, damage(self.folder / INDEX):
            table = {key: small_array(file, key) for key in INDEX_COLUMNS}
            if table_checksum(table, INDEX_COLUMNS) != own(file, "index_checksum")[()]:
                raise InputError(f"{self.folder / INDEX}: fails its checksum; convert again with --overwrite")
            _check_lengths(table)
            self.attributes = read_attributes(file)
            self.field_t, self.field_is_known = _field(self.attributes), "field_t" in self.attributes
            self._said_lacks = lacks_of(self.attributes)
            self.detector = Detector.parse(self.attributes.get(TEXT))
            self.shards = [plain_name(name.decode()) for name in table["shard_files"]]
        self.columns = schema.stored_columns(self._said_lacks or ())
        self.event_ids, self.checksums, self.shard, self.row = (
            table[key] for key in ("event_id", "checksum", "shard", "row")
        )
        self.n_hits, self.n_noise, self.n_particles = (table[f"n_{key}"] for key in ("hits", "noise", "particles"))
        self.shard_bytes: list[int] = table["shard_bytes"].tolist()
        for name, size in zip(self.shards, self.shard_bytes, strict=True):
            _check_shard(self.folder / name, size)
        self._kept_columns: frozenset[str] = frozenset()
        self._kept: list[KeptShard] | None = None
        self._reset()

    def __len__(self) -> int:
        return len(self.event_ids)

    def at(self, folder: Path) -> Dataset:
        """The same dataset read from a whole copy of it in `folder`, where nothing is looked for."""
        other = copy.copy(self)
        other.folder = folder
        return other

    @cached_property
    def lacks(self) -> frozenset[str]:
        """The columns that its source had not: nobody measured them, and nothing may be computed with them.

        Of a dataset that does not say it (of version 0.1.0) it follows from what is in the events: then these are read.
        """
        return derived_lacks(self) if self._said_lacks is None else self._said_lacks

    @property
    def says_what_it_lacks(self) -> bool:
        """Whether its index says it, or what it holds has to be looked at."""
        return self._said_lacks is not None

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over the event ids and checksums of the index."""
        return combined_digest(self.event_ids, self.checksums)[:16]

    def read(self, i: int, columns: Sequence[str] | None = None, verify: bool | None = None) -> schema.Event:
        """Event i of the index, all columns that are stored or those named as `table.column`.

        `verify` compares what was read with its checksums (None: as the dataset is set). The arrays are the caller's
        own, except those of `keep_in_memory`, which are read-only. Raises IndexError for i, InputError for an unknown
        column or one that the source lacks, for a shard that does not fit the index and for a failed checksum.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.folder}: event {i} of {len(self)}")
        names = self.columns if columns is None else list(dict.fromkeys(columns))
        self._check_known(names)
        number, row, event_id = int(self.shard[i]), int(self.row[i]), int(self.event_ids[i])
        if self._kept_columns and self._kept_columns.issuperset(names):
            return self._event(event_id, self._memory()[number].slices(names, row), whole=columns is None)
        with self._lock_of_process():
            shard = self._open(number, names)
            ranges = {name: shard.range(name, row) for name in names}
            buffer = self._pool.take(sum(aligned(size) for _, size in ranges.values()))
            chunked = {name: shard.read_chunked(name, row) for name in names if name in shard.chunked}
        arrays, parts, used = {}, [], 0
        for name, (position, size) in ranges.items():
            if name in chunked:
                arrays[name] = chunked[name]
                continue
            part = buffer[used : used + size]
            parts.append((part, position))
            arrays[name] = part.view(TYPES[name])
            used += aligned(size)
        read_ranges(shard.descriptor, parts, shard.path)
        if self.verify if verify is None else verify:
            shard.verify(arrays, row, event_id)
        return self._event(event_id, arrays, whole=columns is None)

    def _event(self, event_id: int, arrays: Mapping[str, np.ndarray], whole: bool) -> schema.Event:
        """An event of these columns; a `whole` one has every table, if only without columns."""
        tables = as_tables(arrays)
        every = {table: tables.get(table, {}) for table in schema.TABLES} if whole else tables
        return schema.Event(event_id, every, self.field_t)

    def keep_in_memory(self, columns: Sequence[str]) -> None:
        """Hold these columns of all events in memory: `read` then hands out read-only slices of them, nothing copied.

        They are compared with their checksums. Forked processes share them; spawned ones load them again when they
        first read. Raises InputError for an unknown column and for a failed checksum.
        """
        self._check_known(columns)
        self._kept_columns = frozenset(columns)
        self._kept = None
        self._memory()

    def _memory(self) -> list[KeptShard]:
        if self._kept is None:
            names, kept = sorted(self._kept_columns), []
            for number in range(len(self.shards)):
                with self._lock_of_process():
                    shard = self._open(number, names)
                    arrays = {name: shard.read_whole(name) for name in names}
                kept.append(KeptShard(arrays, shard.offsets))
                for i in np.flatnonzero(self.shard == number):
                    row = int(self.row[i])
                    shard.verify(kept[-1].slices(names, row), row, int(self.event_ids[i]))
            self._kept = kept
        return self._kept

    def _check_known(self, names: Sequence[str]) -> None:
        if not set(names) <= TYPES.keys():
            unknown = min(set(names) - TYPES.keys())
            known = ", ".join(schema.all_columns())
            raise InputError(f"{self.folder}: unknown column '{unknown}'; one of {known}")
        if missing := sorted(set(names) - set(self.columns)):
            parts = " and ".join(schema.parts_of(missing))
            raise InputError(f"{self.folder}: lacks {parts}, so there is no column '{missing[0]}'")

    def close(self) -> None:
        """Close the open shards; reading opens them again."""
        with self._lock_of_process():
            self._files.clear()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._files: OrderedDict[int, _Shard] = OrderedDict()
        self._pool = BufferPool()

    def _lock_of_process(self) -> threading.Lock:
        if self._pid != os.getpid():  # after a fork: the parent's lock is not ours, and its buffers are in use there
            self._reset()
        return self._lock

    def verify_shard(self, number: int, path: str | Path | None = None) -> None:
        """Read all of shard `number`, or of a copy of it at `path`; InputError unless it holds what the index says."""
        names = self.columns
        shard = self._shard(number, Path(path or self.folder / self.shards[number]), names)
        for i in np.flatnonzero(self.shard == number):
            row = int(self.row[i])
            sums = {name: column_checksum(shard.read(name, row)) for name in names}
            if event_checksum(sums) != int(self.checksums[i]):
                raise InputError(f"{shard.path}: event {self.event_ids[i]} does not match its checksum")

    def _shard(self, number: int, path: Path, names: Sequence[str]) -> _Shard:
        rows = self.shard == number
        expected = {"event_id": self.event_ids[rows], "checksum": self.checksums[rows]}
        expected |= {"n_hits": self.n_hits[rows], "n_particles": self.n_particles[rows]}
        return _Shard(path, self.row[rows], expected, names)

    def _open(self, number: int, names: Sequence[str]) -> _Shard:
        if number in self._files:
            self._files[number].locate(names)
        else:
            self._files[number] = self._shard(number, self.folder / self.shards[number], names)
            if len(self._files) > min(MAX_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4):
                self._files.popitem(last=False)  # closed when the last thread that reads from it is done
        self._files.move_to_end(number)
        return self._files[number]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in _OF_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._kept = None
        self._reset()


class _Shard:
    """An open shard: a file descriptor, and where in the file each column of it lies.

    HDF5 is asked only for that, and closed again: its own way of reading takes longer than the copy, and its handles
    must not pass through a fork. What is not contiguous in the file is read by HDF5.
    """

    def __init__(
        self, path: Path, rows: np.ndarray, expected: Mapping[str, np.ndarray], names: Sequence[str] = ()
    ) -> None:
        """InputError if the shard's events `rows` are not what the index says (`expected`); locates `names`."""
        self.path = path
        self._positions: dict[str, int] = {}
        self.chunked: set[str] = set()
        self._checksums: dict[str, np.ndarray] = {}
        with open_h5(path, "shard") as file, damage(path):
            self.descriptor = os.open(path, os.O_RDONLY)
            weakref.finalize(self, os.close, self.descriptor)
            self.offsets = {axis: small_array(file, f"offsets/{axis}") for axis in ("hits", "particles")}
            own = {key: small_array(file, key) for key in ("event_id", "checksum")}
            own |= {f"n_{axis}": np.diff(offsets) for axis, offsets in self.offsets.items()}
            starts = [int(offsets[0]) for offsets in self.offsets.values()]
            if any(starts):
                raise InputError(f"{path}: its offsets begin at {max(starts)}, not 0; convert again with --overwrite")
            if any((np.diff(offsets) < 0).any() for offsets in self.offsets.values()):
                raise InputError(f"{path}: its offsets decrease; convert again with --overwrite")
            fits = np.array_equal(np.sort(rows), np.arange(len(rows)))
            for key, values in expected.items():
                if not fits or len(own[key]) != len(rows) or (own[key][rows] != values).any():
                    raise InputError(
                        f"{path}: does not hold the events that {INDEX} says ({key}); convert again with --overwrite"
                    )
            self._locate(file, names)

    def locate(self, names: Sequence[str]) -> None:
        """Find the named columns in the file, unless they are known; InputError if one is not as it must be."""
        missing = [name for name in names if name not in self._checksums]
        if missing:
            with open_h5(self.path, "shard") as file, damage(self.path):
                self._locate(file, missing)

    def _locate(self, file: h5py.File, names: Sequence[str]) -> None:
        opened = os.fstat(self.descriptor)
        if not os.path.samestat(os.stat(self.path), opened):
            raise InputError(f"{self.path}: was replaced while it was read; start again")
        for name in names:
            path, rows = name.replace(".", "/"), int(self.offsets[axis_of(name)][-1])
            dataset, dtype = own(file, path), stored_type(name)
            if dataset.dtype != dtype or dataset.shape != (rows,):
                raise InputError(
                    f"{self.path}: {name} is {dataset.dtype} {dataset.shape}, must be {dtype} ({rows},); "
                    f"convert again with --overwrite"
                )
            checksums = small_array(file, f"checksums/{path}")
            if checksums.shape != (len(self.offsets["hits"]) - 1,):
                raise ValueError(f"{len(checksums)} checksums of {name}")
            position = dataset.id.get_offset()  # None: in chunks, or empty
            if rows and (position is None or file.userblock_size or dtype != TYPES[name]):
                self._check_packed(name, dataset)
                self.chunked.add(name)
            elif rows and position + dataset.nbytes > opened.st_size:
                raise InputError(f"{self.path}: {name} lies beyond the file's end; convert again with --overwrite")
            self._positions[name] = position or 0
            self._checksums[name] = checksums

    def _check_packed(self, name: str, dataset: h5py.Dataset) -> None:
        check_size(dataset)
        largest = int(np.diff(self.offsets[axis_of(name)]).max()) * TYPES[name].itemsize
        if largest > max_unpacked():
            raise InputError(f"{self.path}: {name} of an event {too_large(largest)}")

    def range(self, name: str, row: int) -> tuple[int, int]:
        """Position in the file and size, bytes, of a located column of event `row`."""
        offsets, width = self.offsets[axis_of(name)], TYPES[name].itemsize
        return self._positions[name] + int(offsets[row]) * width, int(offsets[row + 1] - offsets[row]) * width

    def read(self, name: str, row: int) -> np.ndarray:
        """A located column of event `row`, in memory of its own."""
        if name in self.chunked:
            return self.read_chunked(name, row)
        position, size = self.range(name, row)
        values = np.empty(size // TYPES[name].itemsize, TYPES[name])
        read_into(self.descriptor, values, position, self.path)
        return values

    def read_chunked(self, name: str, row: int | None = None) -> np.ndarray:
        """A column of event `row`, or of all, by way of HDF5."""
        offsets = self.offsets[axis_of(name)]
        rows = slice(None) if row is None else slice(offsets[row], offsets[row + 1])
        with open_h5(self.path, "shard") as file, damage(self.path):
            return own(file, name.replace(".", "/"))[rows].astype(TYPES[name], copy=False)

    def read_whole(self, name: str) -> np.ndarray:
        """A located column of all events, read-only."""
        if name in self.chunked:
            values = self.read_chunked(name)
        else:
            values = np.empty(self.offsets[axis_of(name)][-1], TYPES[name])
            read_into(self.descriptor, values, self._positions[name], self.path)
        values.flags.writeable = False
        return values

    def verify(self, arrays: Mapping[str, np.ndarray], row: int, event_id: int) -> None:
        """InputError if a column of event `row` is not what its checksum says, or holds what no event's can."""
        where = f"{self.path}: event {event_id}"
        for name, values in arrays.items():
            if column_checksum(values) != int(self._checksums[name][row]):
                raise InputError(f"{where}: {name} fails its checksum; convert again with --overwrite")
            for _, place, what in faults_of_numbers(name, values):
                raise InputError(f"{where}: {name}: row {place} {what}; convert again from sound files")


def _field(attributes: Mapping[str, Any]) -> float:
    """The field of the events, Tesla; ValueError for one that cannot be."""
    field_t = float(attributes.get("field_t", schema.FIELD_T))
    if not np.isfinite(field_t) or field_t == 0:
        raise ValueError(f"field_t is {field_t}")
    return field_t


def derived_lacks(dataset: Dataset) -> frozenset[str]:
    """What a dataset that does not say it lacks, by its own content, which stood there as zeros.

    Truth where no event has a particle; weights, momenta and cells where all of them are 0.
    """
    origin = json.loads(str(dataset.attributes.get("origin", "{}")))
    if not origin.get("truth", bool(dataset.n_particles.any())):
        lacks = set(schema.ALL_OF_TRUTH)
    else:
        lacks = {name for part in ("weights", "momenta") for name in _unless_found(dataset, part)}
    return frozenset(lacks | set(_unless_found(dataset, "cells")))


def _unless_found(dataset: Dataset, part: str) -> Sequence[str]:
    """The columns of a part, unless an event has something in them (of cells: in their number)."""
    columns, rows = schema.PARTS[part], dataset.n_particles if part == "momenta" else dataset.n_hits
    look = columns[:1] if part == "cells" else columns
    events = (dataset.read(int(row), look) for row in np.flatnonzero(rows))
    return () if not rows.any() or any(e.column(name).any() for e in events for name in look) else columns


def _check_shard(path: Path, size: int) -> None:
    """InputError unless there is a file of so many bytes."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise InputError(f"{path}: missing, but {INDEX} names it; convert again with --overwrite")
    if found.st_size != size:
        raise InputError(f"{path}: {found.st_size} bytes, but {INDEX} says {size}; convert again with --overwrite")


def _check_lengths(table: Mapping[str, np.ndarray]) -> None:
    """ValueError if the index's columns do not fit each other."""
    per_shard = ("shard_files", "shard_bytes")
    for group in ([key for key in INDEX_COLUMNS if key not in per_shard], per_shard):
        if len({len(table[key]) for key in group}) != 1:
            raise ValueError(f"the index's {' '.join(group)} differ in length")
    if len(table["shard"]) and not 0 <= table["shard"].min() <= table["shard"].max() < len(table["shard_files"]):
        raise ValueError("the index names shards that it does not list")


def open_dataset(path: str | Path) -> Dataset:
    """The dataset in folder `path`; InputError if there is none."""
    return Dataset(path)


def digest(dataset: Dataset) -> str:
    """32 hex digits over every event's every column as it is on disk, independent of the sharding.

    Reads the whole dataset. It begins with `dataset.fingerprint`; InputError names an event that does not fit its
    checksum.
    """
    checksums = np.empty(len(dataset), dtype=np.uint64)
    for i, event_id in enumerate(dataset.event_ids):
        event = dataset.read(i)
        sums = {name: column_checksum(event.column(name)) for name in dataset.columns}
        checksums[i] = event_checksum(sums)
        if checksums[i] != dataset.checksums[i]:
            path = dataset.folder / dataset.shards[dataset.shard[i]]
            raise InputError(f"{path}: event {event_id} does not match its checksum; convert again with --overwrite")
    return combined_digest(dataset.event_ids, checksums)


def shard_attributes(path: str | Path) -> dict[str, Any] | None:
    """The attributes of a whole shard, None if there is no such file or it is not a whole shard."""
    try:
        with open_h5(path, "shard") as file, damage(path):
            return read_attributes(file) | {"n_events": len(small_array(file, "event_id"))}
    except InputError:
        return None
