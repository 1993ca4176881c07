"""Checksums of stored columns, events and datasets: xxHash over little-endian bytes, so the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import xxhash

from hpctrack.data import schema


def column_checksum(values: np.ndarray) -> int:
    """xxh3_64 of a column's bytes (little-endian, contiguous)."""
    return xxhash.xxh3_64_intdigest(np.ascontiguousarray(values).view(np.uint8).data)


def event_checksum(columns: Mapping[str, int]) -> int:
    """xxh3_64 over an event's sorted `table.column` names, their stored types and their column checksums."""
    types = {f"{t}.{c}": np.dtype(d).newbyteorder("<").str for t, cs in schema.TABLES.items() for c, d in cs.items()}
    text = "\n".join(f"{name} {types[name]} {columns[name]:016x}" for name in sorted(columns))
    return xxhash.xxh3_64_intdigest(text.encode())


def combined_digest(event_ids: np.ndarray, checksums: np.ndarray) -> str:
    """32 hex digits over (event_id, event checksum) in the order of the ids: the content, however it is sharded."""
    order = np.argsort(event_ids, kind="stable")
    hasher = xxhash.xxh3_128(f"{schema.FORMAT} {schema.VERSION}\n".encode())
    hasher.update(np.ascontiguousarray(event_ids[order], dtype="<i8").tobytes())
    hasher.update(np.ascontiguousarray(checksums[order], dtype="<u8").tobytes())
    return hasher.hexdigest()


def table_checksum(table: Mapping[str, np.ndarray], columns: Sequence[str]) -> int:
    """xxh3_64 over the named columns, their names and types."""
    hasher = xxhash.xxh3_64()
    for name in columns:
        hasher.update(f"{name} {table[name].dtype.str}".encode())
        hasher.update(np.ascontiguousarray(table[name]).tobytes())
    return hasher.intdigest()
