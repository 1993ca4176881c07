"""Release 2 of ColliderML's tables, where clusters of several particles are merged: whose a hit is, and its crossing.

`tracker_hits` names the particles of each hit, and the rows of `tracker_simhits`, a table of all crossings, in nested
lists (acts-project/acts#5586). A hit belongs to the particle whose crossing lost most energy there; where the table of
crossings is not read, to the one that is named most often, of several the first.

N hits, L links between hits and crossings, M crossings.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpctrack.errors import InputError

PARTICLES_OF, CROSSINGS_OF = "particle_ids", "simhit_ids"  # nested columns of the hits
LOST = "dE"  # of a crossing, GeV
POSITION = {"true_x": "tx", "true_y": "ty", "true_z": "tz"}  # theirs: ours
MOMENTUM = {"tpx": "tpx", "tpy": "tpy", "tpz": "tpz"}
Nested = tuple[np.ndarray, np.ndarray]  # offsets [N + 1] and values [L]


def most_named(of_hit: Nested, none: np.uint64) -> np.ndarray:
    """The particle [N] that each hit names most often, of several the first; `none` for a hit that names none."""
    offsets, ids = of_hit
    hit = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((np.arange(len(ids)), ids, hit))
    new = np.ones(len(ids), dtype=bool)  # begins another particle of a hit
    new[1:] = (np.diff(hit[order]) != 0) | (ids[order][1:] != ids[order][:-1])
    begin = np.flatnonzero(new)
    times, first = np.diff(begin, append=len(ids)), order[begin]
    best = np.lexsort((first, -times, hit[first]))
    owners = np.full(len(offsets) - 1, none, np.uint64)
    whose, place = np.unique(hit[first][best], return_index=True)
    owners[whose] = ids[first][best][place]
    return owners


def strongest(of_hit: Nested, lost_M: np.ndarray, where: str) -> np.ndarray:
    """The crossing [N] that lost most energy at each hit, of several the first; -1 for a hit without.

    InputError that begins with `where` for a crossing that is not there.
    """
    offsets, rows = of_hit
    hit = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    beyond = np.flatnonzero(rows >= len(lost_M))
    if len(beyond):
        raise InputError(
            f"{where}: entry {hit[beyond[0]]} of {CROSSINGS_OF} has {rows[beyond[0]]}, but there are {len(lost_M)} "
            "rows in tracker_simhits"
        )
    order = np.lexsort((np.arange(len(rows)), -lost_M[rows], hit))
    found = np.full(len(offsets) - 1, -1, np.int64)
    whose, place = np.unique(hit[order], return_index=True)
    found[whose] = rows[order][place]
    return found


def crossings(simhit: np.ndarray, measured: Mapping[str, np.ndarray], table: Mapping[str, np.ndarray]) -> dict:
    """Columns of `truth` from the crossings' `table` by its names; a hit of none lies where it was `measured`."""
    found = {}
    for theirs, ours in (POSITION | MOMENTUM).items():
        none = measured[ours[1:]] if ours[1:] in measured else np.zeros(len(simhit), np.float32)
        found[ours] = np.where(simhit < 0, none, table[theirs][simhit]) if len(table[theirs]) else none
    return found
