"""Node-local copies of a dataset: each shard is copied once a node, checked by its events' checksums, and used again.

The ranks of a node share the work through locks on the scratch folder's own file system; no communication is needed.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import xxhash

from hpctrack.errors import InputError, MachineError
from hpctrack.files.atomic import publish, temporary_name
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.store import Dataset

STARTED = time.time()
FRESH_S = 600  # a copy that another process has checked since this long before our start is not checked again


def stage(folder: str | Path, scratch: str | Path, first: int = 0, source: Dataset | None = None) -> Path:
    """The folder of a whole copy of dataset `folder` under `scratch`, made or completed where it is not there yet.

    Any number of processes of a node may call it together: they copy different shards (`first`, such as the local
    rank, says where each begins) and wait for each other's. `source`: the dataset, if it is open already. Raises
    InputError if `scratch` is no folder or the dataset is damaged, MachineError if the copy does not fit.
    """
    folder, scratch = Path(folder), Path(scratch)
    if not scratch.is_dir():
        raise InputError(f"key 'data.stage_to': {scratch} is no folder on this node; expected a local scratch folder")
    source = source or Dataset(folder)
    version = xxhash.xxh3_64_hexdigest((folder / INDEX).read_bytes())
    target = scratch / f"{folder.absolute().name}-{version}"
    target.mkdir(exist_ok=True)
    _check_space(source, target)
    count = len(source.shards)
    for k in range(count):
        number = (first + k) % count
        name = source.shards[number]
        _stage_file(folder / name, target / name, functools.partial(source.verify_shard, number))
    _stage_file(folder / INDEX, target / INDEX, lambda path: _check_version(path, version))
    return target


def _stage_file(source: Path, final: Path, check: Callable[[Path], None]) -> None:
    """Copy one file unless a whole copy is there; `check` raises InputError for a copy that is not."""
    with _locked(final.with_name(f".{final.name}.lock")) as note:
        if final.exists():
            checked, before = note.read() == _state(final), os.fstat(note.fileno()).st_mtime
            if checked and before >= STARTED - FRESH_S:
                return
            try:
                check(final)
            except InputError as error:
                print(f"{error}: the copy is made anew", file=sys.stderr, flush=True)
            else:
                _write_note(note, _state(final))
                return
        temporary = temporary_name(final)
        try:
            shutil.copyfile(source, temporary)
            try:
                check(temporary)
            except InputError as error:
                raise InputError(f"{source}: its copy is damaged, so this file is, or was changed: {error}") from error
            publish(temporary, final)
        finally:
            temporary.unlink(missing_ok=True)
        _write_note(note, _state(final))


def _check_version(path: Path, version: str) -> None:
    if xxhash.xxh3_64_hexdigest(path.read_bytes()) != version:
        raise InputError(f"{path}: differs from the dataset's index")


def _check_space(source: Dataset, target: Path) -> None:
    sizes = zip(source.shards, source.shard_bytes, strict=True)
    needed, free = sum(size for name, size in sizes if not (target / name).exists()), shutil.disk_usage(target).free
    if needed > free:
        raise MachineError(
            f"key 'data.stage_to': {target.parent} has {free / 1e9:.1f} GB free, but {needed / 1e9:.1f} GB are to be "
            f"copied; remove what is old there, or unset the key"
        )


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_ino} {found.st_size} {found.st_mtime_ns}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """The lock file, open for reading and writing, while no other process has it; a dead process holds no lock."""
    with open(path, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


def _write_note(note: TextIO, text: str) -> None:
    note.seek(0)
    note.truncate()
    note.write(text)
    note.flush()
