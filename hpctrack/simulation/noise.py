"""Noise hits with TrackML's shares by layer, spread evenly over the modules' surfaces."""

from __future__ import annotations

import numpy as np

from hpctrack.simulation.digitization import cluster_centres
from hpctrack.simulation.event import Cells, Crossings, Measurements
from hpctrack.simulation.geometry import Geometry

# Share of noise among a layer's hits in the challenge's events, where 15 % of all hits are noise: by (volume, layer) in
# the barrel, by volume in the endcaps. What it tells: noise goes with the area, signal falls with the radius.
TRACKML_SHARE = {
    **{(8, 2): 0.027, (8, 4): 0.036, (8, 6): 0.085, (8, 8): 0.115},
    **{(13, 2): 0.12, (13, 4): 0.165, (13, 6): 0.21, (13, 8): 0.33, (17, 2): 0.50, (17, 4): 0.66},
    **{7: 0.05, 9: 0.05, 12: 0.145, 14: 0.145, 16: 0.20, 18: 0.20},
}


def add_noise(measured: Measurements, geometry: Geometry, fraction: float, rng: np.random.Generator) -> Measurements:
    """Append noise so that it makes up `fraction` of all hits on average, shared out over layers as TRACKML_SHARE says.

    Where hits have cells, a noise hit has the cluster of a true hit of its layer, moved to its place.
    """
    n = len(measured.truth)
    if not n or fraction <= 0:
        return measured
    layers, layer_of_hit = np.unique(geometry.layer[measured.truth.module], return_inverse=True)
    odds = np.array([_odds(int(layer)) for layer in layers]) * np.bincount(layer_of_hit)
    counts = rng.poisson(odds * n * fraction / (1 - fraction) / odds.sum())
    modules, templates = [], []
    for i, count in enumerate(counts):
        candidates = np.flatnonzero(geometry.layer == layers[i])
        area = geometry.half_u(candidates, np.zeros(len(candidates))) * geometry.half[candidates, 1]
        modules.append(rng.choice(candidates, count, p=area / area.sum()))
        templates.append(rng.choice(np.flatnonzero(layer_of_hit == i), count))
    module = np.concatenate(modules)
    uv = _uniform(module, geometry, rng)
    cells = measured.cells.take(np.concatenate(templates))
    if len(cells.value):
        cells = _moved(cells, module, uv, geometry)
        uv = cluster_centres(cells, module, geometry)
    position = geometry.to_global(module, uv)
    truth = Crossings(module, np.zeros(len(module), np.int64), position, np.zeros_like(position))
    return measured.append(Measurements(truth, position, cells))


def _odds(layer: int) -> float:
    volume_id, layer_id = divmod(layer, 1000)
    share = TRACKML_SHARE.get((volume_id, layer_id)) or TRACKML_SHARE[volume_id]
    return share / (1 - share)


def _uniform(module: np.ndarray, geometry: Geometry, rng: np.random.Generator) -> np.ndarray:
    """[n, 2] mm: even over the (trapezoidal) surface, by inversion of the linear density in v."""
    low, high = geometry.columns["module_minhu"][module], geometry.columns["module_maxhu"][module]
    a, b = (high + low) / 2, (high - low) / 2
    y = rng.random(len(module))
    slope = np.where(b > 0, b, 1.0)
    tilted = (np.sqrt(a**2 - 2 * slope * (a - slope / 2 - 2 * a * y)) - a) / slope
    v = np.where(b > 0, tilted, 2 * y - 1) * geometry.half[module, 1]
    return np.stack([geometry.half_u(module, v) * rng.uniform(-1, 1, len(module)), v], axis=1)


def _moved(cells: Cells, module: np.ndarray, uv: np.ndarray, geometry: Geometry) -> Cells:
    """The clusters, shifted by whole channels to begin at `uv` and kept within the module."""
    target = np.floor((uv + geometry.half[module]) / geometry.pitch[module]).astype(np.int64)
    hit = np.repeat(np.arange(len(module)), cells.counts)
    moved = []
    for axis, channel in enumerate((cells.ch0, cells.ch1)):
        low = np.minimum.reduceat(channel, cells.offsets[:-1])
        extent = np.maximum.reduceat(channel, cells.offsets[:-1]) - low
        n_channels = geometry.n_channels[module, axis]
        first = np.clip(target[:, axis] - extent // 2, 0, np.maximum(n_channels - 1 - extent, 0))
        moved.append(np.minimum(channel + (first - low)[hit], n_channels[hit] - 1))
    return Cells(cells.offsets, *moved, cells.value)
