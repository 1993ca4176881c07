"""Events from torch files of acorn (`.pyg`) and gnn_tracking (`.pt`): graphs of PyTorch Geometric, one an event.

Nothing in a file is run: torch reads tensors and plain values, and of PyTorch Geometric only the names of its classes
are known here, which stand for bags of values. A file that names anything else is refused.

acorn names columns of hits with or without `hit_`, and truth by edges along tracks: `track_edges` [2, T] and a particle
for each (or one for each hit); particles of one hit have no edge, so such hits are noise. gnn_tracking has r, phi and z
as the first columns of `x`. Neither has directions of particles, vertices, charges, weights or true crossings.

Source: acorn's EventReader and gnn_tracking's PointCloudBuilder. N hits, T edges along tracks.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.detectors import named_detectors, stamp_of
from hpctrack.formats.geometry import text_of
from hpctrack.formats.tables import event_of, no_truth, rows_of
from hpctrack.storage import schema

SUFFIXES = (".pyg", ".pt")
_ACORN = re.compile(r"event(\d{1,18})(-graph)?\.(?:pyg|pt)")
_GNN_TRACKING = re.compile(r"data(\d{1,15})_s(\d{1,3})\.pt")
SECTORS = 1000  # an event's id is this x its number + the sector, where events are cut into sectors
_CLASSES = (  # of PyTorch Geometric: bags of values
    "torch_geometric.data.data.Data",
    "torch_geometric.data.data.DataEdgeAttr",
    "torch_geometric.data.data.DataTensorAttr",
    "torch_geometric.data.storage.BaseStorage",
    "torch_geometric.data.storage.NodeStorage",
    "torch_geometric.data.storage.EdgeStorage",
    "torch_geometric.data.storage.GlobalStorage",
)
_CELLS = {  # ours: acorn's
    "cell_count": "cell_count",
    "cell_charge": "cell_val",
    "size_u": "lx",
    "size_v": "ly",
    "local_eta": "leta",
    "local_phi": "lphi",
    "global_eta": "geta",
    "global_phi": "gphi",
}
_NEVER = [name for part in ("weights", "crossings", "momenta", "vertices", "charges") for name in schema.PARTS[part]]
NEVER = frozenset(_NEVER)
Values = Mapping[str, Any]  # a file's: arrays, and plain values


class Bag:
    """Stands for an object of a class that is not known: its state as it was saved, nothing more."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass
class AcornReader:
    """Events of files; `files[event_id]`. `scales`: of gnn_tracking's r, phi and z, by which they were divided.

    `surfaces`: the file of the detector's modules, if there is one.
    """

    files: dict[int, Path]
    with_truth: bool
    without: Sequence[str] = ()
    field_t: float | None = None
    scales: tuple[float, ...] = (1.0, 1.0, 1.0)
    faults: dict[int, str] = field(default_factory=dict)
    surfaces: str | None = None

    def event_ids(self) -> list[int]:
        """Ascending."""
        return list(self.files)

    def origin(self) -> dict[str, object]:
        """The format alone."""
        return {"kind": "acorn", "truth": self.with_truth}

    def stamp(self, event_id: int) -> tuple[object, int]:
        """Path, size and time of the file, and the options; its size."""
        path = self.files[event_id]
        status = path.stat()
        options = [self.with_truth, sorted(self.without), self.field_t, list(self.scales)]
        whole = ["acorn", event_id, str(path.absolute()), status.st_size, status.st_mtime_ns, options]
        return [*whole, *stamp_of(self.surfaces)], status.st_size

    @cached_property
    def detector(self) -> str | None:
        """Of the file that was named; the graphs say nothing of it."""
        return text_of(named_detectors(self.surfaces))

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The event."""
        if event_id in self.faults:
            raise InputError(self.faults[event_id])
        where = f"{self.files[event_id]}: event {event_id}"
        values = load(self.files[event_id], where)
        hits = self._hits(where, values)
        n, lacks = len(hits["x"]), NEVER.union(*(schema.PARTS[part] for part in self.without))
        particles, truth = no_truth(n)
        if self.with_truth:
            particles, truth = _truth(where, values, n)
        else:
            lacks |= schema.ALL_OF_TRUTH
        cells = {} if "cells.cell_count" in lacks else _cells(where, values, n)
        lacks |= frozenset() if cells else frozenset(schema.PARTS["cells"])
        kept = {table: {c: v for c, v in columns.items() if f"{table}.{c}" not in lacks or not self.with_truth}
                for table, columns in {"truth": truth, "particles": particles}.items()}  # fmt: skip
        yield event_of(event_id, {"hits": hits, "cells": cells, **kept}, lacks)

    def _hits(self, where: str, values: Values) -> dict[str, np.ndarray]:
        features = values.get("x")
        if isinstance(features, np.ndarray) and features.ndim == 2:
            return self._hits_of_features(where, values, features)
        x = _column(where, values, "x", np.float32)
        n = len(x)
        hits = {"hit_id": np.arange(n), "x": x}
        hits |= {axis: _column(where, values, axis, np.float32, n) for axis in "yz"}
        if _name(values, "hit_id"):
            hits["hit_id"] = _column(where, values, "hit_id", np.int32, n)
        for ours, names in {
            "volume_id": ("volume_id", "region"),
            "layer_id": ("layer_id",),
            "module_id": ("module_id",),
        }.items():
            found = next((name for name in names if _name(values, name)), None)
            dtype = schema.HITS[ours]
            hits[ours] = _column(where, values, found, dtype, n) if found else np.zeros(n, dtype)
        late = np.flatnonzero(np.diff(hits["hit_id"]) <= 0)
        if len(late):
            row = int(late[0]) + 1
            raise InputError(
                f"{where}: row {row}: hit_id {hits['hit_id'][row]} follows {hits['hit_id'][row - 1]}; must increase"
            )
        return _checked(where, hits)

    def _hits_of_features(self, where: str, values: Values, features: np.ndarray) -> dict[str, np.ndarray]:
        if features.shape[1] < 3 or features.dtype.kind != "f":
            raise InputError(
                f"{where}: x is {features.dtype} {features.shape}, must begin with r, phi and z [N, 3 or more]"
            )
        r, phi, z = (features[:, k].astype(np.float64) * self.scales[k] for k in range(3))
        n = len(r)
        layer = _column(where, values, "layer", np.uint8, n) if _name(values, "layer") else np.zeros(n, np.uint8)
        xyz = {"x": r * np.cos(phi), "y": r * np.sin(phi), "z": z}
        hits = {"hit_id": np.arange(n)} | {axis: np.asarray(xyz[axis], np.float32) for axis in "xyz"}
        none: dict[str, np.ndarray] = {"volume_id": np.zeros(n, np.uint8), "module_id": np.zeros(n, np.uint16)}
        return _checked(where, {**hits, **none, "layer_id": layer})


def find_files(source: Path) -> tuple[dict[int, Path], dict[int, str]]:
    """The events' files by their ids, ascending, and what is wrong with an event; InputError if there are none."""
    paths = sorted(path for path in source.rglob("*") if path.suffix in SUFFIXES) if source.is_dir() else [source]
    found: list[tuple[int, int, Path]] = []
    for path in paths:
        if match := _ACORN.fullmatch(path.name):
            found.append((int(match[1]), 0, path))
        elif match := _GNN_TRACKING.fullmatch(path.name):
            found.append((int(match[1]), int(match[2]), path))
    if not found:
        raise InputError(
            f"{source}: no events of acorn or gnn_tracking; they are files such as event000001000.pyg or data1000_s0.pt"
        )
    cut = any(sector for _, sector, _ in found)
    files: dict[int, Path] = {}
    faults: dict[int, str] = {}
    for number, sector, path in found:
        event_id = number * SECTORS + sector if cut else number
        if (other := files.setdefault(event_id, path)) != path:
            faults[event_id] = f"{path}: event {event_id}: also in {other}"
    return dict(sorted(files.items())), faults


def load(path: Path, where: str) -> Values:
    """The values of a torch file, tensors as arrays; InputError for damage, and for a file that names code."""
    import pickle

    import torch

    try:
        with _bags_alone():
            found = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        named = re.search(r"[Uu]nsupported (?:global: )?(?:GLOBAL |class )([\w.]+)", str(error))
        what = f"names code, {named[1]}, which is not run" if named else f"cannot be read ({_brief(error)})"
        raise InputError(f"{where}: {what}; a file of tensors alone can be read") from error
    except Exception as error:
        raise InputError(f"{where}: truncated, damaged or no torch file ({_brief(error)})") from error
    values = _values(found)
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: holds {type(values).__name__}, not a graph of PyTorch Geometric")
    return {str(name): _plain(value, torch) for name, value in values.items()}


@contextlib.contextmanager
def _bags_alone() -> Iterator[None]:
    """Let torch make bags in place of PyG's classes, and nothing else, whatever this process allows otherwise."""
    from torch.serialization import add_safe_globals, clear_safe_globals, get_safe_globals

    before = get_safe_globals()
    clear_safe_globals()
    add_safe_globals([(Bag, name) for name in _CLASSES])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _values(found: Any) -> Any:
    """The mapping of names to values in a graph."""
    if isinstance(found, Bag):
        state = getattr(found, "state", None)
        store = state.get("_store") if isinstance(state, Mapping) else None
        inner = getattr(store, "state", None)
        return inner.get("_mapping") if isinstance(inner, Mapping) else state
    return found


def _plain(value: Any, torch: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value.detach()).numpy()
    return value


def _brief(error: BaseException) -> str:
    own = str(error).split("WeightsUnpickler error: ")[-1]  # after advice of torch's
    return " ".join(own.split())[:120]


def _name(values: Values, name: str) -> str | None:
    """The name under which a column of hits stands."""
    return next((full for full in (f"hit_{name}", name) if isinstance(values.get(full), np.ndarray)), None)


def _column(where: str, values: Values, name: str, dtype: Any, n: int | None = None) -> np.ndarray:
    """A column of hits [N] in our type."""
    full = _name(values, name)
    if full is None:
        raise InputError(f"{where}: no column '{name}' or 'hit_{name}'; it has {', '.join(values)[:160]}")
    return _typed(where, full, values[full], dtype, n)


def _typed(where: str, full: str, found: np.ndarray, dtype: Any, n: int | None) -> np.ndarray:
    if found.ndim != 1 or (n is not None and len(found) != n):
        raise InputError(f"{where}: {full} has shape {list(found.shape)}, must be [{'N' if n is None else n}]")
    if np.issubdtype(dtype, np.floating):
        if found.dtype.kind not in "fiu":
            raise InputError(f"{where}: {full} is {found.dtype}, must be numbers")
        with np.errstate(over="ignore"):
            return found.astype(dtype)
    limits = np.iinfo(dtype)
    odd = np.flatnonzero(~((found >= limits.min) & (found <= limits.max) & (found == np.round(found))))
    if found.dtype.kind not in "fiu" or len(odd):
        what = f"row {odd[0]} of {full} is {found[odd[0]]}" if len(odd) else f"{full} is {found.dtype}"
        raise InputError(f"{where}: {what}, must be a whole number from {limits.min} to {limits.max}")
    return found.astype(dtype)


def _checked(where: str, hits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for axis in "xyz":
        for _, row, what in schema.faults_of_column(f"hits.{axis}", hits[axis]):
            raise InputError(f"{where}: row {row} of {axis} {what}")
    return hits


def _truth(where: str, values: Values, n: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Particles, and each hit's."""
    owner = _owners(where, values, n)
    ids = np.unique(owner[owner != 0])
    row = np.where(owner == 0, -1, rows_of(owner, ids))
    particles = {"particle_id": ids, "particle_type": np.zeros(len(ids), np.int32)}
    particles["nhits"] = schema.hits_of_particles(row, len(ids))
    return particles, {"particle_id": owner, "particle_row": row}


def _owners(where: str, values: Values, n: int) -> np.ndarray:
    """Particle of each hit, int64 [N]; 0: none."""
    edges = values.get("track_edges")
    if "hit_particle_id" in values or not isinstance(edges, np.ndarray):
        if not _name(values, "particle_id"):
            raise InputError(f"{where}: no truth: neither 'track_edges' nor 'particle_id'; --no-truth converts without")
        return _column(where, values, "particle_id", np.int64, n)
    if edges.ndim != 2 or len(edges) != 2 or edges.dtype.kind not in "iu":
        raise InputError(f"{where}: track_edges is {edges.dtype} {list(edges.shape)}, must be whole numbers [2, T]")
    if edges.size and (edges.min() < 0 or edges.max() >= n):
        raise InputError(
            f"{where}: track_edges has {edges.min()} to {edges.max()}, must be from 0 to {n - 1}: rows of hits"
        )
    name = next(
        (name for name in ("track_particle_id", "particle_id") if isinstance(values.get(name), np.ndarray)), None
    )
    if name is None:
        raise InputError(
            f"{where}: no 'track_particle_id' or 'particle_id' for its track_edges; --no-truth converts without"
        )
    of_edge = _typed(where, name, values[name], np.int64, edges.shape[1])
    owner = np.zeros(n, np.int64)
    for ends in edges:
        owner[ends] = of_edge
    for ends in edges:
        other = np.flatnonzero(owner[ends] != of_edge)
        if len(other):
            raise InputError(
                f"{where}: hit row {ends[other[0]]} is of two particles, by column {other[0]} of track_edges"
            )
    return owner


def _cells(where: str, values: Values, n: int) -> dict[str, np.ndarray]:
    """The columns of clusters, if all are there."""
    if not all(_name(values, theirs) for theirs in _CELLS.values()):
        return {}
    found = {ours: _column(where, values, theirs, schema.CELLS[ours], n) for ours, theirs in _CELLS.items()}
    for ours, column in found.items():
        for _, row, what in schema.faults_of_numbers(f"cells.{ours}", column):
            raise InputError(f"{where}: row {row} of {_CELLS[ours]} {what}")
    return found
