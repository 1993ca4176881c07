"""The store's columns by name: their types, the offsets they follow, and whole ones held in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpctrack.data import schema

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


class KeptShard:
    """Whole columns of a shard in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray], offsets: Mapping[str, np.ndarray]) -> None:
        self.arrays, self.offsets = arrays, offsets

    def slices(self, names: Sequence[str], row: int) -> dict[str, np.ndarray]:
        """The columns of event `row`."""
        ends = {axis: (offsets[row], offsets[row + 1]) for axis, offsets in self.offsets.items()}
        return {name: self.arrays[name][slice(*ends[axis_of(name)])] for name in names}
