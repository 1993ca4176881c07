"""What hadrons do in matter and in flight: collisions with nuclei and decays, both from Pythia 8.

A collision with a nucleus is a series of collisions with its nucleons, as T. Sjostrand and M. Utheim, "Hadron
interactions for arbitrary energies and species, with applications to cosmic rays" (arXiv:2108.03481) describe and
Pythia's own PythiaCascade does: the fastest hadron along the beam goes on to the next nucleon. Nuclear break-up below
the cut in pT is left out. Units: mm, GeV, mb.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from hpctrack.simulation.pythia import FLYING, MAX_SEED, set_up

Row = tuple[float, ...]  # pdg, q, m, px, py, pz of a particle

PROTON, NEUTRON = 2212, 2112
NUCLEON_GEV = 0.93892
# What lives long enough to meet material: c tau in mm, from the tables of Pythia itself. Muons outlive the detector.
LONG_LIVED = (211, 321, 130, 310, 3122, 3112, 3222, 3312, 3322, 3334)
COLLIDE = (*LONG_LIVED, PROTON, NEUTRON)
INVISIBLE = (12, 14, 16)
FERMI_GEV = 0.25  # a bound nucleon cannot take a smaller momentum: the states are taken (Pauli)
FORMED_GEV = (
    1.0  # slower products come into being within the nucleus (1 fm / c in their own frame), and may collide there
)
SURVIVES = 0.9  # a projectile that keeps this share of its momentum is scattered, not ended
MIN_KINETIC_GEV = 0.05  # slower hadrons stop within the same material
# Average number of nucleons that a hadron hits in a nucleus, as a function of the cross section on one, in mb:
# 1 + min(low x sigma, offset + slope x sigma) (A): PythiaCascade's table of 8.316. A nucleus between scales as A^(2/3).
_HIT = {9: (0.0174, 0.2036, 0.0107), 27: (0.0340, 0.3190, 0.0243)}
_LEAST_GEV, _FIRST_STEP = 1e-3, -1000
_BINS_PER_E = 6  # cross sections are looked up in steps of momentum: 18 %
_COLLISION = (
    "Beams:frameType = 3",
    "Beams:allowVariableEnergy = on",
    "Beams:pzA = 7000.",
    "LowEnergyQCD:all = on",
    "SoftQCD:elastic = on",  # never picked below eMinPert; without it the beams cannot be exchanged
    "Beams:eMinPert = 200.",  # all energies that occur: strings alone, which take no setting up
    "PartonLevel:MPI = off",
    *FLYING,
    "Check:epTolErr = 0.01",
)
_DECAY = ("ProcessLevel:all = off", *(f"{pdg}:mayDecay = off" for pdg in LONG_LIVED))


class Collider:
    """Collisions of hadrons with nuclei at rest."""

    def __init__(self) -> None:
        self._on = {pdg: set_up((*_COLLISION, f"Beams:idB = {pdg}")) for pdg in (PROTON, NEUTRON)}
        self._sigma: dict[tuple[int, int], float] = {}
        self.rng = np.random.default_rng(0)

    def seed(self, rng: np.random.Generator) -> None:
        """Draw all that follows from this stream."""
        self.rng = rng
        for each in self._on.values():
            each.rndm.init(int(rng.integers(1, MAX_SEED)))

    def sigma_nucleon(self, pdg: np.ndarray, p: np.ndarray) -> np.ndarray:
        """[n] mb: total cross section of hadrons with momenta `p` on a proton and a neutron, averaged."""
        step = np.rint(np.log(np.maximum(p, _LEAST_GEV)) * _BINS_PER_E).astype(np.int64)
        keys, inverse = np.unique((pdg << 16) + step - _FIRST_STEP, return_inverse=True)
        known = [self._sigma_of(key >> 16, (key & 0xFFFF) + _FIRST_STEP) for key in keys.tolist()]
        return np.array(known, float)[inverse]

    def _sigma_of(self, pdg: int, step: int) -> float:
        if (pdg, step) not in self._sigma:
            on = self._on[PROTON]
            mass, p = on.particleData.m0(pdg), math.exp(step / _BINS_PER_E)
            e_cm = math.sqrt(mass**2 + NUCLEON_GEV**2 + 2 * NUCLEON_GEV * math.hypot(mass, p))
            self._sigma[pdg, step] = sum(on.getSigmaTotal(pdg, target, e_cm) for target in self._on) / 2
        return self._sigma[pdg, step]

    def collide(self, row: Row, z: int, a: int) -> list[Row] | None:
        """Particles from a hadron on a nucleus of `z` protons and `a` nucleons, short-lived ones decayed.

        None if there was no collision after all: the nucleons could not take the momentum.
        """
        direction = np.array(row[3:6]) / np.linalg.norm(row[3:6])
        nucleons = {PROTON: z, NEUTRON: a - z}
        more = self._more(row, a)
        inside, out, hit = [(row, True)], [], False
        while inside:
            hadron, leads = inside.pop()
            goes_on = not hit or self.rng.random() < (more if leads else self._more(hadron, a))
            left = sum(nucleons.values())
            products = None
            if goes_on and left and _kinetic(hadron) > MIN_KINETIC_GEV:
                target = PROTON if self.rng.random() * left < nucleons[PROTON] else NEUTRON
                products = self._on_nucleon(hadron, target)
            if products is None:
                out.append(hadron)
                continue
            hit = True
            nucleons[target] -= 1
            fastest = max(products, key=lambda p: float(direction @ p[3:6]))
            for product in products:
                again = abs(int(product[0])) in COLLIDE
                if again and ((leads and product is fastest) or _momentum(product) < FORMED_GEV):
                    inside.append((product, leads and product is fastest))
                else:
                    out.append(product)
        return out if hit else None

    def _more(self, row: Row, a: int) -> float:
        """Probability that a hadron which has hit a nucleon hits another one of the same nucleus."""
        step = round(math.log(max(_momentum(row), _LEAST_GEV)) * _BINS_PER_E)
        return float(1 - 1 / mean_hits(self._sigma_of(int(row[0]), step), a))

    def _on_nucleon(self, row: Row, target: int) -> list[Row] | None:
        """Particles of one collision with a nucleon at rest; None if there can be none, or Pauli forbids it."""
        on = self._on[target]
        if not (on.setBeamIDs(int(row[0]), target) and on.setKinematics(*row[3:6], 0.0, 0.0, 0.0) and on.next()):
            return None
        found = list(_final(on))
        if len(found) == 2 and any(p[0] in self._on and _momentum(p) < FERMI_GEV for p in found):
            return None
        return found


def mean_hits(sigma: float | np.ndarray, a: int) -> Any:
    """Average number of nucleons that a hadron of cross section `sigma` (mb) on one of them hits in a nucleus."""
    nearest = min(_HIT, key=lambda known: abs(known - a))
    low, offset, slope = _HIT[nearest]
    return 1 + (a / nearest) ** (2 / 3) * np.minimum(low * sigma, offset + slope * sigma)


def sigma_nucleus(sigma: float | np.ndarray, a: int) -> Any:
    """mb: cross section on a nucleus, of a hadron with `sigma` mb on a nucleon."""
    return a * sigma / mean_hits(sigma, a)


def without_survivor(row: Row, products: list[Row]) -> list[Row] | None:
    """The products less the projectile, where it comes out (nearly) as it was; None if it does not."""
    direction = np.array(row[3:6]) / _momentum(row)
    same = [p for p in products if p[0] == row[0] and float(direction @ p[3:6]) > SURVIVES * _momentum(row)]
    if not same:
        return None
    survivor = max(same, key=_momentum)
    return [p for p in products if p is not survivor]


class Decayer:
    """Decays of LONG_LIVED particles, with the branching ratios and matrix elements of Pythia."""

    def __init__(self) -> None:
        self._decays = set_up(_DECAY)
        self._tau = {pdg: self._decays.particleData.tau0(pdg) for pdg in LONG_LIVED}

    def seed(self, rng: np.random.Generator) -> None:
        """Draw all that follows from this stream."""
        self._decays.rndm.init(int(rng.integers(1, MAX_SEED)))

    def c_tau(self, pdg: np.ndarray) -> np.ndarray:
        """[n] mm: mean lives; infinite for what is not LONG_LIVED."""
        return np.array([self._tau.get(abs(int(each)), np.inf) for each in pdg], float).reshape(len(pdg))

    def decay(self, row: Row) -> list[Row]:
        """The products, those that live long not decayed in turn."""
        pdg, _, m, px, py, pz = row
        event, data = self._decays.event, self._decays.particleData
        event.reset()
        event.append(int(pdg), 1, 0, 0, px, py, pz, math.hypot(px, py, pz, m), m)
        data.mayDecay(abs(int(pdg)), True)
        done = self._decays.next()
        data.mayDecay(abs(int(pdg)), False)
        if not done:
            raise RuntimeError(f"Pythia could not let a particle of type {int(pdg)} decay")
        return list(_final(self._decays))


def _final(source: Any) -> Iterator[Row]:
    for p in source.event:
        if p.isFinal() and p.idAbs() not in INVISIBLE:
            yield (p.id(), p.charge(), p.m(), p.px(), p.py(), p.pz())


def _momentum(row: Row) -> float:
    return math.hypot(*row[3:6])


def _kinetic(row: Row) -> float:
    return math.hypot(*row[2:6]) - row[2]
