"""From true crossings to measured hits: clusters of cells (geometric) or Gaussian smearing.

Geometric: the straight path through the sensor's sensitive depth is cut at the borders of the cells; a cell's signal is
the path inside it, the hit is the signal-weighted mean of the cells' centres. It is what ACTS' DigitizationAlgorithm
does (compared in the tests), in numpy, so that all sources share it. Strips are digital, as in TrackML.
"""

from __future__ import annotations

import numpy as np

from hpctrack.simulation.event import Cells, Crossings, Measurements
from hpctrack.simulation.geometry import Geometry

METHODS = ("geometric", "smearing")
SIGNAL_NOISE = 0.05  # relative, of an analogue cell


def digitize(
    crossings: Crossings, geometry: Geometry, method: str, efficiency: float, rng: np.random.Generator
) -> Measurements:
    """Measure the crossings; each is lost with probability 1 - efficiency. Hits lie on their module's plane."""
    crossings = crossings.take(rng.random(len(crossings)) < efficiency)
    if method == "smearing":
        uv, cells = _smear(crossings, geometry, rng), Cells.none(len(crossings))
    else:
        cells = clusters(crossings, geometry, rng)
        uv = cluster_centres(cells, crossings.module, geometry)
    return Measurements(crossings, geometry.to_global(crossings.module, uv), cells)


def _smear(crossings: Crossings, geometry: Geometry, rng: np.random.Generator) -> np.ndarray:
    """[H, 2]: sigma is that of a single cell, pitch / sqrt(12)."""
    uv = geometry.to_local(crossings.module, crossings.position)[:, :2]
    uv = uv + rng.normal(size=uv.shape) * geometry.pitch[crossings.module] / np.sqrt(12)
    v = np.clip(uv[:, 1], -geometry.half[crossings.module, 1], geometry.half[crossings.module, 1])
    half_u = geometry.half_u(crossings.module, v)
    return np.stack([np.clip(uv[:, 0], -half_u, half_u), v], axis=1)


def cluster_centres(cells: Cells, modules: np.ndarray, geometry: Geometry) -> np.ndarray:
    """[H, 2] mm: signal-weighted mean of the centres of each hit's cells."""
    hit = np.repeat(np.arange(len(modules)), cells.counts)
    total = np.bincount(hit, cells.value, len(modules))
    channel = np.stack([cells.ch0, cells.ch1])
    mean = np.stack([np.bincount(hit, cells.value * c, len(modules)) / total for c in channel], axis=1)
    return (mean + 0.5) * geometry.pitch[modules] - geometry.half[modules]


def clusters(crossings: Crossings, geometry: Geometry, rng: np.random.Generator) -> Cells:
    """The cells that each crossing fires, at least one a crossing."""
    module = crossings.module
    start, step, length = _paths(crossings, geometry)
    hit, share, low = _cut(start, step)
    limit = geometry.n_channels[module][hit] - 1
    channel = np.clip(np.floor(low), 0, limit).astype(np.int64)
    value = share * length[hit] * np.maximum(1 + SIGNAL_NOISE * rng.normal(size=len(hit)), 0.1)
    value[geometry.digital[module][hit]] = 1.0
    counts = np.bincount(hit, minlength=len(crossings))
    return Cells(np.concatenate([[0], np.cumsum(counts)]), channel[:, 0], channel[:, 1], value)


def _paths(crossings: Crossings, geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Straight paths within the module: start and step [H, 2] in channels, length [H] in mm."""
    module = crossings.module
    point = geometry.to_local(module, crossings.position)[:, :2]
    direction = np.einsum("hij,hi->hj", geometry.rotation[module], crossings.momentum)
    grazing = np.maximum(np.abs(direction[:, 2]), 1e-4 * np.linalg.norm(direction, axis=1))  # bounds the path
    step = direction[:, :2] * (geometry.depth[module] / grazing)[:, None]
    length = np.hypot(geometry.depth[module], np.linalg.norm(step, axis=1))
    # Clip to the rectangle of channels (Liang-Barsky): t runs from 0 to 1 over the depth, the middle is the crossing.
    half = geometry.half[module]
    point = np.clip(point, -half, half)
    with np.errstate(divide="ignore", invalid="ignore"):
        ends = np.stack([(-half - point) / step, (half - point) / step])
    ends = np.where(step == 0, np.array([-1.0, 1.0])[:, None, None], ends)
    t0 = np.maximum(np.minimum(*ends).max(axis=1), -0.5)
    t1 = np.minimum(np.maximum(*ends).min(axis=1), 0.5)
    pitch = geometry.pitch[module]
    start = (point + step * t0[:, None] + half) / pitch
    return start, step * (t1 - t0)[:, None] / pitch, length * np.maximum(t1 - t0, 1e-3)


def _cut(start: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut paths [H, 2] in channel units at whole channels: hit, share of the path and middle [pieces, 2], by hit."""
    n = len(start)
    hits, cuts = [np.arange(n), np.arange(n)], [np.zeros(n), np.ones(n)]
    for axis in range(2):
        low = np.minimum(start[:, axis], start[:, axis] + step[:, axis])
        high = np.maximum(start[:, axis], start[:, axis] + step[:, axis])
        first = np.floor(low) + 1
        count = np.maximum(np.ceil(high) - first, 0).astype(np.int64)
        hit = np.repeat(np.arange(n), count)
        border = first[hit] + np.arange(len(hit)) - np.repeat(np.cumsum(count) - count, count)
        hits.append(hit)
        cuts.append((border - start[hit, axis]) / step[hit, axis])
    hit, t = np.concatenate(hits), np.clip(np.concatenate(cuts), 0.0, 1.0)
    order = np.lexsort([t, hit])
    hit, t = hit[order], t[order]
    share = np.diff(t)
    keep = (hit[1:] == hit[:-1]) & (share > 1e-9)
    hit, share, middle = hit[:-1][keep], share[keep], ((t[1:] + t[:-1]) / 2)[keep]
    return hit, share, start[hit] + step[hit] * middle[:, None]


# ---------------------------------- noise hits with TrackML's shares by layer, spread evenly over the modules' surfaces


# Share of noise among a layer's hits in the challenge's events, where 15 % of all hits are noise: by (volume, layer) in
# the barrel, by volume in the endcaps. What it tells: noise goes with the area, signal falls with the radius.
TRACKML_SHARE: dict[tuple[int, int] | int, float] = {
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
    return Cells(cells.offsets, moved[0], moved[1], cells.value)
