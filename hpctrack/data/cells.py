"""Features of a hit's cluster of cells: its size, charge and direction.

The direction follows the Exa.TrkX preprocessing (cell_direction_utils): the track is taken to cross the module from the
cluster's one corner to the other, l = (n_u pitch_u, n_v pitch_v, 2 module_t), n counted from the lowest to the highest
channel. The signs of l are unknown, so all its components are positive. Source: X. Ju et al., EPJ C 81 (2021) 876.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpctrack.data import schema

ETA_MAX = 20.0  # a direction along the axis has no finite pseudorapidity


def direction_angles(vector_N3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pseudorapidity and azimuth (rad) of vectors [N, 3]; finite: |eta| <= ETA_MAX, and (0, 0) for the zero vector."""
    transverse = np.hypot(vector_N3[:, 0], vector_N3[:, 1])
    with np.errstate(divide="ignore", invalid="ignore"):
        eta = np.arcsinh(vector_N3[:, 2] / transverse)
    eta = np.clip(np.nan_to_num(eta, nan=0.0, posinf=ETA_MAX, neginf=-ETA_MAX), -ETA_MAX, ETA_MAX)
    return eta, np.arctan2(vector_N3[:, 1] + 0.0, vector_N3[:, 0])  # + 0.0: no -pi from y = -0.0


def cell_features(
    n_hits: int, row: np.ndarray, ch0: np.ndarray, ch1: np.ndarray, value: np.ndarray, module: Mapping[str, np.ndarray]
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
