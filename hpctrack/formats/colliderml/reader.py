"""Events from ColliderML's tables of hits and particles, and of crossings in Release 2.

The files have no cells and no weights, and those of Release 1 no momenta where particles cross: a dataset of them says
so. Their magnetic field is not in them either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.colliderml import contributors
from hpctrack.formats.colliderml import schema as tables
from hpctrack.formats.colliderml.parquet_files import HITS, PARTICLES, SIMHITS, Arrow, File, Found, Rows, import_arrow
from hpctrack.formats.colliderml.volumes import with_names
from hpctrack.formats.detectors import named_detectors, stamp_of
from hpctrack.formats.geometry import text_of
from hpctrack.formats.tables import event_of, first_twice, no_truth, rows_of
from hpctrack.storage import schema

_POSITION = ("x", "y", "z")
_MODULE = {"volume_id": "volume_id", "layer_id": "layer_id", "surface_id": "module_id"}  # theirs: ours
_CROSSING = {"true_x": "tx", "true_y": "ty", "true_z": "tz"}
_PARTICLES = {  # by the part that may be left out
    "": {"pdg_id": "particle_type"},
    "vertices": {name: name for name in ("vx", "vy", "vz")},
    "momenta": {name: name for name in ("px", "py", "pz")},
    "charges": {"charge": "q"},
}
NEVER = frozenset({"truth.weight", *schema.PARTS["cells"]})  # in these files
_SIMHITS = ("particle_id", contributors.LOST, *contributors.POSITION, *contributors.MOMENTUM)


@dataclass
class ColliderMLReader:
    """Events of parquet files; `without`: parts (schema.PARTS) that are not read, or are not there.

    `surfaces`: the file of the detector's modules, if there is one.
    """

    found: Found
    with_truth: bool
    without: Sequence[str] = ()
    field_t: float | None = None
    unlisted_is_noise: bool = False
    surfaces: str | None = None
    _rows: dict[str, Rows] = field(default_factory=dict, repr=False)

    def event_ids(self) -> list[int]:
        """Those of the hits' tables, ascending."""
        return list(self.found.rows[HITS])

    def origin(self) -> dict[str, object]:
        """The format; where the files lay says nothing of their content."""
        return {"kind": "colliderml", "truth": self.with_truth}

    def stamp(self, event_id: int) -> tuple[object, int]:
        """Paths, sizes and times of the event's files, its rows there, and the options; bytes of an event."""
        places, size = [], 0
        for table in (HITS, PARTICLES, SIMHITS) if self.with_truth else (HITS,):
            if event_id in self.found.rows[table]:
                file, row = self.found.file(table, event_id)
                places.append([*file.stamp, row])
                size += file.bytes_a_row
        options = [self.with_truth, sorted(self.without), self.field_t, self.unlisted_is_noise]
        return ["colliderml", event_id, places, options, *stamp_of(self.surfaces)], size

    @cached_property
    def detector(self) -> str | None:
        """Of the file that was named, and of the hits' column `detector`, which says what each volume is."""
        return with_names(text_of(named_detectors(self.surfaces)), self.found)

    @property
    def lacks(self) -> frozenset[str]:
        """The columns that the source has not, or is read without."""
        parts = {name for part in self.without for name in schema.PARTS[part]}
        momenta = () if self.found.merged else ("truth.tpx", "truth.tpy", "truth.tpz")
        return NEVER.union(parts, momenta, () if self.with_truth else schema.ALL_OF_TRUTH)

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The event. A hit's id is its place in the event's list, from 0."""
        if event_id in self.found.faults:
            raise InputError(self.found.faults[event_id])
        hits = self._table(HITS, event_id, self._columns_of_hits())
        where = hits.where
        measured = _measured(hits)
        module = {ours: hits.whole(name, schema.HITS[ours]) for name, ours in _MODULE.items()}
        columns = {"hit_id": np.flatnonzero(measured)} | {name: hits.floats(name, measured) for name in _POSITION}
        for name in _POSITION:
            for _, row, what in schema.faults_of_column(f"hits.{name}", columns[name]):
                raise InputError(f"{where}: entry {columns['hit_id'][row]} of {name} {what}")
        columns |= {name: values[measured] for name, values in module.items()}
        if self.with_truth:
            truth, particles = self._truth(event_id, hits, measured, columns)
        else:
            particles, truth = no_truth(int(measured.sum()))
        yield event_of(event_id, {"hits": columns, "truth": truth, "particles": particles}, self.lacks)

    def _columns_of_hits(self) -> dict[str, str]:
        """Columns that are read of the hits, and what to do about a file without one."""
        wanted = dict.fromkeys([*_POSITION, *_MODULE], "")
        if self.with_truth:
            crossings = "crossings" not in self.without
            own = (contributors.CROSSINGS_OF if crossings else contributors.PARTICLES_OF,)
            wanted[own[0] if self.found.merged else "particle_id"] = "--no-truth converts hits without"
            if crossings and not self.found.merged:
                wanted |= dict.fromkeys(_CROSSING, "--without crossings converts files that have none")
        return wanted

    def _owners(
        self, event_id: int, hits: Lists, measured: np.ndarray, positions: Mapping[str, np.ndarray]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The particle of each hit, and columns of where it crossed."""
        crossings = "crossings" not in self.without
        if not self.found.merged:
            columns = _CROSSING if crossings else {}
            found = {ours: hits.checked(name, f"truth.{ours}")[measured] for name, ours in columns.items()}
            return hits.ids("particle_id")[measured], found
        if not crossings:
            owners = contributors.most_named(hits.nested(contributors.PARTICLES_OF), np.uint64(tables.NO_PARTICLE))
            return owners[measured], {}
        if event_id not in self.found.rows[SIMHITS]:
            raise InputError(
                f"{hits.where}: no table of tracker_simhits has this event; --without crossings converts files without"
            )
        table = self._table(SIMHITS, event_id, dict.fromkeys(_SIMHITS, ""))
        names = contributors.POSITION | contributors.MOMENTUM
        crossed = {name: table.checked(name, f"truth.{ours}") for name, ours in names.items()}
        of_hit = hits.nested(contributors.CROSSINGS_OF)
        simhit = contributors.strongest(of_hit, table.floats(contributors.LOST), hits.where)[measured]
        owners = np.full(len(simhit), tables.NO_PARTICLE, np.uint64)
        owners[simhit >= 0] = table.ids("particle_id")[simhit[simhit >= 0]]
        return owners, contributors.crossings(simhit, positions, crossed)

    def _truth(
        self, event_id: int, hits: Lists, measured: np.ndarray, positions: Mapping[str, np.ndarray]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Truth of the measured hits, and the particles."""
        wanted = {"particle_id": ""}
        for part, names in _PARTICLES.items():
            if part not in self.without:
                wanted |= dict.fromkeys(names, f"--without {part} converts files that have none" if part else "")
        table = self._table(PARTICLES, event_id, wanted)
        particle_id = table.ids("particle_id")
        none = np.flatnonzero(particle_id == tables.NO_PARTICLE)
        if len(none):
            raise InputError(
                f"{table.where}: entry {none[0]} of particle_id is {particle_id[none[0]]}, which is none's"
            )
        if twice := first_twice(particle_id):
            first, second = twice
            what = f"particle_id {particle_id[second]} stands twice, in the entries {first} and {second}"
            raise InputError(f"{table.where}: {what}")
        particles = {"particle_id": tables.stored_ids(particle_id)}
        for part, names in _PARTICLES.items():
            for name, ours in names.items() if part not in self.without else ():
                particles[ours] = self._of_particles(table, name, ours)
        owner, crossed = self._owners(event_id, hits, measured, positions)
        row = rows_of(owner, particle_id)
        unknown = np.flatnonzero((row < 0) & (owner != tables.NO_PARTICLE))
        if len(unknown) and not self.unlisted_is_noise:
            hit, rest = np.flatnonzero(measured)[unknown[0]], f"; so it is of {len(unknown)} hits"
            whose = f"the particle of entry {hit}" if self.found.merged else f"entry {hit} of particle_id"
            raise InputError(
                f"{hits.where}: {whose} is {owner[unknown[0]]}, which is not in {table.path}{rest}; "
                "--option unlisted=noise takes such hits for noise"
            )
        truth = {"particle_id": tables.stored_ids(np.where(row < 0, tables.NO_PARTICLE, owner)), "particle_row": row}
        truth |= crossed
        particles["nhits"] = schema.hits_of_particles(row, len(particle_id))
        return truth, particles

    def _of_particles(self, table: Lists, name: str, ours: str) -> np.ndarray:
        if ours == "q":
            charge = table.checked(name, "particles.q")
            odd = np.flatnonzero((charge != np.round(charge)) | (np.abs(charge) > np.iinfo(np.int8).max))
            if len(odd):
                what = f"entry {odd[0]} of charge is {charge[odd[0]]}, must be a whole number of e"
                raise InputError(f"{table.where}: {what}; --without charges leaves them out")
            return charge.astype(np.int8)
        if np.issubdtype(schema.PARTICLES[ours], np.integer):
            return table.whole(name, schema.PARTICLES[ours])
        return table.checked(name, f"particles.{ours}")

    def _table(self, table: str, event_id: int, wanted: Mapping[str, str]) -> Lists:
        """The event's lists of these columns; InputError for a column that is not there, or of another kind."""
        file, row = self.found.file(table, event_id)
        where = f"{file.path}: event {event_id}"
        _check_columns(file, wanted)
        rows = self._rows.get(table)
        if rows is None or rows.file.path != file.path:
            if rows is not None:
                rows.close()
            rows = self._rows[table] = Rows(file, list(wanted))
        return Lists(where, str(file.path), rows.lists(row, where))

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_rows": {}}


class Lists:
    """An event's lists of one table, all of one length; `where` begins messages. InputError for what is not as it
    must be: unequal lengths, missing entries, other kinds of numbers."""

    def __init__(self, where: str, path: str, lists: Mapping[str, Arrow]) -> None:
        self.where, self.path, self._lists = where, path, lists
        first = next(iter(lists))
        for name, values in lists.items():
            if len(values) != len(lists[first]):
                raise InputError(f"{where}: {name} has {len(values)} entries, but {first} has {len(lists[first])}")
            if values.null_count:
                place = values.is_null().index(True).as_py()
                raise InputError(f"{where}: entry {place} of {name} is missing")

    def _numbers(self, name: str) -> np.ndarray:
        return self._lists[name].to_numpy(zero_copy_only=False)

    def floats(self, name: str, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Numbers rounded once, to float32; what does not fit becomes infinite."""
        with np.errstate(over="ignore"):
            return self._numbers(name)[chosen].astype(np.float32)

    def checked(self, name: str, column: str) -> np.ndarray:
        """Finite numbers, as our column asks."""
        values = self.floats(name)
        for _, row, what in schema.faults_of_column(column, values):
            raise InputError(f"{self.where}: entry {row} of {name} {what}")
        return values

    def whole(self, name: str, dtype: type[np.generic]) -> np.ndarray:
        """Whole numbers that fit `dtype`, a type of such."""
        values, limits = self._numbers(name), np.iinfo(np.dtype(dtype))
        odd = np.flatnonzero((values < limits.min) | (values > limits.max))
        if len(odd):
            what = f"entry {odd[0]} of {name} is {values[odd[0]]}, must be from {limits.min} to {limits.max}"
            raise InputError(f"{self.where}: {what}")
        return values.astype(dtype)

    def nested(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Lists in a list: offsets [length + 1], and their whole numbers, uint64, one list behind the other."""
        lists = self._lists[name]
        inner = lists.flatten()
        if inner.null_count:
            raise InputError(f"{self.where}: a number in {name} is missing")
        offsets = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())]).astype(np.int64)
        return offsets, inner.to_numpy().astype(np.uint64)

    def ids(self, name: str) -> np.ndarray:
        """Ids, exact, as uint64; -1 of a signed column is the largest one, as where a program has cast it."""
        values = self._numbers(name)
        if values.dtype.kind == "i" and (values < -1).any():
            place = int(np.flatnonzero(values < -1)[0])
            raise InputError(f"{self.where}: entry {place} of {name} is {values[place]}, must not be negative")
        return values.astype(np.int64).view(np.uint64) if values.dtype.kind == "i" else values.astype(np.uint64)


def _measured(hits: Lists) -> np.ndarray:
    """Which rows are hits: not those where x, y and z are NaN, a crossing of which nothing was measured.

    ACTS writes such rows. InputError if there is no other one.
    """
    missing = np.all([np.isnan(hits.floats(name)) for name in _POSITION], axis=0)
    if len(missing) and missing.all():
        raise InputError(
            f"{hits.where}: x, y and z are NaN in all {len(missing)} entries; ACTS' converter needs the clusters and "
            "their map to write measured positions"
        )
    return ~missing


def _check_columns(file: File, wanted: Mapping[str, str]) -> None:
    arrow, _ = import_arrow()
    types = arrow.types
    for name, hint in wanted.items():
        if name not in file.columns:
            here = ", ".join(file.columns)[:160]
            raise InputError(f"{file.path}: no column '{name}'; its columns are {here}{f'; {hint}' if hint else ''}")
        found = file.columns[name]
        must = {**tables.TRACKER_HITS, **tables.PARTICLES, **tables.SIMHITS, **tables.MERGED}[name]
        whole = np.issubdtype(must, np.integer)
        inner = _of_list(types, found)
        if name in tables.MERGED:
            inner = inner and _of_list(types, inner)
        if inner is None or not (types.is_integer(inner) if whole else types.is_floating(inner)):
            kind = (
                "lists of whole numbers"
                if name in tables.MERGED
                else "whole numbers"
                if whole
                else "floating-point numbers"
            )
            raise InputError(f"{file.path}: {name} is {found}, must be a list of {kind} in each row")


def _of_list(types: Arrow, found: Arrow) -> Arrow | None:
    """The type in a list; None for what is no list."""
    is_list = types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found)
    return found.value_type if is_list else None
