"""HDF5 files of events: written whole or not at all, and read without believing more of them than they can hold.

What a file says is taken from the file alone: links, external storage and virtual datasets, by which it would bring in
other files, are refused.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import h5py
import numpy as np
import xxhash

from hpctrack import __version__
from hpctrack.errors import InputError
from hpctrack.files.atomic import publish, temporary_name
from hpctrack.files.reading import SQUEEZED, DiskFile, max_unpacked, too_large
from hpctrack.storage import schema

INDEX = "index.h5"  # of a folder of events, or of what inference makes of them
SHARDS = "events-*.h5"  # of a folder of events
ATTRIBUTES_DIGEST = "attributes_digest"  # of all other attributes and of the texts; older files have none
TEXTS = "texts"  # group of what is too long for an attribute (64 kB): UTF-8 as uint8


# ------------------------------------------------------------------------------------------------ writing


@contextlib.contextmanager
def atomic_h5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file that gets its name only when it is whole and on disk; a full disk is an OSError."""
    temporary = temporary_name(path)
    try:
        with DiskFile(temporary, "x+") as disk:
            with h5py.File(disk, "w") as file:
                yield file
            if disk.error:
                raise OSError(disk.error.errno, disk.error.strerror, str(path))
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_header(file: h5py.File, kind: str, attributes: Mapping[str, Any], texts: Mapping[str, str]) -> None:
    """The attributes of a shard or index, its `texts`, and a digest of both."""
    file.attrs.update({"format": schema.FORMAT, "version": schema.VERSION, "kind": kind, "writer": __version__})
    file.attrs.update(attributes)
    for name, text in texts.items():
        file[f"{TEXTS}/{name}"] = np.frombuffer(text.encode(), dtype=np.uint8)
    file.attrs[ATTRIBUTES_DIGEST] = _digest(dict(file.attrs), texts)


# ------------------------------------------------------------------------- writing, by several ranks together


class Communicator(Protocol):
    """An MPI communicator, as far as writing together needs one."""

    rank: int
    size: int

    def bcast(self, value: str | None) -> str:
        """The value of rank 0, on all ranks."""


def has_parallel_hdf5() -> bool:
    """Whether several ranks can write one HDF5 file together: h5py was built with MPI."""
    return bool(h5py.get_config().mpi)


def write_rows(dataset: h5py.Dataset, start: int, values: np.ndarray, world: Communicator | None) -> None:
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
def together(path: Path, world: Communicator) -> Iterator[h5py.File]:
    """A new file, open on all ranks of `world`, under a temporary name that `shared_name` gives."""
    with h5py.File(shared_name(path), "w", driver="mpio", comm=world) as file:
        yield file


def shared_name(path: Path) -> Path:
    """Where ranks write a file together, before it has its name."""
    return path.with_name(f".{path.name}.together.tmp")  # the folder's lock keeps others out


# ------------------------------------------------------------------------------------------------ reading


def open_h5(path: str | Path, kind: str) -> h5py.File:
    """Open a shard or index for reading; InputError if it is not one, is damaged or of an unknown version."""
    try:
        file = h5py.File(path, "r", locking=False)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        if error.errno not in (None, 0):
            raise
        _raise_if_out_of_memory(error, path)
        raise InputError(f"{path}: not a whole HDF5 file ({short(error)}); convert again with --overwrite") from error
    try:
        with damage(path):
            found = {key: file.attrs.get(key) for key in ("format", "version", "kind")}
            expected = {"format": schema.FORMAT, "version": schema.VERSION, "kind": kind}
            for key, value in expected.items():
                if str(found[key]) != str(value):
                    raise InputError(f"{path}: {key} is '{found[key]}', but this hpctrack reads '{value}'")
            read_attributes(file)
    except BaseException:
        file.close()
        raise
    return file


def format_of(path: Path) -> str | None:
    """The `format` that an HDF5 file says it has; None for what is no whole HDF5 file or says none."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            found = file.attrs.get("format")
    except OSError as error:
        if error.errno not in (None, 0):
            raise
        return None
    return None if found is None else str(found)


def read_attributes(file: h5py.File) -> dict[str, Any]:
    """All attributes and texts of a file; ValueError if they fail their digest (files of before it was there pass)."""
    attributes, texts = dict(file.attrs), {}
    if TEXTS in file:
        texts = {name: small_array(file, f"{TEXTS}/{name}").tobytes().decode() for name in file[TEXTS]}
    stored = attributes.get(ATTRIBUTES_DIGEST)
    if stored is not None and stored != _digest(attributes, texts):
        raise ValueError("the attributes fail their checksum")
    return attributes | texts


def _digest(attributes: Mapping[str, Any], texts: Mapping[str, str]) -> str:
    """xxh3_64 of attributes and texts, but for the digest itself."""
    values = {key: value for key, value in attributes.items() if key != ATTRIBUTES_DIGEST}
    text = json.dumps([values, dict(texts)], sort_keys=True, default=_plain)
    return xxhash.xxh3_64_hexdigest(text.encode())


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


@contextlib.contextmanager
def damage(path: str | Path, advice: str = "convert again with --overwrite") -> Iterator[None]:
    """Turn what h5py says of missing or unreadable parts of a file into an InputError, which ends with `advice`."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, 0):
            raise
        _raise_if_out_of_memory(error, path)
        raise InputError(f"{path}: damaged, or not made by hpctrack ({short(error)}); {advice}") from error


def _raise_if_out_of_memory(error: Exception, path: str | Path) -> None:
    """MemoryError if HDF5 lacked memory that was not to be had, rather than asked for what a lying file claims."""
    if "memory allocation failed" in str(error) or "unable to allocate" in str(error):
        try:
            np.empty(Path(path).stat().st_size + (64 << 20), np.uint8)
        except MemoryError:
            raise MemoryError(f"{path}: {short(error)}") from error


def short(error: Exception) -> str:
    """What an error of h5py says, in one line."""
    return " ".join(str(error).strip("'\"").split())[:200]


def own(file: h5py.File, name: str) -> h5py.Dataset:
    """The dataset `name`, if the file itself holds it; KeyError if it is missing, ValueError if it lies elsewhere."""
    place: Any = file
    for part in name.split("/"):
        if not isinstance(place, h5py.Group):
            raise ValueError(f"{name}: {place.name} is no group")
        if place.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise ValueError(f"{name} is a link, which may lead out of the file")
        place = place[part]
    if not isinstance(place, h5py.Dataset):
        raise ValueError(f"{name} is no dataset")
    if place.external or place.is_virtual:
        raise ValueError(f"{name} has its values in other files")
    return place


def check_size(dataset: h5py.Dataset) -> None:
    """ValueError if a dataset claims more than its file can hold, or has compressed chunks beyond the limit."""
    size = dataset.file.id.get_filesize()
    if dataset.chunks is None:
        held = size
    else:
        filters = dataset.id.get_create_plist().get_nfilters()
        held = min(size, dataset.id.get_storage_size()) * (SQUEEZED if filters else 1)
        chunk = int(np.prod(dataset.chunks, dtype=np.float64)) * dataset.dtype.itemsize
        if chunk > max_unpacked():
            raise ValueError(f"a chunk {too_large(chunk)}")
    if dataset.nbytes > held:
        raise ValueError(f"says {dataset.shape} values, {dataset.nbytes} bytes, more than the file can hold ({held})")


def small_array(file: h5py.File, key: str) -> np.ndarray:
    """A 1-d dataset of bookkeeping, whole; ValueError if it is none of this file's or claims more than it can hold."""
    dataset = own(file, key)
    if dataset.ndim != 1 or dataset.nbytes > file.id.get_filesize():
        raise ValueError(f"{key} is no 1-d array of this file's")
    return dataset[:]


def plain_name(name: str) -> str:
    """ValueError if a file's name leads out of its folder."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"'{name}' is no file's name in this folder")
    return name
