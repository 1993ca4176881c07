"""Source `telescope`: frames of protons in TrackML's tables.

What the tables say here: a particle is a primary proton, and the hits of its secondaries carry its id; a hit's cells
are the pixels of its cluster, and sum up to the energy that it left (MeV); the hits of secondaries weigh nothing, those
of primaries all the same. There is no magnetic field, no noise and no inefficiency.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hpctrack.simulation import MeasuringSource
from hpctrack.simulation.event import Cells, Crossings, Measurements
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.settings import Settings
from hpctrack.simulation.telescope import planes
from hpctrack.simulation.telescope.protons import (
    BEAM_MEV,
    BEAM_Z,
    PROTON_MEV,
    Beam,
    Hits,
    joined,
    shoot,
)

MORE = 1.5  # protons at a time, over those wanted: some never reach the planes
LEAST_PIXELS = 2  # smaller clusters are not kept
PROTON = 2212  # PDG code


class TelescopeSource(MeasuringSource):
    """Frames of `protons` primaries that leave a hit, behind `phantom_mm` of water."""

    OPTIONS: ClassVar = ("protons", "phantom_mm")
    UNUSED: ClassVar = ("pt_min_gev", "eta_max", "field_t", "digitization", "efficiency", "noise")
    PACKAGES: ClassVar = ()

    def __init__(self, settings: Settings, geometry: Geometry) -> None:
        self._settings, self._geometry = settings, geometry

    @staticmethod
    def detector() -> Geometry:
        """The planes."""
        return planes.geometry()

    def measure(self, event_id: int) -> tuple[dict[str, np.ndarray], Measurements, np.ndarray]:
        """Particles, measured hits of one frame, and which hits weigh, bool [H]."""
        rng = self._settings.stream(event_id, "particles")
        particles, hits = frame(self._settings.protons, self._settings.phantom_mm, rng)
        z = planes.plane_z()[hits.plane]
        momentum = momenta(hits.energy, hits.slope)
        position = np.concatenate([hits.position, z[:, None]], axis=1)
        truth = Crossings(hits.plane, 1 + hits.proton, position, momentum)
        return particles, Measurements(truth, position, cells(hits, self._geometry)), hits.primary


def frame(n: int, phantom_mm: float, rng: np.random.Generator) -> tuple[dict[str, np.ndarray], Hits]:
    """The first `n` protons that leave a hit, numbered from 0, and all hits that are kept."""
    beams: list[Beam] = []
    parts: list[Hits] = []
    seen = np.zeros(0, np.int64)  # numbers of the protons with a hit, over all beams
    shot = 0
    while len(seen) < n:
        beam, hits = shoot(int(MORE * n) + 10, phantom_mm, rng)
        hits = hits.take(cluster_size(hits.deposit) >= LEAST_PIXELS)
        seen = np.concatenate([seen, shot + np.unique(hits.proton)])
        parts.append(Hits(**(vars(hits) | {"proton": hits.proton + shot})))
        beams.append(beam)
        shot += len(beam.left)
    chosen, hits = seen[:n], joined(parts)
    hits = hits.take(hits.proton <= chosen[-1])
    hits = Hits(**(vars(hits) | {"proton": np.searchsorted(chosen, hits.proton)}))
    occupied = np.bincount(hits.plane, minlength=planes.N_PLANES) > 0
    hits = hits.take(hits.plane < np.append(np.flatnonzero(~occupied), planes.N_PLANES)[0])  # up to an empty plane
    start, slope = (np.concatenate([getattr(b, name) for b in beams])[chosen] for name in ("start", "start_slope"))
    px, py, pz = momenta(np.full(n, BEAM_MEV), slope).T
    return {
        "particle_id": 1 + np.arange(n),
        "particle_type": np.full(n, PROTON),
        **{"vx": start[:, 0], "vy": start[:, 1], "vz": np.full(n, BEAM_Z)},
        **{"px": px, "py": py, "pz": pz},
        "q": np.ones(n, np.int64),
    }, hits


def momenta(energy: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """[H, 3] GeV, of protons of this kinetic energy (MeV) along (dx/dz, dy/dz, 1)."""
    p = np.sqrt(energy * (energy + 2 * PROTON_MEV)) / 1000
    along = np.concatenate([slope, np.ones((len(slope), 1))], axis=1)
    return along * (p / np.linalg.norm(along, axis=1))[:, None]


def cluster_size(deposit_mev: np.ndarray) -> np.ndarray:
    """Pixels that fire, int64: 4.23 (keV / um of silicon)^0.65, rounded, as in the DTC Toolkit (H. Pettersen)."""
    return np.floor(4.2267 * (1000 * deposit_mev / planes.SENSITIVE_UM) ** 0.65 + 0.5).astype(np.int64)


def cells(hits: Hits, geometry: Geometry) -> Cells:
    """The pixels of each hit, a compact cluster about its place, each with the same share of the deposit (MeV)."""
    counts = cluster_size(hits.deposit)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    hit = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(offsets[-1]) - offsets[:-1][hit]
    side = np.ceil(np.sqrt(counts)).astype(np.int64)
    corner = (hits.position + geometry.half[hits.plane]) / geometry.pitch[hits.plane] - (side / 2)[:, None]
    corner = np.clip(np.rint(corner), 0, geometry.n_channels[hits.plane] - side[:, None]).astype(np.int64)
    ch0, ch1 = corner[hit, 0] + number % side[hit], corner[hit, 1] + number // side[hit]
    return Cells(offsets, ch0, ch1, (hits.deposit / counts)[hit])
