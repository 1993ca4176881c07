"""TrackML's CSV format: one event read and validated, and submissions written.

Format: S. Amrouche et al., "The Tracking Machine Learning challenge: Accuracy phase" (2019), and its data page.
"""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.files.outputs import output
from hpctrack.formats.csvtable import Column, read_table
from hpctrack.formats.detectors import MODULE, Detectors, cell_features, module_key, module_name
from hpctrack.formats.tables import event_of, first_twice, no_truth, rows_of
from hpctrack.formats.trackml_files import Source
from hpctrack.storage import schema
from hpctrack.storage.schema import faults_of_column

_ID = Column(np.int32, lowest=0)


def _floats(*names: str) -> dict[str, Column]:
    return {name: Column(np.float32) for name in names}


def _of(part: str, dtype: type = np.float32) -> dict[str, Column]:
    """The columns of a part that a source may lack, if that is said."""
    hint = f"--without {part} converts files that have none"
    return {name.split(".")[1]: Column(dtype, hint=hint) for name in schema.PARTS[part]}


_HITS = {"hit_id": _ID, **_floats("x", "y", "z"), **MODULE}
_CELLS = {"hit_id": _ID, "ch0": _ID, "ch1": _ID, **_floats("value")}
_TRUTH = {"hit_id": _ID, "particle_id": Column(np.int64, lowest=0)}
_TRUTH |= _of("crossings") | _of("weights")
_PARTICLES = {"particle_id": Column(np.int64, lowest=1), "particle_type": Column(np.int32, optional=True)}
_PARTICLES |= _of("vertices") | _of("momenta") | _of("charges", np.int8)
_PARTICLES |= {"nhits": Column(np.int32, lowest=0, optional=True)}


def read_event(
    source: Source,
    event_id: int,
    detectors: Detectors | None,
    with_truth: bool = True,
    lacks: frozenset[str] = frozenset(),
) -> schema.Event:
    """Read and validate one event, with every column of the schema but those that the source `lacks`.

    It may have no hits. `detectors` may be None for events without cells; without truth, hits are of no particle and
    there are no particles. Where the file of particles has no `nhits`, their hits are counted; of an event that was cut
    down it says more than there are. Raises InputError: one line that names the file, the event and the row.
    """
    if event_id in source.faults:
        raise InputError(source.faults[event_id])
    files = source.events[event_id]

    def table(kind: str, columns: Mapping[str, Column]) -> tuple[str, dict[str, np.ndarray]]:
        where = f"{source.display(files[kind])}: event {event_id}"
        wanted = {name: column for name, column in columns.items() if f"{kind}.{name}" not in lacks}
        found = read_table(source.read(files[kind], where), where, wanted)
        for name, values in found.items():
            for _, row, what in faults_of_column(f"{kind}.{name}", values):
                raise InputError(f"{where}: row {row + 1}: {name} {what}")
        return where, found

    where, hits = table("hits", _HITS)
    _check_hits(where, hits)
    modules = modules_of_hits(where, hits, detectors)
    if with_truth:
        where_particles, particles = table("particles", _PARTICLES)
        _check_unique(where_particles, "particle_id", particles["particle_id"])
        where_truth, truth = table("truth", _TRUTH)
        truth = _align_truth(where_truth, truth, hits["hit_id"])
        row = truth["particle_row"] = _particle_rows(where_truth, truth["particle_id"], where_particles, particles)
        particles.setdefault("nhits", schema.hits_of_particles(row, len(particles["particle_id"])))
        for particle, counted in schema.surplus(row, particles["nhits"]):
            of = f"nhits of particle {particles['particle_id'][particle]} is {particles['nhits'][particle]}"
            raise InputError(
                f"{where_particles}: row {particle + 1}: {of}, but {counted} hits of {where_truth.split(': event')[0]} "
                "are its; it may be more (of an event that was cut down), or there may be no such column"
            )
    else:
        particles, truth = no_truth(len(hits["hit_id"]))
    cells: dict[str, np.ndarray] = {}
    if "cells.cell_count" not in lacks and "cells" in files:
        where, raw = table("cells", _CELLS)
        if detectors is None or modules is None:
            raise InputError(f"{where}: needs the modules' geometry: no detectors.csv found, name it with --detectors")
        cells = cells_of_hits(where, raw, hits["hit_id"], detectors, modules)
    particles.setdefault("particle_type", np.zeros(len(particles["particle_id"]), np.int32))
    return event_of(event_id, {"hits": hits, "truth": truth, "cells": cells, "particles": particles}, lacks)


def _check_hits(where: str, hits: dict[str, np.ndarray]) -> None:
    hit_id = hits["hit_id"]
    bad = np.flatnonzero(np.diff(hit_id) <= 0)
    if len(bad):
        row = int(bad[0]) + 1
        what = "stands twice" if hit_id[row] == hit_id[row - 1] else f"follows {hit_id[row - 1]}"
        raise InputError(f"{where}: row {row + 1}: hit_id {hit_id[row]} {what}; hit_id must increase")


def modules_of_hits(where: str, hits: dict[str, np.ndarray], detectors: Detectors | None) -> np.ndarray | None:
    """Row in `detectors` of each hit's module, None without detectors; InputError for a module that is not there."""
    if detectors is None:
        return None
    rows = detectors.rows(module_key(hits["volume_id"], hits["layer_id"], hits["module_id"]))
    if (rows < 0).any():
        row = int(np.flatnonzero(rows < 0)[0])
        what = f"volume/layer/module {module_name(hits, row)} of hit_id {hits['hit_id'][row]}"
        raise InputError(f"{where}: row {row + 1}: {what} is not in {detectors.where}")
    return rows


def _check_unique(where: str, name: str, values: np.ndarray) -> None:
    if twice := first_twice(values):
        first, second = twice
        raise InputError(f"{where}: row {second + 1}: {name} {values[second]} stands twice, first in row {first + 1}")


def _align_truth(where: str, truth: dict[str, np.ndarray], hit_id: np.ndarray) -> dict[str, np.ndarray]:
    """Truth in the order of the hits, without its hit_id."""
    own = truth.pop("hit_id")
    if np.array_equal(own, hit_id):
        return truth
    _check_unique(where, "hit_id", own)
    unknown = np.flatnonzero(~np.isin(own, hit_id))
    if len(unknown):
        raise InputError(f"{where}: row {unknown[0] + 1}: hit_id {own[unknown[0]]} is not in the hits file")
    missing = hit_id[~np.isin(hit_id, own)]
    if len(missing):
        counts = f"{len(own)} rows for {len(hit_id)} hits; is the file truncated?"
        raise InputError(f"{where}: row {len(own) + 1}: no truth for hit_id {missing[0]}: {counts}")
    order = np.argsort(own)
    return {name: values[order] for name, values in truth.items()}


def _particle_rows(where: str, particle_id: np.ndarray, where_particles: str, particles: dict) -> np.ndarray:
    """Row of each hit's particle, -1 for noise."""
    row, noise = rows_of(particle_id, particles["particle_id"]), particle_id == 0
    unknown = np.flatnonzero((row < 0) & ~noise)
    if len(unknown):
        bad = int(unknown[0])
        what = f"particle_id {particle_id[bad]} (hit row {bad + 1}) is not in {where_particles.split(': event')[0]}"
        raise InputError(f"{where}: {what}; noise is 0")
    return np.where(noise, -1, row)


def cells_of_hits(
    where: str, cells: dict[str, np.ndarray], hit_id: np.ndarray, detectors: Detectors, modules: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns of schema.CELLS from cells (`hit_id`, `ch0`, `ch1`, `value`) on the `modules` [N] of the hits."""
    row = np.minimum(np.searchsorted(hit_id, cells["hit_id"]), max(len(hit_id) - 1, 0))
    unknown = np.flatnonzero(hit_id[row] != cells["hit_id"] if len(hit_id) else np.ones(len(row), dtype=bool))
    if len(unknown):
        bad = int(unknown[0])
        raise InputError(f"{where}: row {bad + 1}: hit_id {cells['hit_id'][bad]} is not in the hits file")
    detectors.check_geometry(where, modules[np.unique(row)])
    names = ("pitch_u", "pitch_v", "thickness", "rotation")
    module = {name: getattr(detectors, name)[modules] for name in names}
    return cell_features(len(hit_id), row, cells["ch0"], cells["ch1"], cells["value"], module=module)


def write_submission(path: str | Path, blocks: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> None:
    """Write a TrackML submission (event_id,hit_id,track_id) from blocks (event_id, hit_id [N], track_id [N]).

    Each block is written as it comes; the file gets its name when it is whole. A name that ends in .gz is compressed.
    """
    path = Path(path)
    with output(path) as plain, contextlib.ExitStack() as stack:
        packed = path.suffix == ".gz"
        file = stack.enter_context(gzip.GzipFile("", "wb", 6, plain, mtime=0)) if packed else plain
        file.write(b"event_id,hit_id,track_id\n")
        for event_id, hit_id, track_id in blocks:
            rows = zip(hit_id.tolist(), track_id.tolist(), strict=True)
            file.write("".join(f"{event_id},{hit},{track}\n" for hit, track in rows).encode())
