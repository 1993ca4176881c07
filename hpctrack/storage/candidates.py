"""Track candidates on disk: HDF5 files aligned with the event shards, and an index, joined from the journals.

When every event is in a journal (storage/journals.py), each event shard's candidates are joined into
`candidates-00000.h5`, written under a temporary name and renamed; the index is written last. Memory is that of one
event.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from hpctrack.errors import InputError
from hpctrack.files.atomic import publish
from hpctrack.storage import hdf5
from hpctrack.storage.hdf5 import INDEX, atomic_h5, own, plain_name, small_array
from hpctrack.storage.journals import COLUMNS, PARAMETERS, PARTS, Place, read_lengths, read_record
from hpctrack.storage.schema import ESTIMATE, Candidates

FORMAT = "hpctrack-candidates"
VERSION = 1
MAX_OPEN = 16  # files one process keeps open
BLOCK = 1 << 20  # rows at a time for a digest
AGAIN = "write the candidates again"
INDEX_COLUMNS = ("event_id", "row", "shard", "shards", "digests")
WIDTH = {"parameters": (len(ESTIMATE),)}  # of columns that are tables; this one is there if the model has estimates
_AXES = {"offsets/candidates": "scores", "offsets/candidate_hits": "hit_rows", "offsets/hits": "track_ids"}


# ------------------------------------------------------------------------------------------------ writing


def has_parallel_hdf5() -> bool:
    """Whether several ranks can write one HDF5 file together: h5py was built with MPI."""
    return bool(h5py.get_config().mpi)


def write_shard(
    folder: Path, name: str, event_ids: Sequence[int], sources: Mapping[int, Place], world: Any = None
) -> str:
    """Join the records of `event_ids` into the HDF5 file `name`; returns the content digest of the file.

    With `world`, an MPI communicator, its ranks write the file together, each a part of the events, by collective
    writes of parallel HDF5; the content is the same.
    """
    places = [sources[int(event)] for event in event_ids]
    columns = COLUMNS | {"parameters": PARAMETERS.base}
    lengths_N5 = np.array([read_lengths(folder, place) for place in places], dtype=np.int64).reshape(-1, len(columns))
    first = {column: bounds(lengths_N5[:, k]) for k, column in enumerate(columns)}
    if not first["parameters"][-1]:
        del columns["parameters"]
    elif not np.array_equal(first["parameters"], first["scores"]):
        raise InputError(f"{folder}: some candidates have track parameters, others not; {AGAIN} in another folder")
    rank, size = (world.rank, world.size) if world is not None else (0, 1)
    begin, end = (len(places) * r // size for r in (rank, rank + 1))
    rounds = -(-len(places) // size)  # the same on each rank, for collective writes
    with atomic_h5(folder / name) if world is None else _together(folder / name, world) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        small = {"event_id": np.array(event_ids, dtype="<i8")} | {key: first[axis] for key, axis in _AXES.items()}
        for key, values in small.items():
            dataset = file.create_dataset(key, values.shape, values.dtype)
            _write(dataset, 0, values if rank == 0 else values[:0], world)
        datasets = {
            column: file.create_dataset(column, (int(first[column][-1]), *WIDTH.get(column, ())), dtype)
            for column, dtype in columns.items()
        }
        if "parameters" in datasets:
            datasets["parameters"].attrs["columns"] = list(ESTIMATE)
        for i in range(begin, begin + rounds):
            event = read_record(folder, int(event_ids[i]), places[i]) if i < end else None
            for column, dataset in datasets.items():
                values = getattr(event, column) if event is not None else None
                values = np.zeros((0, *dataset.shape[1:]), dataset.dtype) if values is None else values
                _write(dataset, int(first[column][i]) if event is not None else 0, values, world)
        if world is None:
            file.attrs["digest"] = digest = content_digest(file)
    return digest if world is None else _publish_together(folder / name, world)


def _write(dataset: h5py.Dataset, start: int, values: np.ndarray, world: Any) -> None:
    """Write the rows from `start` on; every rank of `world` must call it, with nothing if need be."""
    if not dataset.shape[0]:
        return
    rest = dataset.shape[1:]
    memory, place = h5py.h5s.create_simple((max(len(values), 1), *rest)), dataset.id.get_space()
    if len(values):
        place.select_hyperslab((start, *[0] * len(rest)), values.shape)
    else:
        memory.select_none()
        place.select_none()
    transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
    if world is not None:
        transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
    data = np.ascontiguousarray(values) if len(values) else np.zeros((1, *rest), dataset.dtype)
    dataset.id.write(memory, place, data, dxpl=transfer)


@contextlib.contextmanager
def _together(path: Path, world: Any) -> Iterator[h5py.File]:
    """A new file, open on all ranks of `world`, under a temporary name that `_publish_together` finds."""
    with h5py.File(_shared_name(path), "w", driver="mpio", comm=world) as file:
        yield file


def _shared_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.together.tmp")  # the folder's lock keeps others out


def _publish_together(path: Path, world: Any) -> str:
    digest = None
    if world.rank == 0:
        with h5py.File(_shared_name(path), "r+") as file:
            file.attrs["digest"] = digest = content_digest(file)
        publish(_shared_name(path), path)
    return world.bcast(digest)


def write_index(
    folder: Path,
    shards: Sequence[tuple[str, Sequence[int], str]],
    attributes: dict[str, Any],
    kind: str = FORMAT,
    also: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write `index.h5`, last: of `shards` (file name, event ids, digest), and what the candidates were made with.

    `also`: further columns, a value an event.
    """
    counts = [len(events) for _, events, _ in shards]
    with atomic_h5(folder / INDEX) as file:
        file.attrs["format"], file.attrs["version"] = kind, VERSION
        for key, values in (also or {}).items():
            file[key] = values
        file.attrs["attributes"] = json.dumps(attributes, sort_keys=True)
        file["shards"] = np.array([name for name, _, _ in shards], dtype="S")
        file["digests"] = np.array([digest for _, _, digest in shards], dtype="S")
        file["event_id"] = np.array([event for _, events, _ in shards for event in events], dtype="<i8")
        file["shard"] = np.repeat(np.arange(len(shards), dtype="<i4"), counts)
        file["row"] = np.concatenate([np.arange(n, dtype="<i4") for n in counts] or [np.zeros(0, "<i4")])
        file.attrs["checksum"] = _index_checksum(file)


def _index_checksum(file: h5py.File) -> str:
    return xxhash.xxh3_128_hexdigest(f"{content_digest(file)} {file.attrs['attributes']}".encode())


def clean(folder: Path) -> None:
    """Remove what is no longer needed once the index stands: journals, and temporary files that a kill left behind."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def content_digest(file: h5py.File) -> str:
    """Digest over names, types, shapes and bytes of every dataset, in name order."""
    state = xxhash.xxh3_128()
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    for name in sorted(names):
        dataset = own(file, name)
        if dataset.nbytes > file.id.get_filesize():
            raise InputError(f"{file.filename}: {name} claims {dataset.nbytes} bytes, more than the file has; {AGAIN}")
        state.update(f"{name} {dataset.dtype.str} {dataset.shape}\n".encode())
        if dataset.shape == ():
            state.update(np.ascontiguousarray(dataset[()]).tobytes())
            continue
        for start in range(0, dataset.shape[0], BLOCK):
            state.update(np.ascontiguousarray(dataset[start : start + BLOCK]).tobytes())
    return state.hexdigest()


def bounds(counts: Sequence[int]) -> np.ndarray:
    """Offsets [n + 1] of consecutive blocks."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype("<i8")


# ------------------------------------------------------------------------------------------------ reading


class CandidateStore:
    """Read a folder of candidates: `event_ids`, `attributes`, `read(i)`.

    Files are opened lazily, once a process, and stay open; picklable, and usable before and after a fork. Raises
    InputError for a folder that is no candidates folder, an unknown version, or a missing or damaged file.
    """

    FORMAT, WHAT = FORMAT, "a candidates folder"

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / INDEX
        if not path.is_file():
            unfinished = " (inference has not finished: run it again)" if (self.folder / PARTS).is_dir() else ""
            raise InputError(f"{self.folder}: not {self.WHAT}, {INDEX} is missing{unfinished}")
        with open_checked(path, self.FORMAT) as file, damage(path):
            if file.attrs.get("checksum") != _index_checksum(file):
                raise InputError(f"{path}: fails its checksum; {AGAIN}")
            self.attributes: dict[str, Any] = json.loads(file.attrs["attributes"])
            self.event_ids, self.row, self.shard, shards, digests = (small_array(file, name) for name in INDEX_COLUMNS)
            self._read_more(file)
            self.shards = [plain_name(name.decode()) for name in shards]
            self.digests = [digest.decode() for digest in digests]
        self._reset()

    def _read_more(self, index: h5py.File) -> None:
        """What an index of another kind has besides."""

    @staticmethod
    def _file(path: Path, event_ids: np.ndarray) -> CandidatesFile:
        return CandidatesFile(path, event_ids)

    def __len__(self) -> int:
        return len(self.event_ids)

    @property
    def digest(self) -> str:
        """Canonical digest of all content: the same for any number of ranks."""
        settings = json.dumps(self.attributes, sort_keys=True)
        return xxhash.xxh3_128_hexdigest("\n".join([settings, *self.digests]).encode())

    def read(self, i: int) -> Candidates:
        """Candidates of the i-th event; InputError if what the file says of their places cannot be."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"{self.folder}: event {i} of {len(self)}")
        event_id, row = int(self.event_ids[i]), int(self.row[i])
        return self._open(int(self.shard[i])).read(event_id, row)

    def check_files(self) -> None:
        """InputError unless each file is there, and the one that the index was made with; its values are not read."""
        for number, digest in enumerate(self.digests):
            file = self._file(self.folder / self.shards[number], self.event_ids[self.shard == number])
            with file.file, damage(file.path):
                if file.file.attrs.get("digest") != digest:
                    raise InputError(f"{file.path}: is not the file that {INDEX} was made with; {AGAIN}")

    def close(self) -> None:
        """Close the open files; reading opens them again."""
        while self._files:
            self._files.popitem()[1].file.close()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._files: OrderedDict[int, CandidatesFile] = OrderedDict()

    def _open(self, number: int) -> CandidatesFile:
        if self._pid != os.getpid():  # after a fork: the parent's handles are not ours
            inherited = list(self._files.values())
            self._reset()
            for one in inherited:  # or HDF5 would hand out the inherited descriptor for the same file again
                one.file.close()
        if number not in self._files:
            self._files[number] = self._file(self.folder / self.shards[number], self.event_ids[self.shard == number])
            if len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)[1].file.close()
        self._files.move_to_end(number)
        return self._files[number]

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_pid", "_files")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()


def open_store(folder: str | Path) -> CandidateStore:
    """The candidates in a folder."""
    return CandidateStore(folder)


class CandidatesFile:
    """An open candidates file with its offsets."""

    FORMAT, AGAIN = FORMAT, AGAIN

    def __init__(self, path: Path, event_ids: np.ndarray) -> None:
        """InputError unless the file holds `event_ids`, in rows that its offsets and columns agree on."""
        self.path, self.file = path, open_checked(path, self.FORMAT)
        try:
            with damage(path):
                self.event_ids = self._column("event_id", "<i8", len(event_ids))[:]
                if not np.array_equal(self.event_ids, event_ids):
                    raise InputError(f"{path}: does not hold the events that {INDEX} says; {self.AGAIN}")
                self._check(len(event_ids))
        except InputError:
            self.file.close()
            raise

    def _check(self, n: int) -> None:
        self.columns = {name: self._column(name, dtype) for name, dtype in COLUMNS.items()}
        if "parameters" in self.file:
            n_candidates = len(self.columns["scores"])
            self.columns["parameters"] = self._column("parameters", PARAMETERS.base, n_candidates)
        self.offsets = {column: self._offsets(name, n, column) for name, column in _AXES.items()}
        self.offsets["parameters"] = self.offsets["scores"]
        self.offsets["hit_offsets"] = self.offsets["scores"] + np.arange(n + 1)  # one more than candidates an event
        if len(self.columns["hit_offsets"]) != self.offsets["hit_offsets"][-1]:
            raise InputError(
                f"{self.path}: hit_offsets has {len(self.columns['hit_offsets'])} rows, but must have one "
                f"more than candidates for each event; {AGAIN}"
            )

    def _offsets(self, name: str, n: int, column: str) -> np.ndarray:
        offsets, rows = self._column(name, "<i8", n + 1)[:], len(self.columns[column])
        if offsets[0] != 0 or (np.diff(offsets) < 0).any() or offsets[-1] != rows:
            raise InputError(f"{self.path}: {name} must rise from 0 to the {rows} rows of {column}; {self.AGAIN}")
        return offsets

    def _column(self, name: str, dtype: Any, length: int | None = None) -> h5py.Dataset:
        dataset = own(self.file, name)
        shape = (dataset.size if length is None else length, *WIDTH.get(name, ()))
        if dataset.dtype != np.dtype(dtype) or dataset.shape != shape:
            expected = "(n,)" if length is None else shape
            raise InputError(
                f"{self.path}: {name} is {dataset.dtype} {dataset.shape}, must be {np.dtype(dtype)} {expected}; "
                f"{self.AGAIN}"
            )
        if dataset.nbytes > os.path.getsize(self.path):
            raise InputError(f"{self.path}: {name} claims {dataset.nbytes} bytes, more than the file has; {self.AGAIN}")
        return dataset

    def _parts(self, event_id: int, row: int) -> dict[str, np.ndarray]:
        if not 0 <= row < len(self.event_ids) or self.event_ids[row] != event_id:
            raise InputError(f"{self.path}: event {event_id} is not in row {row}, where {INDEX} says; {self.AGAIN}")
        with damage(self.path):
            return {name: self.columns[name][slice(*self.offsets[name][row : row + 2])] for name in self.columns}

    def read(self, event_id: int, row: int) -> Candidates:
        """The candidates of an event; InputError if they cannot be of its hits."""
        parts = self._parts(event_id, row)
        starts, rows = parts["hit_offsets"], parts["hit_rows"]
        if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(rows):
            raise InputError(
                f"{self.path}: event {event_id}: hit_offsets must rise from 0 to the {len(rows)} hit_rows; {AGAIN}"
            )
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(parts["track_ids"]):
            raise InputError(
                f"{self.path}: event {event_id}: hit_rows from {rows.min()} to {rows.max()}, but the event has "
                f"{len(parts['track_ids'])} hits; {AGAIN}"
            )
        return Candidates(event_id, **parts)


def open_checked(path: Path, expected: str = FORMAT) -> h5py.File:
    """Open an HDF5 file of this format, or say in one line why not."""
    if not path.is_file():
        raise InputError(f"{path}: missing; {AGAIN}")
    try:
        file = h5py.File(path, "r", locking=False)
    except OSError as error:
        if error.errno not in (None, 0):  # the machine's fault
            raise
        raise InputError(f"{path}: not a readable HDF5 file ({error}); {AGAIN}") from None
    with damage(path):
        kind, version = file.attrs.get("format"), file.attrs.get("version")
    if str(kind) != expected or str(version) != str(VERSION):
        file.close()
        raise InputError(f"{path}: format {kind!r} version {version!r}, expected {expected!r} version {VERSION}")
    return file


@contextlib.contextmanager
def damage(path: Path) -> Iterator[None]:
    """Turn what h5py says of missing or unreadable parts of a file into an InputError."""
    with hdf5.damage(path, AGAIN):
        yield
