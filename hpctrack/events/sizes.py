"""Exact sizes of events after a selection: the hits that a model sees, and the tracks that it is to find.

They are counted with the selection's own code on the few columns that it reads, so they are what a batch will hold.
What is not drawn at random is counted once for a dataset and a selection and kept in a small file: in the dataset's
folder `sizes`, or, where that cannot be written, in the run's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from hpctrack.errors import InputError
from hpctrack.events.selection import Draw, existing, readable
from hpctrack.files.atomic import write_text
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.store import Dataset

FOLDER = "sizes"
FORMAT, VERSION = "hpctrack-sizes", 1
BYTES_PER_EVENT, BYTES_OF_HEAD = 48, 4096  # that such a file has at most


@dataclass(frozen=True)
class Sizes:
    """Of each event of a dataset: `hits` that are seen, and `targets`, tracks to be found; int64 [n_events]."""

    hits: np.ndarray
    targets: np.ndarray


def count(
    data: Dataset, draw: Draw, epoch: int, rows: Sequence[int], alive: Callable[[str], None] | None = None
) -> np.ndarray:
    """Hits and targets of the events `rows` in an epoch, int64 [n, 2]; `alive` is told about each event."""
    out = np.zeros((len(rows), 2), dtype=np.int64)
    for k, row in enumerate(rows):
        if alive:
            alive(f"the count of hits of event {data.event_ids[row]}")
        chosen = draw(data.read(int(row), readable(data, draw.columns)), epoch)[0]
        out[k] = len(chosen.rows), chosen.n_tracks
    return out


def check(data: Dataset, event_ids: Sequence[int], hits: Sequence[int], counted: Sequence[int]) -> None:
    """InputError that names the first event of a batch that has other `hits` than were `counted`."""
    for event, seen, expected in zip(event_ids, hits, counted, strict=True):
        if seen != expected:
            raise InputError(
                f"{data.folder}: event {event} has {seen} hits after selection, but {expected} were counted before: "
                f"the dataset has changed; start again (without its folder '{FOLDER}', if it happens again)"
            )


# ------------------------------------------------------------------------------------------------ kept on disk


def place(folder: Path, data: Dataset, draw: Draw) -> Path:
    """The file in `folder` that keeps the sizes of `draw.whole`; its name says of which dataset and selection."""
    return folder / FOLDER / f"{data.fingerprint}-{_digest(_about(data, draw))[:16]}.json"


def load(path: Path, data: Dataset, draw: Draw) -> Sizes | None:
    """The sizes in the file; None if there is none, or it is not whole or of something else: they are counted again."""
    try:
        with open(path) as file:
            text = file.read(BYTES_OF_HEAD + BYTES_PER_EVENT * len(data))
        kept = json.loads(text)
        found = np.array([kept["hits"], kept["targets"]], dtype=np.int64)
        same = kept["about"] == _about(data, draw) and kept["checksum"] == _digest(found.tolist())
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    return Sizes(*found) if same and found.shape == (2, len(data)) else None


def keep(path: Path, sizes: Sizes, data: Dataset, draw: Draw) -> None:
    """Write the file, whole or not at all; in a dataset's folder, remove those of what it was before. OSError: not.

    A run's folder may keep those of several datasets.
    """
    path.parent.mkdir(exist_ok=True)
    found = [sizes.hits.tolist(), sizes.targets.tolist()]
    values = {"about": _about(data, draw), "checksum": _digest(found), "hits": found[0], "targets": found[1]}
    write_text(path, json.dumps(values) + "\n")
    others = path.parent.glob("*.json") if (path.parent.parent / INDEX).exists() else ()
    for other in others:
        if not other.name.startswith(data.fingerprint):
            other.unlink(missing_ok=True)


def _about(data: Dataset, draw: Draw) -> dict[str, object]:
    chosen = draw.whole.selection.recorded()
    kept = {} if draw.kept is None else {"kept": draw.kept.identity}
    return {"format": FORMAT, "version": VERSION, "dataset": data.fingerprint, "selection": chosen, **kept}


def _digest(value: object) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(value, sort_keys=True).encode())


# ------------------------------------------------------------------------------------------------ nothing is left


def key_of(section: str) -> Callable[[str], str]:
    """How a field of the selection in `section` of a configuration is named to people."""
    return lambda field: f"key '{section}.{field}'"


def nothing_left(data: Dataset, draw: Draw, name: Callable[[str], str], other: str = "") -> InputError:
    """Why no event has a target, by the cut that removes them, and what there is; `name` says what people call a cut.

    `other`: what to name if it is neither the momentum nor the number of hits; by default the pseudorapidity.
    """
    chosen, where = draw.selection, str(data.folder)
    if chosen.volumes is not None:
        where += f", volumes {chosen.volumes}"
    if draw.kept is not None:
        where += ", after the hit filter"
    largest_pt, most_hits, any_hit = 0.0, 0, False
    for row in range(len(data)):
        event = data.read(row, readable(data, draw.whole.columns))
        has_momenta = "px" in event.tables["particles"]
        momenta = (event.column(f"particles.p{axis}").astype(np.float64) for axis in "xy" if has_momenta)
        pt = np.hypot(*momenta) if has_momenta else np.zeros(event.n_particles)
        seen, of = existing(event, chosen, draw.kept), event.column("truth.particle_row")
        of = of if seen is None else of[seen]
        any_hit = any_hit or len(of) > 0
        hits = np.bincount(of[of >= 0], minlength=len(pt))
        largest_pt = max(largest_pt, pt[hits >= chosen.min_hits].max(initial=0.0))
        most_hits = max(most_hits, int(hits.max(initial=0)))
    if not any_hit:
        cut = f"{name('volumes')}: " if chosen.volumes is not None else ""
        return InputError(f"{cut}no hit is left of {where}")
    if not data.n_particles.sum():
        return InputError(f"{where}: has no particles, so there is no track to find; convert it with its truth")
    if most_hits < chosen.min_hits:
        return InputError(
            f"{name('min_hits')}: no particle of {where} has {chosen.min_hits} hits; the most are {most_hits}"
        )
    if largest_pt >= chosen.pt_min_gev:
        return InputError(f"{other or name('eta_max')}: no particle of {where} is left")
    return InputError(
        f"{name('pt_min_gev')}: no particle of {where} with {chosen.min_hits} hits has a pT of "
        f"{chosen.pt_min_gev:g} GeV; the largest is {largest_pt:.4g} GeV"
    )
