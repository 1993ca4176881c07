"""Foreign tables -> an event of the store: what the readers of all formats share."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from hpctrack.formats.detectors import direction_angles
from hpctrack.storage import schema


def event_of(
    event_id: int, tables: Mapping[str, Mapping[str, np.ndarray]], lacks: Collection[str] = ()
) -> schema.Event:
    """An event of these columns, in the store's order and types, with what follows from the hits' positions.

    `tables[table][column]`: x, y and z in float32; columns that the store does not know are left out.
    """
    tables = {**tables, "hits": {**tables["hits"], **_derived(tables["hits"])}}
    ordered: dict[str, dict[str, np.ndarray]] = {table: {} for table in schema.TABLES}
    for table, columns in schema.TABLES.items():
        for column, dtype in columns.items():
            if column in tables.get(table, {}):
                ordered[table][column] = tables[table][column].astype(dtype, copy=False)
    return schema.Event(event_id, ordered, lacks=frozenset(lacks))


def _derived(hits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    xyz_N3 = np.stack([hits["x"], hits["y"], hits["z"]], axis=1).astype(np.float64)
    eta, phi = direction_angles(xyz_N3)
    return {"r": np.hypot(xyz_N3[:, 0], xyz_N3[:, 1]), "phi": phi, "eta": eta}


def no_truth(n_hits: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Particles and truth where nobody says any: no particles, and hits of none."""
    particles = {name: np.zeros(0, dtype) for name, dtype in schema.PARTICLES.items()}
    row = np.full(n_hits, -1, schema.TRUTH["particle_row"])
    return particles, {"particle_id": np.zeros(n_hits, schema.TRUTH["particle_id"]), "particle_row": row}


def first_twice(values: np.ndarray) -> tuple[int, int] | None:
    """Two rows [N] with the same value, in the order of the values; None if each stands once."""
    order = np.argsort(values, kind="stable")
    twice = np.flatnonzero(values[order[1:]] == values[order[:-1]])
    return (int(order[twice[0]]), int(order[twice[0] + 1])) if len(twice) else None


def rows_of(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Row of each of `values` [N] in `known` [P], where each stands once; -1 for one that does not."""
    if not len(known):
        return np.full(len(values), -1)
    order = np.argsort(known)
    row = order[np.minimum(np.searchsorted(known, values, sorter=order), len(known) - 1)]
    return np.where(known[row] == values, row, -1)
