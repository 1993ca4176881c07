"""Track parameters at the perigee, the point of a helix that is nearest to the beam line (x = y = 0); field along z.

Signs: q/pT as the charge; d0 such that the perigee is at d0 (-sin phi, cos phi), as in ACTS; z0 is its z; phi and theta
are the momentum's direction there. Units: 1/GeV, rad, rad, mm, mm.

Legend: P particles.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hpctrack.storage.schema import GEV_PER_T_MM, PARAMETERS

LEAST_PT_GEV = 1e-6  # keeps a particle along the beam finite
COLUMNS = [f"particles.{name}" for name in ("vx", "vy", "vz", "px", "py", "pz", "q")]
SCALES = np.array([0.5, 0.2, 0.1, 0.1, 5.0])  # of parameters about the first guess of models/embedding.py
PHI = PARAMETERS.index("phi")


def perigee(particles: Mapping[str, np.ndarray], field_t: float) -> np.ndarray:
    """(q/pT, phi, theta, d0, z0) [P, 5] of particles with the columns COLUMNS, in float64; exact for any curvature.

    `field_t`: the field along z in Tesla, which belongs to the dataset (schema.Event).

    With the signed curvature k (positive turns anticlockwise) and the vertex V where the direction is f, the centre of
    the circle is V + (-sin f, cos f) / k = (d0 + 1/k)(-sin phi, cos phi). Solved for d0 and phi without a division by
    k, it holds for straight tracks, too. A vertex more than half a turn from the perigee is taken to be before it.
    """
    vx, vy, vz, px, py, pz, q = (np.asarray(particles[name], dtype=np.float64) for name in COLUMNS)
    pt, start = np.maximum(np.hypot(px, py), LEAST_PT_GEV), np.arctan2(py, px)
    curvature = -GEV_PER_T_MM * field_t * q / pt
    excess = curvature * (vx**2 + vy**2) + 2 * (vy * np.cos(start) - vx * np.sin(start))
    d0 = excess / (1 + np.sqrt(np.maximum(1 + curvature * excess, 0)))
    phi = np.arctan2(np.sin(start) - curvature * vx, np.cos(start) + curvature * vy)
    half = wrapped(start - phi) / 2
    chord_x, chord_y = vx + d0 * np.sin(phi), vy - d0 * np.cos(phi)  # from the perigee to the vertex
    chord = chord_x * np.cos(phi + half) + chord_y * np.sin(phi + half)
    z0 = vz - pz / pt * chord / np.sinc(half / np.pi)
    return np.stack([q / pt, phi, np.arctan2(pt, pz), d0, z0], axis=1)


def wrapped(angle: np.ndarray) -> np.ndarray:
    """Angles brought into [-pi, pi), in their own precision."""
    return (angle + np.pi) % (2 * np.pi) - np.pi


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a - b of parameters [..., 5], phi the short way round."""
    out = a - b
    out[..., PHI] = wrapped(out[..., PHI])
    return out
