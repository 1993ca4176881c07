"""Model inputs: each feature is one line that says which columns it reads and how it is scaled to order one.

A model's list of features decides which columns are read at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpctrack.errors import InputError

Columns = Mapping[str, np.ndarray]  # "table.column" -> [N]


@dataclass(frozen=True)
class Feature:
    """`compute(columns)` -> [N] from the named columns."""

    columns: tuple[str, ...]
    compute: Callable[[Columns], np.ndarray]


def scaled(column: str, unit: float, *also: str) -> Feature:
    """`column` / unit; `also` names columns that an augmentation needs beside it."""
    return Feature((column, *also), lambda c: c[column] / np.float32(unit))


FEATURES: dict[str, Feature] = {
    "x": scaled("hits.x", 1000.0, "hits.y"),  # m
    "y": scaled("hits.y", 1000.0, "hits.x"),
    "z": scaled("hits.z", 1000.0),
    "r": scaled("hits.r", 1000.0),
    "phi": scaled("hits.phi", np.pi),
    "cos_phi": Feature(("hits.phi",), lambda c: np.cos(c["hits.phi"])),
    "sin_phi": Feature(("hits.phi",), lambda c: np.sin(c["hits.phi"])),
    "eta": scaled("hits.eta", 4.0),
    "inverse_r": Feature(("hits.r",), lambda c: np.float32(30.0) / np.maximum(c["hits.r"], np.float32(1.0))),
    "volume": scaled("hits.volume_id", 10.0),
    "layer": scaled("hits.layer_id", 10.0),
    "cell_count": Feature(("cells.cell_count",), lambda c: np.log1p(c["cells.cell_count"].astype(np.float32))),
    "cell_charge": Feature(("cells.cell_charge",), lambda c: np.log1p(np.maximum(c["cells.cell_charge"], 0))),
    "size_u": Feature(("cells.size_u",), lambda c: np.log1p(c["cells.size_u"])),
    "size_v": Feature(("cells.size_v",), lambda c: np.log1p(c["cells.size_v"])),
    "local_eta": scaled("cells.local_eta", 4.0),
    "local_phi": scaled("cells.local_phi", np.pi),
    "global_eta": scaled("cells.global_eta", 4.0),
    "global_phi": scaled("cells.global_phi", np.pi),
}


def feature_columns(names: Sequence[str]) -> list[str]:
    """The columns that the features read, each once; InputError for an unknown feature."""
    for name in names:
        if name not in FEATURES:
            raise InputError(f"key 'data.features': unknown feature '{name}'; known: {', '.join(FEATURES)}")
    return list(dict.fromkeys(column for name in names for column in FEATURES[name].columns))


def compute_features(columns: Columns, names: Sequence[str]) -> np.ndarray:
    """Feature matrix, float32 [N, F], of the named features in order."""
    return np.stack([FEATURES[name].compute(columns).astype(np.float32) for name in names], axis=1)


def augment(columns: Columns, rotate: bool, mirror: bool, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Hits and particles turned by a random angle about the beam line and reflected at random in y and in z.

    Symmetries of the detector and of the physics (a reflection in y turns charges round, since the field is along z).
    Directions in a module's own frame (`local_*`) stay as they are.
    """
    out = dict(columns)
    angle = np.float32(rng.uniform(-np.pi, np.pi)) if rotate else np.float32(0)
    flip_y, flip_z = (np.float32(s) for s in (rng.choice([-1.0, 1.0], 2) if mirror else (1.0, 1.0)))
    for name in ("hits.phi", "cells.global_phi"):
        if name in out:
            out[name] = wrap(flip_y * out[name] + angle)
    cos, sin = np.cos(angle), np.sin(angle)
    for vector in ("hits.", "particles.v", "particles.p"):
        if f"{vector}x" in out and f"{vector}y" in out:
            x, y = out[f"{vector}x"], flip_y * out[f"{vector}y"]
            out[f"{vector}x"], out[f"{vector}y"] = cos * x - sin * y, sin * x + cos * y
    for name in ("hits.z", "hits.eta", "cells.global_eta", "particles.vz", "particles.pz"):
        if name in out:
            out[name] = flip_z * out[name]
    if "particles.q" in out:
        out["particles.q"] = flip_y * out["particles.q"]
    return out


def wrap(angle: np.ndarray) -> np.ndarray:
    """Angles brought into [-pi, pi)."""
    return (angle + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)
