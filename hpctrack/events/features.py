"""Model inputs: each feature is one line that says which columns it reads and how it is scaled to order one.

A model's list of features decides which columns are read at all. How each column turns and is reflected with an event
stands in events/symmetries.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hpctrack.errors import InputError

Columns = Mapping[str, np.ndarray]  # "table.column" -> [N]


@dataclass(frozen=True)
class Feature:
    """`compute(columns)` -> [N] from the named columns, among them those by which an augmentation changes it.

    `formula` says the same for people.
    """

    columns: tuple[str, ...]
    compute: Callable[[Columns], np.ndarray]
    formula: str


def scaled(column: str, unit: float, *also: str) -> Feature:
    """`column` / unit; `also` names columns that an augmentation needs beside it."""
    formula = f"{column.partition('.')[2]} / {'pi' if unit == np.pi else f'{unit:g}'}"
    return Feature((column, *also), lambda c: c[column] / np.float32(unit), formula)


FEATURES: dict[str, Feature] = {
    "x": scaled("hits.x", 1000.0, "hits.y"),  # m
    "y": scaled("hits.y", 1000.0, "hits.x"),
    "z": scaled("hits.z", 1000.0),
    "r": scaled("hits.r", 1000.0),
    "phi": scaled("hits.phi", np.pi),
    "cos_phi": Feature(("hits.phi",), lambda c: np.cos(c["hits.phi"]), "cos(phi)"),
    "sin_phi": Feature(("hits.phi",), lambda c: np.sin(c["hits.phi"]), "sin(phi)"),
    "eta": scaled("hits.eta", 4.0),
    "inverse_r": Feature(
        ("hits.r",), lambda c: np.float32(30.0) / np.maximum(c["hits.r"], np.float32(1.0)), "30 mm / r"
    ),
    "volume": scaled("hits.volume_id", 10.0),
    "layer": scaled("hits.layer_id", 10.0, "hits.volume_id"),
    "plane": Feature(("hits.layer_id", "hits.volume_id"), lambda c: c["hits.layer_id"].astype(np.float32), "layer_id"),
    "column": Feature(("hits.x",), lambda c: c["hits.x"], "x / 1 mm"),
    "row": Feature(("hits.y",), lambda c: c["hits.y"], "y / 1 mm"),
    "cell_count": Feature(
        ("cells.cell_count",), lambda c: np.log1p(c["cells.cell_count"].astype(np.float32)), "log(1 + cell_count)"
    ),
    "cell_charge": Feature(
        ("cells.cell_charge",), lambda c: np.log1p(np.maximum(c["cells.cell_charge"], 0)), "log(1 + cell_charge)"
    ),
    "size_u": Feature(("cells.size_u",), lambda c: np.log1p(c["cells.size_u"]), "log(1 + size_u)"),
    "size_v": Feature(("cells.size_v",), lambda c: np.log1p(c["cells.size_v"]), "log(1 + size_v)"),
    "local_eta": scaled("cells.local_eta", 4.0),
    "local_phi": scaled("cells.local_phi", np.pi),
    "global_eta": scaled("cells.global_eta", 4.0, "hits.volume_id"),
    "global_phi": scaled("cells.global_phi", np.pi, "hits.volume_id", "cells.local_eta", "cells.local_phi"),
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
