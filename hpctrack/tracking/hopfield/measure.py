"""Measures on the true tracks of a dataset what `Measured` (segments.py) holds.

Legend: M true segments, T pairs of these in a row, of all events.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from hpctrack.config import SelectionConfig
from hpctrack.errors import InputError
from hpctrack.events import truth
from hpctrack.events.selection import COLUMNS, Draw, readable
from hpctrack.graphs.doublets import Doublets
from hpctrack.graphs.triplets import triplets
from hpctrack.storage.store import Dataset
from hpctrack.tracking.hopfield.couplings import Hits, changes
from hpctrack.tracking.hopfield.segments import FORMAT, key_of

NORMAL = 1.4826  # standard deviation of a normal distribution in units of its median absolute deviation
NEEDED = (*truth.COLUMNS, *Doublets.COLUMNS)
DIGITS = 4
ABOVE = 1.001  # a cut lies above the segment at it
CUTS = {"phi_slope_max_per_mm": 1e-6, "z0_max_mm": 0.1}  # and never below these
FLOOR = {"k": 1e-8, "s": 1e-5}  # rounding of positions: spreads of toys without errors are this


def measure(data: Dataset, events: int, pt_min_gev: float, kept: float, least: int) -> dict[str, Any]:
    """What a file of `hpctrack segments` holds.

    Of the first `events` events, the tracks of particles above `pt_min_gev`. Layers are a pair if segments between
    them are `least` or more; so are three layers. Of a pair's segments the share `kept` passes each of its two cuts.
    InputError if no pair of layers has so many.
    """
    targets = Draw(SelectionConfig(pt_min_gev=pt_min_gev, noise=False, other_hits=False), (0, 0))
    parts = [_of_event(data, row, targets) for row in range(min(events, len(data.event_ids)))]
    segment = {name: np.concatenate([part[0][name] for part in parts]) for name in parts[0][0]}
    triplet = {name: np.concatenate([part[1][name] for part in parts]) for name in parts[0][1]}
    pairs, disks = [], _disks(segment)
    for key, of in _groups(segment["from"] << 16 | segment["to"], least):
        cuts = {name: max(ABOVE * float(np.quantile(segment[name][of], kept)), lowest) for name, lowest in CUTS.items()}
        ends = {"from": _layer(key >> 16), "to": _layer(key & 0xFFFF)}
        pairs.append(ends | {"segments": len(of)} | {name: _rounded(value) for name, value in cuts.items()})
    if not pairs:
        raise InputError(
            f"{data.folder}: no two layers with {least} segments of tracks above {pt_min_gev:g} GeV in "
            f"{len(parts)} events; take more events, or lower --least"
        )
    rows = []
    for key, of in _groups(triplet["key"], least):
        layers = [key >> 32, key >> 16 & 0xFFFF, key & 0xFFFF]
        along = "z" if layers[2] in disks else "r"
        spreads = {f"spread_{name}": max(_spread(triplet[f"{name}_{along}"][of]), FLOOR[name]) for name in ("k", "s")}
        rows.append({"layers": [_layer(one) for one in layers], "along": along, "triplets": len(of)} | spreads)
    made = {"dataset": data.fingerprint, "events": len(parts), "pt_min_gev": pt_min_gev, "kept": kept, "least": least}
    return FORMAT | {"made": made, "pairs": pairs, "triplets": rows}


def _of_event(data: Dataset, row: int, targets: Draw) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    event = data.read(row, [*NEEDED, *readable(data, COLUMNS)])
    rows = targets(event, 0)[0].rows
    r, phi, z, volume, layer = (event.column(name)[rows] for name in Doublets.COLUMNS)
    number = truth.layer_number(volume, layer)
    hits = Hits(r.astype(np.float64), phi.astype(np.float64), z.astype(np.float64), number)
    edge_2M = truth.graph_truth(event, rows)
    edge_2M = edge_2M[:, hits.r[edge_2M[1]] > hits.r[edge_2M[0]]]  # as doublets are
    dr, turn, dz = hits.steps(*edge_2M)
    segment = {"from": hits.layer[edge_2M[0]], "to": hits.layer[edge_2M[1]]}
    segment |= {
        "phi_slope_max_per_mm": np.abs(turn / dr),
        "z0_max_mm": np.abs(hits.z[edge_2M[0]] - hits.r[edge_2M[0]] * dz / dr),
    }
    segment |= {
        f"{name}_{end}": getattr(hits, name)[edge_2M[k]] for name in "rz" for k, end in enumerate(("from", "to"))
    }
    first, second = triplets(torch.from_numpy(edge_2M), len(rows)).numpy()
    of = edge_2M[0, first], edge_2M[1, first], edge_2M[1, second]
    triplet = {"key": key_of(*(hits.layer[one] for one in of))}
    for along, along_z in (("r", False), ("z", True)):
        triplet[f"k_{along}"], triplet[f"s_{along}"] = changes(hits, of, np.full(len(first), along_z))
    return segment, triplet


def _groups(key: np.ndarray, least: int) -> list[tuple[int, np.ndarray]]:
    """The keys that `least` or more have, ascending, and who has each."""
    order = np.argsort(key, kind="stable")
    start, size = truth.runs(key[order])
    return [(int(key[order[a]]), order[a : a + n]) for a, n in zip(start, size, strict=True) if n >= least]


def _disks(segment: dict[str, np.ndarray]) -> set[int]:
    """Layers whose hits spread more in r than in z."""
    layer = np.append(segment["from"], segment["to"])
    r, z = (np.append(segment[f"{name}_from"], segment[f"{name}_to"]) for name in "rz")
    return {key for key, of in _groups(layer, 1) if np.ptp(r[of]) > np.ptp(z[of])}


def _spread(values: np.ndarray) -> float:
    values = values[np.isfinite(values)]
    return _rounded(NORMAL * float(np.median(np.abs(values - np.median(values))))) if len(values) else 0.0


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _layer(number: int) -> Sequence[int]:
    return [number >> 8, number & 0xFF]
