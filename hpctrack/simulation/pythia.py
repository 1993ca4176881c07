"""Proton collisions from Pythia 8: pile-up (soft inelastic) and an optional hard process, on TrackML's beam spot."""

from __future__ import annotations

from typing import Any

import numpy as np

from hpctrack.errors import MachineError
from hpctrack.simulation.settings import MAX_VERTICES, Settings

BEAM_SPOT_MM = (0.0125, 0.0125, 5.5)  # sigma of x, y, z; TrackML's
CM_ENERGY_GEV = 14000.0
# Beyond these nothing can be measured; ACTS' world ends a little further out.
MAX_RADIUS_MM, MAX_Z_MM = 1020.0, 2950.0
PROMPT_MM = 1e-3  # born closer to the collision than this counts as primary

_PILEUP = ("SoftQCD:inelastic = on",)
_HARD = {
    "ttbar": ("Top:gg2ttbar = on", "Top:qqbar2ttbar = on"),
    "dijet": ("HardQCD:all = on", "PhaseSpace:pTHatMin = 50."),
    "zmumu": ("WeakSingleBoson:ffbar2gmZ = on", "PhaseSpace:mHatMin = 60.", "23:onMode = off", "23:onIfAny = 13"),
}
# The set-up itself draws random numbers, so it always has this seed; each event then has its own.
_SETUP = ("Print:quiet = on", f"Beams:eCM = {CM_ENERGY_GEV}", "Random:setSeed = on", "Random:seed = 1")
MAX_SEED = 900_000_000

# With matter, what flies a millimetre or more is handed over whole, and decays or collides there.
FLYING = ("ParticleDecays:limitTau0 = on", "ParticleDecays:tau0Max = 1.")
PHOTON = 22
_VISIBLE = (2112, 130, 310, 3122, 3322)  # neutral hadrons

Generator = Any  # a pythia8mc.Pythia; that package has no types
COLUMNS = ("vertex", "secondary", "particle", "pdg", "q", "m", "vx", "vy", "vz", "vt", "px", "py", "pz")


class Collisions:
    """Generates the final-state particles of whole events; takes some seconds to set up."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        through = settings.through_matter
        flying = FLYING if through else ()
        self._hard = set_up((*_HARD[settings.hard_process], *flying)) if settings.hard_process != "none" else None
        self._pileup = set_up((*_PILEUP, *flying)) if settings.mu > 0 else None
        self._wanted = (set(_VISIBLE) if through else set()) | ({PHOTON} if settings.photons else set())

    def event(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """One event's charged particles (and neutral ones if they are wanted), as columns COLUMNS; mm, GeV.

        Collisions are numbered from 1 (the hard one first) in `vertex`; `secondary` numbers a collision's displaced
        decay vertices from 1, 0 is the collision itself.
        """
        n_pileup = self._settings.mu
        n_pileup = rng.poisson(n_pileup) if self._settings.pileup == "poisson" else round(n_pileup)
        sequence = ([self._hard] if self._hard else []) + [self._pileup] * min(n_pileup, MAX_VERTICES)
        for generator in {id(g): g for g in sequence}.values():
            generator.rndm.init(int(rng.integers(1, MAX_SEED)))
        spots = rng.normal(size=(len(sequence), 3)) * BEAM_SPOT_MM
        parts = [self._collision(g, i, spot) for i, (g, spot) in enumerate(zip(sequence, spots, strict=True), start=1)]
        table = np.concatenate(parts) if parts else np.zeros((0, len(COLUMNS)))
        columns = dict(zip(COLUMNS, table.T, strict=True))
        whole = ("vertex", "secondary", "particle", "pdg", "q")
        return {name: values.astype(np.int64) if name in whole else values for name, values in columns.items()}

    def _collision(self, generator: object, number: int, spot: np.ndarray) -> np.ndarray:
        """[particles, columns] of one collision."""
        final = _next(generator, self._wanted)
        pt = np.hypot(final[:, 7], final[:, 8])
        born = final[:, 3:6] + spot
        inside = (np.hypot(born[:, 0], born[:, 1]) < MAX_RADIUS_MM) & (np.abs(born[:, 2]) < MAX_Z_MM)
        with np.errstate(divide="ignore"):
            eta = np.abs(np.arcsinh(final[:, 9] / pt))
        keep = inside & (pt >= self._settings.pt_min_gev) & (eta <= self._settings.eta_max)
        keep &= (final[:, 0] != PHOTON) | (pt >= self._settings.photon_pt_min_gev)
        final, born = final[keep], born[keep]
        displaced = np.linalg.norm(final[:, 3:6], axis=1) > PROMPT_MM
        secondary = np.zeros(len(final))
        if displaced.any():
            _, place = np.unique(final[displaced, 3:6].round(6), axis=0, return_inverse=True)
            secondary[displaced] = 1 + place.ravel()
        numbers = [np.full(len(final), number), secondary, np.arange(1, len(final) + 1)]
        return np.column_stack([*numbers, final[:, :3], born, final[:, 6:]])


def set_up(process: tuple[str, ...]) -> Generator:
    """A Pythia with these settings, ready and silent; MachineError if it does not know or take one of them."""
    import pythia8mc

    generator = pythia8mc.Pythia("", False)
    for line in (*_SETUP, *process):
        if not generator.readString(line):
            raise MachineError(f"pythia8mc does not know the setting '{line}': another version of it is needed")
    if not generator.init():
        raise MachineError(f"pythia8mc could not be set up for {', '.join(process)}")
    return generator


def _next(generator: Generator, neutral: set[int]) -> np.ndarray:
    """[particles, 10]: pdg, q, m, x, y, z, t, px, py, pz of the next collision's final state."""
    for _ in range(100):
        if generator.next():
            rows = [
                (p.id(), p.charge(), p.m(), p.xProd(), p.yProd(), p.zProd(), p.tProd(), p.px(), p.py(), p.pz())
                for p in generator.event
                if p.isFinal() and (p.isCharged() or p.idAbs() in neutral)
            ]
            return np.array(rows, float).reshape(-1, 10)
    raise MachineError("pythia8mc failed to make a collision 100 times in a row")
