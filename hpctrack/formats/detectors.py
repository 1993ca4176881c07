"""The detector's modules from TrackML's detectors.csv, and what a hit's cluster of cells says with their geometry.

The direction of a cluster follows the Exa.TrkX preprocessing (cell_direction_utils): the track is taken to cross the
module from the cluster's one corner to the other, l = (n_u pitch_u, n_v pitch_v, 2 module_t), n counted from the lowest
to the highest channel. The signs of l are unknown, so all its components are positive. Source: X. Ju et al., EPJ C 81
(2021) 876.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.formats.csvtable import Column, read_table
from hpctrack.formats.trackml_files import DETECTORS, Source, list_files
from hpctrack.storage import schema

MODULE = {"volume_id": Column(np.uint8), "layer_id": Column(np.uint8), "module_id": Column(np.uint16)}
_ROTATION = [f"rot_{a}{b}" for a in "xyz" for b in "uvw"]  # row-major, local (u, v, w) to global (x, y, z)
_LENGTHS = ("module_t", "pitch_u", "pitch_v")
_COLUMNS = MODULE | {name: Column(np.float64, optional=True) for name in (*_ROTATION, *_LENGTHS)}


@dataclass(frozen=True)
class Detectors:
    """The modules of detectors.csv, sorted by `key`; `rotation` [M, 3, 3] is local to global, lengths in mm.

    Only cells need more than the modules' ids: a file may have surfaces that measure nothing, with lengths of -1, or no
    such columns at all. `faults[row]` says why a module cannot have cells, `missing` what column none can do without.
    """

    where: str
    key: np.ndarray
    rotation: np.ndarray
    pitch_u: np.ndarray
    pitch_v: np.ndarray
    thickness: np.ndarray  # 2 module_t: the file gives half of it
    faults: Mapping[int, str]
    missing: str | None

    def check_columns(self) -> None:
        """InputError if the file lacks a column that cells need."""
        if self.missing:
            raise InputError(f"{self.where}: no column '{self.missing}', which events with cells need")

    def check_geometry(self, where: str, rows: np.ndarray) -> None:
        """InputError, one line that begins with `where`, if a module of `rows` lacks what its cells need."""
        if len(rows):
            self.check_columns()
        for row in sorted(self.faults.keys() & set(rows.tolist())):
            raise InputError(f"{where}: a cell is on {self.faults[row]}")

    def rows(self, key: np.ndarray) -> np.ndarray:
        """Row of each module key, -1 where there is none."""
        row = np.minimum(np.searchsorted(self.key, key), len(self.key) - 1)
        return np.where(self.key[row] == key, row, -1)


def module_key(volume_id: np.ndarray, layer_id: np.ndarray, module_id: np.ndarray) -> np.ndarray:
    """One int64 a module."""
    return (volume_id.astype(np.int64) << 24) | (layer_id.astype(np.int64) << 16) | module_id


def find_detectors(source: Source, path: str | Path | None) -> tuple[Source, str] | None:
    """The place and name of the modules' file: `path`, else in the source, else in the folder around it."""
    if path is not None and not Path(path).is_file():
        raise InputError(f"{path}: no such file; --detectors names a detectors.csv, .csv.gz or .zip")
    if path is None and source.detectors is not None:
        if not source.detectors.endswith(".zip"):
            return source, source.detectors
        path = source.path / source.detectors
    if path is None:
        beside = [source.path.absolute().parent / name for name in DETECTORS]
        path = next((file for file in beside if file.is_file()), None)
    if path is None:
        return None
    path = Path(path)
    if path.suffix != ".zip":
        return Source(path.parent), path.name
    archive = list_files(path)
    if archive.detectors is None:
        raise InputError(f"{path}: holds no detectors.csv")
    return archive, archive.detectors


def named_detectors(path: str | None) -> tuple[Source, str] | None:
    """The place and name of a file that was named, without events of its own; None if none was."""
    return None if path is None else find_detectors(Source(Path(path).parent), path)


def stamp_of(path: str | None) -> list[object]:
    """What says that a file which was named has changed; nothing if none was."""
    found = named_detectors(path)
    return [] if found is None else [[str(found[0].path.absolute()), found[0].stamp(found[1])]]


def read_detectors(source: Source, path: str | Path | None) -> Detectors | None:
    """The modules of the file that `find_detectors` finds, None if there is none."""
    found = find_detectors(source, path)
    if found is None:
        return None
    place, member = found
    where = place.display(member)
    data = place.read(member, where)
    table = read_table(data, where, _COLUMNS)
    key = module_key(table["volume_id"], table["layer_id"], table["module_id"])
    order = np.argsort(key, kind="stable")
    if not len(key):
        raise InputError(f"{where}: no modules")
    missing = next((name for name in (*_ROTATION, *_LENGTHS) if name not in table), None)
    table |= {name: np.zeros(len(key)) for name in (*_ROTATION, *_LENGTHS) if name not in table}
    faults = _faults(where, table, key, order)
    rotation = np.stack([table[name] for name in _ROTATION], axis=1).reshape(-1, 3, 3)
    pitch_u, pitch_v, thickness = (table[name][order] for name in ("pitch_u", "pitch_v", "module_t"))
    return Detectors(
        where,
        key[order],
        rotation[order],
        pitch_u,
        pitch_v=pitch_v,
        thickness=2 * thickness,
        faults=faults,
        missing=missing,
    )


def _faults(where: str, table: Mapping[str, np.ndarray], key: np.ndarray, order: np.ndarray) -> dict[int, str]:
    """Why a module, by its place in `order`, cannot have cells: its lengths, or that it stands twice."""
    found: dict[int, str] = {}
    for name in _LENGTHS:
        for place in np.flatnonzero(table[name][order] <= 0):
            row = int(order[place])
            what = f"{name} is {table[name][row]} in row {row + 1} of {where}, must be > 0 mm"
            found.setdefault(int(place), f"module {module_name(table, row)}: {what}")
    for place in np.flatnonzero(np.diff(key[order]) == 0):
        row = int(order[place + 1])
        first = int(np.searchsorted(key[order], key[row]))  # where `rows` finds it
        found[first] = f"module {module_name(table, row)}: stands twice in {where}, again in row {row + 1}"
    return found


def module_name(table: Mapping[str, np.ndarray], row: int) -> str:
    """volume/layer/module of a row, for messages."""
    return "/".join(str(table[name][row]) for name in MODULE)


# ------------------------------------------------------------------------ clusters of cells: size, charge and direction


ETA_MAX = 20.0  # a direction along the axis has no finite pseudorapidity


def direction_angles(vector_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudorapidity and azimuth (rad) of vectors [N, 3]; finite: |eta| <= ETA_MAX, and (0, 0) for the zero vector."""
    transverse = np.hypot(vector_N3[:, 0], vector_N3[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.arcsinh(vector_N3[:, 2] / transverse)
    eta = np.clip(np.nan_to_num(eta, nan=0.0, posinf=ETA_MAX, neginf=-ETA_MAX), -ETA_MAX, ETA_MAX)
    return eta, np.arctan2(vector_N3[:, 1] + 0.0, vector_N3[:, 0])  # + 0.0: no -pi from y = -0.0


def cell_features(
    n_hits: int,
    row: np.ndarray,
    ch0: np.ndarray,
    ch1: np.ndarray,
    value: np.ndarray,
    *,
    module: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """The columns of schema.CELLS for `n_hits` hits; all zero for a hit without cells.

    Per cell: `row` of its hit, channels `ch0` (u) and `ch1` (v), `value` (charge). Per hit, in `module`: `pitch_u`,
    `pitch_v` and `thickness` in mm, and `rotation` [n_hits, 3, 3], local to global.
    """
    if len(row) and (np.diff(row) < 0).any():
        order = np.argsort(row, kind="stable")
        row, ch0, ch1, value = row[order], ch0[order], ch1[order], value[order]
    first = np.flatnonzero(np.diff(row, prepend=-1))  # of each hit's cells
    hit = row[first]
    columns = {name: np.zeros(n_hits, dtype=dtype) for name, dtype in schema.CELLS.items()}
    if not len(first):
        return columns
    extent = [np.maximum.reduceat(ch, first) - np.minimum.reduceat(ch, first) + 1 for ch in (ch0, ch1)]
    size_u, size_v = extent[0] * module["pitch_u"][hit], extent[1] * module["pitch_v"][hit]
    local_N3 = np.stack([size_u, size_v, module["thickness"][hit]], axis=1)
    global_N3 = np.einsum("nij,nj->ni", module["rotation"][hit], local_N3)
    values = {"cell_count": np.minimum(np.diff(first, append=len(row)), np.iinfo(np.uint16).max)}
    charge = np.minimum(np.add.reduceat(value.astype(np.float64), first), np.finfo(np.float32).max)
    values |= {"cell_charge": charge, "size_u": size_u, "size_v": size_v}
    values["local_eta"], values["local_phi"] = direction_angles(local_N3)
    values["global_eta"], values["global_phi"] = direction_angles(global_N3)
    for name, per_hit in values.items():
        columns[name][hit] = per_hit
    return columns
