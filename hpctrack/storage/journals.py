"""Journals: what inference has committed so far, one append-only file a writer, in the folder of what it makes.

An event is committed by one record (length, checksum, payload) that is flushed to disk before the next event starts.
A record that a kill cut short is recognised and ignored, so running again redoes exactly the events without a whole
record.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import xxhash

from hpctrack.errors import InputError
from hpctrack.files.atomic import os_errors_with, sync, write_text

PARTS = ".parts"
SETTINGS = "settings.json"  # in PARTS: what the candidates are made with
PRODUCT = "product"  # in PARTS: the name of what is made, unless it is candidates
HEADER = struct.Struct("<8sqqQ")  # magic, event id, payload bytes, checksum
LENGTHS = struct.Struct("<4q")  # of the columns, at the payload's beginning
MAGIC = b"hpctrkc2"
Place = tuple[str, int]  # a journal's name, and where in it a payload begins


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
        self.file.seek(whole)
        sync(path.parent)

    def append(self, event_id: int, payload: bytes) -> Place:
        """Commit one event, whose payload begins with LENGTHS (`pack`); where it stands."""
        header = HEADER.pack(MAGIC, event_id, len(payload), checksum(event_id, payload))
        with os_errors_with(self.path):
            self.file.write(header + payload)
            self.file.flush()
            os.fsync(self.file.fileno())
        return self.path.name, self.file.tell() - len(payload)

    def close(self) -> None:
        """Close the file; the records stay."""
        self.file.close()


def begin(folder: Path, product: str) -> None:
    """Say what the journals of `folder` will hold."""
    (folder / PARTS).mkdir(parents=True, exist_ok=True)
    if product != "candidates":
        write_text(folder / PARTS / PRODUCT, product)


def product_of(folder: Path) -> str:
    """The name of what the journals of `folder` hold."""
    path = folder / PARTS / PRODUCT
    return path.read_text() if path.is_file() else "candidates"


def committed(
    folder: Path, part: int = 0, parts: int = 1, but: Callable[[str], bool] | None = None
) -> dict[int, Place]:
    """Events with a whole record in any journal of `folder`, or in every `parts`-th of them from `part` on.

    Reads and checks all of these journals, `but` those whose names it is true for.
    """
    found: dict[int, Place] = {}
    paths = [path for path in sorted((folder / PARTS).glob("*.journal")) if but is None or not but(path.name)]
    for path in paths[part::parts]:
        for event_id, offset, _ in records(path):
            found.setdefault(event_id, (path.name, offset))
    return found


def records(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Whole records of a journal as (event id, payload offset, payload); stops at the first one that was cut short."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        while len(head := file.read(HEADER.size)) == HEADER.size:
            magic, event_id, length, stored = HEADER.unpack(head)
            offset = file.tell()
            if magic != MAGIC or not LENGTHS.size <= length <= size - offset:
                return
            payload = file.read(length)
            if len(payload) < length or checksum(event_id, payload) != stored:
                return
            yield event_id, offset, payload


def checksum(event_id: int, payload: bytes) -> int:
    """xxh3_64 of a record's payload, seeded with the event's id, so that a changed id does not pass."""
    return xxhash.xxh3_64_intdigest(payload, seed=event_id % 2**64)


def pack(record: object, columns: Mapping[str, np.dtype], rest: bytes = b"") -> bytes:
    """A payload: the lengths of the record's columns (at most four), the columns, and what comes behind them."""
    arrays = [np.ascontiguousarray(getattr(record, name), dtype) for name, dtype in columns.items()]
    lengths = [*map(len, arrays), 0, 0, 0, 0][:4]
    return LENGTHS.pack(*lengths) + b"".join(array.tobytes() for array in arrays) + rest


def unpack(payload: bytes, columns: Mapping[str, np.dtype]) -> tuple[dict[str, np.ndarray], int]:
    """The columns of a payload, and where what comes behind them begins."""
    position, arrays = LENGTHS.size, {}
    for (name, dtype), length in zip(columns.items(), LENGTHS.unpack_from(payload), strict=False):
        arrays[name] = np.frombuffer(payload, dtype, length, position)
        position += length * dtype.itemsize
    return arrays, position


def read_lengths(folder: Path, place: Place, columns: Mapping[str, np.dtype], rest: np.dtype | None) -> tuple[int, ...]:
    """The lengths of a record's columns and, where something of the type `rest` may come behind them, of that."""
    with open(folder / PARTS / place[0], "rb") as file:
        file.seek(place[1] - HEADER.size)
        payload = HEADER.unpack(file.read(HEADER.size))[2]
        lengths = LENGTHS.unpack(file.read(LENGTHS.size))[: len(columns)]
    if rest is None:
        return lengths
    held = sum(length * dtype.itemsize for length, dtype in zip(lengths, columns.values(), strict=True))
    return *lengths, (payload - LENGTHS.size - held) // rest.itemsize


def stored_checksum(folder: Path, place: Place) -> int:
    """The checksum that a record has beside its payload."""
    with open(folder / PARTS / place[0], "rb") as file:
        file.seek(place[1] - HEADER.size)
        return HEADER.unpack(file.read(HEADER.size))[3]


def read_payload(folder: Path, event_id: int, place: Place) -> bytes:
    """The payload of a record that `committed` found; InputError if it has changed since."""
    path = folder / PARTS / place[0]
    with open(path, "rb") as file:
        file.seek(place[1] - HEADER.size)
        magic, found, length, stored = HEADER.unpack(file.read(HEADER.size))
        whole = magic == MAGIC and found == event_id and 0 <= length <= os.fstat(file.fileno()).st_size
        payload = file.read(length) if whole else b""
    if checksum(event_id, payload) != stored:
        raise InputError(f"{path}: the record of event {event_id} is damaged; run the inference again to redo it")
    return payload
