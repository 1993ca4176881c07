"""Tracks as ColliderML's parquet: a row an event, lists of perigee parameters and of hits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.colliderml.schema import HIT_IDS, NO_PARTICLE, TRACKS
from hpctrack.formats.submissions import majority_ids, source_of, write_tables
from hpctrack.storage.schema import PARAMETERS, Candidates
from hpctrack.storage.store import Dataset


def write(path: Path, data: Dataset, found: Sequence[Candidates]) -> None:
    """Write the candidates of events of `data`, those that have parameters.

    `hit_ids` are rows of the event's hits, `track_id` counts from 0, `majority_particle_id` is the largest uint64
    without truth. InputError for more tracks of an event than `track_id` can count.
    """
    row = {int(event): i for i, event in enumerate(data.event_ids)}
    truth = "truth.particle_id" in data.columns and "truth.particle_id" not in data.lacks
    source = source_of(data)

    def types(pa: Any) -> dict[str, Any]:
        lists = {name: pa.list_(pa.from_numpy_dtype(kind)) for name, kind in TRACKS.items()}
        return {"event_id": pa.uint32(), **lists, HIT_IDS: pa.list_(pa.list_(pa.uint32()))}

    def tables() -> Iterator[dict[str, Any]]:
        for one in found:
            if len(one) > np.iinfo(np.uint16).max:
                raise InputError(f"event {one.event_id}: {len(one)} tracks, ColliderML's track_id counts up to 65535")
            if one.parameters is None:
                raise InputError(f"event {one.event_id}: its tracks have no parameters, which this format is for")
            known = ~np.isnan(one.parameters).all(axis=1)
            q_over_pt, phi, theta, d0, z0 = one.parameters[known].T[: len(PARAMETERS)].astype(np.float64)
            particle = np.full(len(one), NO_PARTICLE, np.uint64)
            if truth and len(one):
                ids = data.read(row[one.event_id], ["truth.particle_id"]).column("truth.particle_id")[one.hit_rows]
                of_hit = majority_ids(ids, np.repeat(np.arange(len(one)), np.diff(one.hit_offsets)), source)
                particle = of_hit[one.hit_offsets[:-1]]
            values = {"d0": d0, "z0": z0, "phi": phi, "theta": theta, "qop": q_over_pt * np.sin(theta)}
            values |= {"majority_particle_id": particle[known], "track_id": np.arange(len(d0))}
            columns: dict[str, Any] = {"event_id": np.array([one.event_id], np.uint32)}
            columns |= {name: [values[name].astype(kind)] for name, kind in TRACKS.items()}
            lists = np.split(one.hit_rows.astype(np.uint32), one.hit_offsets[1:-1]) if len(one) else []
            columns[HIT_IDS] = [[rows for rows, there in zip(lists, known, strict=True) if there]]
            yield columns

    write_tables(path, tables(), types)
