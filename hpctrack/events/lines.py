"""Straight tracks: where a line crosses the plane z = 0, and its slopes there.

Legend: P particles.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

LINE = ("x0", "y0", "x_slope", "y_slope")  # mm, mm, dx/dz, dy/dz
COLUMNS = [f"particles.{name}" for name in ("vx", "vy", "vz", "px", "py", "pz")]


def lines(particles: Mapping[str, np.ndarray], field_t: float = 0.0) -> np.ndarray:
    """(x0, y0, dx/dz, dy/dz) [P, 4] of particles with the columns COLUMNS, in float64; they are taken to be straight.

    `field_t` plays no part: it is there as for other parameters (events/perigee.py). A particle that goes across the z
    axis meets no plane: its numbers are not finite.
    """
    vx, vy, vz, px, py, pz = (np.asarray(particles[name], dtype=np.float64) for name in COLUMNS)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_slope, y_slope = px / pz, py / pz
        return np.stack([vx - x_slope * vz, vy - y_slope * vz, x_slope, y_slope], axis=1)
