"""ACTS' fast simulation (Fatras) of given particles: one pass through the detector, through ACTS' whiteboard, no files.

H crossings, P particles. Units: mm, GeV; times are lengths (ct, mm), as in ACTS.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpctrack.simulation.acts_detector import Acts, ActsDetector, import_acts

P_MIN_GEV = 0.1  # Fatras stops following a particle below this
_RIGID_GEV = 1e5  # of a particle that stands for a neutral one's straight line


@dataclass(frozen=True)
class Passage:
    """What came of one pass. `codes` are (collision, particle, generation, secondary) as Fatras numbers them."""

    surface: np.ndarray  # uint64 [H] ACTS' identifiers
    hit_codes: np.ndarray  # int64 [H, 4]
    position: np.ndarray  # [H, 3] mm
    momentum: np.ndarray  # [H, 3] GeV, before the surface
    time: np.ndarray  # [H] mm
    codes: np.ndarray  # int64 [P, 4], those handed over and Fatras' own secondaries
    pdg: np.ndarray  # int64 [P]
    q: np.ndarray  # int64 [P]
    begin: np.ndarray  # [P, 4] mm: x, y, z, t
    begin_momentum: np.ndarray  # [P, 3] GeV
    end_time: np.ndarray  # [P] mm, when Fatras stopped following

    def particles(self) -> dict[str, np.ndarray]:
        """TrackML's columns of the particles, without ids and hits."""
        columns = {"particle_type": self.pdg, "q": self.q}
        columns |= dict(zip(("vx", "vy", "vz"), self.begin.T, strict=False))
        return columns | dict(zip(("px", "py", "pz"), self.begin_momentum.T, strict=True))


class Fatras:
    """Flies particles through the detector; made once a process. RuntimeError if ACTS fails."""

    def __init__(self, detector: ActsDetector) -> None:
        self._detector = detector
        self._reader, self._collector = _elements()

    def run(self, particles: Mapping[str, np.ndarray], seed: int, with_material: bool = False) -> Passage:
        """One pass of particles with pythia.COLUMNS; crossings are those of modules, or of all material too."""
        return self._run(particles, seed, self._detector.field, generateHitsOnMaterial=with_material)

    def straight(self, particles: Mapping[str, np.ndarray]) -> Passage:
        """The crossings of straight lines with all material: where neutral particles can interact.

        Momenta are not the particles', times are lengths from the beginning of the line.
        """
        acts, _ = import_acts()
        p = np.stack([particles[name] for name in ("px", "py", "pz")], axis=1)
        p *= _RIGID_GEV / np.linalg.norm(p, axis=1, keepdims=True)
        n = len(p)
        rigid = {"pdg": np.full(n, 13), "q": np.full(n, -1), "m": np.zeros(n), "vt": np.zeros(n)}
        rigid |= dict(zip(("px", "py", "pz"), p.T, strict=True))
        columns = {name: rigid.get(name, values) for name, values in particles.items()}
        physics = ("emScattering", "emEnergyLossIonisation", "emEnergyLossRadiation", "emPhotonConversion")
        field = acts.ConstantBField(acts.Vector3(0.0, 0.0, 0.0))
        return self._run(columns, 1, field, generateHitsOnMaterial=True, **dict.fromkeys(physics, False))

    def _run(self, particles: Mapping[str, np.ndarray], seed: int, field: Acts, **options: bool) -> Passage:
        acts, examples = import_acts()
        quiet = self._detector.quiet
        collector = self._collector("collector", quiet)
        sequencer = examples.Sequencer(events=1, numThreads=1, logLevel=quiet, trackFpes=False)
        reader = self._reader(particles, quiet)
        sequencer.addReader(reader)
        sequencer.addAlgorithm(
            examples.FatrasSimulation(
                level=quiet,
                inputParticles="particles",
                outputParticles="simulated",
                outputSimHits="simhits",
                randomNumbers=examples.RandomNumbers(seed=seed),
                trackingGeometry=self._detector.tracking_geometry,
                magneticField=field,
                pMin=P_MIN_GEV * acts.UnitConstants.GeV,
                **options,
            )
        )
        sequencer.addAlgorithm(collector)
        sequencer.run()
        ids, hits, codes, states = collector.take()
        reader.forget()
        return Passage(
            surface=ids[:, 0],
            hit_codes=ids[:, 1:].astype(np.int64),
            position=hits[:, :3],
            momentum=hits[:, 4:],
            time=hits[:, 3],
            codes=codes[:, :4],
            pdg=codes[:, 4],
            q=codes[:, 5],
            begin=states[:, :4],
            begin_momentum=states[:, 4:7],
            end_time=states[:, 7],
        )


def _elements() -> tuple[type, type]:
    """The reader and the collector; classes of ACTS' framework, so they can be defined only once it is imported.

    ACTS never lets go of an instance, so what an event filled it with is taken out.
    """
    import acts
    from acts import examples

    class Reader(examples.IReader):
        def __init__(self, columns: Mapping[str, np.ndarray], level: Acts) -> None:
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

        def forget(self) -> None:
            self._columns = {}

    class Collector(examples.IAlgorithm):
        def __init__(self, name: str, level: Acts) -> None:
            examples.IAlgorithm.__init__(self, name, level)
            self._simhits = examples.ReadDataHandle(self, examples.SimHitContainer, "InputSimHits")
            self._simhits.initialize("simhits")
            self._simulated = examples.ReadDataHandle(self, examples.SimParticleContainer, "InputParticles")
            self._simulated.initialize("simulated")
            self.hit_ids: list[tuple[int, ...]] = []
            self.hits: list[tuple[float, ...]] = []
            self.codes: list[tuple[int, ...]] = []
            self.states: list[tuple[float, ...]] = []

        def execute(self, context: Acts) -> Acts:
            for hit in self._simhits(context.eventStore):
                x, p = hit.fourPosition, hit.momentum4Before
                self.hit_ids.append((hit.geometryId.value, *_fields(hit.particleId)))
                self.hits.append((x[0], x[1], x[2], x[3], p[0], p[1], p[2]))
            for particle in self._simulated(context.eventStore):
                state = particle.initialState
                x, p = state.fourPosition, particle.momentum
                self.codes.append((*_fields(particle.particleId), int(state.pdg), round(state.charge)))
                end = particle.finalState.fourPosition[3]
                self.states.append((x[0], x[1], x[2], x[3], p[0], p[1], p[2], end))
            return examples.ProcessCode.SUCCESS

        def take(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
            ids, hits = np.array(self.hit_ids, np.uint64).reshape(-1, 5), np.array(self.hits).reshape(-1, 7)
            codes, states = np.array(self.codes, np.int64).reshape(-1, 6), np.array(self.states).reshape(-1, 8)
            for filled in (self.hit_ids, self.hits, self.codes, self.states):
                filled.clear()
            return ids, hits, codes, states

    return Reader, Collector


def _fields(code: Acts) -> tuple[int, int, int, int]:
    return code.vertexPrimary, code.particle, code.generation, code.subParticle
