"""Source `cylinders`: the nine cylinders of the tracking challenge "ramp" (2017), in the transverse plane.

S. Amrouche et al., "Track reconstruction at LHC as a collaborative data challenge use case with RAMP", EPJ Web Conf.
150 (2017) 00015, and ramp-kits/HEP_tracking. Particles start near the beam, bend, scatter at each layer, may stop there
or leave no hit. A hit is a cell in phi; z = 0. Layer ids count from 0.
"""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np

from hpctrack.simulation.event import Tables
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.helix import Helices, arc_to_radius
from hpctrack.simulation.planes.pixels import Pixels, joined, number_of_tracks, pixel_tables
from hpctrack.simulation.settings import Settings
from hpctrack.storage.schema import GEV_PER_T_MM

RADII_MM = (39.0, 85.0, 155.0, 213.0, 271.0, 405.0, 562.0, 762.0, 1000.0)
PITCH_MM = (0.025,) * 5 + (0.05,) * 4
CELLS = tuple(math.ceil(2 * math.pi * r / pitch) for r, pitch in zip(RADII_MM, PITCH_MM, strict=True))
PT_GEV = (0.3, 10.0)
VERTEX_MM = 2 / 3  # sigma
SCATTERING_GEV = 0.0136 * 0.02**0.5  # sigma of the angle x p, at each layer
LOST, STOPPED = 0.03, 0.01  # at each layer: no hit; the particle ends behind it


class CylindersSource:
    """Makes events by their ids alone."""

    OPTIONS: ClassVar = ("tracks", "tracks_number", "tracks_max")
    UNUSED: ClassVar = ("pt_min_gev", "eta_max", "digitization", "efficiency", "noise")
    PACKAGES: ClassVar = ()

    def __init__(self, settings: Settings, geometry: Geometry | None = None) -> None:
        self._settings = settings

    def tables(self, event_id: int) -> Tables:
        """The four tables of one event."""
        rng = self._settings.stream(event_id, "particles")
        n = number_of_tracks(self._settings, rng)
        pt, phi, charge = rng.uniform(*PT_GEV, n), rng.uniform(-np.pi, np.pi, n), rng.choice([-1, 1], n)
        x, y = rng.normal(0.0, VERTEX_MM, (2, n))
        particles = {"vx": x, "vy": y, "vz": np.zeros(n), "q": charge}
        particles |= {"px": pt * np.cos(phi), "py": pt * np.sin(phi), "pz": np.zeros(n)}
        # A positive charge turns clockwise in a field along +z.
        radius = -charge * pt / (GEV_PER_T_MM * self._settings.field_t)
        zero = np.zeros(n)
        ways = Helices(x, y, zero, phi, radius, cot=zero, pt=pt)
        return pixel_tables(particles, joined(*_layers(ways, self._settings.stream(event_id, "passage"))))


def _layers(ways: Helices, rng: np.random.Generator) -> list[Pixels]:
    """The cells of each layer, from the inner to the outer."""
    every, found = np.arange(len(ways.x)), []
    flies = np.ones(len(every), dtype=bool)
    for layer, r in enumerate(RADII_MM):
        arc = arc_to_radius(ways, r)
        flies &= np.isfinite(arc)
        here, direction = ways.at(every, np.where(flies, arc, 0.0))
        seen = every[flies & (rng.random(len(every)) >= LOST)]
        cells = CELLS[layer]
        number = (
            np.floor((np.arctan2(here[seen, 1], here[seen, 0]) / (2 * np.pi) + 0.5) * cells).astype(np.int64) % cells
        )
        centre = ((number + 0.5) / cells - 0.5) * 2 * np.pi
        position = r * np.stack([np.cos(centre), np.sin(centre), np.zeros(len(seen))], axis=1)
        momentum = direction[seen] * ways.pt[seen, None]
        found.append(Pixels(np.full(len(seen), layer), number, seen, position, truth=here[seen], momentum=momentum))
        flies &= rng.random(len(every)) >= STOPPED
        turned = np.arctan2(direction[:, 1], direction[:, 0]) + rng.normal(size=len(every)) * SCATTERING_GEV / ways.pt
        ways = Helices(here[:, 0], here[:, 1], ways.z, turned, ways.radius, cot=ways.cot, pt=ways.pt)
    return found
