"""Reading a CSV table exactly: typed, range-checked columns, or one line that names the first bad row."""

from __future__ import annotations

import csv
import io
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hpctrack.errors import InputError

_INTEGER = re.compile(r"\s*[+-]?[0-9]+\s*")


@dataclass(frozen=True)
class Column:
    """A column's type in memory; for integers the smallest value allowed (the largest is the type's).

    `hint`: what to do about a file that has no such column.
    """

    dtype: type
    lowest: int | None = None
    optional: bool = False
    hint: str = ""

    @property
    def is_integer(self) -> bool:
        """Whether the file must hold whole numbers."""
        return np.issubdtype(self.dtype, np.integer)

    @property
    def limits(self) -> tuple[int, int]:
        """Smallest and largest integer allowed."""
        info = np.iinfo(self.dtype)
        return int(info.min) if self.lowest is None else self.lowest, int(info.max)


def read_table(data: bytes, where: str, columns: Mapping[str, Column]) -> dict[str, np.ndarray]:
    """The named columns of a CSV file's bytes, in any order in the file; others are ignored.

    Floats are rounded once, to the column's type, and must be finite; integers are exact, 64 bits wide. Raises
    InputError that begins with `where` and names the first bad row (counted from 1, without the header).
    """
    header = _header(data, where, columns)
    wanted = {name: column for name, column in columns.items() if name in header}
    types: dict[str, type] = {name: str for name in header if name not in wanted}
    types |= {name: column.dtype for name, column in wanted.items() if not column.is_integer}
    try:
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            warnings.simplefilter("ignore", RuntimeWarning)  # a number too large becomes inf, refused below
            # integer columns get no dtype: pandas would take them from floats ("1.0", and 2**60 + 1 inexactly)
            frame = pd.read_csv(
                io.BytesIO(data), header=None, names=header, skiprows=1, dtype=types, na_filter=False, low_memory=False
            )
    except (ValueError, OverflowError) as error:
        if "out of memory" in str(error):  # how pandas' parser says it
            raise MemoryError(f"{where}: {error}") from error
        raise _first_fault(data, where, header, wanted, str(error)) from error
    table = {}
    for name, column in wanted.items():
        values = frame[name].to_numpy()
        if len(values) and not (isinstance(frame.index, pd.RangeIndex) and _valid(values, column)):
            raise _first_fault(data, where, header, wanted, f"column '{name}' cannot be read")
        table[name] = values.astype(column.dtype)
    return table


def _header(data: bytes, where: str, columns: Mapping[str, Column]) -> list[str]:
    needed = [name for name, column in columns.items() if not column.optional]
    if not data or data.isspace():
        raise InputError(f"{where}: the file is empty; its first line must be {','.join(needed)}")
    line = data[: 1 << 16].split(b"\n", 1)[0].decode("utf-8-sig", errors="replace").strip()
    header = [name.strip().strip('"') for name in line.split(",")]
    for name in needed:
        if name not in header:
            hint = f"; {columns[name].hint}" if columns[name].hint else ""
            raise InputError(
                f"{where}: no column '{name}' in the header '{line[:200]}'; needed: {','.join(needed)}{hint}"
            )
    if len(set(header)) < len(header):
        raise InputError(f"{where}: a column name stands twice in the header '{line[:200]}'")
    if not data.endswith(b"\n"):
        raise InputError(f"{where}: the last line has no end, as in a truncated file; end it if the file is whole")
    return header


def _valid(values: np.ndarray, column: Column) -> bool:
    if not column.is_integer:
        return bool(np.isfinite(values).all())
    low, high = column.limits
    whole = (np.int64, np.uint64) if np.dtype(column.dtype) == np.uint64 else (np.int64,)
    return values.dtype in whole and bool(values.min() >= low and values.max() <= high)


def _first_fault(data: bytes, where: str, header: list[str], columns: Mapping[str, Column], reason: str) -> InputError:
    """Read again, slowly, to say which row and value it is."""
    checks = [(header.index(name), name, column) for name, column in columns.items()]
    text = io.StringIO(data.decode("utf-8", errors="replace"), newline="")
    number = 0
    try:
        for number, fields in enumerate(_rows(text)):
            if number and len(fields) != len(header):
                return InputError(f"{where}: row {number} has {len(fields)} values, must have {len(header)}")
            for position, name, column in checks if number else ():
                if must := _must_be(fields[position], column):
                    return InputError(f"{where}: row {number}: {name} is '{fields[position][:40]}', must be {must}")
    except csv.Error as error:
        reason = f"row {number + 1}: {error}"
    return InputError(f"{where}: {' '.join(reason.split())}")


def _rows(text: io.StringIO) -> Iterable[list[str]]:
    return (fields for fields in csv.reader(text) if fields)


def _must_be(field: str, column: Column) -> str | None:
    """What the field should have been, None if it is right."""
    if column.is_integer:
        low, high = column.limits
        right = _INTEGER.fullmatch(field) is not None and low <= int(field) <= high
        return None if right else f"a whole number from {low} to {high}"
    try:
        with np.errstate(over="ignore"):
            right = bool(np.isfinite(column.dtype(field.strip())))
    except ValueError:
        right = False
    return None if right else "a finite number"
