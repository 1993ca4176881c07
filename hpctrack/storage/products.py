"""What inference makes of events, on disk: HDF5 files aligned with the event shards, and an index over them.

A `Product` describes one kind (candidates.py, edges.py, hits.py): its words, and the columns of its files. How files
are joined from the journals (storage/journals.py), checked and read is the same for all kinds and stands here. Memory
is that of one event. Files are written under a temporary name and renamed; the index is written last.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import h5py
import numpy as np
import xxhash

from hpctrack.errors import InputError
from hpctrack.files.atomic import publish
from hpctrack.storage.hdf5 import (
    INDEX,
    Communicator,
    atomic_h5,
    damage,
    own,
    plain_name,
    shared_name,
    small_array,
    together,
    write_rows,
)
from hpctrack.storage.journals import PARTS, Place, checksum, read_lengths, read_payload, stored_checksum

VERSION = 1
MAX_OPEN = 16  # files one process keeps open
BLOCK = 1 << 20  # rows at a time for a digest
INDEX_COLUMNS = ("event_id", "row", "shard", "shards", "digests")


class Record(Protocol):
    """What is stored of one event."""

    @property
    def event_id(self) -> int: ...

    def __len__(self) -> int: ...


T = TypeVar("T", bound=Record)


@dataclass(frozen=True)
class Extra:
    """A column that all events have or none has: a row for each row of the column `of`; `words` name it in errors."""

    name: str
    dtype: np.dtype
    of: str
    words: str
    labels: Sequence[str]  # of the values in a row


@dataclass(frozen=True)
class Product(Generic[T]):
    """One kind of product: how its records look in journals and in files, and what messages call it."""

    name: str  # of many, and of the files
    format: str  # of the files and the index
    what: str  # a folder of it
    advice: str  # what to do about damaged files
    columns: Mapping[str, np.dtype]  # of a record
    offsets: Mapping[str, Sequence[str]]  # dataset -> the columns whose rows of each event it bounds
    encode: Callable[[T], bytes]  # for a journal: the columns' lengths, the columns, and what there is of the extra
    decode: Callable[[int, bytes], T]
    record: Callable[[int, Mapping[str, np.ndarray]], T]  # from columns; ValueError if they cannot be of one event
    lists: Mapping[str, str] = field(default_factory=dict)  # column of offsets -> column, of which it has one row more
    extra: Extra | None = None
    checksums: bool = False  # whether files hold one for each event
    counts: Mapping[str, str] = field(default_factory=dict)  # dataset of the index -> column whose rows it counts

    def write_shard(
        self,
        folder: Path,
        name: str,
        event_ids: Sequence[int] | np.ndarray,
        sources: Mapping[int, Place],
        world: Communicator | None = None,
    ) -> str:
        """Join the records of `event_ids` into the HDF5 file `name`; returns the content digest of the file.

        With `world` its ranks write the file together, each a part of the events, by collective writes of parallel
        HDF5; the content is the same.
        """
        places = [sources[int(event)] for event in event_ids]
        types = dict(self.columns) | ({self.extra.name: self.extra.dtype} if self.extra else {})
        first = self._bounds(folder, places, types)
        if self.extra and not first[self.extra.name][-1]:
            del types[self.extra.name]
        small = {"event_id": np.array(event_ids, dtype="<i8")}
        small |= {key: first[columns[0]] for key, columns in self.offsets.items()}
        if self.checksums:
            small["checksum"] = np.array([stored_checksum(folder, place) for place in places], dtype="<u8")
        rank, size = (world.rank, world.size) if world is not None else (0, 1)
        begin, end = (len(places) * r // size for r in (rank, rank + 1))
        rounds = -(-len(places) // size)  # the same on each rank, for collective writes
        with atomic_h5(folder / name) if world is None else together(folder / name, world) as file:
            file.attrs["format"], file.attrs["version"] = self.format, VERSION
            for key, whole in small.items():
                dataset = file.create_dataset(key, whole.shape, whole.dtype)
                write_rows(dataset, 0, whole if rank == 0 else whole[:0], world)
            datasets = {
                column: file.create_dataset(column, (int(first[column][-1]), *dtype.shape), dtype.base)
                for column, dtype in types.items()
            }
            if self.extra and self.extra.name in datasets:
                datasets[self.extra.name].attrs["columns"] = list(self.extra.labels)
            for i in range(begin, begin + rounds):
                event = int(event_ids[i]) if i < end else 0
                record = self.decode(event, read_payload(folder, event, places[i])) if i < end else None
                for column, dataset in datasets.items():
                    values = getattr(record, column) if record is not None else None
                    values = np.zeros((0, *dataset.shape[1:]), dataset.dtype) if values is None else values
                    write_rows(dataset, int(first[column][i]) if record is not None else 0, values, world)
            if world is None:
                file.attrs["digest"] = digest = content_digest(file, self.advice)
        return digest if world is None else self._publish_together(folder / name, world)

    def _bounds(self, folder: Path, places: Sequence[Place], types: Mapping[str, np.dtype]) -> dict[str, np.ndarray]:
        """Of each column where each event's rows begin and the last one's end, [n + 1]."""
        rest = self.extra.dtype if self.extra else None
        lengths = [read_lengths(folder, place, self.columns, rest) for place in places]
        lengths_NC = np.array(lengths, dtype=np.int64).reshape(-1, len(types))
        first = {column: bounds(lengths_NC[:, k]) for k, column in enumerate(types)}
        extra = self.extra
        if extra and first[extra.name][-1] and not np.array_equal(first[extra.name], first[extra.of]):
            raise InputError(
                f"{folder}: some {self.name} have {extra.words}, others not; {self.advice} in another folder"
            )
        return first

    def _publish_together(self, path: Path, world: Communicator) -> str:
        digest = None
        if world.rank == 0:
            with h5py.File(shared_name(path), "r+") as file:
                file.attrs["digest"] = digest = content_digest(file, self.advice)
            publish(shared_name(path), path)
        return world.bcast(digest)

    def write_index(
        self, folder: Path, shards: Sequence[tuple[str, Sequence[int], str]], attributes: dict[str, Any]
    ) -> None:
        """Write `index.h5`, last: of `shards` (file name, event ids, digest), and what the product was made with."""
        counts = [len(events) for _, events, _ in shards]
        more = self._counts(folder, shards)
        with atomic_h5(folder / INDEX) as file:
            file.attrs["format"], file.attrs["version"] = self.format, VERSION
            for key, values in more.items():
                file[key] = values
            file.attrs["attributes"] = json.dumps(attributes, sort_keys=True)
            file["shards"] = np.array([name for name, _, _ in shards], dtype="S")
            file["digests"] = np.array([digest for _, _, digest in shards], dtype="S")
            file["event_id"] = np.array([event for _, events, _ in shards for event in events], dtype="<i8")
            file["shard"] = np.repeat(np.arange(len(shards), dtype="<i4"), counts)
            file["row"] = np.concatenate([np.arange(n, dtype="<i4") for n in counts] or [np.zeros(0, "<i4")])
            file.attrs["checksum"] = _index_checksum(file, self.advice)

    def _counts(self, folder: Path, shards: Sequence[tuple[str, Sequence[int], str]]) -> dict[str, np.ndarray]:
        """Further columns of the index: rows of each event, so that planning opens no other file."""
        found: dict[str, list[np.ndarray]] = {key: [np.zeros(0, np.int64)] for key in self.counts}
        for name, events, _ in shards if self.counts else ():
            with contextlib.closing(OpenFile(self, folder / name, np.asarray(events))) as file:
                for key, column in self.counts.items():
                    found[key].append(np.diff(file.offsets[column]))
        return {key: np.concatenate(parts) for key, parts in found.items()}

    @property
    def count_name(self) -> str:
        """What the number of an event's rows is called: as the index has it."""
        return next(iter(self.counts), f"n_{self.name}")

    def folder_of(self, name: str, dataset: Path) -> Path:
        """Where a product of this kind lies: a path as it is, another name in the dataset's folder."""
        return Path(name) if "/" in name else dataset / self.name / name

    def is_in(self, folder: str | Path) -> bool:
        """Whether a folder holds a product of this kind."""
        try:
            self.open_file(Path(folder) / INDEX).close()
        except InputError:
            return False
        return True

    def open(self, folder: Path) -> Store[T]:
        """What stands in a folder."""
        return Store(folder, self)

    def open_file(self, path: Path) -> h5py.File:
        """Open an HDF5 file of this format, or say in one line why not."""
        if not path.is_file():
            raise InputError(f"{path}: missing; {self.advice}")
        try:
            file = h5py.File(path, "r", locking=False)
        except OSError as error:
            if error.errno not in (None, 0):  # the machine's fault
                raise
            raise InputError(f"{path}: not a readable HDF5 file ({error}); {self.advice}") from None
        with damage(path, self.advice):
            kind, version = file.attrs.get("format"), file.attrs.get("version")
        if str(kind) != self.format or str(version) != str(VERSION):
            file.close()
            raise InputError(f"{path}: format {kind!r} version {version!r}, expected {self.format!r} version {VERSION}")
        return file


# ------------------------------------------------------------------------------------------------ writing


def clean(folder: Path) -> None:
    """Remove what is no longer needed once the index stands: journals, and temporary files that a kill left behind."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def content_digest(file: h5py.File, advice: str) -> str:
    """Digest over names, types, shapes and bytes of every dataset, in name order; `advice` ends the errors."""
    state = xxhash.xxh3_128()
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    for name in sorted(names):
        dataset = own(file, name)
        if dataset.nbytes > file.id.get_filesize():
            raise InputError(f"{file.filename}: {name} claims {dataset.nbytes} bytes, more than the file has; {advice}")
        state.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode())
        if dataset.shape == ():
            state.update(np.ascontiguousarray(dataset[()]).tobytes())
            continue
        for start in range(0, dataset.shape[0], BLOCK):
            state.update(np.ascontiguousarray(dataset[start : start + BLOCK]).tobytes())
    return state.hexdigest()


def _index_checksum(file: h5py.File, advice: str) -> str:
    return xxhash.xxh3_128_hexdigest(f"{content_digest(file, advice)} {file.attrs['attributes']}".encode())


def bounds(counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Offsets [n + 1] of consecutive blocks."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype("<i8")


# ------------------------------------------------------------------------------------------------ reading


class Store(Generic[T]):
    """Read a folder of one product: `event_ids`, `attributes`, `read(i)`.

    Files are opened lazily, once a process, and stay open; picklable, and usable before and after a fork. Raises
    InputError for a folder of something else, an unknown version, or a missing or damaged file.
    """

    def __init__(self, folder: str | Path, product: Product[T]) -> None:
        self.folder, self.product = Path(folder), product
        path = self.folder / INDEX
        if not path.is_file():
            unfinished = " (inference has not finished: run it again)" if (self.folder / PARTS).is_dir() else ""
            raise InputError(f"{self.folder}: not {product.what}, {INDEX} is missing{unfinished}")
        with product.open_file(path) as file, damage(path, product.advice):
            if file.attrs.get("checksum") != _index_checksum(file, product.advice):
                raise InputError(f"{path}: fails its checksum; {product.advice}")
            self.attributes: dict[str, Any] = json.loads(file.attrs["attributes"])
            self.event_ids, self.row, self.shard, shards, digests = (small_array(file, name) for name in INDEX_COLUMNS)
            self.counts = {name: small_array(file, name) for name in product.counts}
            self.shards = [plain_name(name.decode()) for name in shards]
            self.digests = [digest.decode() for digest in digests]
        self._reset()

    def __len__(self) -> int:
        return len(self.event_ids)

    @property
    def digest(self) -> str:
        """Canonical digest of all content: the same for any number of ranks."""
        settings = json.dumps(self.attributes, sort_keys=True)
        return xxhash.xxh3_128_hexdigest("\n".join([settings, *self.digests]).encode())

    def read(self, i: int) -> T:
        """What is stored of the i-th event; InputError if it cannot be what it says."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.folder}: event {i} of {len(self)}")
        event_id, row = int(self.event_ids[i]), int(self.row[i])
        return self._open(int(self.shard[i])).read(event_id, row)

    def of_event(self, event_id: int) -> T:
        """What is stored of the event of that id."""
        if event_id not in self.position:
            raise InputError(f"{self.folder}: has no event {event_id}; {self.product.advice}")
        return self.read(self.position[event_id])

    @cached_property
    def position(self) -> dict[int, int]:
        """Which event, from 0, has an id."""
        return {int(event): i for i, event in enumerate(self.event_ids)}

    def check_made_for(self, dataset: Path, fingerprint: str) -> None:
        """InputError unless this was made for the dataset of that fingerprint."""
        made_for = self.attributes["dataset_fingerprint"]
        if made_for != fingerprint:
            raise InputError(
                f"{self.folder}: made for a dataset with fingerprint {made_for}, but {dataset} has {fingerprint}; "
                f"run the stage before on it"
            )

    def check_files(self) -> None:
        """InputError unless each file is there, and the one that the index was made with; its values are not read."""
        for number, digest in enumerate(self.digests):
            with contextlib.closing(self._file(number)) as file, damage(file.path, self.product.advice):
                if file.file.attrs.get("digest") != digest:
                    raise InputError(f"{file.path}: is not the file that {INDEX} was made with; {self.product.advice}")

    def close(self) -> None:
        """Close the open files; reading opens them again."""
        while self._files:
            self._files.popitem()[1].close()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._files: OrderedDict[int, OpenFile[T]] = OrderedDict()

    def _file(self, number: int) -> OpenFile[T]:
        return OpenFile(self.product, self.folder / self.shards[number], self.event_ids[self.shard == number])

    def _open(self, number: int) -> OpenFile[T]:
        if self._pid != os.getpid():  # after a fork: the parent's handles are not ours
            inherited = list(self._files.values())
            self._reset()
            for one in inherited:  # or HDF5 would hand out the inherited descriptor for the same file again
                one.close()
        if number not in self._files:
            self._files[number] = self._file(number)
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(number)
        return self._files[number]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pid", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


class OpenFile(Generic[T]):
    """An open file of a product with its columns, and the offsets of each."""

    def __init__(self, product: Product[T], path: Path, event_ids: np.ndarray) -> None:
        """InputError unless the file holds `event_ids`, in rows that its offsets and columns agree on."""
        self.product, self.path, self.file = product, path, product.open_file(path)
        self.columns: dict[str, h5py.Dataset] = {}
        self.offsets: dict[str, np.ndarray] = {}
        try:
            with damage(path, product.advice):
                self.event_ids = self._column("event_id", np.dtype("<i8"), len(event_ids))[:]
                if not np.array_equal(self.event_ids, event_ids):
                    raise self._error(f"does not hold the events that {INDEX} says")
                self._check(len(event_ids))
        except InputError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def read(self, event_id: int, row: int) -> T:
        """What is stored of an event; InputError if it cannot be what it says."""
        if not 0 <= row < len(self.event_ids) or self.event_ids[row] != event_id:
            raise self._error(f"event {event_id} is not in row {row}, where {INDEX} says")
        with damage(self.path, self.product.advice):
            parts = {name: self.columns[name][slice(*self.offsets[name][row : row + 2])] for name in self.columns}
        try:
            record = self.product.record(event_id, parts)
        except ValueError as error:
            raise self._error(f"event {event_id}: {error}") from None
        if self.checksums is not None and checksum(event_id, self.product.encode(record)) != int(self.checksums[row]):
            raise self._error(f"event {event_id} fails its checksum")
        return record

    def _error(self, what: str) -> InputError:
        return InputError(f"{self.path}: {what}; {self.product.advice}")

    def _check(self, n: int) -> None:
        product, extra = self.product, self.product.extra
        self.columns = {name: self._column(name, dtype) for name, dtype in product.columns.items()}
        if extra and extra.name in self.file:
            self.columns[extra.name] = self._column(extra.name, extra.dtype, len(self.columns[extra.of]))
        for dataset, columns in product.offsets.items():
            self.offsets |= {column: self._offsets(dataset, n, column) for column in columns}
        if extra:
            self.offsets[extra.name] = self.offsets[extra.of]
        for name, of in product.lists.items():
            self.offsets[name] = self.offsets[of] + np.arange(n + 1)  # one row more than `of` has, an event
            rows = len(self.columns[name])
            if rows != self.offsets[name][-1]:
                raise self._error(f"{name} has {rows} rows, but must have one more than {product.name} for each event")
        self.checksums = self._column("checksum", np.dtype("<u8"), n)[:] if product.checksums else None

    def _offsets(self, name: str, n: int, column: str) -> np.ndarray:
        offsets, rows = self._column(name, np.dtype("<i8"), n + 1)[:], len(self.columns[column])
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != rows:
            raise self._error(f"{name} must rise from 0 to the {rows} rows of {column}")
        return offsets

    def _column(self, name: str, dtype: np.dtype, length: int | None = None) -> h5py.Dataset:
        dataset = own(self.file, name)
        shape = (dataset.size if length is None else length, *dtype.shape)
        if dataset.dtype != dtype.base or dataset.shape != shape:
            expected = "(n,)" if length is None else shape
            raise self._error(f"{name} is {dataset.dtype} {dataset.shape}, must be {dtype.base} {expected}")
        if dataset.nbytes > os.path.getsize(self.path):
            raise self._error(f"{name} claims {dataset.nbytes} bytes, more than the file has")
        return dataset
