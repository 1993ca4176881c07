"""Frames of protons from the tables of GATE's sensors that T. Kortus et al. train on: .npz, an array of named columns.

Columns: eventID (a primary proton; its secondaries have the same), trackID, parentID (0: a primary), edep (MeV), posX,
posY and posZ (mm); level1ID and level2ID, or volumeID[2] and volumeID[3], say the plane; spotX and spotY the spot of
the beam, where there are several. What is made of them is what the authors make (SIVERT-pCT/e2e-tracking): deposits of
a track in a plane are one hit, clusters of fewer than two pixels and what lies behind an empty plane are dropped, and
so many consecutive primaries of a spot that left anything are a frame. A last frame of fewer is left out.

The events are as those of the simulated telescope (simulation/telescope): planes 0 and 1 are trackers (volume 1), a
particle is a primary, its secondaries' hits are its own but weigh nothing, the charge of a cluster is the deposit.

Legend: R rows of a file, N hits, P primaries of a frame.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.tables import event_of, rows_of
from hpctrack.simulation.telescope.planes import CALORIMETER, N_TRACKERS, TRACKER
from hpctrack.simulation.telescope.protons import BEAM_Z
from hpctrack.simulation.telescope.source import LEAST_PIXELS, PROTON, cluster_size
from hpctrack.storage import schema
from hpctrack.storage.detector import UNKNOWN

TABLE = "arr_0"  # the name of the array that numpy.savez gives
WHOLE = ("eventID", "trackID", "parentID")
REAL = ("edep", "posX", "posY", "posZ")
PLANE = (("level1ID", "level2ID"), ("volumeID[2]", "volumeID[3]"))
SPOT = ("spotX", "spotY")
FRAMES = 10**7  # an event's id is this x the number of its file + that of its frame
NOT_SAID = ("crossings", "momenta")
LACKS = frozenset(name for part in NOT_SAID for name in schema.PARTS[part]) | frozenset(
    f"cells.{name}" for name in schema.CELLS if name not in ("cell_count", "cell_charge")
)


@dataclass
class Table:
    """Hits of a file: deposits of one track in one plane, and to which frame each belongs (-1: to none), [N]."""

    hits: dict[str, np.ndarray]
    frame: np.ndarray
    n_frames: int


@dataclass
class ProtonReader:
    """Frames of `protons` primaries from `files`, in their order."""

    files: list[Path]
    protons: int
    _tables: dict[int, Table] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        """Without what has been read: processes read their own files."""
        return {"files": self.files, "protons": self.protons, "_tables": {}}

    def event_ids(self) -> list[int]:
        """Frames of all files; InputError for a file that is not such a table."""
        return [FRAMES * k + frame for k in range(len(self.files)) for frame in range(self.table(k).n_frames)]

    def origin(self) -> dict[str, object]:
        """The format, and the size of frames."""
        return {"kind": "proton-ct", "truth": True, "protons": self.protons}

    @property
    def field_t(self) -> None:
        """There is none; the store has no way to say so, and nothing of protons uses it."""
        return None

    @property
    def detector(self) -> str:
        """Nothing is known of it in the terms of collider detectors."""
        return UNKNOWN

    def stamp(self, event_id: int) -> tuple[object, int]:
        """Path, size and time of the file, and the size of frames; all frames of a file have the same share of it."""
        k = event_id // FRAMES
        status = self.files[k].stat()
        whole = ["proton-ct", event_id, str(self.files[k].absolute()), status.st_size, status.st_mtime_ns, self.protons]
        return whole, max(1, status.st_size // max(1, self.table(k).n_frames))

    def table(self, k: int) -> Table:
        """The hits of file `k`, kept until another is read."""
        if k not in self._tables:
            self._tables.clear()
            self._tables[k] = hits_of(read(self.files[k]), self.protons)
        return self._tables[k]

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The frame."""
        table = self.table(event_id // FRAMES)
        own = table.frame == event_id % FRAMES
        yield frame_of(event_id, {name: values[own] for name, values in table.hits.items()})


def find_files(source: Path) -> list[Path]:
    """The .npz files of a folder, or the file; InputError if there are none."""
    files = sorted(source.rglob("*.npz")) if source.is_dir() else [source]
    if not files:
        raise InputError(f"{source}: no .npz files of protons")
    return files


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns [R] of a file that are used; InputError names what is not there or no number."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = archive[TABLE]
    except KeyError as error:
        raise InputError(f"{path}: has no array '{TABLE}'") from error
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: truncated, damaged or no .npz file of numbers ({error})") from error
    names = found.dtype.names or ()
    plane = next((both for both in PLANE if set(both) <= set(names)), None)
    missing = [name for name in (*WHOLE, *REAL) if name not in names]
    if missing or plane is None or found.ndim != 1:
        wanted = ", ".join(missing) or " and ".join(PLANE[0])
        raise InputError(f"{path}: '{TABLE}' must be a table with {wanted}; it has {', '.join(names)[:160]}")
    spots = SPOT if set(SPOT) <= set(names) else ()
    columns = {name: found[name] for name in (*WHOLE, *plane, *REAL, *spots)}
    for name, values in columns.items():
        if values.dtype.kind not in "iuf":
            raise InputError(f"{path}: column {name} is {values.dtype}, must be numbers")
        odd = np.flatnonzero(~np.isfinite(values) | (name not in (*REAL, *SPOT) and values != np.round(values)))
        odd = odd if len(odd) or name != "edep" else np.flatnonzero(values < 0)
        if len(odd):
            raise InputError(f"{path}: row {odd[0]} of {name} is {values[odd[0]]}")
    one, two = (columns.pop(name).astype(np.int64) for name in plane)
    columns["plane"] = np.where(two != -1, N_TRACKERS + two, one) if plane == PLANE[0] else 2 * one + two
    if (bad := np.flatnonzero((columns["plane"] < 0) | (columns["plane"] > np.iinfo(np.uint8).max))).size:
        raise InputError(f"{path}: row {bad[0]} is of plane {columns['plane'][bad[0]]}, must be from 0 to 255")
    return columns


def hits_of(columns: dict[str, np.ndarray], protons: int) -> Table:
    """Hits and frames of a file's rows."""
    keys = np.stack([columns[name].astype(np.int64) for name in ("eventID", "trackID", "plane")], axis=1)
    _, first, hit, count = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    hit = hit.reshape(-1)
    hits: dict[str, np.ndarray] = {n: columns[n][first].astype(np.int64) for n in ("eventID", "parentID", "plane")}
    hits["edep"] = np.bincount(hit, columns["edep"])
    hits |= {name: np.bincount(hit, columns[name]) / count for name in REAL[1:]}
    rows: list[np.ndarray] = [columns[name][first] if name in columns else np.zeros(len(first)) for name in SPOT]
    hits |= dict(zip(SPOT, rows, strict=True))
    frame, n_frames = np.full(len(first), -1), 0
    _, spot = np.unique(np.stack(rows, axis=1), axis=0, return_inverse=True)
    for number in range(int(spot.max(initial=-1)) + 1):
        own = np.flatnonzero(spot.reshape(-1) == number)
        primary = np.unique(hits["eventID"][own], return_inverse=True)[1]
        frames = (int(primary.max()) + 1) // protons
        frame[own] = np.where(primary // protons < frames, n_frames + primary // protons, -1)
        n_frames += frames
    return Table(hits, frame, n_frames)


def frame_of(event_id: int, hits: dict[str, np.ndarray]) -> schema.Event:
    """An event of the hits of a frame, plane by plane, in each by x."""
    known = np.unique(hits["eventID"])
    spots = {name: hits[name][np.unique(hits["eventID"], return_index=True)[1]] for name in SPOT}
    large = cluster_size(hits["edep"]) >= LEAST_PIXELS
    there = np.unique(hits["plane"][large])
    gap = np.flatnonzero(np.diff(there) > 1)
    behind = there[gap[0]] if len(gap) else np.iinfo(np.int64).max
    kept = np.flatnonzero(large & (hits["plane"] <= behind))
    kept = kept[np.lexsort((hits["posX"][kept], hits["plane"][kept]))]
    hits = {name: values[kept] for name, values in hits.items()}
    row, primary, n = rows_of(hits["eventID"], known), hits["parentID"] == 0, len(kept)
    places = {ours: hits[theirs].astype(np.float32) for ours, theirs in zip("xyz", REAL[1:], strict=True)}
    volume = np.where(hits["plane"] < N_TRACKERS, TRACKER, CALORIMETER)
    tables = {
        "hits": {"hit_id": 1 + np.arange(n), **places, "volume_id": volume, "layer_id": hits["plane"]}
        | {"module_id": np.ones(n, np.int64)},
        "truth": {"particle_id": 1 + known[row], "particle_row": row, "weight": primary / max(1, primary.sum())},
        "cells": {"cell_count": cluster_size(hits["edep"]), "cell_charge": hits["edep"]},
        "particles": {
            **{"particle_id": 1 + known, "particle_type": np.full(len(known), PROTON)},
            **{"vx": spots["spotX"], "vy": spots["spotY"], "vz": np.full(len(known), BEAM_Z)},
            **{"q": np.ones(len(known)), "nhits": schema.hits_of_particles(row, len(known))},
        },
    }
    return event_of(event_id, tables, LACKS)
