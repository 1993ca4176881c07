"""What determines simulated events: the settings, their bounds and the random streams drawn from them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from hpctrack.errors import InputError
from hpctrack.process.arguments import SEED_END
from hpctrack.simulation.digitization import METHODS

HARD_PROCESSES = ("none", "ttbar", "dijet", "zmumu")
PILEUP = ("poisson", "fixed")
MAX_VERTICES = 2000  # 11 bits of particle_id
MAX_EVENT_ID = 999_999_999  # nine digits in a file's name


# Settings that data sets of 0.1.0 do not record, with the values that held then.
ADDED = {"photon_pt_min_gev": 0.0, "decays": False, "interactions": 0.0}
# What `--preset` sets: `trackml` makes events of the challenge's kind; docs/explanation/simulation.md says why so.
PRESETS: dict[str, dict[str, object]] = {
    "trackml": {
        "source": "acts",
        "mu": 165.0,
        "hard_process": "ttbar",
        "photons": True,
        "photon_pt_min_gev": 3.0,
        "decays": True,
        "interactions": 1.8,
        "pt_min_gev": 0.15,
        "eta_max": 4.0,
        "field_t": 2.0,
        "digitization": "geometric",
        "efficiency": 0.98,
        "noise": 0.15,
    }
}


@dataclass(frozen=True)
class Settings:
    """All that event k of a data set depends on, besides k; units as the names say."""

    source: str = "acts"
    seed: int = 1
    mu: float = 200.0  # acts: mean number of pile-up collisions
    pileup: str = "poisson"  # acts: how their number varies
    hard_process: str = "none"  # acts
    photons: bool = False  # acts: let photons convert
    photon_pt_min_gev: float = 0.0  # acts: softer photons do not convert
    decays: bool = False  # acts: decays in flight
    interactions: float = 0.0  # acts: hadronic ones, for this many times the detector's material; 0: none
    particles: float = 1000.0  # helix: mean number of charged particles
    pt_min_gev: float = 0.15
    eta_max: float = 4.0
    field_t: float = 2.0
    digitization: str = "geometric"
    efficiency: float = 0.98
    noise: float = 0.15
    gzip: bool = False

    @property
    def through_matter(self) -> bool:
        """Whether hadrons decay or interact on their way."""
        return self.decays or self.interactions > 0

    def check(self) -> Settings:
        """Itself; InputError that names the first option out of bounds."""
        for name in ("mu", "particles", "pt_min_gev", "eta_max", "field_t", "efficiency", "noise", *ADDED):
            if not math.isfinite(getattr(self, name)):
                raise InputError(f"{option(name)} {getattr(self, name)}: must be a finite number")
        bounds = {
            "seed": (0 <= self.seed < SEED_END, "must be a whole number from 0 to 2^64 - 1"),
            "mu": (0 <= self.mu <= MAX_VERTICES / 2, f"must be between 0 and {MAX_VERTICES // 2}"),
            "particles": (0 < self.particles <= 1e5, "must be above 0 and at most 100000"),
            "pt_min_gev": (0 < self.pt_min_gev < 10, "must be above 0 and below 10 GeV"),
            "eta_max": (0 < self.eta_max <= 6, "must be above 0 and at most 6"),
            "field_t": (0.1 <= abs(self.field_t) <= 10, "must be between 0.1 and 10 T (or -10 and -0.1)"),
            "efficiency": (0 < self.efficiency <= 1, "must be above 0 and at most 1"),
            "noise": (0 <= self.noise <= 0.9, "must be between 0 and 0.9 (share of all hits)"),
            "photon_pt_min_gev": (0 <= self.photon_pt_min_gev <= 100, "must be between 0 and 100 GeV"),
            "interactions": (0 <= self.interactions <= 10, "must be between 0 and 10 (times the material)"),
            "pileup": (self.pileup in PILEUP, f"must be one of {', '.join(PILEUP)}"),
            "hard_process": (self.hard_process in HARD_PROCESSES, f"must be one of {', '.join(HARD_PROCESSES)}"),
            "digitization": (self.digitization in METHODS, f"must be one of {', '.join(METHODS)}"),
        }
        for name, (good, right) in bounds.items():
            if not good:
                raise InputError(f"{option(name)} {getattr(self, name)}: {right}")
        if self.source == "acts" and self.mu == 0 and self.hard_process == "none":
            raise InputError("--mu 0 with --hard-process none leaves nothing to simulate: give one of them")
        return self

    def stream(self, event_id: int, purpose: str) -> np.random.Generator:
        """The random numbers of one purpose in one event: independent of all others, of --jobs and of restarts."""
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(event_id, PURPOSES.index(purpose))))

    def as_dict(self) -> dict:
        """Settings as plain values."""
        return dataclasses.asdict(self)


PURPOSES = ("particles", "passage", "digitization", "noise", "order", "matter")


def option(name: str) -> str:
    """Command-line option of a setting."""
    return "--" + name.removesuffix("_t").replace("_", "-")
