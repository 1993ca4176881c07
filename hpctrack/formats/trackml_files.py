"""Finding and unpacking TrackML files: the events of a folder or zip, as the challenge ships them."""

from __future__ import annotations

import errno
import gzip
import io
import json
import math
import os
import re
import zipfile
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.files.reading import max_unpacked, too_large
from hpctrack.simulation.writer import FORMAT, KINDS, RECORD

DETECTORS = ("detectors.csv", "detectors.csv.gz", "detectors.zip")
_FILE = re.compile(rf"event(\d{{1,18}})-({'|'.join(KINDS)})\.csv(\.gz)?")
LOST_AND_FOUND = "lost+found"  # at the root of a file system, for root alone
_PIECE = 1 << 24  # bytes that are unpacked at a time


@dataclass
class Source:
    """The TrackML events of a folder or zip, sub-folders included: `events[event_id][kind]` is a member's name.

    `faults[event_id]` says what is wrong with an event's set of files. Picklable; a zip is opened once a process.
    """

    path: Path
    events: dict[int, dict[str, str]] = field(default_factory=dict)
    faults: dict[int, str] = field(default_factory=dict)
    detectors: str | None = None  # a member, or None
    records: list[str] = field(default_factory=list)  # members that say how events were simulated
    _zip: zipfile.ZipFile | None = field(default=None, repr=False)

    @property
    def is_zip(self) -> bool:
        """Whether the events stand in a zip."""
        return self.path.is_file()

    def display(self, member: str) -> str:
        """How a member is named in messages."""
        return f"{self.path}:{member}" if self.is_zip else str(self.path / member)

    def read(self, member: str, where: str) -> bytes:
        """The bytes of a member, unpacked; InputError that begins with `where` if it is damaged or no regular file."""
        packed = member.endswith(".gz")
        if not self.is_zip:
            path = self.path / member
            if not path.is_file():
                raise InputError(f"{where}: {_no_file(path)}")
            return unpack(path.read_bytes(), packed, where)
        if self._zip is None:
            self._zip = open_zip(self.path)
        if (size := self._zip.getinfo(member).file_size) > max_unpacked():
            raise InputError(f"{where}: {too_large(size)}")
        try:
            return unpack(self._zip.read(member), packed, where)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            _unless_out_of_memory(error)
            raise InputError(f"{where}: damaged or unreadable in the zip ({error}); fetch it again") from error

    def stamp(self, member: str) -> tuple[str, int, int]:
        """Name, size and version (time of change, or CRC in a zip) of a member; sizes of -1: there is no such file."""
        if self.is_zip:
            self._zip = self._zip or open_zip(self.path)
            info = self._zip.getinfo(member)
            return member, info.file_size, info.CRC
        try:
            status = (self.path / member).stat()
        except FileNotFoundError:  # a link to nothing; reading says so
            return member, -1, -1
        return member, status.st_size, status.st_mtime_ns

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_zip": None}


def unpack(data: bytes, packed: bool, where: str) -> bytes:
    """The bytes of a plain or gzipped file; InputError that begins with `where` if it is damaged or unpacks to more
    than the limit."""
    if not packed:
        return data
    if not data:
        raise InputError(f"{where}: the file is empty")
    parts, left = [], max_unpacked()
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            while part := file.read(min(_PIECE, left + 1)):
                parts.append(part)
                left -= len(part)
                if left < 0:
                    raise InputError(f"{where}: {too_large(max_unpacked())}")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        _unless_out_of_memory(error)
        raise InputError(f"{where}: truncated or corrupt gzip ({error}); fetch it again") from error
    return b"".join(parts)


def _unless_out_of_memory(error: Exception) -> None:
    """MemoryError if that is what zlib means: no fault of the file's."""
    if isinstance(error, zlib.error) and "Error -4 " in str(error):
        raise MemoryError(str(error)) from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip `path`; InputError if it is none."""
    if not path.is_file():
        raise InputError(f"{path}: {_no_file(path)}; a source is a folder or zip of TrackML files")
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        if isinstance(error.__context__, OSError) and error.__context__.errno != errno.EINVAL:
            raise error.__context__ from None  # the disk's fault; EINVAL: a place before the file's beginning
        raise InputError(f"{path}: not a whole zip ({error}); a source is a folder or zip of TrackML files") from error


def _no_file(path: Path) -> str:
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which does not exist; mend or remove it"
    return "no regular file"


def find_events(path: str | Path) -> Source:
    """Find the events of a folder or zip; InputError if there are none."""
    source = list_files(path)
    if not source.events:
        raise InputError(f"{path}: no TrackML events; they are files such as event000001000-hits.csv or .csv.gz")
    return source


def list_files(path: str | Path, names: re.Pattern[str] = _FILE) -> Source:
    """The files of events in a folder or zip, if any: TrackML's, or those that `names` matches (event, kind)."""
    source = Source(Path(path))
    if source.path.is_dir():
        members = sorted(_files_below(source.path, names))
    elif source.path.exists():
        source._zip = open_zip(source.path)
        members = sorted(source._zip.namelist())
    else:
        raise InputError(f"{path}: does not exist; a source is a folder or zip of TrackML files")
    for member in members:
        if match := names.fullmatch(member.rsplit("/", 1)[-1]):
            event_id, kind = int(match[1]), match[2]
            other = source.events.setdefault(event_id, {}).setdefault(kind, member)
            if other != member and (source.is_zip or not _same_file(source.path / other, source.path / member)):
                source.faults[event_id] = f"{source.display(member)}: event {event_id}: also in {source.display(other)}"
    geometry = DETECTORS[:2] if source.is_zip else DETECTORS  # a zip within a zip is not read
    found = [member for member in members if member.rsplit("/", 1)[-1] in geometry]
    source.detectors = min(found, key=lambda member: (member.count("/"), member), default=None)
    source.records = [member for member in members if member.rsplit("/", 1)[-1] == RECORD]
    source.events = dict(sorted(source.events.items()))
    return source


def recorded_field(source: Source) -> float | None:
    """The magnetic field (Tesla, along z) in which `hpctrack simulate` made the events; None without its record.

    InputError for a record that is none, and for two of different fields: a dataset has one.
    """
    found: dict[float, str] = {}
    for member in source.records:
        where = source.display(member)
        try:
            record = json.loads(source.read(member, where))
            if record["format"] != FORMAT["format"]:
                raise ValueError(f"format {record['format']!r}")
            if record["settings"]["field_t"] is None:  # a source without one
                continue
            value = float(record["settings"]["field_t"])
            if not math.isfinite(value) or value == 0:
                raise ValueError(f"settings.field_t is {value}")
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{where}: not a record of hpctrack simulate ({error!r}); mend or remove it") from error
        found.setdefault(value, where)
    if len(found) > 1:
        (one, here), (other, there), *_ = found.items()
        raise InputError(f"{here}: a field of {one} T, but {other} T in {there}; convert these events separately")
    return next(iter(found), None)


def has_cells(source: Source) -> bool:
    """Whether a file of cells has a row; one that is damaged counts, since it is said when its event is read."""
    for event_id, files in source.events.items():
        if "cells" in files:
            try:
                found = source.read(files["cells"], f"event {event_id}")
            except InputError:
                return True
            if found.count(b"\n") != 1:
                return True
    return False


def _same_file(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _files_below(folder: Path, events: re.Pattern[str]) -> Iterator[str]:
    """All files below, relative to `folder`. Linked folders are read, each real folder once, by its own name if it has
    one in `folder`. Raises OSError for a folder that cannot be read, InputError for a link to nothing."""
    seen, waiting = set(), deque([str(folder)])
    while waiting:
        linked: list[str] = []
        for parent, folders, names in os.walk(waiting.popleft(), onerror=_raise):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            if LOST_AND_FOUND in folders and os.path.ismount(parent):
                folders.remove(LOST_AND_FOUND)
            linked += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            for name in names:
                path = os.path.join(parent, name)
                if not name.startswith(".") and not events.fullmatch(name) and not _is_there(path):
                    raise InputError(f"{path}: {_no_file(Path(path))}")  # it may have been a folder of events
                yield os.path.relpath(path, folder)
        waiting.extend(sorted(linked))


def _is_there(path: str) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    return True


def _raise(error: OSError) -> None:
    raise error


def check_files(source: Source, with_truth: bool = True, with_cells: bool = True) -> None:
    """Note in `source.faults` the events of which a file is missing; cells may be of all events or of none."""
    kinds = ["hits", *(["particles", "truth"] if with_truth else [])]
    if with_cells and any("cells" in files for files in source.events.values()):
        kinds.append("cells")
    for event_id, files in source.events.items():
        missing = [kind for kind in kinds if kind not in files]
        if missing:
            hint = "; --no-truth converts events without truth" if missing[0] in ("particles", "truth") else ""
            hint += "; other events have their cells" if missing[0] == "cells" else ""
            member = next(iter(files.values()))
            expected = re.sub(rf"-({'|'.join(KINDS)})\.csv", f"-{missing[0]}.csv", member)
            source.faults.setdefault(event_id, f"{source.display(expected)}: event {event_id}: missing{hint}")
