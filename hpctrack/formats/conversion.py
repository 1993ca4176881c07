"""Making a dataset's shards: where events come from, what a shard is made of, and who makes which.

A shard is the unit of work: a task reads its events one by one and writes one file. A shard that an earlier run of the
same call made is kept if its content fits its checksums.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from hpctrack.errors import InputError, MachineError
from hpctrack.files.lock import BEATING
from hpctrack.formats.detectors import Detectors, find_detectors, read_detectors
from hpctrack.formats.geometry import text_of
from hpctrack.formats.trackml import read_event
from hpctrack.formats.trackml_files import Source, has_cells, recorded_field
from hpctrack.process import pools
from hpctrack.storage import hdf5, schema, shard_writer, store
from hpctrack.storage.columns import column_checksum, event_checksum, lacks_as_text, lacks_of

CONTENT = "0.1.0"  # the version that last made other events of the same input: shards of all since then are kept
SKIPPED = "skipped.json"
CUT = "n_cut_particles"  # attribute of shards and index: particles with fewer hits than their nhits, if there are any
_MACHINE = ("EIO", "ENOMEM", "ENOSPC", "EDQUOT", "EMFILE", "ENFILE", "ESTALE", "ETIMEDOUT")
MACHINE = {getattr(errno, name) for name in _MACHINE}
LeftOut = dict[str, Any]  # {"event_id", "reason"}
KEEPING_COST = 0.02  # of a finished shard, to check it, as a part of making it


# ------------------------------------------------------------------------------------------------ sources of events


class Reader(Protocol):
    """What a task needs of a source of events; picklable, so small or lazily loaded."""

    def event_ids(self) -> list[int]:
        """The source's event ids, ascending."""

    def origin(self) -> dict[str, object]:
        """What the events come from, for the index."""

    @property
    def field_t(self) -> float | None:
        """The magnetic field along z of the events, Tesla; None if the source does not say."""

    @property
    def detector(self) -> str | None:
        """What the index says of the detector (storage/detector.py); None: it is TrackML's. It may be left out."""

    def stamp(self, event_id: int) -> tuple[object, int]:
        """JSON-able, changes when the event's input or the options change; and the event's size (bytes, say)."""

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The events to write for one event of the source; InputError, before the first, if it is bad."""


@dataclass
class TrackmlReader:
    """Events from TrackML CSV files; `without`: parts (schema.PARTS) that are not read, or are not there.

    `given_field_t`: what the source does not say itself, Tesla.
    """

    source: Source
    detectors: str | None
    with_truth: bool
    without: Sequence[str] = ()
    given_field_t: float | None = None

    def event_ids(self) -> list[int]:
        """The source's."""
        return list(self.source.events)

    def origin(self) -> dict[str, object]:
        """The format alone: where the files lay says nothing of their content."""
        return {"kind": "trackml", "truth": self.with_truth}

    def stamp(self, event_id: int) -> tuple[object, int]:
        """Names, sizes and versions of the event's files and of the detectors' file; bytes of the event's files."""
        files = [self.source.stamp(member) for _, member in sorted(self.source.events[event_id].items())]
        whole = [str(self.source.path.absolute()), event_id, files, self._geometry, self.with_truth]
        if self.field_t not in (None, schema.FIELD_T):  # what is read without it needs no other dataset
            whole.append(self.field_t)
        if self.lacks:
            whole.append(lacks_as_text(self.lacks))
        return whole, sum(size for _, size, _ in files)

    @cached_property
    def field_t(self) -> float | None:
        """What `hpctrack simulate` has recorded beside the events, or what was given; InputError if they differ."""
        recorded, given = recorded_field(self.source), self.given_field_t
        if None not in (recorded, given) and recorded != given:
            where = self.source.display(self.source.records[0])
            raise InputError(f"--field {given:g}: {where} says {recorded:g} T; leave the option out")
        return given if recorded is None else recorded

    @cached_property
    def lacks(self) -> frozenset[str]:
        """The columns that the source has not, or is read without."""
        parts = {name for part in self.without for name in schema.PARTS[part]}
        truth = frozenset[str]() if self.with_truth else schema.ALL_OF_TRUTH
        cells = () if has_cells(self.source) else schema.PARTS["cells"]
        return truth.union(parts, cells)

    @cached_property
    def detector(self) -> str | None:
        """Of the file of modules, if there is one that says where they lie; else TrackML's."""
        return text_of(find_detectors(self.source, self.detectors), otherwise=None)

    @cached_property
    def _geometry(self) -> object:
        found = find_detectors(self.source, self.detectors)
        return found and [str(found[0].path.absolute()), found[0].stamp(found[1])]

    @cached_property
    def modules(self) -> Detectors | None:
        """The detector's modules, None if the source has no detectors.csv; InputError if its cells need more."""
        modules = read_detectors(self.source, self.detectors)
        if modules is not None and "cells.cell_count" not in self.lacks:
            modules.check_columns()
        return modules

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The event."""
        yield read_event(self.source, event_id, self.modules, self.with_truth, self.lacks)


# ------------------------------------------------------------------------------------------------ tasks


@dataclass
class ShardTask:
    """One shard to make; `stamps` say from what, by event, so that a rerun can tell its own shards from another's."""

    event_ids: list[int]
    stamps: list[object]
    path: Path
    skip_bad: bool
    cost: float  # relative: bytes or hits of the source

    def recipe(self, left_out: Sequence[LeftOut] = ()) -> str:
        """Digest of all that the shard's content follows from. An event that was left out may change, or be mended."""
        without = {entry["event_id"] for entry in left_out}
        found = zip(self.event_ids, self.stamps, strict=True)
        stamps = [["left out", event_id] if event_id in without else stamp for event_id, stamp in found]
        return xxhash.xxh3_128_hexdigest(json.dumps([schema.FORMAT, schema.VERSION, CONTENT, stamps]).encode())

    def fits(self, recipe: str | None, left_out: Sequence[LeftOut]) -> bool:
        """Whether a shard of this recipe (None: it names none), that left these events out, is this task's."""
        return recipe in (self.recipe(left_out), self.recipe())  # the latter: as version 0.1.0 wrote it


@dataclass
class ShardResult:
    """What became of a task; `name` is None if every event of it was bad."""

    name: str | None
    n_source: int
    skipped: list[LeftOut] = field(default_factory=list)
    n_cut: int = 0  # particles with fewer hits than their nhits says


def plan_tasks(
    reader: Reader,
    out: Path,
    events_per_shard: int,
    limit: int | None,
    skip_bad: bool,
    *,
    versions: dict[str, str] | None = None,
) -> list[ShardTask]:
    """Cut the source's (first `limit`) events, in the order of their ids, into shards.

    `versions`: of other packages that the reader is of, on which the content depends as well.
    """
    ids = reader.event_ids()[:limit]
    tasks = []
    for number, start in enumerate(range(0, len(ids), events_per_shard)):
        chunk = ids[start : start + events_per_shard]
        found, sizes = zip(*(reader.stamp(event_id) for event_id in chunk), strict=True)
        stamps: list[object] = [[stamp, versions] if versions else stamp for stamp in found]
        tasks.append(ShardTask(chunk, stamps, out / shard_writer.shard_name(number), skip_bad, float(sum(sizes))))
    return tasks


def recipe_of(tasks: Sequence[ShardTask], left_out: Sequence[LeftOut] = ()) -> str:
    """Digest of all that a dataset's content follows from."""
    return xxhash.xxh3_128_hexdigest("".join(task.recipe(left_out) for task in tasks).encode())


def run_task(reader: Reader, task: ShardTask) -> ShardResult:
    """Make one shard, or keep the one that an earlier run of the same call left.

    An event that was left out then is tried again. MachineError, or OSError, for what is the machine's fault.
    """
    found = store.shard_attributes(task.path)
    skipped: list[LeftOut] = json.loads(found.get("skipped", "[]")) if found else []
    kept = found is not None and task.fits(found.get("recipe"), skipped) and is_intact(task.path)
    if kept and skipped == retry_events(reader, skipped, task.skip_bad):
        return ShardResult(task.path.name, len(task.event_ids), skipped, found.get(CUT, 0) if found else 0)
    skipped, written, n_cut = [], [], 0
    with shard_writer.ShardWriter(task.path) as writer:
        for event_id in task.event_ids:
            with _fault_of_event(event_id, skipped if task.skip_bad else None):
                for event in reader.read(event_id):
                    writer.add(event)
                    written.append(event.event_id)
                    n_cut += schema.n_cut_down(event)
        writer.attributes |= {"recipe": task.recipe(skipped), "event_ids": _digest_of(written)}
        writer.attributes |= {CUT: n_cut} if n_cut else {}
        writer.texts["skipped"] = json.dumps(skipped)
    return ShardResult(task.path.name if written else None, len(task.event_ids), skipped, n_cut)


def retry_events(reader: Reader, left_out: Sequence[LeftOut], skip_bad: bool) -> list[LeftOut]:
    """Those of these events that are still bad, and why; without `skip_bad` the first of them is an InputError."""
    bad: list[LeftOut] = []
    for entry in left_out:
        with _fault_of_event(entry["event_id"], bad if skip_bad else None):
            next(iter(reader.read(entry["event_id"])), None)
    return bad


def left_out_of(dataset: store.Dataset) -> list[LeftOut]:
    """What a dataset's conversion has left out, and why."""
    if "skipped" in dataset.attributes:
        return json.loads(dataset.attributes["skipped"])
    path = dataset.folder / SKIPPED  # of version 0.1.0
    return json.loads(path.read_text()) if dataset.attributes.get("n_skipped") and path.exists() else []


def cut_down(dataset: store.Dataset) -> str | None:
    """In words, if events were cut down: particles have fewer hits than their nhits says. None if not."""
    cut = int(dataset.attributes.get(CUT, 0))
    if not cut:
        return None
    of = int(dataset.n_particles.sum())
    return f"{cut:,} of {of:,} particles have fewer hits here than their nhits, which is of whole events"


@contextlib.contextmanager
def _fault_of_event(event_id: int, skipped: list[LeftOut] | None) -> Iterator[None]:
    """A bad event is taken down in `skipped`, if that is a list; what the machine has done is no fault of the event."""
    try:
        yield
    except MemoryError as error:
        again = "run the same command again, with fewer --jobs, to go on"
        raise MachineError(f"event {event_id}: out of memory{f' ({error})' if str(error) else ''}; {again}") from error
    except InputError as error:
        if fault := _machine_fault(error):
            raise MachineError(f"event {event_id}: {fault}; run the same command again to go on") from error
        if skipped is None:
            raise
        skipped.append({"event_id": event_id, "reason": " ".join(str(error).split())})


def _machine_fault(error: BaseException | None) -> str | None:
    """What of the machine's is behind an error: lack of memory, of file numbers, of space, a disk that fails."""
    while error is not None:
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE):
            return str(error) or "out of memory"
        error = error.__cause__ or error.__context__
    return None


def is_intact(path: Path) -> bool:
    """Whether every column of every event of a shard, and its event ids, fit their checksums; one column at a time."""
    try:
        with hdf5.open_h5(path, "shard") as file, hdf5.damage(path):
            event_ids = hdf5.small_array(file, "event_id").tolist()
            if file.attrs.get("event_ids") != _digest_of(event_ids):
                return False
            offsets = {axis: hdf5.small_array(file, f"offsets/{axis}") for axis in ("hits", "particles")}
            sums: list[dict[str, int]] = [{} for _ in event_ids]
            noise = []
            for name in schema.stored_columns(lacks_of(file.attrs) or ()):
                table, column = name.split(".")
                bounds = offsets["particles" if table == "particles" else "hits"]
                found = hdf5.own(file, f"{table}/{column}")
                if found.shape != (bounds[-1],):
                    return False
                for i, row in enumerate(sums):
                    values = found[bounds[i] : bounds[i + 1]]
                    row[name] = column_checksum(values)
                    if name == "truth.particle_id":
                        noise.append(int(np.sum(values == 0)))
                if file[f"checksums/{table}/{column}"][:].tolist() != [row[name] for row in sums]:
                    return False
            same_noise = file["n_noise"][:].tolist() == noise
            return same_noise and file["checksum"][:].tolist() == [event_checksum(row) for row in sums]
    except InputError:
        return False


def _digest_of(event_ids: Sequence[int]) -> str:
    return xxhash.xxh3_64_hexdigest(np.asarray(event_ids, dtype="<i8").tobytes())


# ------------------------------------------------------------------------------------------------ processes


def run_tasks(reader: Reader, tasks: Sequence[ShardTask], jobs: int) -> Iterator[ShardResult]:
    """Run the tasks in `jobs` processes, the largest first; results come as they are ready.

    The first error in the order of the tasks is the one that is raised, whatever the number of processes.
    """
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            yield run_task(reader, task)
        return
    failed: pools.Outcome[ShardResult] | None = None

    def todo() -> Iterator[tuple[int, ShardTask]]:
        """Once a task has failed, only those before it: they may still change which error is the first."""
        for k in sorted(range(len(tasks)), key=lambda k: -tasks[k].cost):
            if failed is None or k < failed.place:
                yield k, tasks[k]

    work = functools.partial(run_task, reader)
    for outcome in pools.run(work, todo(), jobs, start_method(), named=lambda task: task.path.name):
        if isinstance(outcome.error, pools.WorkerDied):
            raise MachineError(f"{outcome.error}; run the same command again to go on")
        if outcome.error is None:
            yield outcome.result()
        elif failed is None or outcome.place < failed.place:
            failed = outcome
    if failed is not None:
        failed.result()


def start_method() -> pools.StartMethod:
    """How processes begin: a fork saves the imports, but not from a process with threads, which may hold locks.

    The thread that beats for the owner of a folder holds none that a child could want.
    """
    threads = [thread for thread in threading.enumerate() if thread.name != BEATING]
    alone = len(threads) == 1 and "torch" not in sys.modules and sys.platform == "linux"
    return "fork" if alone else "spawn"
