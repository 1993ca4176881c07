"""The store's columns by name: types, the offsets they follow, whole ones in memory, and their checksums.

Checksums are xxHash over little-endian bytes, so the same on every machine.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xxhash

from hpctrack.storage import schema

AXES = {table: "hits" if table in schema.HIT_TABLES else table for table in schema.TABLES}  # table -> offsets/AXIS
TYPES = {f"{table}.{name}": np.dtype(t) for table, columns in schema.TABLES.items() for name, t in columns.items()}


def axis_of(name: str) -> str:
    """The offsets that the column `table.column` follows: `hits` or `particles`."""
    return AXES[name.split(".")[0]]


def stored_type(name: str) -> np.dtype:
    """The type of a column on disk: little-endian."""
    return TYPES[name].newbyteorder("<")


def as_tables(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """`table.column` -> array, regrouped as `tables[table][column]`."""
    tables: dict[str, dict[str, np.ndarray]] = {}
    for name, values in arrays.items():
        table, column = name.split(".")
        tables.setdefault(table, {})[column] = values
    return tables


LACKS = "lacks"  # attribute of shards and indices: JSON list of the columns that the source had not


def lacks_as_text(lacks: Collection[str]) -> str:
    """What the attribute LACKS holds."""
    return json.dumps(sorted(lacks))


def lacks_of(attributes: Mapping[str, Any]) -> frozenset[str] | None:
    """The columns that a file says its source lacks; None if it is older than that. ValueError for what is no list."""
    if LACKS not in attributes:
        return None
    found = json.loads(str(attributes[LACKS]))
    if not isinstance(found, list) or not set(found) <= TYPES.keys():
        raise ValueError(f"{LACKS} is {str(attributes[LACKS])[:80]}, must be a list of columns")
    return frozenset(found)


class KeptShard:
    """Whole columns of a shard in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], offsets: Mapping[str, np.ndarray]) -> None:
        self.arrays, self.offsets = arrays, offsets

    def slices(self, names: Sequence[str], row: int) -> dict[str, np.ndarray]:
        """The columns of event `row`."""
        ends = {axis: (offsets[row], offsets[row + 1]) for axis, offsets in self.offsets.items()}
        return {name: self.arrays[name][slice(*ends[axis_of(name)])] for name in names}


# ---------------------------------------------------------------------------- checksums of columns, events and datasets


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
