"""TrackML's CSV format: the events of a folder or zip, one event read and validated, and submissions written.

Format: S. Amrouche et al., "The Tracking Machine Learning challenge: Accuracy phase" (2019), and its data page.
"""

from __future__ import annotations

import gzip
import os
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpctrack.data import schema
from hpctrack.data.cells import cell_features, direction_angles
from hpctrack.data.csvtable import Column, read_table
from hpctrack.data.store import publish, temporary_name
from hpctrack.errors import InputError

KINDS = ("hits", "cells", "particles", "truth")
DETECTORS = ("detectors.csv", "detectors.csv.gz", "detectors.zip")
_FILE = re.compile(rf"event(\d+)-({'|'.join(KINDS)})\.csv(\.gz)?")
_ID = Column(np.int32, lowest=0)


def _floats(*names: str) -> dict[str, Column]:
    return {name: Column(np.float32) for name in names}


_MODULE = {"volume_id": Column(np.uint8), "layer_id": Column(np.uint8), "module_id": Column(np.uint16)}
_HITS = {"hit_id": _ID, **_floats("x", "y", "z"), **_MODULE}
_CELLS = {"hit_id": _ID, "ch0": _ID, "ch1": _ID, **_floats("value")}
_TRUTH = {"hit_id": _ID, "particle_id": Column(np.int64, lowest=0)}
_TRUTH |= _floats("tx", "ty", "tz", "tpx", "tpy", "tpz", "weight")
_PARTICLES = {"particle_id": Column(np.int64, lowest=1), "particle_type": Column(np.int32, optional=True)}
_PARTICLES |= {**_floats("vx", "vy", "vz", "px", "py", "pz"), "q": Column(np.int8), "nhits": Column(np.int32, lowest=0)}
_ROTATION = [f"rot_{a}{b}" for a in "xyz" for b in "uvw"]  # row-major, local (u, v, w) to global (x, y, z)
_DETECTORS = _MODULE | {name: Column(np.float64) for name in (*_ROTATION, "module_t", "pitch_u", "pitch_v")}


# ------------------------------------------------------------------------------------------------ finding


@dataclass
class Source:
    """The TrackML events of a folder or zip, sub-folders included: `events[event_id][kind]` is a member's name.

    `faults[event_id]` says what is wrong with an event's set of files. Picklable; a zip is opened once a process.
    """

    path: Path
    events: dict[int, dict[str, str]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    detectors: str | None = None  # a member, or None
    _zip: zipfile.ZipFile | None = field(default=None, repr=False)

    @property
    def is_zip(self) -> bool:
        """Whether the events stand in a zip."""
        return self.path.is_file()

    def display(self, member: str) -> str:
        """How a member is named in messages."""
        return f"{self.path}:{member}" if self.is_zip else str(self.path / member)

    def read(self, member: str) -> bytes:
        """The bytes of a member, unpacked; InputError if it is damaged."""
        where = self.display(member)
        if not self.is_zip:
            return unpack((self.path / member).read_bytes(), where)
        if self._zip is None:
            self._zip = _open_zip(self.path)
        try:
            return unpack(self._zip.read(member), where)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{where}: damaged or unreadable in the zip ({error}); fetch it again") from error

    def stamp(self, member: str) -> tuple[str, int, int]:
        """Name, size and version (time of change, or CRC in a zip) of a member."""
        if self.is_zip:
            self._zip = self._zip or _open_zip(self.path)
            info = self._zip.getinfo(member)
            return member, info.file_size, info.CRC
        status = (self.path / member).stat()
        return member, status.st_size, status.st_mtime_ns

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_zip": None}


def unpack(data: bytes, where: str) -> bytes:
    """The bytes of a plain or gzipped file (by the name `where`); InputError if it is damaged."""
    if not where.endswith(".gz"):
        return data
    if not data:
        raise InputError(f"{where}: the file is empty")
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{where}: truncated or corrupt gzip ({error}); fetch it again") from error


def _open_zip(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a whole zip ({error}); a source is a folder or zip of TrackML files") from error


def find_events(path: str | Path) -> Source:
    """Find the events of a folder or zip; InputError if there are none."""
    source = Source(Path(path))
    if source.path.is_dir():
        members = sorted(_files_below(source.path))
    elif source.path.exists():
        source._zip = _open_zip(source.path)
        members = sorted(source._zip.namelist())
    else:
        raise InputError(f"{path}: does not exist; a source is a folder or zip of TrackML files")
    for member in members:
        name = member.rsplit("/", 1)[-1]
        if match := _FILE.fullmatch(name):
            event_id, kind = int(match[1]), match[2]
            other = source.events.setdefault(event_id, {}).setdefault(kind, member)
            if other != member:
                source.faults[event_id] = f"{source.display(member)}: event {event_id}: also in {source.display(other)}"
    found = [member for member in members if member.rsplit("/", 1)[-1] in DETECTORS]
    source.detectors = min(found, key=lambda member: (member.count("/"), member), default=None)
    if not source.events:
        raise InputError(f"{path}: no TrackML events; they are files such as event000001000-hits.csv or .csv.gz")
    source.events = dict(sorted(source.events.items()))
    return source


def _files_below(folder: Path) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        yield from (os.path.relpath(os.path.join(parent, name), folder) for name in names)


def check_files(source: Source, with_truth: bool = True) -> None:
    """Note in `source.faults` the events of which a file is missing."""
    kinds = ["hits", *(["particles", "truth"] if with_truth else [])]
    if any("cells" in files for files in source.events.values()):
        kinds.append("cells")
    for event_id, files in source.events.items():
        missing = [kind for kind in kinds if kind not in files]
        if missing:
            hint = "; --no-truth converts events without truth" if missing[0] in ("particles", "truth") else ""
            member = next(iter(files.values()))
            expected = re.sub(rf"-({'|'.join(KINDS)})\.csv", f"-{missing[0]}.csv", member)
            source.faults.setdefault(event_id, f"{source.display(expected)}: event {event_id}: missing{hint}")


# ------------------------------------------------------------------------------------------------ detectors


@dataclass(frozen=True)
class Detectors:
    """The modules of detectors.csv, sorted by `key`; `rotation` [M, 3, 3] is local to global, lengths in mm."""

    where: str
    key: np.ndarray
    rotation: np.ndarray
    pitch_u: np.ndarray
    pitch_v: np.ndarray
    thickness: np.ndarray  # 2 module_t: the file gives half of it

    def rows(self, key: np.ndarray) -> np.ndarray:
        """Row of each module key, -1 where there is none."""
        row = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
        return np.where(self.key[row] == key, row, -1)


def module_key(volume_id: np.ndarray, layer_id: np.ndarray, module_id: np.ndarray) -> np.ndarray:
    """One int64 a module."""
    return (volume_id.astype(np.int64) << 24) | (layer_id.astype(np.int64) << 16) | module_id


def find_detectors(source: Source, path: str | Path | None) -> Path | None:
    """The file of detectors outside of the source: `path`, or beside the source's members; None if there is none."""
    if path is not None:
        if not Path(path).is_file():
            raise InputError(f"{path}: no such file; --detectors names a detectors.csv, .csv.gz or .zip")
        return Path(path)
    if source.detectors is not None:
        return source.path / source.detectors if not source.is_zip else None
    beside = [source.path.absolute().parent / name for name in DETECTORS]
    return next((file for file in beside if file.is_file()), None)


def read_detectors(source: Source, path: str | Path | None) -> Detectors | None:
    """The modules: from `path`, else from within the source, else from the folder around it; None if there are none."""
    outside = find_detectors(source, path)
    if outside is not None:
        where, data = str(outside), outside.read_bytes()
    elif source.detectors is not None:
        where, data = source.display(source.detectors), source.read(source.detectors)
        where = where.removesuffix(".gz")
    else:
        return None
    if where.endswith(".zip"):
        with _open_zip(Path(where)) as archive:
            member = next((n for n in archive.namelist() if n.rsplit("/", 1)[-1] == "detectors.csv"), None)
            if member is None:
                raise InputError(f"{where}: holds no detectors.csv")
            where, data = f"{where}:{member}", archive.read(member)
    table = read_table(unpack(data, where), where, _DETECTORS)
    key = module_key(table["volume_id"], table["layer_id"], table["module_id"])
    order = np.argsort(key, kind="stable")
    if not len(key):
        raise InputError(f"{where}: no modules")
    if (np.diff(key[order]) == 0).any():
        row = order[np.flatnonzero(np.diff(key[order]) == 0)[0] + 1]
        raise InputError(f"{where}: row {row + 1}: module {_module(table, row)} stands twice")
    for name in ("module_t", "pitch_u", "pitch_v"):
        if (table[name] <= 0).any():
            row = int(np.flatnonzero(table[name] <= 0)[0])
            raise InputError(f"{where}: row {row + 1}: {name} is {table[name][row]}, must be > 0 mm")
    rotation = np.stack([table[name] for name in _ROTATION], axis=1).reshape(-1, 3, 3)
    thickness = 2 * table["module_t"]
    return Detectors(where, key[order], *(a[order] for a in (rotation, table["pitch_u"], table["pitch_v"], thickness)))


def _module(table: Mapping[str, np.ndarray], row: int) -> str:
    return "/".join(str(table[name][row]) for name in _MODULE)


# ------------------------------------------------------------------------------------------------ one event


def read_event(source: Source, event_id: int, detectors: Detectors | None, with_truth: bool = True) -> schema.Event:
    """Read and validate one event, with every column of the schema.

    `detectors` may be None for events without cells; without truth all hits are noise and there are no particles.
    Raises InputError: one line that names the file, the event and the row.
    """
    if event_id in source.faults:
        raise InputError(source.faults[event_id])
    files = source.events[event_id]

    def table(kind: str, columns: Mapping[str, Column]) -> tuple[str, dict[str, np.ndarray]]:
        where = f"{source.display(files[kind])}: event {event_id}"
        return where, read_table(source.read(files[kind]), where, columns)

    where, hits = table("hits", _HITS)
    _check_hits(where, hits)
    modules = _check_modules(where, hits, detectors)
    if with_truth:
        where_particles, particles = table("particles", _PARTICLES)
        _check_unique(where_particles, "particle_id", particles["particle_id"])
        where_truth, truth = table("truth", _TRUTH)
        truth = _align_truth(where_truth, truth, hits["hit_id"])
        truth["particle_row"] = _particle_rows(where_truth, truth["particle_id"], where_particles, particles)
    else:
        particles, truth = _no_truth(len(hits["hit_id"]))
    cells = {name: np.zeros(len(hits["hit_id"]), dtype) for name, dtype in schema.CELLS.items()}
    if "cells" in files:
        where, raw = table("cells", _CELLS)
        if detectors is None:
            raise InputError(f"{where}: needs the modules' geometry: no detectors.csv found, name it with --detectors")
        cells = _cell_features(where, raw, hits["hit_id"], detectors, modules)
    particles.setdefault("particle_type", np.zeros(len(particles["particle_id"]), np.int32))
    tables = {"hits": hits | _derived(hits), "truth": truth, "cells": cells, "particles": particles}
    ordered = {t: {c: tables[t][c].astype(d, copy=False) for c, d in cs.items()} for t, cs in schema.TABLES.items()}
    return schema.Event(event_id, ordered)


def _check_hits(where: str, hits: dict[str, np.ndarray]) -> None:
    hit_id = hits["hit_id"]
    if not len(hit_id):
        raise InputError(f"{where}: no hits; an event needs at least one")
    bad = np.flatnonzero(np.diff(hit_id) <= 0)
    if len(bad):
        row = int(bad[0]) + 1
        what = "stands twice" if hit_id[row] == hit_id[row - 1] else f"follows {hit_id[row - 1]}"
        raise InputError(f"{where}: row {row + 1}: hit_id {hit_id[row]} {what}; hit_id must increase")


def _check_modules(where: str, hits: dict[str, np.ndarray], detectors: Detectors | None) -> np.ndarray | None:
    """Row in `detectors` of each hit's module."""
    if detectors is None:
        return None
    rows = detectors.rows(module_key(hits["volume_id"], hits["layer_id"], hits["module_id"]))
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        what = f"volume/layer/module {_module(hits, row)} of hit_id {hits['hit_id'][row]}"
        raise InputError(f"{where}: row {row + 1}: {what} is not in {detectors.where}")
    return rows


def _check_unique(where: str, name: str, values: np.ndarray) -> None:
    order = np.argsort(values, kind="stable")
    twice = np.flatnonzero(np.diff(values[order]) == 0)
    if len(twice):
        first, second = order[twice[0]], order[twice[0] + 1]
        raise InputError(f"{where}: row {second + 1}: {name} {values[second]} stands twice, first in row {first + 1}")


def _align_truth(where: str, truth: dict[str, np.ndarray], hit_id: np.ndarray) -> dict[str, np.ndarray]:
    """Truth in the order of the hits, without its hit_id."""
    own = truth.pop("hit_id")
    if np.array_equal(own, hit_id):
        return truth
    _check_unique(where, "hit_id", own)
    unknown = np.flatnonzero(~np.isin(own, hit_id))
    if len(unknown):
        raise InputError(f"{where}: row {unknown[0] + 1}: hit_id {own[unknown[0]]} is not in the hits file")
    missing = hit_id[~np.isin(hit_id, own)]
    if len(missing):
        counts = f"{len(own)} rows for {len(hit_id)} hits; is the file truncated?"
        raise InputError(f"{where}: row {len(own) + 1}: no truth for hit_id {missing[0]}: {counts}")
    order = np.argsort(own)
    return {name: values[order] for name, values in truth.items()}


def _particle_rows(where: str, particle_id: np.ndarray, where_particles: str, particles: dict) -> np.ndarray:
    """Row of each hit's particle, -1 for noise."""
    known = particles["particle_id"]
    order = np.argsort(known)
    position = np.minimum(np.searchsorted(known, particle_id, sorter=order), max(len(known) - 1, 0))
    row = order[position] if len(known) else np.zeros(len(particle_id), np.int64)
    noise = particle_id == 0
    fits = noise | (known[row] == particle_id) if len(known) else noise
    if not fits.all():
        bad = int(np.flatnonzero(~fits)[0])
        what = f"particle_id {particle_id[bad]} (hit row {bad + 1}) is not in {where_particles.split(': event')[0]}"
        raise InputError(f"{where}: {what}; noise is 0")
    return np.where(noise, -1, row)


def _no_truth(n_hits: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    particles = {name: np.zeros(0, dtype) for name, dtype in schema.PARTICLES.items()}
    truth = {name: np.zeros(n_hits, dtype) for name, dtype in schema.TRUTH.items()}
    truth["particle_row"] -= 1
    return particles, truth


def _cell_features(
    where: str, cells: dict[str, np.ndarray], hit_id: np.ndarray, detectors: Detectors, modules: np.ndarray
) -> dict[str, np.ndarray]:
    row = np.minimum(np.searchsorted(hit_id, cells["hit_id"]), len(hit_id) - 1)
    unknown = np.flatnonzero(hit_id[row] != cells["hit_id"])
    if len(unknown):
        bad = int(unknown[0])
        raise InputError(f"{where}: row {bad + 1}: hit_id {cells['hit_id'][bad]} is not in the hits file")
    names = ("pitch_u", "pitch_v", "thickness", "rotation")
    module = {name: getattr(detectors, name)[modules] for name in names}
    return cell_features(len(hit_id), row, cells["ch0"], cells["ch1"], cells["value"], module)


def _derived(hits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    xyz_N3 = np.stack([hits["x"], hits["y"], hits["z"]], axis=1).astype(np.float64)
    eta, phi = direction_angles(xyz_N3)
    return {"r": np.hypot(xyz_N3[:, 0], xyz_N3[:, 1]), "phi": phi, "eta": eta}


# ------------------------------------------------------------------------------------------------ submissions


def write_submission(path: str | Path, blocks: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> None:
    """Write a TrackML submission (event_id,hit_id,track_id) from blocks (event_id, hit_id [N], track_id [N]).

    Each block is written as it comes; the file gets its name when it is whole. A name that ends in .gz is compressed.
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with gzip.open(temporary, "wb", 6) if path.suffix == ".gz" else open(temporary, "wb") as file:
            file.write(b"event_id,hit_id,track_id\n")
            for event_id, hit_id, track_id in blocks:
                rows = zip(hit_id.tolist(), track_id.tolist(), strict=True)
                file.write("".join(f"{event_id},{hit},{track}\n" for hit, track in rows).encode())
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
