"""Frames of protons from the tables of GATE's sensors that T. Kortus et al. train on: .npz, an array of named columns.

Columns: eventID (a primary proton; its secondaries have the same), trackID, parentID (0: a primary), edep (MeV), posX,
posY and posZ (mm); level1ID and level2ID, or volumeID[2] and volumeID[3], say the plane; spotX and spotY the spot of
the beam, where there are several. As the authors do (SIVERT-pCT/e2e-tracking), deposits of a track in a plane are one
hit, clusters of fewer than two pixels are dropped, and so many consecutive primaries of a spot that left anything are a
frame. A last frame of fewer is left out. An empty plane, and what lies behind it, is looked for in each frame, without
small clusters and from plane 0 on. The authors look for a gap once in a file, before deposits are merged and small
clusters dropped, and not before its first plane.

The events are as those of the simulated telescope (simulation/telescope): planes 0 and 1 are trackers (volume 1), a
particle is a primary, its secondaries' hits are its own but weigh nothing, the charge of a cluster is the deposit, and
nothing lies behind an empty plane. Where a primary began is not said: a spot has no z.

Legend: R rows of a file, N hits, P primaries of a frame.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.tables import event_of, rows_of
from hpctrack.simulation.telescope.planes import CALORIMETER, N_TRACKERS, TRACKER
from hpctrack.simulation.telescope.source import LEAST_PIXELS, PROTON, cluster_size
from hpctrack.storage import schema
from hpctrack.storage.detector import UNKNOWN

TABLE = "arr_0"  # the name of the array that numpy.savez gives
WHOLE = ("eventID", "trackID", "parentID")
REAL = ("edep", "posX", "posY", "posZ")
PLANE = (("level1ID", "level2ID"), ("volumeID[2]", "volumeID[3]"))
SPOT = ("spotX", "spotY")
UNREADABLE = (ValueError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what zip and numpy raise
FRAMES = 10**7  # an event's id is this x the number of its file + that of its frame
NOT_SAID = ("crossings", "momenta", "vertices")
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
    frames: list[int] = field(default_factory=list)  # of each file that has been looked at; one of a bad file
    faults: dict[int, str] = field(default_factory=dict)  # what is wrong with a file, by the id of its frame
    _tables: dict[int, Table] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, files: Sequence[Path], protons: int, limit: int | None = None) -> ProtonReader:
        """Of as many of the files as have `limit` frames; each is read once."""
        reader = cls(list(files), protons)
        for k in range(len(files)):
            if limit is not None and sum(reader.frames) >= limit:
                break
            try:
                reader.frames.append(reader.table(k).n_frames)
            except InputError as error:
                reader.frames.append(1)
                reader.faults[FRAMES * k] = str(error)
        return reader

    def __getstate__(self) -> dict[str, object]:
        """Without what has been read: processes read their own files."""
        return {**vars(self), "_tables": {}}

    def event_ids(self) -> list[int]:
        """Frames of the files that have been looked at."""
        return [FRAMES * k + frame for k, n in enumerate(self.frames) for frame in range(n)]

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
        return whole, max(1, status.st_size // self.frames[k])

    def table(self, k: int) -> Table:
        """The hits of file `k`, kept until another is read."""
        if k not in self._tables:
            self._tables.clear()
            self._tables[k] = hits_of(read(self.files[k]), self.protons)
        return self._tables[k]

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The frame; InputError for one of a bad file, and for one without a hit in plane 0."""
        if event_id in self.faults:
            raise InputError(self.faults[event_id])
        k, frame = divmod(event_id, FRAMES)
        table = self.table(k)
        own = table.frame == frame
        event = frame_of(event_id, {name: values[own] for name, values in table.hits.items()})
        if not event.n_hits:
            raise InputError(f"{self.files[k]}: frame {frame}: plane 0 is empty, and nothing behind it counts")
        yield event


def find_files(source: Path) -> list[Path]:
    """The .npz files of a folder, or the file; InputError if there are none."""
    files = [path for path in (sorted(source.rglob("*.npz")) if source.is_dir() else [source]) if path.is_file()]
    if not files:
        raise InputError(f"{source}: {'no .npz files of protons' if source.is_dir() else 'is not there'}")
    return files


def read(path: Path) -> dict[str, np.ndarray]:
    """The columns [R] of a file that are used; InputError names what is not there or no number."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise TypeError("it is one array without a name")
        with archive:
            found = archive[TABLE]
    except KeyError as error:
        raise InputError(f"{path}: has no array '{TABLE}'") from error
    except UNREADABLE as error:
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
        odd, wanted = ~np.isfinite(values), "finite"
        if name not in (*REAL, *SPOT):
            most = _largest(values.dtype)
            odd |= (values != np.round(values)) | (values > most) | (values < -most)
            wanted = f"a whole number of at most {most} in size"
        if name in ("edep", "eventID"):
            odd, wanted = odd | (values < 0), f"{wanted}, and not below 0"
        if (rows := np.flatnonzero(odd)).size:
            raise InputError(f"{path}: row {rows[0]} of {name} is {values[rows[0]]}, must be {wanted}")
    one, two = (columns.pop(name).astype(np.int64) for name in plane)
    columns["plane"] = np.where(two != -1, N_TRACKERS + two, one) if plane == PLANE[0] else 2 * one + two
    if (bad := np.flatnonzero((columns["plane"] < 0) | (columns["plane"] > np.iinfo(np.uint8).max))).size:
        raise InputError(f"{path}: row {bad[0]} is of plane {columns['plane'][bad[0]]}, must be from 0 to 255")
    return columns


def _largest(dtype: np.dtype) -> int:
    """Up to which whole numbers are exact, and leave room for the 1 that is added to ids."""
    return 2 ** (np.finfo(dtype).nmant + 1) - 1 if dtype.kind == "f" else np.iinfo(np.int64).max - 1


def hits_of(columns: dict[str, np.ndarray], protons: int) -> Table:
    """Hits and frames of a file's rows."""
    keys = np.stack([columns[name].astype(np.int64) for name in ("eventID", "trackID", "plane")], axis=1)
    _, first, hit, count = np.unique(keys, axis=0, return_index=True, return_inverse=True, return_counts=True)
    hit = hit.reshape(-1)
    hits: dict[str, np.ndarray] = {n: columns[n][first].astype(np.int64) for n in ("eventID", "parentID", "plane")}
    hits["edep"] = np.bincount(hit, columns["edep"])
    hits |= {name: np.bincount(hit, columns[name]) / count for name in REAL[1:]}
    rows: list[np.ndarray] = [columns[name][first] if name in columns else np.zeros(len(first)) for name in SPOT]
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
    large = cluster_size(hits["edep"]) >= LEAST_PIXELS
    occupied = np.bincount(hits["plane"][large]) > 0
    empty = np.append(np.flatnonzero(~occupied), len(occupied))[0]  # the first plane without a hit
    kept = np.flatnonzero(large & (hits["plane"] < empty))
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
            **{"q": np.ones(len(known)), "nhits": schema.hits_of_particles(row, len(known))},
        },
    }
    return event_of(event_id, tables, LACKS)
