"""Source `acts`: Pythia 8 collisions through ACTS' fast simulation (Fatras) on the Generic Detector, TrackML's own.

Fatras does multiple scattering, ionisation, bremsstrahlung and photon conversion in the detector's material, and makes
the secondaries of these. Decays in flight and hadronic interactions are not in it: passage/matter.py adds them where
the settings ask for them.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hpctrack.errors import MachineError
from hpctrack.simulation.acts_detector import ActsDetector, import_acts
from hpctrack.simulation.event import Crossings, check_numbers, particle_ids
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.passage.fatras import Fatras
from hpctrack.simulation.passage.matter import Matter
from hpctrack.simulation.pythia import Collisions
from hpctrack.simulation.settings import Settings


class ActsSource:
    """Keeps the detector, the generators and ACTS' map of surfaces for the life of a process."""

    OPTIONS: ClassVar = ("mu", "pileup", "hard_process", "photons", "photon_pt_min_gev", "decays", "interactions")
    PACKAGES: ClassVar = ("pyacts", "pythia8mc")

    def __init__(self, settings: Settings, geometry: Geometry) -> None:
        import_acts()
        self._settings = settings
        self._detector = ActsDetector(settings.field_t, geometry)
        self._fatras = Fatras(self._detector)
        self._matter = Matter(settings, self._detector, self._fatras) if settings.through_matter else None
        self._collisions = Collisions(settings)

    def generate(self, event_id: int) -> tuple[dict[str, np.ndarray], Crossings]:
        """Particles (primaries with q != 0, and secondaries) and crossings of one event; MachineError if ACTS fails."""
        primaries = self._collisions.event(self._settings.stream(event_id, "particles"))
        passage = self._settings.stream(event_id, "passage")
        try:
            if self._matter:
                return self._matter.event(primaries, passage, self._settings.stream(event_id, "matter"))
            return self._without_matter(primaries, int(passage.integers(2**31)))
        except RuntimeError as error:
            raise MachineError(f"event {event_id}: ACTS or Pythia failed: {error}") from error

    def _without_matter(self, primaries: dict[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], Crossings]:
        """What Fatras alone makes of the particles."""
        found = self._fatras.run(primaries, seed)
        module = self._detector.modules(found.surface)
        crossings = Crossings(module, particle_ids(*found.hit_codes.T), found.position, found.momentum)
        check_numbers(*found.codes[:, 2:].T)
        particles = found.particles() | {"particle_id": particle_ids(*found.codes.T)}
        if len(np.unique(particles["particle_id"])) < len(found.codes):
            raise RuntimeError("two particles have one particle_id")
        charged = particles["q"] != 0
        return {name: column[charged] for name, column in particles.items()}, crossings
