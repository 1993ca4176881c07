"""The tables of an event: names, types and units, from TrackML's CSV to the store.

Units: mm, GeV, Tesla, radians. Column names are TrackML's own. `hits`, `truth` and `cells` are aligned: row i is hit i.
`particles` has its own rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FORMAT = "hpctrack-events"
VERSION = 1
FIELD_T = 2.0  # magnetic field along z where a dataset says nothing: TrackML's
GEV_PER_T_MM = 2.99792458e-4  # pT [GeV] = this x |B| [T] x radius [mm]

Columns = dict[str, type[np.generic]]  # a table's columns and their types
HITS: Columns = {
    "hit_id": np.int32,  # as in TrackML, strictly increasing within an event
    "x": np.float32,  # mm
    "y": np.float32,
    "z": np.float32,
    "volume_id": np.uint8,
    "layer_id": np.uint8,
    "module_id": np.uint16,
    "r": np.float32,  # mm, sqrt(x^2 + y^2)
    "phi": np.float32,  # rad, (-pi, pi]
    "eta": np.float32,  # pseudorapidity of the hit seen from the origin
}
TRUTH: Columns = {
    "particle_id": np.int64,  # 0 is noise
    "particle_row": np.int32,  # row in `particles`, -1 for noise
    "tx": np.float32,  # mm, true intersection with the module
    "ty": np.float32,
    "tz": np.float32,
    "tpx": np.float32,  # GeV, true momentum there
    "tpy": np.float32,
    "tpz": np.float32,
    "weight": np.float32,  # of the TrackML score
}
CELLS: Columns = {  # derived from cells.csv and detectors.csv; all zero for a hit without cells
    "cell_count": np.uint16,
    "cell_charge": np.float32,  # sum of `value`
    "size_u": np.float32,  # mm, extent of the cluster along the module's u (ch0 x pitch_u)
    "size_v": np.float32,
    "local_eta": np.float32,  # direction of the cluster in the module's frame
    "local_phi": np.float32,
    "global_eta": np.float32,  # the same direction, rotated into the detector's frame
    "global_phi": np.float32,
}
PARTICLES: Columns = {
    "particle_id": np.int64,
    "particle_type": np.int32,  # PDG code, 0 where the file does not say
    "vx": np.float32,  # mm, creation vertex
    "vy": np.float32,
    "vz": np.float32,
    "px": np.float32,  # GeV at the creation vertex
    "py": np.float32,
    "pz": np.float32,
    "q": np.int8,
    "nhits": np.int32,
}
PARAMETERS = ("q_over_pt", "phi", "theta", "d0", "z0")  # of a track at the perigee (events/perigee.py); 1/GeV, rad, mm
COVARIANCE = tuple(f"cov_{a}_{b}" for i, a in enumerate(PARAMETERS) for b in PARAMETERS[: i + 1])  # lower triangle
ESTIMATE = PARAMETERS + COVARIANCE
TABLES: dict[str, Columns] = {"hits": HITS, "truth": TRUTH, "cells": CELLS, "particles": PARTICLES}
HIT_TABLES = ("hits", "truth", "cells")  # one row a hit

# ------------ what a source may lack: its columns are not in the store, and nothing stands in their place

PARTS: dict[str, tuple[str, ...]] = {  # by the name that people know them by
    "truth": (
        *("truth.particle_id", "truth.particle_row"),
        *("particles.particle_id", "particles.particle_type", "particles.nhits"),
    ),
    "cells": tuple(f"cells.{name}" for name in CELLS),
    "weights": ("truth.weight",),
    "crossings": tuple(f"truth.t{vector}{axis}" for vector in ("", "p") for axis in "xyz"),
    "momenta": tuple(f"particles.p{axis}" for axis in "xyz"),
    "vertices": tuple(f"particles.v{axis}" for axis in "xyz"),
    "charges": ("particles.q",),
}
ALL_OF_TRUTH = frozenset(f"{table}.{name}" for table in ("truth", "particles") for name in TABLES[table])
NO_PARTICLE = ALL_OF_TRUTH - {"truth.weight", *PARTS["crossings"]}  # there without truth: hits of none, a table of none


def parts_of(columns: Collection[str]) -> list[str]:
    """The names of the parts to which these columns belong; a column of none has its own name."""
    named = {column: part for part, own in PARTS.items() for column in own}
    return list(dict.fromkeys(named.get(column, column) for column in sorted(columns, key=_place)))


def stored_columns(lacks: Collection[str]) -> list[str]:
    """The columns that are in a store whose source lacks `lacks`, in the store's order."""
    there = NO_PARTICLE if "truth.particle_id" in lacks else frozenset[str]()
    return [name for name in all_columns() if name not in lacks or name in there]


def _place(column: str) -> int:
    return next((k for k, own in enumerate(PARTS.values()) if column in own), len(PARTS))


@dataclass(frozen=True)
class Event:
    """One event as columns: `tables[table][column]` is a 1-d array; a reader may have loaded only some columns.

    `field_t`: the magnetic field along z that its particles flew in, Tesla. `lacks`: columns that nobody measured, of
    an event to be written; those that are not in `tables` need not be named.
    """

    event_id: int
    tables: Mapping[str, Mapping[str, np.ndarray]]
    field_t: float = FIELD_T
    lacks: frozenset[str] = frozenset()

    def column(self, name: str) -> np.ndarray:
        """The column `table.column`, e.g. `hits.x`; KeyError if it was not loaded."""
        table, column = name.split(".")
        return self.tables[table][column]

    @property
    def n_hits(self) -> int:
        """Rows of the hit tables."""
        return len(next(iter(next(self.tables[t] for t in HIT_TABLES if self.tables.get(t)).values())))

    @property
    def n_particles(self) -> int:
        """Rows of the table of particles."""
        return len(next(iter(self.tables["particles"].values())))


def all_columns() -> list[str]:
    """Every `table.column` of the schema, in the store's order."""
    return [f"{table}.{column}" for table, columns in TABLES.items() for column in columns]


@dataclass(frozen=True)
class Candidates:
    """Track candidates of one event.

    Candidate c has the hits `hit_rows[hit_offsets[c]:hit_offsets[c + 1]]` (rows of the hit tables, ascending) and
    `scores[c]` (higher is better); candidates may overlap. `track_ids` is the exclusive reading: one track per hit,
    numbered from 1, 0 = none. `parameters`, if the model estimates them, has the columns ESTIMATE for each candidate.
    """

    event_id: int
    hit_offsets: np.ndarray  # int64 [n_candidates + 1]
    hit_rows: np.ndarray  # int32 [hit_offsets[-1]]
    scores: np.ndarray  # float32 [n_candidates]
    track_ids: np.ndarray  # int32 [n_hits]
    parameters: np.ndarray | None = None  # float32 [n_candidates, 20]

    def __len__(self) -> int:
        return len(self.scores)


# ------------ values: what holds of every event, asked in conversion, in verification and of what is read with `verify`


FARTHEST_MM = 1e9  # no detector is larger; the square, and sums of squares, of such a length are far from overflow
LENGTHS = {f"hits.{c}" for c in ("x", "y", "z", "r")}
LENGTHS |= {f"truth.{c}" for c in ("tx", "ty", "tz")} | {f"particles.{c}" for c in ("vx", "vy", "vz")}
NOT_NEGATIVE = {"truth.weight", "particles.nhits"}
Fault = tuple[str, int | None, str]  # column, row (None: no single one), what is wrong
FaultOfRow = tuple[str, int, str]


def faults_of_event(event: Mapping[str, np.ndarray]) -> Iterator[Fault]:
    """What is wrong with an event's columns (`table.column` -> [N]; any may be missing), the first row of each.

    Numbers are finite, positions at most FARTHEST_MM from the origin, weights and `nhits` not negative, `hit_id`
    increases, and each hit's particle is in the table of particles, once. `nhits` is what the source says: of an event
    that was cut down, more than the hits that are there; never fewer.
    """
    for name, values in event.items():
        yield from faults_of_column(name, values)
    yield from _order_of_hits(event)
    yield from _references(event)


def faults_of_column(name: str, values: np.ndarray) -> Iterator[FaultOfRow]:
    """What is wrong with the values of one column by themselves."""
    yield from faults_of_numbers(name, values)
    if name in NOT_NEGATIVE and (values < 0).any():
        row = int(np.flatnonzero(values < 0)[0])
        yield name, row, f"is {values[row]}, must not be negative"


def faults_of_numbers(name: str, values: np.ndarray) -> Iterator[FaultOfRow]:
    """What nothing can be computed with: numbers that are not finite, positions out of this world."""
    if values.dtype.kind != "f":
        return
    bound = np.abs(values).max(initial=0.0)  # NaN if there is one
    if not np.isfinite(bound):
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        yield name, row, f"is {values[row]}, must be a finite number"
    elif name in LENGTHS and bound > FARTHEST_MM:
        row = int(np.flatnonzero(np.abs(values) > FARTHEST_MM)[0])
        yield name, row, f"is {values[row]:g}, must be within {FARTHEST_MM:g} mm"


def _order_of_hits(event: Mapping[str, np.ndarray]) -> Iterator[Fault]:
    hit_id = event.get("hits.hit_id")
    if hit_id is not None:
        late = np.flatnonzero(hit_id[1:] <= hit_id[:-1])
        if len(late):
            row = int(late[0])
            yield "hits.hit_id", None, f"is not increasing: {hit_id[row]}, then {hit_id[row + 1]} in row {row + 1}"


def _references(event: Mapping[str, np.ndarray]) -> Iterator[Fault]:
    row, owner, ids = (event.get(n) for n in ("truth.particle_row", "truth.particle_id", "particles.particle_id"))
    if ids is not None and len(np.unique(ids)) != len(ids):
        yield "particles.particle_id", None, "holds a particle twice"
    if row is None or ids is None:
        return
    outside = np.flatnonzero((row < -1) | (row >= len(ids)))
    if len(outside):
        hit = int(outside[0])
        yield "truth.particle_row", hit, f"is {row[hit]}, must be from -1 to {len(ids) - 1}"
        return
    if owner is not None:
        meant = np.where(row < 0, 0, np.append(ids, 0)[row])
        wrong = np.flatnonzero(owner != meant)
        if len(wrong):
            hit = int(wrong[0])
            yield "truth.particle_id", hit, f"is {owner[hit]}, but particle_row says {meant[hit]}"
    nhits = event.get("particles.nhits")
    if nhits is not None and len(nhits) == len(ids):
        for particle, counted in surplus(row, nhits):
            yield "particles.nhits", particle, f"is {nhits[particle]}, but {counted} hits are of this particle"


def hits_of_particles(particle_row: np.ndarray, n_particles: int) -> np.ndarray:
    """How many of the hits are of each particle, by the truth; int64 [P]."""
    return np.bincount(particle_row[particle_row >= 0], minlength=n_particles)


def surplus(particle_row: np.ndarray, nhits: np.ndarray) -> Iterator[tuple[int, int]]:
    """The first particle with more hits than its `nhits` says, and how many, if there is one."""
    counted = hits_of_particles(particle_row, len(nhits))
    for particle in np.flatnonzero(counted > nhits)[:1]:
        yield int(particle), int(counted[particle])


def n_cut_down(event: Event) -> int:
    """How many of an event's particles have fewer hits in it than their `nhits` says: it was cut down."""
    nhits = event.column("particles.nhits")
    return int(np.count_nonzero(hits_of_particles(event.column("truth.particle_row"), len(nhits)) < nhits))
