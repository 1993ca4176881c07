"""Check a dataset from end to end: every checksum and every cross-reference, each problem named, none raised.

A shard is checked in a process of its own, so a crash of the HDF5 library does not end the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hpctrack.errors import InputError
from hpctrack.process import pools
from hpctrack.storage import hdf5, schema, store
from hpctrack.storage.columns import axis_of, column_checksum, event_checksum, lacks_of, table_checksum
from hpctrack.storage.hdf5 import INDEX, SHARDS, check_size, own
from hpctrack.storage.schema import faults_of_event

PER_EVENT = {"event_id": np.int64, "n_noise": np.int64, "checksum": np.uint64}  # of a shard
INDEX_TYPES = {
    **{name: np.int64 for name in ("event_id", "n_hits", "n_noise", "n_particles", "row")},
    "shard": np.int32,
    "checksum": np.uint64,
}
T = TypeVar("T")
Progress = Callable[[int, int], None]  # files done, files in all


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, as exactly as it is known, and what."""

    path: str
    what: str
    event: int | None = None
    column: str | None = None

    def __str__(self) -> str:
        where = [self.path]
        where += [f"event {self.event}"] if self.event is not None else []
        where += [self.column] if self.column else []
        return " ".join(": ".join([*where, self.what]).split())


@dataclass
class Shard:
    """What a shard holds by its own word, for comparison with the index; arrays are None where unreadable."""

    problems: list[Problem] = field(default_factory=list)
    columns: dict[str, np.ndarray | None] = field(default_factory=dict)  # event_id, n_hits, n_noise, …


class Notes:
    """Collects the problems of one file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[Problem] = []

    def add(self, what: str, event: int | None = None, column: str | None = None) -> None:
        """One more."""
        self.problems.append(Problem(str(self.path), what, None if event is None else int(event), column))

    def array(self, file: Any, name: str, dtype: Any, length: int | None = None) -> np.ndarray | None:
        """The 1-d dataset `name`, whole; None, and a problem, if it is missing, unreadable or of another kind."""
        found = self.dataset(file, name, dtype, length)
        if found is None:
            return None
        try:
            with hdf5.damage(self.path):
                return found[:]
        except InputError as error:
            self.add(reason(error, self.path), column=name)
            return None

    def dataset(self, file: Any, name: str, dtype: Any, length: int | None = None) -> Any:
        """Likewise, but the open dataset, nothing read yet."""
        try:
            with hdf5.damage(self.path):
                found = own(file, name)
                check_size(found)
                shape, stored = found.shape, found.dtype
        except InputError as error:
            self.add(reason(error, self.path), column=name)
            return None
        if dtype is not None and stored != np.dtype(dtype).newbyteorder("<"):
            self.add(f"has type {stored}, must be {np.dtype(dtype)}", column=name)
        elif shape is None or len(shape) != 1 or (length is not None and shape != (length,)):
            self.add(f"has shape {shape}, must be ({'n' if length is None else length},)", column=name)
        else:
            return found
        return None


def complete(arrays: Mapping[str, T | None]) -> dict[str, T] | None:
    """The same arrays if all could be read, else None."""
    found = {name: values for name, values in arrays.items() if values is not None}
    return found if len(found) == len(arrays) else None


def reason(error: Exception, path: Path) -> str:
    """The error's text without the file's name, which the problem has already."""
    return str(error).removeprefix(f"{path}: ")


# ------------------------------------------------------------------------------------------------ one shard


def check_shard(path: Path) -> Shard:
    """Everything that can be said of one shard without the index."""
    notes, shard = Notes(path), Shard()
    try:
        with hdf5.open_h5(path, "shard") as file, hdf5.damage(path):
            _check_open_shard(file, notes, shard)
    except (InputError, OSError) as error:
        notes.add(reason(error, path))
    shard.problems = notes.problems
    return shard


def _check_open_shard(file: Any, notes: Notes, shard: Shard) -> None:
    ids = notes.array(file, "event_id", np.int64)
    n = None if ids is None else len(ids)
    own = {name: ids if name == "event_id" else notes.array(file, name, dtype, n) for name, dtype in PER_EVENT.items()}
    bounds = {axis: _offsets(file, axis, n, notes) for axis in ("hits", "particles")}
    counts = {f"n_{axis}": None if values is None else np.diff(values) for axis, values in bounds.items()}
    shard.columns = own | counts
    offsets = complete(bounds)
    if ids is None or offsets is None:
        return
    if len(np.unique(ids)) != len(ids):
        notes.add("holds an event id twice", column="event_id")
    columns, sums = {}, {}
    for name in schema.stored_columns(lacks_of(file.attrs) or ()):
        table, column = name.split(".")
        length = int(offsets[axis_of(name)][-1])
        columns[name] = notes.dataset(file, f"{table}/{column}", schema.TABLES[table][column], length)
        sums[name] = notes.array(file, f"checksums/{table}/{column}", np.uint64, n)
    for row, event_id in enumerate(ids):
        event = _read_event(columns, offsets, row, int(event_id), notes)
        _check_sums(event, sums, own, row, int(event_id), notes=notes)
        for column, what in check_event(event):
            notes.add(what, event_id, column)
        noise = event.get("truth.particle_id")
        if noise is not None and own["n_noise"] is not None and own["n_noise"][row] != np.sum(noise == 0):
            notes.add(f"is {own['n_noise'][row]}, but {np.sum(noise == 0)} hits are noise", event_id, "n_noise")


def _offsets(file: Any, axis: str, n: int | None, notes: Notes) -> np.ndarray | None:
    name = f"offsets/{axis}"
    values = notes.array(file, name, np.int64, None if n is None else n + 1)
    if values is None or check_offsets(values, None):
        for what in [] if values is None else check_offsets(values, None):
            notes.add(what, column=name)
        return None
    return values


def check_offsets(values: np.ndarray, total: int | None) -> list[str]:
    """What is wrong with an offsets array [n + 1] over `total` rows."""
    if not len(values) or values[0] != 0:
        return [f"must begin with 0, not with {values[0] if len(values) else 'nothing'}"]
    down = np.flatnonzero(values[1:] < values[:-1])
    if len(down):
        return [f"decreases from {values[down[0]]} to {values[down[0] + 1]} at row {down[0] + 1}"]
    if total is not None and values[-1] != total:
        return [f"ends at {values[-1]}, but there are {total} rows"]
    return []


def _read_event(columns: dict, offsets: dict, row: int, event_id: int, notes: Notes) -> dict[str, np.ndarray]:
    event = {}
    for name, dataset in columns.items():
        if dataset is None:
            continue  # said before
        bounds = offsets[axis_of(name)]
        try:
            with hdf5.damage(notes.path):
                event[name] = dataset[bounds[row] : bounds[row + 1]]
        except InputError as error:
            notes.add(reason(error, notes.path), event_id, name)
    return event


def _check_sums(event: dict, sums: dict, own: dict, row: int, event_id: int, *, notes: Notes) -> None:
    found = {name: column_checksum(values) for name, values in event.items()}
    for name, checksum in found.items():
        if sums[name] is not None and sums[name][row] != checksum:
            notes.add("fails its checksum", event_id, name)
    if len(found) == len(sums) and own["checksum"] is not None:
        stored = {name: int(values[row]) for name, values in sums.items() if values is not None}
        if len(stored) == len(found) and event_checksum(stored) != own["checksum"][row]:
            notes.add("does not follow from the columns' checksums", event_id, "checksum")


def check_event(event: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
    """(column, what is wrong) of one event's columns: all that storage/schema.py asks."""
    for column, row, what in faults_of_event(event):
        yield column, what if row is None else f"row {row} {what}"


# ------------------------------------------------------------------------------------------------ index and dataset


def check_index(folder: Path) -> tuple[dict[str, np.ndarray] | None, list[Problem]]:
    """The index's columns (None if they cannot be used) and what is wrong with it alone."""
    path = folder / INDEX
    notes, columns = Notes(path), dict[str, np.ndarray | None]()
    try:
        if not path.exists():
            raise InputError("missing; conversion has not finished, run it again")
        with hdf5.open_h5(path, "index") as file, hdf5.damage(path):
            for name in store.INDEX_COLUMNS:
                columns[name] = notes.array(file, name, INDEX_TYPES.get(name))
            checksum = int(np.uint64(own(file, "index_checksum")[()]))
    except (InputError, OSError) as error:
        notes.add(reason(error, path))
        return None, notes.problems
    table = complete(columns)
    if table is None:
        return None, notes.problems
    if table_checksum(table, store.INDEX_COLUMNS) != checksum:
        notes.add("fails its checksum")
    if len({len(table[name]) for name in INDEX_TYPES}) != 1 or len(table["shard_files"]) != len(table["shard_bytes"]):
        notes.add("its columns differ in length")
        return None, notes.problems
    _check_index_table(table, notes)
    return table, notes.problems


def _check_index_table(table: dict[str, np.ndarray], notes: Notes) -> None:
    ids, n = table["event_id"], len(table["shard_files"])
    for place in np.flatnonzero(ids[1:] <= ids[:-1])[:1]:
        notes.add("is not increasing", ids[place + 1], "event_id")
    for place in np.flatnonzero((table["shard"] < 0) | (table["shard"] >= n))[:1]:
        notes.add(f"is {table['shard'][place]}, must be from 0 to {n - 1}", ids[place], "shard")
    for name in ("n_hits", "n_noise", "n_particles", "row"):
        for place in np.flatnonzero(table[name] < 0)[:1]:
            notes.add(f"is {table[name][place]}, must not be negative", ids[place], name)


def check_dataset(folder: Path, jobs: int = 1, progress: Progress | None = None) -> list[Problem]:
    """Every problem of the dataset in `folder`: index, shards, and each against the other."""
    table, problems = check_index(folder)
    names = [] if table is None else [name.decode(errors="replace") for name in table["shard_files"]]
    present = sorted(path.name for path in folder.glob(SHARDS))
    everything = list(dict.fromkeys([*names, *present]))
    results = run_checks(
        check_shard, [folder / name for name in everything if (folder / name).is_file()], jobs, progress
    )
    found = {path.name: shard for path, shard in results}
    for number, name in enumerate(everything):
        path = folder / name
        if name not in found:
            problems.append(Problem(str(path), f"missing, but {INDEX} names it"))
            continue
        shard = found[name]
        if isinstance(shard, str):
            problems.append(Problem(str(path), shard))
            continue
        problems += shard.problems
        if table is not None and number >= len(names):
            problems.append(Problem(str(path), f"is not named by {INDEX}"))
        elif table is not None:
            problems += _compare(path, shard, number, table)
    return problems


def _compare(path: Path, shard: Shard, number: int, table: dict[str, np.ndarray]) -> list[Problem]:
    """A shard against its rows of the index."""
    notes = Notes(path)
    if (size := path.stat().st_size) != table["shard_bytes"][number]:
        notes.add(f"{size} bytes, but {INDEX} says {table['shard_bytes'][number]}")
    mine = np.flatnonzero(table["shard"] == number)
    ids = shard.columns.get("event_id")
    if ids is None:
        return notes.problems
    if len(mine) != len(ids):
        notes.add(f"holds {len(ids)} events, but {INDEX} says {len(mine)}")
    for place in mine:
        row, event = int(table["row"][place]), table["event_id"][place]
        if not 0 <= row < len(ids):
            notes.add(f"row {row} is named by {INDEX}, but there are {len(ids)}", event)
            continue
        for name, values in shard.columns.items():
            if values is not None and values[row] != table[name][place]:
                notes.add(f"is {values[row]}, but {INDEX} says {table[name][place]}", event, name)
    return notes.problems


def run_checks(
    check: Callable[[Path], T], paths: Sequence[Path], jobs: int, progress: Progress | None
) -> Iterator[tuple[Path, T | str]]:
    """(path, result) of each file, checked in `jobs` processes; the result is a text if the process died of the file.

    With 0 jobs the files are checked in this process, unprotected. MachineError if a process is killed: that says
    nothing of the file.
    """
    if not jobs:
        yield from ((path, check(path)) for path in paths)
        return
    for number, outcome in enumerate(pools.run(check, enumerate(paths), min(jobs, len(paths)), "spawn"), 1):
        path = paths[outcome.place]
        if isinstance(outcome.error, pools.WorkerDied) and not outcome.error.killed:
            yield path, "reading it ends the process (a crash of the HDF5 library)"
        else:
            yield path, outcome.result()
        if progress:
            progress(number, len(paths))
