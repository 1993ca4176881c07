"""Track candidates on disk: append-only journals while inference runs, then HDF5 files aligned with the event shards.

An event is committed by one journal record (length, checksum, payload) that is flushed to disk before the next event
starts. A record that a kill cut short is recognised and ignored, so running again redoes exactly the events without a
whole record. When all are there, each event shard's candidates are joined into `candidates-00000.h5`, written under a
temporary name and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xxhash

from hpctrack.data.files import naming
from hpctrack.data.schema import Candidates
from hpctrack.data.store import atomic_h5
from hpctrack.errors import InputError

FORMAT = "hpctrack-candidates"
VERSION = 1
INDEX = "index.h5"
PARTS = ".parts"
HEADER = struct.Struct("<8sqqQ")  # magic, event id, payload bytes, xxh3 of the payload
MAGIC = b"hpctrkc1"
COLUMNS = {  # payload and file layout: name -> type
    "hit_offsets": np.dtype("<i8"),
    "hit_rows": np.dtype("<i4"),
    "scores": np.dtype("<f4"),
    "track_ids": np.dtype("<i4"),
}


class Journal:
    """Append-only record file of one writer; `append` returns when the event is on disk.

    What a kill left behind the last whole record is cut off when the writer opens its file again.
    """

    def __init__(self, folder: Path, writer: str) -> None:
        path = folder / PARTS / f"{writer}.journal"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        whole = max((offset + len(payload) for _, offset, payload in records(path)), default=0) if path.exists() else 0
        self.file = open(path, "ab")  # noqa: SIM115 - open as long as the writer
        self.file.truncate(whole)

    def append(self, candidates: Candidates) -> None:
        """Commit one event."""
        payload = encode(candidates)
        header = HEADER.pack(MAGIC, candidates.event_id, len(payload), xxhash.xxh3_64_intdigest(payload))
        with naming(self.path):
            self.file.write(header + payload)
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file; the records stay."""
        self.file.close()


def committed(folder: Path) -> dict[int, tuple[Path, int]]:
    """Events with a whole record in any journal of `folder`: event id -> (journal, offset of its payload)."""
    found: dict[int, tuple[Path, int]] = {}
    for path in sorted((folder / PARTS).glob("*.journal")):
        for event_id, offset, _ in records(path):
            found.setdefault(event_id, (path, offset))
    return found


def records(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Whole records of a journal as (event id, payload offset, payload); stops at the first one that was cut short."""
    with open(path, "rb") as file:
        while len(head := file.read(HEADER.size)) == HEADER.size:
            magic, event_id, length, checksum = HEADER.unpack(head)
            if magic != MAGIC or length < 0:
                return
            offset = file.tell()
            payload = file.read(length)
            if len(payload) < length or xxhash.xxh3_64_intdigest(payload) != checksum:
                return
            yield event_id, offset, payload


def encode(candidates: Candidates) -> bytes:
    """One event as bytes: the columns' lengths, then the columns."""
    columns = [np.ascontiguousarray(getattr(candidates, name), dtype) for name, dtype in COLUMNS.items()]
    return struct.pack("<4q", *map(len, columns)) + b"".join(column.tobytes() for column in columns)


def decode(event_id: int, payload: bytes) -> Candidates:
    """Inverse of `encode`."""
    lengths, position, columns = struct.unpack_from("<4q", payload), 32, {}
    for (name, dtype), length in zip(COLUMNS.items(), lengths, strict=True):
        columns[name] = np.frombuffer(payload, dtype, length, position)
        position += length * dtype.itemsize
    return Candidates(event_id, **columns)


def write_shard(folder: Path, name: str, event_ids: Sequence[int], sources: dict[int, tuple[Path, int]]) -> str:
    """Join the journal records of `event_ids` into the HDF5 file `name`; returns the content digest of the file."""
    blocks = []
    for event_id in event_ids:
        path, offset = sources[int(event_id)]
        with open(path, "rb") as file:
            file.seek(offset - HEADER.size)
            _, _, length, _ = HEADER.unpack(file.read(HEADER.size))
            blocks.append(decode(int(event_id), file.read(length)))
    with atomic_h5(folder / name) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file["event_id"] = np.array(event_ids, dtype="<i8")
        for column, dtype in COLUMNS.items():
            parts = [getattr(block, column) for block in blocks]
            file[column] = np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)
        file["offsets/candidates"] = bounds([len(block) for block in blocks])
        file["offsets/candidate_hits"] = bounds([len(block.hit_rows) for block in blocks])
        file["offsets/hits"] = bounds([len(block.track_ids) for block in blocks])
        digest = content_digest(file)
        file.attrs["digest"] = digest
    return digest


def write_index(folder: Path, shards: Sequence[tuple[str, Sequence[int], str]], attributes: dict[str, Any]) -> None:
    """Write `index.h5`, last: of `shards` (file name, event ids, digest), and what the candidates were made with."""
    counts = [len(events) for _, events, _ in shards]
    with atomic_h5(folder / INDEX) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["attributes"] = json.dumps(attributes, sort_keys=True)
        file["shards"] = [name for name, _, _ in shards]
        file["digests"] = [digest for _, _, digest in shards]
        file["event_id"] = np.array([event for _, events, _ in shards for event in events], dtype="<i8")
        file["shard"] = np.repeat(np.arange(len(shards), dtype="<i4"), counts)
        file["row"] = np.concatenate([np.arange(n, dtype="<i4") for n in counts] or [np.zeros(0, "<i4")])


def clean(folder: Path) -> None:
    """Remove what is no longer needed once the index stands: journals, and temporary files that a kill left behind."""
    shutil.rmtree(folder / PARTS, ignore_errors=True)
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


class CandidateStore:
    """Read a folder of candidates: `event_ids`, `attributes`, `read(i)`.

    Raises InputError for a folder that is no candidates folder, an unknown version, or a missing or damaged file.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / INDEX).is_file():
            unfinished = " (inference has not finished: run it again)" if (self.folder / PARTS).is_dir() else ""
            raise InputError(f"{self.folder}: not a candidates folder, {INDEX} is missing{unfinished}")
        with open_checked(self.folder / INDEX) as file:
            self.attributes: dict[str, Any] = json.loads(file.attrs["attributes"])
            self.shards = [name.decode() for name in file["shards"][()]]
            self.digests = [digest.decode() for digest in file["digests"][()]]
            self.event_ids: np.ndarray = file["event_id"][()]
            self.shard, self.row = file["shard"][()], file["row"][()]

    def __len__(self) -> int:
        return len(self.event_ids)

    @property
    def digest(self) -> str:
        """Canonical digest of all content: the same for any number of ranks."""
        settings = json.dumps(self.attributes, sort_keys=True)
        return xxhash.xxh3_128_hexdigest("\n".join([settings, *self.digests]).encode())

    def read(self, i: int) -> Candidates:
        """Candidates of the i-th event."""
        row = int(self.row[i])
        with open_checked(self.folder / self.shards[self.shard[i]]) as file:
            first, last = file["offsets/candidates"][row : row + 2]
            first_hit, last_hit = file["offsets/candidate_hits"][row : row + 2]
            lo, hi = file["offsets/hits"][row : row + 2]
            return Candidates(
                event_id=int(self.event_ids[i]),
                hit_offsets=file["hit_offsets"][first + row : last + row + 1],  # one more than candidates an event
                hit_rows=file["hit_rows"][first_hit:last_hit],
                scores=file["scores"][first:last],
                track_ids=file["track_ids"][lo:hi],
            )


def open_checked(path: Path) -> h5py.File:
    """Open an HDF5 file of this format, or say in one line why not."""
    if not path.is_file():
        raise InputError(f"{path}: missing; write the candidates again")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InputError(f"{path}: not a readable HDF5 file ({error})") from None
    kind, version = file.attrs.get("format"), file.attrs.get("version")
    if kind != FORMAT or version != VERSION:
        file.close()
        raise InputError(f"{path}: format {kind!r} version {version!r}, expected {FORMAT!r} version {VERSION}")
    return file


def content_digest(file: h5py.File) -> str:
    """Digest over names, types, shapes and bytes of every dataset, in name order."""
    state = xxhash.xxh3_128()
    names: list[str] = []
    file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
    for name in sorted(names):
        values = file[name][()]
        state.update(f"{name} {values.dtype.str} {values.shape}\n".encode())
        state.update(np.ascontiguousarray(values).tobytes())
    return state.hexdigest()


def bounds(counts: Sequence[int]) -> np.ndarray:
    """Offsets [n + 1] of consecutive blocks."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype("<i8")
