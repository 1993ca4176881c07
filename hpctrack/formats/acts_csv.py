"""Events from the CSV files that ACTS' examples write: measurements or space points, their truth, and cells.

A hit is a measurement, or a space point where there are no measurements or that is asked for. Its particle is that of
its simulated hits; of several, the one that has lost most energy. A space point of two measurements of different
particles is of none. A particle's id is its five parts in 64 bits, as ACTS' barcode was: 12 for the primary vertex, 12
for the secondary one, 16 for the particle, 8 for its generation, 16 for the sub-particle.

Source: ActsExamples/Io/Csv (CsvOutputData.hpp) of ACTS 48, checked against what pyacts 48.1 writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.csvtable import Column, read_table
from hpctrack.formats.detectors import Detectors, find_detectors, read_detectors
from hpctrack.formats.geometry import text_of
from hpctrack.formats.tables import event_of, first_twice, no_truth, rows_of
from hpctrack.formats.trackml import cells_of_hits, modules_of_hits
from hpctrack.formats.trackml_files import Source
from hpctrack.storage import schema

PARTICLES = ("particles_simulated", "particles_initial", "particles_input", "particles")  # the first that is there
POINTS = ("spacepoint", "spacepoints")
FILE = re.compile(
    rf"event(\d{{1,18}})-(measurements|measurement-simhit-map|hits|cells|{'|'.join((*PARTICLES, *POINTS))})\.csv(\.gz)?"
)
PARTS = ("pv", "sv", "part", "gen", "subpart")
BITS = (12, 12, 16, 8, 16)  # of each part
NO_MEASUREMENT = np.iinfo(np.uint64).max
VOLUME, LAYER, SENSITIVE = (56, 0xFF), (36, 0xFFF), (8, 0xFFFFF)  # shift and mask in a geometry identifier

_ID = Column(np.int32, lowest=0)
_UNSIGNED = Column(np.uint64, lowest=0)
_OWNER = {f"particle_id_{part}": Column(np.int64, lowest=0, optional=True) for part in PARTS}
_OWNER |= {"particle_id": Column(np.uint64, lowest=0, optional=True)}


def _floats(*names: str, hint: str = "") -> dict[str, Column]:
    return {name: Column(np.float32, hint=hint) for name in names}


_NO_POSITIONS = "files without it are of an older ACTS: --option hits=spacepoints takes the space points"
_MEASUREMENTS = {"measurement_id": _ID, "geometry_id": _UNSIGNED}
_MEASUREMENTS |= _floats("global_x", "global_y", "global_z", hint=_NO_POSITIONS)
_POINTS = {"measurement_id_1": _UNSIGNED, "measurement_id_2": _UNSIGNED, "geometry_id_1": _UNSIGNED}
_POINTS |= _floats("x", "y", "z")
_MAP = {"measurement_id": _ID, "hit_id": _ID}
_HITS = _OWNER | {"deltae": Column(np.float32, optional=True)}
_CROSSINGS = _floats("tx", "ty", "tz", "tpx", "tpy", "tpz", hint="--without crossings converts files that have none")
_CELLS = {"measurement_id": _ID, "channel0": _ID, "channel1": _ID} | _floats("value")
_OLD_CELLS = {"hit_id": _ID, "channel0": _ID, "channel1": _ID} | _floats("value")
_PARTICLE = _OWNER | {"particle_type": Column(np.int32, optional=True)}
_OF_PART = {"vertices": ("vx", "vy", "vz"), "momenta": ("px", "py", "pz"), "charges": ("q",)}


@dataclass
class ActsReader:
    """Events of ACTS' files; `without`: parts (schema.PARTS) that are not read, or are not there.

    `points`: take space points instead of measurements.
    """

    source: Source
    surfaces: str | None
    with_truth: bool
    without: Sequence[str] = ()
    field_t: float | None = None
    points: bool = False
    unlisted_is_noise: bool = False

    def event_ids(self) -> list[int]:
        """The source's."""
        return list(self.source.events)

    def origin(self) -> dict[str, object]:
        """The format, and what a hit is."""
        return {"kind": "acts", "truth": self.with_truth, "hits": "spacepoints" if self.points else "measurements"}

    def stamp(self, event_id: int) -> tuple[object, int]:
        """Names, sizes and versions of the event's files and of the surfaces' file, and the options; bytes."""
        files = [self.source.stamp(member) for _, member in sorted(self.source.events[event_id].items())]
        found = find_detectors(self.source, self.surfaces)
        geometry = found and [str(found[0].path.absolute()), found[0].stamp(found[1])]
        options = [self.with_truth, sorted(self.without), self.field_t, self.points, self.unlisted_is_noise]
        whole = ["acts", str(self.source.path.absolute()), event_id, files, geometry, options]
        return whole, sum(size for _, size, _ in files)

    @cached_property
    def lacks(self) -> frozenset[str]:
        """The columns that the source has not, or is read without. Weights are in none of ACTS' files."""
        parts = {name for part in ("weights", *self.without) for name in schema.PARTS[part]}
        cells = schema.PARTS["cells"] if self.points or not self._any_cells else ()
        return frozenset().union(parts, cells, () if self.with_truth else schema.ALL_OF_TRUTH)

    @cached_property
    def detector(self) -> str | None:
        """Of the surfaces."""
        return text_of(find_detectors(self.source, self.surfaces))

    @cached_property
    def _any_cells(self) -> bool:
        return any("cells" in files for files in self.source.events.values())

    @cached_property
    def _modules(self) -> Detectors | None:
        return read_detectors(self.source, self.surfaces)

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The event."""
        if event_id in self.source.faults:
            raise InputError(self.source.faults[event_id])
        where, hits, measurements_N2 = self._points(event_id) if self.points else self._measurements(event_id)
        modules = modules_of_hits(where, hits, self._modules)
        particles, truth = no_truth(len(hits["hit_id"]))
        if self.with_truth:
            particles, truth = self._truth(event_id, hits, measurements_N2)
        cells = {}
        if "cells.cell_count" not in self.lacks:
            cells = self._cells(event_id, hits, modules)
        yield event_of(event_id, {"hits": hits, "truth": truth, "cells": cells, "particles": particles}, self.lacks)

    def _table(self, event_id: int, kind: str, columns: Mapping[str, Column]) -> tuple[str, dict[str, np.ndarray]]:
        member = self.source.events[event_id][kind]
        where = f"{self.source.display(member)}: event {event_id}"
        return where, read_table(self.source.read(member, where), where, columns)

    def _measurements(self, event_id: int) -> tuple[str, dict[str, np.ndarray], np.ndarray]:
        """Hits, and their two measurements [N, 2], of which the second is none."""
        where, found = self._table(event_id, "measurements", _MEASUREMENTS)
        ids = found["measurement_id"]
        late = np.flatnonzero(np.diff(ids) <= 0)
        if len(late):
            row = int(late[0]) + 1
            raise InputError(f"{where}: row {row + 1}: measurement_id {ids[row]} follows {ids[row - 1]}; must increase")
        hits = {"hit_id": ids} | {axis: found[f"global_{axis}"] for axis in "xyz"}
        both_N2 = np.stack([ids.astype(np.uint64), np.full(len(ids), NO_MEASUREMENT)], axis=1)
        return where, _checked(where, hits | _places(where, found["geometry_id"])), both_N2

    def _points(self, event_id: int) -> tuple[str, dict[str, np.ndarray], np.ndarray]:
        kind = next(kind for kind in POINTS if kind in self.source.events[event_id])
        where, found = self._table(event_id, kind, _POINTS)
        hits = {"hit_id": np.arange(len(found["x"]))} | {axis: found[axis] for axis in "xyz"}
        both_N2 = np.stack([found["measurement_id_1"], found["measurement_id_2"]], axis=1)
        return where, _checked(where, hits | _places(where, found["geometry_id_1"])), both_N2

    def _truth(
        self, event_id: int, hits: Mapping[str, np.ndarray], measurements_N2: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The particles, and what is true of each hit; that of a hit of no particle lies where it was measured."""
        crossings = "crossings" not in self.without
        where_hits, simulated = self._table(event_id, "hits", _HITS | (_CROSSINGS if crossings else {}))
        owner = _particle_ids(where_hits, simulated)
        where_map, of = self._table(event_id, "measurement-simhit-map", _MAP)
        beyond = np.flatnonzero(of["hit_id"] >= len(owner))
        if len(beyond):
            row = int(beyond[0])
            raise InputError(
                f"{where_map}: row {row + 1}: hit_id {of['hit_id'][row]} is beyond the {len(owner)} rows of "
                f"{where_hits.split(': event')[0]}"
            )
        loss = simulated.get("deltae", np.zeros(len(owner), np.float32))[of["hit_id"]]  # negative
        order = np.lexsort((loss, of["measurement_id"]))
        known, first = np.unique(of["measurement_id"][order], return_index=True)
        hit = of["hit_id"][order][first]  # of each known measurement
        one, two = (rows_of(column, known.astype(np.uint64)) for column in measurements_N2.T)
        simhit = np.where(one < 0, -1, hit[one]) if len(hit) else np.full(len(one), -1)
        if self.points and len(hit):
            second = np.where(two < 0, simhit, hit[two])
            simhit = np.where(owner[simhit] == owner[second], simhit, -1)
        of_hit = np.where(simhit < 0, np.uint64(0), owner[simhit]) if len(owner) else np.zeros(len(one), np.uint64)
        particles, of_particle = self._particles(event_id, of_hit, where_hits)
        of_hit = np.where(of_particle < 0, np.uint64(0), of_hit)
        truth = {"particle_id": of_hit.view(np.int64), "particle_row": of_particle}
        for name in _CROSSINGS if crossings else ():
            none = hits[name[1:]] if name[1:] in "xyz" else np.zeros(len(of_hit), np.float32)
            truth[name] = np.where(of_particle < 0, none, simulated[name][simhit]) if len(owner) else none
        return particles, truth

    def _particles(
        self, event_id: int, of_hit: np.ndarray, where_hits: str
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The table of particles, and each hit's row in it: -1 for particle 0."""
        kind = next(kind for kind in PARTICLES if kind in self.source.events[event_id])
        columns = dict(_PARTICLE)
        for part, names in _OF_PART.items():
            if part not in self.without:
                columns |= _floats(*names, hint=f"--without {part} converts files that have none")
        where, found = self._table(event_id, kind, columns)
        ids = _particle_ids(where, found)
        if twice := first_twice(ids):
            first, second = twice
            raise InputError(
                f"{where}: row {second + 1}: particle {_parts(ids[second])} stands twice, first in row {first + 1}"
            )
        for name in found.keys() & {name for names in _OF_PART.values() for name in names}:
            for _, row, what in schema.faults_of_column(f"particles.{name}", found[name]):
                raise InputError(f"{where}: row {row + 1}: {name} {what}")
        if "q" in found:
            odd = np.flatnonzero((found["q"] != np.round(found["q"])) | (np.abs(found["q"]) > np.iinfo(np.int8).max))
            if len(odd):
                what = f"q is {found['q'][odd[0]]}, must be a whole number of e"
                raise InputError(f"{where}: row {odd[0] + 1}: {what}; --without charges leaves them out")
        of_particle = np.where(of_hit == 0, -1, rows_of(of_hit, ids))
        unknown = np.flatnonzero((of_particle < 0) & (of_hit != 0))
        if len(unknown) and not self.unlisted_is_noise:
            raise InputError(
                f"{where_hits}: particle {_parts(of_hit[unknown[0]])}, of {len(unknown)} hits, is not in "
                f"{where.split(': event')[0]}; --option unlisted=noise takes such hits for noise"
            )
        particles = {name: found[name] for name in schema.PARTICLES if name in found} | {
            "particle_id": ids.view(np.int64)
        }
        particles.setdefault("particle_type", np.zeros(len(ids), np.int32))
        return particles | {"nhits": schema.hits_of_particles(of_particle, len(ids))}, of_particle

    def _cells(
        self, event_id: int, hits: Mapping[str, np.ndarray], modules: np.ndarray | None
    ) -> dict[str, np.ndarray]:
        try:
            where, found = self._table(event_id, "cells", _CELLS)
        except InputError as error:
            if "no column 'measurement_id'" not in str(error):
                raise
            where, found = self._table(event_id, "cells", _OLD_CELLS)
        if self._modules is None or modules is None:
            raise InputError(
                f"{where}: needs the modules' pitches: no surfaces file (detectors.csv) found, name it with "
                "--detectors; --without cells leaves cells out"
            )
        raw = {"hit_id": found["measurement_id" if "measurement_id" in found else "hit_id"]}
        raw |= {"ch0": found["channel0"], "ch1": found["channel1"], "value": found["value"]}
        try:
            return cells_of_hits(where, raw, hits["hit_id"], self._modules, modules)
        except InputError as error:
            raise InputError(f"{error}; --without cells leaves cells out") from error


def check_files(source: Source, *, points: bool, with_truth: bool, with_cells: bool) -> None:
    """Note in `source.faults` the events of which a file is missing."""
    needed: list[tuple[str, ...]] = [POINTS if points else ("measurements",)]
    needed += [("measurement-simhit-map",), ("hits",), PARTICLES] if with_truth else []
    needed += [("cells",)] if with_cells and any("cells" in files for files in source.events.values()) else []
    for event_id, files in source.events.items():
        for kinds in needed:
            if not set(kinds) & files.keys():
                name = f"event{event_id:09d}-{kinds[0]}.csv"
                hint = "" if kinds == needed[0] else "; other events have their cells"
                hint = "; --no-truth converts events without truth" if kinds in needed[1:4] and with_truth else hint
                source.faults.setdefault(event_id, f"{source.path}: event {event_id}: no file {name}{hint}")
                break


def _places(where: str, geometry_id: np.ndarray) -> dict[str, np.ndarray]:
    """Volume, layer and module of geometry identifiers."""
    found = {}
    for name, (shift, mask) in {"volume_id": VOLUME, "layer_id": LAYER, "module_id": SENSITIVE}.items():
        values = (geometry_id >> np.uint64(shift)) & np.uint64(mask)
        largest = _largest(schema.HITS[name])
        if (values > largest).any():
            row = int(np.flatnonzero(values > largest)[0])
            raise InputError(f"{where}: row {row + 1}: {name} is {values[row]}, must be at most {largest}")
        found[name] = values.astype(schema.HITS[name])
    return found


def _largest(dtype: Any) -> int:
    return int(np.iinfo(dtype).max)


def _particle_ids(where: str, table: Mapping[str, np.ndarray]) -> np.ndarray:
    """Ids, uint64, of the five parts, or as an older ACTS wrote them in one."""
    if "particle_id" in table:
        return table["particle_id"]
    names = [f"particle_id_{part}" for part in PARTS]
    missing = [name for name in names if name not in table]
    if missing:
        raise InputError(f"{where}: no column '{missing[0]}', nor 'particle_id'")
    ids = np.zeros(len(table[names[0]]), np.uint64)
    for name, bits in zip(names, BITS, strict=True):
        over = np.flatnonzero(table[name] >= 1 << bits)
        if len(over):
            raise InputError(
                f"{where}: row {over[0] + 1}: {name} is {table[name][over[0]]}, must be below {1 << bits} to be told "
                f"apart in {bits} of 64 bits"
            )
        ids = (ids << np.uint64(bits)) | table[name].astype(np.uint64)
    return ids


def _parts(particle_id: int) -> str:
    """An id by its five parts, for messages."""
    left, parts = int(particle_id), []
    for bits in reversed(BITS):
        parts.append(left & ((1 << bits) - 1))
        left >>= bits
    return "|".join(map(str, reversed(parts)))


def _checked(where: str, hits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for axis in "xyz":
        for _, row, what in schema.faults_of_column(f"hits.{axis}", hits[axis]):
            raise InputError(f"{where}: row {row + 1}: {axis} {what}")
    return hits
