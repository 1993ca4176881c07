"""TrackML's CSV files of simulated events, written whole or not at all, and the record of what they are.

An event is finished when its four files are there; the truth file comes last. Files are written to a hidden temporary
name and renamed. Several runs may fill one folder at once as long as their events differ.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.files import atomic
from hpctrack.files.atomic import os_errors_with, temporary_name
from hpctrack.simulation.event import Tables
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.settings import ADDED

KINDS = ("hits", "cells", "particles", "truth")  # in the order they are written
RECORD = "simulation.json"
FORMAT = {"format": "hpctrack-simulation", "version": 1}


def event_file(folder: Path, event_id: int, kind: str, compressed: bool) -> Path:
    """Final name of one file of an event."""
    return folder / f"event{event_id:09d}-{kind}.csv{'.gz' if compressed else ''}"


def is_finished(folder: Path, event_id: int, compressed: bool) -> bool:
    """Whether all files of the event are there, and whole."""
    return all(_is_whole(event_file(folder, event_id, kind, compressed)) for kind in KINDS)


def _is_whole(path: Path) -> bool:
    """Whether a CSV ends with the end of a line; of a compressed one all is read, for its length and checksum."""
    end = b""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                while part := file.read(1 << 20):
                    end = part[-1:]
        elif path.stat().st_size:
            with open(path, "rb") as plain:
                plain.seek(-1, os.SEEK_END)
                end = plain.read()
    except (FileNotFoundError, EOFError, gzip.BadGzipFile, zlib.error):
        return False
    return end == b"\n"


def write_event(folder: Path, event_id: int, tables: Tables, compressed: bool) -> None:
    """Write the event's files; OSError if the folder or the disk does not allow it."""
    for kind in KINDS:
        publish(event_file(folder, event_id, kind, compressed), csv_bytes(tables[kind]), compressed)


def csv_bytes(columns: Mapping[str, np.ndarray]) -> bytes:
    """A table as CSV: integers in full, reals with seven digits, as the challenge has them."""
    row = ",".join("%d" if np.issubdtype(values.dtype, np.integer) else "%.7g" for values in columns.values())
    lines = [row % values for values in zip(*(values.tolist() for values in columns.values()), strict=True)]
    return "\n".join([",".join(columns), *lines, ""]).encode()


def publish(path: Path, data: bytes, compressed: bool = False) -> None:
    """Write `data` under a temporary name, then rename it to `path`; OSError that names `path`."""
    temporary = temporary_name(path)
    try:
        with os_errors_with(path), open(temporary, "wb") as file:
            # A fixed time and no name inside, so that the same event gives the same bytes.
            file.write(gzip.compress(data, compresslevel=4, mtime=0) if compressed else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)  # not waiting for the folder: an event that is not there after all is made again
    finally:
        temporary.unlink(missing_ok=True)


def clean(folder: Path, event_ids: Iterable[int]) -> None:
    """Remove what a killed run left of these events: temporary files, and files of events that are not finished."""
    mine = {f"event{event_id:09d}" for event_id in event_ids}
    for path in folder.iterdir():
        hidden = path.name.startswith(".event") and path.name.endswith(".tmp")
        if path.name.lstrip(".").split("-")[0] in mine and (hidden or path.name.startswith("event")):
            path.unlink(missing_ok=True)


def write_detectors(folder: Path, geometry: Geometry, compressed: bool) -> None:
    """Write detectors.csv, with the challenge's columns and order, unless it is there."""
    path = folder / f"detectors.csv{'.gz' if compressed else ''}"
    if path.exists():
        return
    names = ["volume_id", "layer_id", "module_id", "cx", "cy", "cz", *(f"rot_{i}{j}" for i in "xyz" for j in "uvw")]
    names += ["module_t", "module_minhu", "module_maxhu", "module_hv", "pitch_u", "pitch_v"]
    # Adding 0 turns -0 into 0; rounding keeps cos(pi / 2) from standing there as 6e-17.
    columns = {n: c if c.dtype.kind == "i" else c.round(9) + 0.0 for n, c in ((n, geometry.columns[n]) for n in names)}
    publish(path, csv_bytes(columns), compressed)


def claim(folder: Path, settings: Mapping[str, object], versions: Mapping[str, str], decisive: Iterable[str]) -> None:
    """Record in the folder what it holds, or check that it holds the same.

    `decisive` names the versions that must agree as well. Raises InputError that names the first key that differs.
    """
    path = folder / RECORD
    atomic.clear_leftovers(folder)  # of killed runs; others may fill the folder beside this one
    if not path.exists():
        if foreign := sorted(folder.glob("event*-*.csv*")):
            raise InputError(f"{folder}: holds {foreign[0].name}, but no {RECORD}; choose another folder for OUT")
        publish(path, (json.dumps({**FORMAT, "settings": settings, "versions": versions}, indent=2) + "\n").encode())
        return
    try:
        record = json.loads(path.read_text())
        there, made_by = ADDED | dict(record["settings"]), dict(record["versions"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: not a record of hpctrack simulate ({error!r}); choose another folder") from error
    known = {name: record.get(name) for name in FORMAT}
    if known != FORMAT:
        raise InputError(f"{path}: format {known}, this version of hpctrack writes {FORMAT}; choose another folder")
    for name in sorted(settings.keys() | there.keys()):
        _same(path, f"settings.{name}", there.get(name), settings.get(name))
    for name in decisive:
        _same(path, f"versions.{name}", made_by.get(name), versions.get(name))


def _same(path: Path, key: str, there: object, now: object) -> None:
    if there != now:
        raise InputError(f"{path}: {key} is {there!r} there and {now!r} now; keep it, or choose another folder")
