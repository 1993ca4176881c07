"""What a candidate itself says of its direction and transverse momentum, from its hits alone; no truth.

Used to bin fakes, which have no true particle. Shapes: C candidates as lists (offsets [C + 1], rows); hits in mm.
"""

from __future__ import annotations

import numpy as np

from hpctrack.data.perigee import GEV_PER_T_MM


def eta_estimate(offsets: np.ndarray, rows: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Pseudorapidity of each candidate's mean hit, arcsinh(sum z / sum r) [C]; NaN without a hit off the beam line.

    The vertex is taken at the origin. Outer hits weigh most, so a vertex shift of 5 mm in z matters little.
    """
    radius = np.hypot(x.astype(np.float64), y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.arcsinh(_sum(offsets, z[rows]) / _sum(offsets, radius[rows]))


def pt_estimate(offsets: np.ndarray, rows: np.ndarray, x: np.ndarray, y: np.ndarray, field_t: float) -> np.ndarray:
    """Transverse momentum (GeV) [C] of the circle through the beam line that fits each candidate's hits best.

    A circle of radius R through the origin is, in u = x/r^2, v = y/r^2, a straight line at distance 1/(2R) from the
    origin (conformal mapping, M. Hansroul et al., NIM A 270 (1988) 498). The line is fitted by total least squares with
    weights r^4, that is equal position errors of all hits. NaN for fewer than two hits, infinite for a straight track.
    """
    x, y = x[rows].astype(np.float64), y[rows].astype(np.float64)
    r2 = np.maximum(x * x + y * y, 1e-6)
    u, v, weight = x / r2, y / r2, r2 * r2
    with np.errstate(invalid="ignore", divide="ignore"):
        total = _sum(offsets, weight)
        mean_u, mean_v = _sum(offsets, weight * u) / total, _sum(offsets, weight * v) / total
        size = np.diff(offsets)
        du, dv = u - np.repeat(mean_u, size), v - np.repeat(mean_v, size)
        uu, uv, vv = (_sum(offsets, weight * product) for product in (du * du, du * dv, dv * dv))
        along = 0.5 * np.arctan2(2 * uv, uu - vv)  # angle of the line
        distance = np.abs(mean_v * np.cos(along) - mean_u * np.sin(along))
        pt = GEV_PER_T_MM * abs(field_t) / (2 * distance)
    return np.where(size >= 2, pt, np.nan)


def _sum(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums over consecutive blocks of `values`, 0 for an empty block."""
    candidate = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(candidate, weights=values, minlength=len(offsets) - 1)
