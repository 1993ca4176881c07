"""Edges on disk: what a stage of a pipeline found, by event, for the next stage to read.

A folder of edges belongs to one dataset, whose fingerprint it holds; by custom it is `DATASET/edges/NAME`. Journals,
joining, index and digests are those of candidates. In a file every column is concatenated over events, with offsets and
a checksum for each event.

Legend: M edges of an event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.storage import candidates
from hpctrack.storage.candidates import CandidatesFile, CandidateStore, bounds, content_digest
from hpctrack.storage.hdf5 import INDEX, atomic_h5, small_array
from hpctrack.storage.journals import LENGTHS, Place, checksum, read_lengths, read_payload

FORMAT = "hpctrack-edges"
AGAIN = "run the inference again that wrote the edges"
COLUMNS = {"sender": np.dtype("<i4"), "receiver": np.dtype("<i4"), "score": np.dtype("<f4")}


@dataclass(frozen=True)
class Edges:
    """Edges of one event: rows of its hit tables, and how probable each edge is."""

    event_id: int
    sender: np.ndarray  # int32 [M]
    receiver: np.ndarray  # int32 [M]
    score: np.ndarray  # float32 [M], from 0 to 1

    def __len__(self) -> int:
        return len(self.score)


def encode(edges: Edges) -> bytes:
    """One event as bytes, for a journal: the columns' lengths, then the columns."""
    columns = [np.ascontiguousarray(getattr(edges, name), dtype) for name, dtype in COLUMNS.items()]
    return LENGTHS.pack(*map(len, columns), 0) + b"".join(column.tobytes() for column in columns)


def decode(event_id: int, payload: bytes) -> Edges:
    """Inverse of `encode`."""
    n = LENGTHS.unpack_from(payload)[0]
    starts = LENGTHS.size + 4 * n * np.arange(len(COLUMNS))
    columns = (np.frombuffer(payload, dtype, n, int(at)) for at, dtype in zip(starts, COLUMNS.values(), strict=True))
    return Edges(event_id, *columns)


def write_shard(
    folder: Path, name: str, event_ids: Sequence[int], sources: Mapping[int, Place], world: Any = None
) -> str:
    """Join the records of `event_ids` into the HDF5 file `name`; its digest. Memory is that of one event's edges.

    Of `world`, the first rank writes.
    """
    if world is not None:
        return world.bcast(write_shard(folder, name, event_ids, sources) if world.rank == 0 else None)
    places = [sources[int(event)] for event in event_ids]
    first = bounds([read_lengths(folder, place)[0] for place in places])
    checksums = np.zeros(len(places), dtype="<u8")
    with atomic_h5(folder / name) as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, candidates.VERSION
        file["event_id"], file["offsets/edges"] = np.array(event_ids, dtype="<i8"), first
        datasets = {name: file.create_dataset(name, (int(first[-1]),), dtype) for name, dtype in COLUMNS.items()}
        for i, (event, place) in enumerate(zip(map(int, event_ids), places, strict=True)):
            payload = read_payload(folder, event, place)
            checksums[i] = checksum(event, payload)
            edges = decode(event, payload)
            for column, dataset in datasets.items():
                dataset[first[i] : first[i + 1]] = getattr(edges, column)
        file["checksum"] = checksums
        file.attrs["digest"] = digest = content_digest(file)
    return digest


def write_index(folder: Path, shards: Sequence[tuple[str, Sequence[int], str]], attributes: dict[str, Any]) -> None:
    """Write `index.h5`, last: with the number of edges of each event, so that planning opens no other file."""
    counts = []
    for name, events, _ in shards:
        file = EdgesFile(folder / name, np.asarray(events))
        counts.append(np.diff(file.offsets["score"]))
        file.file.close()
    also = {"n_edges": np.concatenate([np.zeros(0, np.int64), *counts])}
    candidates.write_index(folder, shards, attributes, FORMAT, also)


class EdgesFile(CandidatesFile):
    """An open file of edges."""

    FORMAT, AGAIN = FORMAT, AGAIN

    def _check(self, n: int) -> None:
        self.columns = {name: self._column(name, dtype) for name, dtype in COLUMNS.items()}
        self.offsets = {name: self._offsets("offsets/edges", n, name) for name in COLUMNS}
        self.checksums = self._column("checksum", "<u8", n)[:]

    def read(self, event_id: int, row: int) -> Edges:
        """The edges of an event; InputError if they fail their checksum."""
        edges = Edges(event_id, **self._parts(event_id, row))
        if checksum(event_id, encode(edges)) != int(self.checksums[row]):
            raise InputError(f"{self.path}: event {event_id} fails its checksum; {AGAIN}")
        return edges


class EdgeStore(CandidateStore):
    """Read a folder of edges: `event_ids`, `n_edges`, `attributes`, `read(i)`; the rest is as for candidates."""

    FORMAT, WHAT = FORMAT, "an edges folder"

    def _read_more(self, index: Any) -> None:
        self.n_edges = small_array(index, "n_edges")

    @staticmethod
    def _file(path: Path, event_ids: np.ndarray) -> EdgesFile:
        return EdgesFile(path, event_ids)


def is_edges(folder: str | Path) -> bool:
    """Whether a folder holds edges."""
    try:
        candidates.open_checked(Path(folder) / INDEX, FORMAT).close()
    except InputError:
        return False
    return True


def open_store(folder: str | Path) -> EdgeStore:
    """The edges in a folder."""
    return EdgeStore(folder)
