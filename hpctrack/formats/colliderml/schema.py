"""The tables of ColliderML's parquet files: columns, element types and units, and how its ids stand in our store.

A row is an event: the column `event_id` (uint32), and a list in every other column. mm, GeV, ns, radians. Source: the
dataset card of ColliderML Release 1 (arXiv 2512.15230) and ACTS' `acts.arrow` schemas, which agree with it; Release 2
merges clusters and has crossings in a table of their own (contributors.py).

`particle_id` 0 is a particle here, the first; a hit of no particle has the largest uint64. In the store 0 is noise. So
the store holds the id plus one, modulo 2^64, as the bits of an int64: every id has one, and each can be had back.
"""

from __future__ import annotations

import numpy as np

from hpctrack.storage.detector import PLACES

Table = dict[str, type[np.generic]]  # a table's list columns and their elements' types
EVENT_ID = "event_id"
TRACKER_HITS: Table = {
    "x": np.float32,  # mm, measured
    "y": np.float32,
    "z": np.float32,
    "true_x": np.float32,  # mm, where the particle crossed
    "true_y": np.float32,
    "true_z": np.float32,
    "time": np.float32,
    "particle_id": np.uint64,
    "detector": np.uint8,  # a place in DETECTORS
    "volume_id": np.uint8,
    "layer_id": np.uint16,
    "surface_id": np.uint32,
}
MERGED: dict[str, type[np.generic]] = {"particle_ids": np.uint64, "simhit_ids": np.uint32}  # lists of lists, Release 2
SIMHITS: Table = {  # of Release 2
    "particle_id": np.uint64,
    "true_x": np.float32,  # mm
    "true_y": np.float32,
    "true_z": np.float32,
    "tpx": np.float32,  # GeV
    "tpy": np.float32,
    "tpz": np.float32,
    "dE": np.float32,  # GeV, lost
}
PARTICLES: Table = {
    "particle_id": np.uint64,
    "pdg_id": np.int64,
    "mass": np.float32,
    "energy": np.float32,
    "charge": np.float32,
    "vx": np.float32,
    "vy": np.float32,
    "vz": np.float32,
    "time": np.float32,
    "px": np.float32,
    "py": np.float32,
    "pz": np.float32,
    "perigee_d0": np.float32,
    "perigee_z0": np.float32,
    "vertex_primary": np.uint16,  # from 1: the hard collision
    "parent_id": np.int64,  # -1: none
    "primary": np.bool_,
}
TRACKS: Table = {  # and `hit_ids`, a list of lists of uint32: rows of the event's list of hits
    "d0": np.float32,
    "z0": np.float32,
    "phi": np.float32,
    "theta": np.float32,
    "qop": np.float32,
    "majority_particle_id": np.uint64,
    "track_id": np.uint16,
}
HIT_IDS = "hit_ids"
DETECTORS = tuple(  # by the number in column `detector`
    f"{part} {place}" for part in ("pixel", "short strip", "long strip") for place in PLACES
)
NO_PARTICLE = np.iinfo(np.uint64).max


def stored_ids(particle_id: np.ndarray) -> np.ndarray:
    """ColliderML's ids (uint64) as the store holds them (int64): 0 is noise."""
    return (particle_id.astype(np.uint64, copy=False) + np.uint64(1)).view(np.int64)


def source_ids(stored: np.ndarray) -> np.ndarray:
    """Inverse of `stored_ids`: ids (uint64) as ColliderML has them, NO_PARTICLE for noise."""
    return stored.astype(np.int64, copy=False).view(np.uint64) - np.uint64(1)
