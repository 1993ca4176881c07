"""Finding ColliderML's parquet files, and reading one event's lists at a time, whatever the size of a file.

What a file holds is told by its columns, not by its name. Sources of layouts: the dataset on the Hugging Face hub
(`data/ttbar_pu200_tracker_hits/train-00000-of-01000.parquet`, 100 events a file, one row group) and ACTS' ParquetWriter
(`tracker_hits/tracker_hits_000000-000100.parquet`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.colliderml.schema import EVENT_ID, MERGED

SUFFIX = ".parquet"
HITS, PARTICLES, SIMHITS, OTHER = "tracker_hits", "particles", "tracker_simhits", "other"
_MARKS = {  # columns that tell a table
    HITS: {"x", "y", "z", "volume_id"},
    PARTICLES: {"px", "py", "pdg_id"},
    SIMHITS: {"true_x", "tpx", "dE"},
}
_OTHERS = ("qop", "total_energy")  # of tracks and of calorimeter hits, which are of no use here
STREAM = 1 << 20  # bytes of each column that are unpacked ahead
Arrow = Any  # pyarrow, its modules and objects: without types


def import_arrow() -> tuple[Arrow, Arrow]:
    """The modules `pyarrow` and `pyarrow.parquet`; InputError if they are not there."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"parquet needs pyarrow, which is not installed or does not load ({error}): pip install 'hpctrack[parquet]'"
        ) from error
    return pyarrow, pyarrow.parquet


@contextlib.contextmanager
def _damage(where: str) -> Iterator[None]:
    """What Arrow raises for a file that it cannot read becomes an InputError."""
    arrow, _ = import_arrow()
    try:
        yield
    except MemoryError:
        raise
    except (arrow.ArrowException, OSError, ValueError, KeyError) as error:
        raise InputError(f"{where}: truncated, damaged or no parquet file ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    return " ".join(str(error).split("\n")[0].split())[:200]


@dataclass(frozen=True)
class File:
    """A parquet file: its columns by name as Arrow says their types, its event ids row by row, bytes a row."""

    path: Path
    columns: Mapping[str, Arrow]
    event_ids: np.ndarray
    bytes_a_row: int
    stamp: tuple[str, int, int]  # path, size, time of change


@dataclass
class Found:
    """The events of a source: where each one's rows stand; `faults[event_id]` is what is wrong with one's files.

    `rows[table][event_id]` is (place in `files[table]`, row of that file).
    """

    path: Path
    files: dict[str, list[File]] = field(default_factory=lambda: {table: [] for table in _MARKS})
    rows: dict[str, dict[int, tuple[int, int]]] = field(default_factory=lambda: {table: {} for table in _MARKS})
    faults: dict[int, str] = field(default_factory=dict)

    @property
    def merged(self) -> bool:
        """Whether the hits are of merged clusters, as in Release 2, where each names several particles."""
        return any(not file.columns.keys().isdisjoint(MERGED) for file in self.files[HITS])

    def file(self, table: str, event_id: int) -> tuple[File, int]:
        """The file and row of an event's table."""
        number, row = self.rows[table][event_id]
        return self.files[table][number], row


def parquet_below(source: Path) -> list[Path]:
    """`source` itself if it is a parquet file, or those in the folder and below it, in the order of their names."""
    if source.is_dir():
        found = sorted(path for path in source.rglob(f"*{SUFFIX}") if not path.name.startswith("."))
        return [path for path in found if path.is_file()]
    return [source] if source.suffix == SUFFIX and source.is_file() else []


def find_tables(source: Path, with_truth: bool) -> Found:
    """The tables below `source`, or beside it where it holds hits alone; InputError if there are none.

    Beside a file or folder named `…tracker_hits…` the particles are looked for under the same name with `particles`,
    and so are the crossings of Release 2.
    """
    paths = parquet_below(source)
    if not paths:
        what = (
            "holds no parquet file" if source.is_dir() else "is no parquet file" if source.exists() else "is not there"
        )
        raise InputError(f"{source}: {what}; ColliderML's tables are files such as train-00000-of-01000{SUFFIX}")
    found = Found(source)
    _take(found, paths)
    if with_truth and found.files[HITS] and not found.files[PARTICLES]:
        for table in (PARTICLES, *([SIMHITS] if found.merged else [])):
            beside = dict.fromkeys(_beside(path, table) for path in paths)
            _take(found, [path for path in beside if path is not None])
    if not found.files[HITS]:
        raise InputError(
            f"{source}: no table of hits among {len(paths)} parquet files; its columns are x, y, z, volume_id …"
        )
    if with_truth and not found.files[PARTICLES]:
        raise InputError(
            f"{source}: no table of particles in it or beside it (…_particles); --no-truth converts hits alone"
        )
    for event_id in found.rows[HITS] if with_truth else ():
        if event_id not in found.rows[PARTICLES]:
            where = found.file(HITS, event_id)[0].path
            found.faults.setdefault(event_id, f"{where}: event {event_id}: no table of particles has this event")
    found.rows[HITS] = dict(sorted(found.rows[HITS].items()))
    return found


def _beside(hits: Path, table: str) -> Path | None:
    """The file of another table that belongs to a file of hits by its name, if there is one."""
    parts = list(hits.absolute().parts)
    for k, name in reversed(list(enumerate(parts))):
        if HITS in name:
            other = Path(*parts[:k], *(part.replace(HITS, table) for part in parts[k:]))
            if other.is_file():
                return other
    return None


def _take(found: Found, paths: Sequence[Path]) -> None:
    """Add files, and the events in them; an event that stands twice is a fault of it."""
    for path in paths:
        table, file = _open(path)
        if table == OTHER:
            continue
        number = len(found.files[table])
        found.files[table].append(file)
        for row, event_id in enumerate(file.event_ids.tolist()):
            first = found.rows[table].setdefault(event_id, (number, row))
            if first != (number, row):
                other = found.files[table][first[0]].path
                twice = "twice in this file" if first[0] == number else f"also in {other}"
                found.faults[event_id] = f"{path}: event {event_id}: its {table} stand {twice}"


def _open(path: Path) -> tuple[str, File]:
    _, parquet = import_arrow()
    with _damage(str(path)), parquet.ParquetFile(path) as file:
        columns = {field.name: field.type for field in file.schema_arrow}
        table = _table_of(columns)
        status = path.stat()
        stamp = (str(path.absolute()), status.st_size, status.st_mtime_ns)
        rows = max(file.metadata.num_rows, 1)
        event_ids = _event_ids(path, file, columns) if table in _MARKS else np.zeros(0, np.int64)
    if table is None:
        names = ", ".join(columns)[:160]
        raise InputError(f"{path}: none of ColliderML's tables: its columns are {names}; put other files elsewhere")
    return table, File(path, columns, event_ids, status.st_size // rows, stamp)


def _table_of(columns: Mapping[str, Arrow]) -> str | None:
    """Which table has these columns, most of them at least; None: none that is known."""
    if any(mark in columns for mark in _OTHERS):
        return OTHER
    marks = {name: len(marks & columns.keys()) for name, marks in _MARKS.items()}
    best = max(marks, key=marks.__getitem__)
    return best if marks[best] > 1 else None


def _event_ids(path: Path, file: Arrow, columns: Mapping[str, Arrow]) -> np.ndarray:
    arrow, _ = import_arrow()
    if EVENT_ID not in columns:
        raise InputError(f"{path}: no column '{EVENT_ID}'; its columns are {', '.join(columns)[:120]}")
    if not arrow.types.is_integer(columns[EVENT_ID]):
        raise InputError(f"{path}: {EVENT_ID} is {columns[EVENT_ID]}, must be whole numbers, one a row")
    values = file.read(columns=[EVENT_ID], use_threads=False).column(EVENT_ID)
    if values.null_count:
        raise InputError(f"{path}: {EVENT_ID} is missing in {values.null_count} rows")
    ids = values.to_numpy()
    largest = np.iinfo(np.int64).max
    if len(ids) and (ids.min() < 0 or ids.max() > largest):
        raise InputError(
            f"{path}: {EVENT_ID} is {ids.min() if ids.min() < 0 else ids.max()}, must be from 0 to {largest}"
        )
    return ids.astype(np.int64)


class Rows:
    """The rows of one file, one at a time; going on to the next is quick, going back begins the row group again.

    Arrow unpacks a column page by page here: memory is that of a few events, however many stand in a row group.
    """

    def __init__(self, file: File, columns: Sequence[str]) -> None:
        _, parquet = import_arrow()
        self.file, self._columns = file, list(columns)
        with _damage(str(file.path)):
            self._parquet = parquet.ParquetFile(file.path, buffer_size=STREAM, pre_buffer=False)
            groups = range(self._parquet.metadata.num_row_groups)
            sizes = [self._parquet.metadata.row_group(group).num_rows for group in groups]
        self._starts = np.append(0, np.cumsum(sizes)).astype(np.int64)
        self._group, self._next, self._batches = -1, 0, iter(())

    def lists(self, row: int, where: str) -> dict[str, Arrow]:
        """Each column's list of elements in this row, as Arrow arrays; InputError that begins with `where`."""
        with _damage(where):
            group = int(np.searchsorted(self._starts, row, side="right")) - 1
            if group != self._group or self._next > row:
                self._batches = self._parquet.iter_batches(
                    batch_size=1, row_groups=[group], columns=self._columns, use_threads=False
                )
                self._group, self._next = group, int(self._starts[group])
            while True:
                batch = next(self._batches, None)
                if batch is None or batch.num_rows != 1:
                    raise ValueError(f"no row {row}")
                self._next += 1
                if self._next > row:
                    break
        found = {}
        for name in self._columns:
            column = batch.column(batch.schema.get_field_index(name))
            if column.null_count:
                raise InputError(f"{where}: {name} is missing")
            found[name] = column.flatten()
        return found

    def close(self) -> None:
        """Close the file."""
        self._parquet.close()
