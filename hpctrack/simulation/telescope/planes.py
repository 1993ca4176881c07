"""The planes of the digital tracking calorimeter: two thin trackers, then 41 layers of aluminium and pixels.

After T. Kortus et al., arXiv:2407.13420, and the Bergen pCT prototype's GATE geometry (DTC Toolkit, H. Pettersen). Each
plane is one module, so that a hit's `layer_id` is its plane, 0 to 42; `volume_id` tells trackers from calorimeter.
Units: mm.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hpctrack.simulation.geometry import Geometry

TRACKER, CALORIMETER = 1, 2  # volume_id
N_TRACKERS, N_PLANES = 2, 43
TRACKER_Z, TRACKER_PITCH = 260.0, 52.4  # mm: the first tracker, and from it to the next
LAYER_PITCH = 5.5  # mm, of the calorimeter
HALF_X, HALF_Y = 135.4, 83.15  # mm, of a plane: 9 x 1024 by 12 x 512 pixels
PIXELS_X, PIXELS_Y = 9216, 6144
SENSITIVE_UM = 25.0  # of silicon that a pixel measures


class Slab(NamedTuple):
    """Material: thickness in mm of water that stops as much, in mm of space, and in radiation lengths of `x0_mm`."""

    water_mm: float
    length_mm: float
    matter_mm: float
    x0_mm: float


TRACKER_SLAB = Slab(1.8, 0.5, 0.9, 180.0)
LAYER_SLAB = Slab(8.2, 3.6, 3.8, 89.0)  # aluminium, carrier and sensor


def phantom(thickness_mm: float) -> Slab:
    """A box of water."""
    return Slab(thickness_mm, thickness_mm, thickness_mm, 360.8)


def plane_z() -> np.ndarray:
    """[N_PLANES] mm: where the planes measure; a calorimeter layer's sensor is behind its absorber."""
    first = TRACKER_Z + N_TRACKERS * TRACKER_PITCH + LAYER_SLAB.length_mm
    trackers = TRACKER_Z + TRACKER_PITCH * np.arange(N_TRACKERS)
    return np.concatenate([trackers, first + LAYER_PITCH * np.arange(N_PLANES - N_TRACKERS)])


def geometry() -> Geometry:
    """The planes as modules, all across the beam: u is x, v is y, the normal is z."""
    n = N_PLANES
    number = np.arange(n)
    columns = {
        "volume_id": np.where(number < N_TRACKERS, TRACKER, CALORIMETER),
        "layer_id": number,
        "module_id": np.ones(n, np.int64),
        **{"cx": np.zeros(n), "cy": np.zeros(n), "cz": plane_z()},
        **{f"rot_{x}{u}": np.full(n, float(i == j)) for i, x in enumerate("xyz") for j, u in enumerate("uvw")},
        "module_t": np.full(n, 0.05),
        **{"module_minhu": np.full(n, HALF_X), "module_maxhu": np.full(n, HALF_X), "module_hv": np.full(n, HALF_Y)},
        "pitch_u": np.full(n, 2 * HALF_X / PIXELS_X),
        "pitch_v": np.full(n, 2 * HALF_Y / PIXELS_Y),
    }
    depth = np.full(n, SENSITIVE_UM / 1000)
    return Geometry(columns, depth, np.zeros(n, dtype=bool), columns["module_id"], rows=())
