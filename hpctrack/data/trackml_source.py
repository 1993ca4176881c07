"""Finding and unpacking TrackML files: the events of a folder or zip, as the challenge ships them."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.simulation.writer import FORMAT, RECORD

KINDS = ("hits", "cells", "particles", "truth")
DETECTORS = ("detectors.csv", "detectors.csv.gz", "detectors.zip")
_FILE = re.compile(rf"event(\d{{1,18}})-({'|'.join(KINDS)})\.csv(\.gz)?")


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
        """The bytes of a member, unpacked; InputError that begins with `where` if it is damaged."""
        packed = member.endswith(".gz")
        if not self.is_zip:
            return unpack((self.path / member).read_bytes(), packed, where)
        if self._zip is None:
            self._zip = open_zip(self.path)
        try:
            return unpack(self._zip.read(member), packed, where)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{where}: damaged or unreadable in the zip ({error}); fetch it again") from error

    def stamp(self, member: str) -> tuple[str, int, int]:
        """Name, size and version (time of change, or CRC in a zip) of a member."""
        if self.is_zip:
            self._zip = self._zip or open_zip(self.path)
            info = self._zip.getinfo(member)
            return member, info.file_size, info.CRC
        status = (self.path / member).stat()
        return member, status.st_size, status.st_mtime_ns

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_zip": None}


def unpack(data: bytes, packed: bool, where: str) -> bytes:
    """The bytes of a plain or gzipped file; InputError that begins with `where` if it is damaged."""
    if not packed:
        return data
    if not data:
        raise InputError(f"{where}: the file is empty")
    try:
        return gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{where}: truncated or corrupt gzip ({error}); fetch it again") from error


def open_zip(path: Path) -> zipfile.ZipFile:
    """The zip `path`; InputError if it is none."""
    try:
        return zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a whole zip ({error}); a source is a folder or zip of TrackML files") from error


def find_events(path: str | Path) -> Source:
    """Find the events of a folder or zip; InputError if there are none."""
    source = list_files(path)
    if not source.events:
        raise InputError(f"{path}: no TrackML events; they are files such as event000001000-hits.csv or .csv.gz")
    return source


def list_files(path: str | Path) -> Source:
    """The TrackML files of a folder or zip, if any."""
    source = Source(Path(path))
    if source.path.is_dir():
        members = sorted(_files_below(source.path))
    elif source.path.exists():
        source._zip = open_zip(source.path)
        members = sorted(source._zip.namelist())
    else:
        raise InputError(f"{path}: does not exist; a source is a folder or zip of TrackML files")
    for member in members:
        if match := _FILE.fullmatch(member.rsplit("/", 1)[-1]):
            event_id, kind = int(match[1]), match[2]
            other = source.events.setdefault(event_id, {}).setdefault(kind, member)
            if other != member:
                source.faults[event_id] = f"{source.display(member)}: event {event_id}: also in {source.display(other)}"
    names = DETECTORS[:2] if source.is_zip else DETECTORS  # a zip within a zip is not read
    found = [member for member in members if member.rsplit("/", 1)[-1] in names]
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
            hint += "; other events have their cells" if missing[0] == "cells" else ""
            member = next(iter(files.values()))
            expected = re.sub(rf"-({'|'.join(KINDS)})\.csv", f"-{missing[0]}.csv", member)
            source.faults.setdefault(event_id, f"{source.display(expected)}: event {event_id}: missing{hint}")
