"""Protons through water, trackers and calorimeter: energy loss, scattering, absorption. All of a frame at once.

Range and energy: R = a E^p (Bragg and Kleeman, in water). Scattering: Highland's formula with 14.1 MeV, for both
planes, with the displacement that goes with the angle. A proton that is absorbed in the detector starts, half the time,
one secondary at its last hit. Checked against the sizes of the graphs in T. Kortus et al., arXiv:2407.13420.

Legend: N protons, K planes, H hits. Units: mm, MeV, rad.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.simulation.telescope.planes import (
    HALF_X,
    HALF_Y,
    LAYER_SLAB,
    N_PLANES,
    N_TRACKERS,
    SENSITIVE_UM,
    TRACKER_SLAB,
    Slab,
    phantom,
    plane_z,
)

PROTON_MEV = 938.272
BEAM_MEV = 230.0
A_MM, P = 0.0262, 1.736  # R = A E^P: mm of water
STRAGGLING_MM = 3.15  # sigma of the range at BEAM_MEV
BEAM_Z, BEAM_MM, BEAM_RAD = -500.0, 3.5, 2e-3  # where protons begin; sigma of the spot and of the divergence
ABSORBED_PER_MM = 0.01 / 10  # nuclear interactions, of water
STEP_MM = 10.0  # of water at a time
LEAST_MEV, MOST_RAD = 3.0, 0.6  # bounds of Highland's formula
SILICON = 1.8  # energy loss in silicon over that in as long a way of water
SMEAR, SMEAR_RANGE = 0.18, (0.4, 3.0)  # relative, of the deposit
MOST_KEV_UM = 12.0
SECONDARY, SECONDARY_LAYERS, SECONDARY_SLOPE = 0.5, 4.0, 0.35  # how often, how far on average, in which directions
SECONDARY_MEV = (0.02, 0.2)  # its deposits


@dataclass(frozen=True)
class Hits:
    """Deposits [H] in the planes; `proton` is the primary that each goes back to, `primary` whether it is its own."""

    proton: np.ndarray  # int64
    plane: np.ndarray  # int64
    position: np.ndarray  # [H, 2] mm
    slope: np.ndarray  # [H, 2] dx/dz, dy/dz
    energy: np.ndarray  # MeV, kinetic
    deposit: np.ndarray  # MeV
    primary: np.ndarray  # bool

    def take(self, rows: np.ndarray) -> Hits:
        """The chosen rows, a mask or indices."""
        return Hits(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def energy_at(left_mm: np.ndarray) -> np.ndarray:
    """Kinetic energy, MeV, of protons with so much range left, mm of water; 0 without."""
    return (np.maximum(left_mm, 0.0) / A_MM) ** (1 / P)


def deposit(energy: np.ndarray) -> np.ndarray:
    """Mean deposit in a pixel plane, MeV, before its bound."""
    return SILICON * energy ** (1 - P) / (P * A_MM) * SENSITIVE_UM / 1000


class Beam:
    """N protons on their way: range left [N] mm of water, place and slopes [N, 2], and who is still there [N]."""

    def __init__(self, n: int, rng: np.random.Generator) -> None:
        self.rng = rng
        self.left = A_MM * BEAM_MEV**P + STRAGGLING_MM * rng.normal(size=n)
        self.place = BEAM_MM * rng.normal(size=(n, 2))
        self.slope = BEAM_RAD * rng.normal(size=(n, 2))
        self.start, self.start_slope = self.place.copy(), self.slope.copy()
        self.there = np.ones(n, dtype=bool)
        self.absorbed = np.zeros(n, dtype=bool)

    def drift(self, length: float) -> None:
        """Straight on through nothing."""
        self.place += self.slope * length

    def cross(self, slab: Slab) -> None:
        """Through material, in steps; who stops or is absorbed is not there afterwards."""
        n = len(self.left)
        steps = int(np.ceil(slab.water_mm / STEP_MM))
        water, length = slab.water_mm / steps, slab.length_mm / steps
        root = np.sqrt(slab.matter_mm / steps / slab.x0_mm)
        whole = 1 + np.log10(slab.matter_mm / slab.x0_mm) / 9  # the logarithm is that of all of the slab
        for _ in range(steps):
            energy = np.maximum(energy_at(self.left - water / 2), LEAST_MEV)
            tau = energy / PROTON_MEV
            pv = energy * (tau + 2) / (tau + 1)
            sigma = np.minimum(14.1 / pv * root * whole, MOST_RAD)[:, None]
            z1, z2 = self.rng.normal(size=(2, n, 2))
            self.place += self.slope * length + sigma * length * (z1 / np.sqrt(12) + z2 / 2)
            self.slope += sigma * z2
            self.left -= water
        lost = self.there & (self.rng.random(n) < 1 - np.exp(-ABSORBED_PER_MM * slab.water_mm))
        self.absorbed |= lost
        self.there &= ~lost & (self.left > 0)


def shoot(n: int, phantom_mm: float, rng: np.random.Generator) -> tuple[Beam, Hits]:
    """`n` protons through the phantom, and what they and their secondaries leave in the planes, plane by plane."""
    beam = Beam(n, rng)
    beam.drift(-phantom_mm / 2 - BEAM_Z)
    beam.cross(phantom(phantom_mm))
    z, at = plane_z(), phantom_mm / 2
    in_phantom = beam.absorbed.copy()
    last = np.full(n, -1)  # each proton's last plane
    found: list[Hits] = []
    for plane in range(N_PLANES):
        slab = TRACKER_SLAB if plane < N_TRACKERS else LAYER_SLAB
        before = 0.0 if plane < N_TRACKERS else slab.length_mm  # a calorimeter plane measures behind its absorber
        beam.drift(z[plane] - before - at)
        if plane >= N_TRACKERS:
            beam.cross(slab)
        beam.there &= inside(beam.place)
        row = np.flatnonzero(beam.there)
        found.append(_hits(beam, row, plane, rng))
        last[row] = plane
        at = z[plane]
        if plane < N_TRACKERS:
            beam.cross(slab)
            at += slab.length_mm
    hits = joined(found)
    return beam, joined([hits, secondaries(hits, beam.absorbed & ~in_phantom, last, rng)])


def inside(place: np.ndarray) -> np.ndarray:
    """Which places [N, 2] are on the planes."""
    return (np.abs(place[:, 0]) <= HALF_X) & (np.abs(place[:, 1]) <= HALF_Y)


def _hits(beam: Beam, row: np.ndarray, plane: int, rng: np.random.Generator) -> Hits:
    energy = np.maximum(energy_at(beam.left[row]), 1e-3)
    smeared = deposit(energy) * np.clip(1 + SMEAR * rng.normal(size=len(row)), *SMEAR_RANGE)
    seen = np.minimum(smeared, MOST_KEV_UM * SENSITIVE_UM / 1000)
    return Hits(
        proton=row,
        plane=np.full(len(row), plane),
        position=beam.place[row],
        slope=beam.slope[row],
        energy=energy,
        deposit=seen,
        primary=np.ones(len(row), dtype=bool),
    )


def secondaries(hits: Hits, absorbed: np.ndarray, last: np.ndarray, rng: np.random.Generator) -> Hits:
    """Hits of what half of the `absorbed` protons [N] start at their last hit, in the `last` plane of each."""
    mother = np.flatnonzero(absorbed & (last >= 0))
    mother = mother[rng.random(len(mother)) < SECONDARY]
    planes = rng.geometric(1 / SECONDARY_LAYERS, len(mother))
    slope = SECONDARY_SLOPE * rng.normal(size=(len(mother), 2))
    order = np.lexsort((hits.plane, hits.proton))
    end = np.searchsorted(hits.proton[order], mother, side="right") - 1
    start = hits.position[order[end]] if len(mother) else np.zeros((0, 2))
    number = np.repeat(np.arange(len(mother)), planes)
    plane = last[mother][number] + 1 + np.arange(len(number)) - np.repeat(np.cumsum(planes) - planes, planes)
    seen = rng.uniform(*SECONDARY_MEV, len(number))
    there = plane < N_PLANES
    number, plane, seen = number[there], plane[there], seen[there]
    z = plane_z()
    position = start[number] + slope[number] * (z[plane] - z[last[mother][number]])[:, None]
    energy = (seen / deposit(np.ones(1))) ** (1 / (1 - P))  # at which a proton leaves so much
    found = Hits(
        proton=mother[number],
        plane=plane,
        position=position,
        slope=slope[number],
        energy=energy,
        deposit=seen,
        primary=np.zeros(len(number), dtype=bool),
    )
    return found.take(inside(position))


def joined(parts: list[Hits]) -> Hits:
    """One behind the other."""
    return Hits(*(np.concatenate([getattr(part, name) for part in parts]) for name in Hits.__dataclass_fields__))
