"""Which format a source is of, by looking at the names of its files."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from hpctrack.errors import InputError
from hpctrack.storage.hdf5 import INDEX

_NAMES = {  # a format's files
    "colliderml": re.compile(r".*\.parquet"),
    "acorn": re.compile(r"event\d+(-graph)?\.(pyg|pt)|data\d+_s\d+\.pt|.*\.pyg"),
    "proton-ct": re.compile(r".*\.npz"),
    "acts": re.compile(r"event\d+-(measurements|spacepoints?)\.csv(\.gz)?"),
    "trackml": re.compile(r"event\d+-hits\.csv(\.gz)?"),
}


def format_of(source: Path) -> str:
    """The name of the format of a file, folder or zip; `trackml`, whose reader says what is amiss, if nothing tells.

    InputError if it holds files of two formats.
    """
    if (source / INDEX).is_file():
        return "sub-events"
    found: dict[str, str] = {}
    for name in _files(source):
        for known, pattern in _NAMES.items():
            if known not in found and pattern.fullmatch(name.rsplit("/", 1)[-1]):
                found[known] = name
    if "acts" in found:
        found.pop("trackml", None)  # ACTS' simulated hits have the name of TrackML's hits
    if len(found) > 1:
        found.pop("proton-ct", None)  # arrays may lie beside anything
    if len(found) > 1:
        (one, here), (other, there), *_ = found.items()
        raise InputError(
            f"{source}: holds files of {one} ({here}) and of {other} ({there}); say which with --format, or name a "
            "folder of one"
        )
    return next(iter(found), "trackml")


def _files(source: Path) -> Iterator[str]:
    """Names of the files in a folder and below it, in a zip, or of the file."""
    if source.is_dir():
        seen: set[str] = set()
        for folder, below, names in os.walk(source, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            yield from (name for name in names if not name.startswith("."))
        return
    yield source.name
    if source.suffix == ".zip" and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            yield from archive.namelist()
