"""Source `acts`: Pythia 8 collisions through ACTS' fast simulation (Fatras) on the Generic Detector, TrackML's own.

Fatras does multiple scattering, ionisation, bremsstrahlung and photon conversion in the detector's material, and makes
the secondaries of these. It has no hadronic interactions here, which TrackML's events had.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from hpctrack.errors import MachineError
from hpctrack.simulation.acts_detector import Acts, ActsDetector, import_acts
from hpctrack.simulation.event import Crossings, particle_ids
from hpctrack.simulation.geometry import Geometry
from hpctrack.simulation.pythia import Collisions
from hpctrack.simulation.settings import Settings

P_MIN_GEV = 0.1  # Fatras stops following a particle below this


class ActsSource:
    """Keeps the detector, the generators and ACTS' map of surfaces for the life of a process."""

    OPTIONS: ClassVar = ("mu", "pileup", "hard_process", "photons")
    PACKAGES: ClassVar = ("pyacts", "pythia8mc")

    def __init__(self, settings: Settings, geometry: Geometry) -> None:
        self._settings = settings
        self._fatras = _Fatras(settings.field_t, geometry)
        self._collisions = Collisions(settings)

    def generate(self, event_id: int) -> tuple[dict[str, np.ndarray], Crossings]:
        """Particles (primaries with q != 0, and secondaries) and crossings of one event; MachineError if ACTS fails."""
        primaries = self._collisions.event(self._settings.stream(event_id, "particles"))
        seed = int(self._settings.stream(event_id, "passage").integers(2**31))
        try:
            return self._fatras.run(primaries, seed)
        except RuntimeError as error:
            raise MachineError(f"event {event_id}: ACTS failed: {error}") from error


class _Fatras:
    """The detector and its field; runs one event at a time, in and out through ACTS' whiteboard (no files)."""

    def __init__(self, field_t: float, geometry: Geometry) -> None:
        import_acts()
        self._detector = ActsDetector(field_t, geometry)
        self._quiet = self._detector.quiet
        self._reader, self._collector = _elements()

    def run(self, primaries: dict[str, np.ndarray], seed: int) -> tuple[dict[str, np.ndarray], Crossings]:
        acts, examples = import_acts()
        collector = self._collector("collector", self._quiet)
        sequencer = examples.Sequencer(events=1, numThreads=1, logLevel=self._quiet, trackFpes=False)
        sequencer.addReader(self._reader(primaries, self._quiet))
        sequencer.addAlgorithm(
            examples.FatrasSimulation(
                level=self._quiet,
                inputParticles="particles",
                outputParticles="simulated",
                outputSimHits="simhits",
                randomNumbers=examples.RandomNumbers(seed=seed),
                trackingGeometry=self._detector.tracking_geometry,
                magneticField=self._detector.field,
                pMin=P_MIN_GEV * acts.UnitConstants.GeV,
            )
        )
        sequencer.addAlgorithm(collector)
        sequencer.run()
        ids, values = np.array(collector.hit_ids, np.uint64).reshape(-1, 5), np.array(collector.hits).reshape(-1, 6)
        module = self._detector.modules(ids[:, 0])
        crossings = Crossings(module, particle_ids(*ids[:, 1:].T), values[:, :3], values[:, 3:])
        table = np.array(collector.particles, float).reshape(-1, 12)
        names = ("particle_type", "q", "vx", "vy", "vz", "px", "py", "pz")
        particles = dict(zip(names, table[:, 4:].T, strict=True))
        particles |= {name: np.rint(particles[name]).astype(np.int64) for name in ("particle_type", "q")}
        particles["particle_id"] = particle_ids(*table[:, :4].T)
        if len(np.unique(particles["particle_id"])) < len(table) or table[:, 2:4].max(initial=0) >= 4096:
            raise RuntimeError("secondaries are too many to number in 12 + 12 bits of particle_id")
        charged = particles["q"] != 0
        return {name: column[charged] for name, column in particles.items()}, crossings


def _elements() -> tuple[type, type]:
    """The reader and the collector; classes of ACTS' framework, so they can be defined only once it is imported."""
    import acts
    from acts import examples

    class Reader(examples.IReader):
        def __init__(self, columns: dict[str, np.ndarray], level: Acts) -> None:
            examples.IReader.__init__(self, "particles", level)
            self._columns = columns
            self._handle = examples.WriteDataHandle(self, examples.SimParticleContainer, "OutputParticles")
            self._handle.initialize("particles")

        def availableEvents(self) -> tuple[int, int]:
            return (0, 1)

        def read(self, context: Acts) -> Acts:
            container = examples.SimParticleContainer()
            for row in zip(*(values.tolist() for values in self._columns.values()), strict=True):
                vertex, secondary, number, pdg, q, mass, vx, vy, vz, vt, px, py, pz = row
                code = examples.SimBarcode()
                code.vertexPrimary, code.vertexSecondary, code.particle = vertex, secondary, number
                particle = examples.SimParticle(code, acts.PdgParticle(pdg), float(q), mass)
                particle.fourPosition = acts.Vector4(vx, vy, vz, vt)
                particle.direction = acts.Vector3(px, py, pz)
                particle.absoluteMomentum = (px * px + py * py + pz * pz) ** 0.5
                container.insert(particle)
            self._handle(context, container)
            return examples.ProcessCode.SUCCESS

    class Collector(examples.IAlgorithm):
        def __init__(self, name: str, level: Acts) -> None:
            examples.IAlgorithm.__init__(self, name, level)
            self._simhits = examples.ReadDataHandle(self, examples.SimHitContainer, "InputSimHits")
            self._simhits.initialize("simhits")
            self._simulated = examples.ReadDataHandle(self, examples.SimParticleContainer, "InputParticles")
            self._simulated.initialize("simulated")
            self.hit_ids: list[tuple[int, ...]] = []
            self.hits: list[tuple[float, ...]] = []
            self.particles: list[tuple[float, ...]] = []

        def execute(self, context: Acts) -> Acts:
            for hit in self._simhits(context.eventStore):
                x, p = hit.fourPosition, hit.momentum4Before
                self.hit_ids.append((hit.geometryId.value, *_fields(hit.particleId)))
                self.hits.append((x[0], x[1], x[2], p[0], p[1], p[2]))
            for particle in self._simulated(context.eventStore):
                state = particle.initialState
                pdg, q, x, p = int(state.pdg), state.charge, particle.position, particle.momentum
                self.particles.append((*_fields(particle.particleId), pdg, q, x[0], x[1], x[2], p[0], p[1], p[2]))
            return examples.ProcessCode.SUCCESS

    return Reader, Collector


def _fields(code: Acts) -> tuple[int, int, int, int]:
    return code.vertexPrimary, code.particle, code.generation, code.subParticle
