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
NUMBERS = ("poisson", "fixed", "uniform")
MAX_VERTICES = 2000  # 11 bits of particle_id
MAX_EVENT_ID = 999_999_999  # nine digits in a file's name


# Settings that data sets of 0.1.0 do not record, with the values that held then.
ADDED = {"photon_pt_min_gev": 0.0, "decays": False, "interactions": 0.0}
# Settings of the toy sources: recorded of these alone, so that other data sets have the records that they had before.
OF_TOYS = (
    *("planes", "pixels", "axes", "windows", "signal", "seed_planes", "tracks", "tracks_number", "tracks_max"),
    *("pixel_noise", "sagitta"),
)
OF_TELESCOPE = ("protons", "phantom_mm")  # likewise
TOYS = ("planes", "cylinders")
_REAL = ("tracks", "pixel_noise", "sagitta")
_PLANES = {"source": "planes", "tracks_number": "poisson", "signal": True}
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
    },
    # The toys of HEP.TrkX (docs/explanation/planes.md): noise, or background tracks; and its challenge "ramp".
    "planes-2d": {
        **_PLANES,
        "planes": 50,
        "pixels": 50,
        "axes": 1,
        "seed_planes": 5,
        "tracks": 0.0,
        "pixel_noise": 0.2,
    },
    "planes-3d": {
        **_PLANES,
        "planes": 10,
        "pixels": 32,
        "axes": 2,
        "seed_planes": 3,
        "tracks": 3.0,
        "pixel_noise": 0.01,
    },
    "cylinders": {"source": "cylinders", "tracks": 10.0, "tracks_number": "poisson", "field_t": 1.0},
    **{f"proton-ct-{mm}": {"source": "telescope", "phantom_mm": float(mm)} for mm in (100, 150, 200)},
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
    protons: int = 100  # telescope: primaries of a frame
    phantom_mm: float = 150.0  # telescope: water in front of it
    pt_min_gev: float = 0.15
    eta_max: float = 4.0
    field_t: float = 2.0
    digitization: str = "geometric"
    efficiency: float = 0.98
    noise: float = 0.15
    gzip: bool = False
    planes: int = 10  # planes: how many
    pixels: int = 32  # planes: along each axis of a plane; one is 1 mm
    axes: int = 2  # planes: 1, a plane is a line of pixels; 2, a square
    windows: bool = False  # planes: the first are narrow
    signal: bool = True  # planes: one track more, alone in the seed planes
    seed_planes: int = 3  # planes: the first, without background and noise
    tracks: float = 3.0  # planes, cylinders: mean number of (background) tracks, or the number
    tracks_number: str = "poisson"  # planes, cylinders: how it varies
    tracks_max: int = 0  # planes, cylinders: never more; 0: no bound
    pixel_noise: float = 0.01  # planes: probability of a pixel
    sagitta: float = 0.0  # planes: largest, in pixels; 0: straight tracks

    @property
    def through_matter(self) -> bool:
        """Whether hadrons decay or interact on their way."""
        return self.decays or self.interactions > 0

    def check(self) -> Settings:
        """Itself; InputError that names the first option out of bounds."""
        for name in (
            "mu",
            "particles",
            "pt_min_gev",
            "eta_max",
            "field_t",
            "efficiency",
            "noise",
            "phantom_mm",
            *ADDED,
            *_REAL,
        ):
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
            "protons": (1 <= self.protons <= 10_000, "must be between 1 and 10000 a frame"),
            "phantom_mm": (0 < self.phantom_mm <= 300, "must be above 0 and at most 300 mm; protons stop in more"),
            "pileup": (self.pileup in PILEUP, f"must be one of {', '.join(PILEUP)}"),
            "hard_process": (self.hard_process in HARD_PROCESSES, f"must be one of {', '.join(HARD_PROCESSES)}"),
            "planes": (2 <= self.planes <= 256, "must be from 2 to 256"),
            "pixels": (2 <= self.pixels <= 1024, "must be from 2 to 1024"),
            "axes": (self.axes in (1, 2), "must be 1 or 2"),
            "seed_planes": (0 <= self.seed_planes <= self.planes, f"must be from 0 to {self.planes}, the planes"),
            "tracks": (0 <= self.tracks <= 1e4, "must be between 0 and 10000"),
            "tracks_number": (self.tracks_number in NUMBERS, f"must be one of {', '.join(NUMBERS)}"),
            "tracks_max": (0 <= self.tracks_max <= 1e4, "must be from 0 to 10000 (0: no bound)"),
            "pixel_noise": (0 <= self.pixel_noise <= 1, "must be a probability"),
            "sagitta": (0 <= self.sagitta <= self.pixels / 4, f"must be between 0 and {self.pixels / 4:g} pixels"),
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
        """Settings as plain values, without those of toys and telescope where the source is another."""
        others: tuple[str, ...] = () if self.source in TOYS else OF_TOYS
        others += () if self.source == "telescope" else OF_TELESCOPE
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in others}


PURPOSES = ("particles", "passage", "digitization", "noise", "order", "matter")


def option(name: str) -> str:
    """Command-line option of a setting."""
    return "--" + name.removesuffix("_t").replace("_", "-")
