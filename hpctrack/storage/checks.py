"""What holds of the values of every event, wherever it comes from: asked in conversion, in verification and of what is
read with `verify`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

FARTHEST_MM = 1e9  # no detector is larger; the square, and sums of squares, of such a length are far from overflow
LENGTHS = {f"hits.{c}" for c in ("x", "y", "z", "r")}
LENGTHS |= {f"truth.{c}" for c in ("tx", "ty", "tz")} | {f"particles.{c}" for c in ("vx", "vy", "vz")}
NOT_NEGATIVE = {"truth.weight", "particles.nhits"}
Fault = tuple[str, int | None, str]  # column, row (None: no single one), what is wrong


def faults_of_event(event: Mapping[str, np.ndarray]) -> Iterator[Fault]:
    """What is wrong with an event's columns (`table.column` -> [N]; any may be missing), the first row of each.

    Numbers are finite, positions at most FARTHEST_MM from the origin, weights and `nhits` not negative, `hit_id`
    increases, and each hit's particle is in the table of particles, once. `nhits` is what the source says: of an event
    that was cut down, more than the hits that are there.
    """
    for name, values in event.items():
        yield from faults_of_column(name, values)
    yield from _order_of_hits(event)
    yield from _references(event)


def faults_of_column(name: str, values: np.ndarray) -> Iterator[Fault]:
    """What is wrong with the values of one column by themselves."""
    yield from faults_of_numbers(name, values)
    if name in NOT_NEGATIVE and (values < 0).any():
        row = int(np.flatnonzero(values < 0)[0])
        yield name, row, f"is {values[row]}, must not be negative"


def faults_of_numbers(name: str, values: np.ndarray) -> Iterator[Fault]:
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
