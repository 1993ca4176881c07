"""Decays in flight and hadronic interactions, around passes of Fatras.

A pass flies particles through the detector. Each hadron may end on its way: where its life is over, or in the material
of a surface, with the probability 1 - exp(-thickness / interaction length). What it had beyond is dropped, and what
comes out there flies in the next pass, until nothing is left above the cut in pT. N particles of a pass, H crossings.
Units: mm, GeV; times are lengths (ct, mm).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpctrack.simulation.acts_detector import CYLINDER, DISC, PLANE, ActsDetector, Material
from hpctrack.simulation.event import Crossings, check_numbers, particle_ids
from hpctrack.simulation.passage.fatras import Fatras, Passage
from hpctrack.simulation.passage.hadrons import (
    COLLIDE,
    NEUTRON,
    Collider,
    Decayer,
    Row,
    sigma_nucleus,
    without_survivor,
)
from hpctrack.simulation.pythia import COLUMNS, MAX_RADIUS_MM, MAX_Z_MM, PHOTON
from hpctrack.simulation.settings import Settings
from hpctrack.storage.schema import GEV_PER_T_MM

MAX_PASSES = 100  # energy runs out long before
BEAM_PIPE_VOLUME = 5  # of ACTS; it has no cables, so its material is not scaled up
_REFERENCE_GEV = 200.0  # interaction lengths are tabulated for neutrons of this energy
_MIN_COS = 0.01  # bounds the path through a surface that is only grazed


@dataclass(frozen=True)
class _Batch:
    """Particles that fly in one pass."""

    pdg: np.ndarray  # int64 [N]
    q: np.ndarray  # int64 [N]
    m: np.ndarray  # [N]
    begin: np.ndarray  # [N, 4] x, y, z, t
    p: np.ndarray  # [N, 3]
    family: np.ndarray  # int64 [N, 3]: collision, primary particle, generation

    def columns(self, chosen: np.ndarray) -> dict[str, np.ndarray]:
        """Those chosen as pythia.COLUMNS; `particle` is their row here, from 1."""
        row = np.flatnonzero(chosen)
        ones = np.ones(len(row), np.int64)
        parts = [ones, 0 * ones, row + 1, self.pdg[row], self.q[row], self.m[row], *self.begin[row].T, *self.p[row].T]
        return dict(zip(COLUMNS, parts, strict=True))

    def row(self, i: int, momentum: np.ndarray) -> Row:
        return (float(self.pdg[i]), float(self.q[i]), float(self.m[i]), *momentum.tolist())


@dataclass(frozen=True)
class _Steps:
    """Crossings [H] of one pass in the order of particle and time."""

    particle: np.ndarray  # int64 [H] row of the batch; that of a Fatras secondary's ancestor
    surface: np.ndarray  # int64 [H] row of Material
    position: np.ndarray  # [H, 3]
    momentum: np.ndarray  # [H, 3]
    time: np.ndarray  # [H]


@dataclass(frozen=True)
class _Vertex:
    """Where a particle of a batch collided or decayed, and what flies on from there."""

    particle: int
    time: float
    position: np.ndarray  # [3]
    products: list[Row]


@dataclass(frozen=True)
class _Ends:
    """The times [N] at which the particles of a batch end, infinite for those that fly on, and all their vertices."""

    time: np.ndarray
    vertices: list[_Vertex]


class Matter:
    """Flies whole events; made once a process."""

    def __init__(self, settings: Settings, detector: ActsDetector, fatras: Fatras) -> None:
        self._settings, self._detector, self._fatras = settings, detector, fatras
        self._geometry = detector.geometry
        self._collider, self._decayer = Collider(), Decayer()
        self._material: Material = detector.material()
        volume = self._material.surface >> np.uint64(56)
        self._scale = np.where(volume == BEAM_PIPE_VOLUME, min(settings.interactions, 1.0), settings.interactions)

    def event(
        self, primaries: dict[str, np.ndarray], passage: np.random.Generator, rng: np.random.Generator
    ) -> tuple[dict[str, np.ndarray], Crossings]:
        """Charged particles and their crossings of modules; RuntimeError if ACTS or Pythia fails."""
        self._collider.seed(rng)
        self._decayer.seed(rng)
        batch = _first(primaries)
        particles, crossings = [], []
        for _ in range(MAX_PASSES):
            if not len(batch.pdg):
                break
            found = self._fatras.run(batch.columns(_visible(batch)), int(passage.integers(2**31)), with_material=True)
            steps = self._steps(found, batch)
            ends = self._ends(batch, found, steps, rng)
            particles.append(_made(batch, found))
            crossings.append(self._kept(found, batch, ends))
            batch = self._next(batch, ends)
        else:
            raise RuntimeError(f"particles are still being made after {MAX_PASSES} passes")
        return _numbered(particles, crossings)

    def _steps(self, found: Passage, batch: _Batch) -> _Steps:
        """Crossings of all hadrons with material: as Fatras flew the charged ones, on straight lines the neutral."""
        own = (found.hit_codes[:, 2] == 0) & np.isin(np.abs(batch.pdg[found.hit_codes[:, 1] - 1]), COLLIDE)
        parts = [(found.hit_codes[own, 1] - 1, found.surface[own], found.position[own], found.momentum[own])]
        times = [found.time[own]]
        neutral = (batch.q == 0) & np.isin(np.abs(batch.pdg), COLLIDE)
        if self._settings.interactions > 0 and neutral.any():
            line = self._fatras.straight(batch.columns(neutral))
            i = line.hit_codes[:, 1] - 1
            way = np.linalg.norm(line.position - batch.begin[i, :3], axis=1)
            parts.append((i, line.surface, line.position, batch.p[i]))
            times.append(batch.begin[i, 3] + way / _beta(batch)[i])
        particle, surface, position, momentum = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        time = np.concatenate(times)
        order = np.lexsort([time, particle])
        return _Steps(
            particle[order], self._material.rows(surface[order]), position[order], momentum[order], time[order]
        )

    def _ends(self, batch: _Batch, found: Passage, steps: _Steps, rng: np.random.Generator) -> _Ends:
        """What comes of each hadron: collisions, until one or a decay ends it."""
        life = self._lives(batch, found, rng)
        vertices: list[_Vertex] = []
        end = np.full(len(batch.pdg), np.inf)
        for h in self._candidates(batch, steps, rng):
            i, at = int(steps.particle[h]), float(steps.time[h])
            if at > min(end[i], life[i]):
                continue
            material, surface = self._material, steps.surface[h]
            row = batch.row(i, steps.momentum[h])
            products = self._collider.collide(row, int(material.z[surface]), int(material.a[surface]))
            if products is None:
                continue
            others = without_survivor(row, products)
            if others is None:
                end[i] = at
            vertices.append(_Vertex(i, at, steps.position[h], products if others is None else others))
        first = np.searchsorted(steps.particle, np.arange(len(batch.pdg) + 1))
        for i in np.flatnonzero(np.isfinite(life) & np.isinf(end)).tolist():
            position, momentum = self._at(batch, steps, slice(first[i], first[i + 1]), i, life[i])
            if np.hypot(position[0], position[1]) < MAX_RADIUS_MM and abs(position[2]) < MAX_Z_MM:
                end[i] = life[i]
                vertices.append(_Vertex(i, float(life[i]), position, self._decayer.decay(batch.row(i, momentum))))
        return _Ends(end, vertices)

    def _lives(self, batch: _Batch, found: Passage, rng: np.random.Generator) -> np.ndarray:
        """[N] mm: the time at which each particle decays; infinite if Fatras stopped following it before."""
        drawn = rng.exponential(size=len(batch.pdg))
        if not self._settings.decays:
            return np.full(len(batch.pdg), np.inf)
        p = np.linalg.norm(batch.p, axis=1)
        c_tau = self._decayer.c_tau(batch.pdg)
        with np.errstate(invalid="ignore"):
            life = batch.begin[:, 3] + drawn * c_tau * np.hypot(p, batch.m) / np.where(batch.m > 0, batch.m, 1.0)
        stopped = np.full(len(batch.pdg), np.inf)
        own = found.codes[:, 2] == 0
        followed = own & (found.q != 0)
        stopped[found.codes[followed, 1] - 1] = found.end_time[followed]
        return np.where(life < stopped, life, np.inf)

    def _candidates(self, batch: _Batch, steps: _Steps, rng: np.random.Generator) -> list[int]:
        """Crossings at which a collision is drawn, in the order of particle and time."""
        chance = rng.random(len(steps.particle))
        if self._settings.interactions == 0 or not len(chance):
            return []
        material, row = self._material, steps.surface
        p = np.linalg.norm(steps.momentum, axis=1)
        sigma = self._collider.sigma_nucleon(batch.pdg[steps.particle], p)
        reference = self._collider.sigma_nucleon(np.array([NEUTRON]), np.array([_REFERENCE_GEV]))[0]
        a = material.a[row]
        ratio = np.zeros(len(row))
        for nucleus in np.unique(a[a > 0]).tolist():
            of = a == nucleus
            ratio[of] = sigma_nucleus(sigma[of], nucleus) / sigma_nucleus(reference, nucleus)
        depth = material.in_l0[row] * ratio / np.maximum(self._cosine(steps, p), _MIN_COS)
        return np.flatnonzero(chance < -np.expm1(-self._scale[row] * depth)).tolist()

    def _cosine(self, steps: _Steps, p: np.ndarray) -> np.ndarray:
        """[H]: of the angle between the path and the normal of the surface."""
        shape, module = self._material.shape[steps.surface], self._material.module[steps.surface]
        normal = np.zeros((len(p), 3))
        normal[shape == DISC, 2] = 1.0
        round_ = shape == CYLINDER
        radius = np.hypot(steps.position[round_, 0], steps.position[round_, 1])
        normal[round_, :2] = steps.position[round_, :2] / radius[:, None]
        normal[shape == PLANE] = self._geometry.rotation[module[shape == PLANE]][:, :, 2]
        return np.abs(np.einsum("hi,hi->h", normal, steps.momentum)) / p

    def _at(self, batch: _Batch, steps: _Steps, own: slice, i: int, time: float) -> tuple[np.ndarray, np.ndarray]:
        """Position and momentum of particle i at `time`: on a helix from the last crossing before it."""
        start, position, p = batch.begin[i, 3], batch.begin[i, :3], batch.p[i]
        passed = own.start + int(np.searchsorted(steps.time[own], time, side="right")) - 1
        if passed >= own.start:
            start, position, p = steps.time[passed], steps.position[passed], steps.momentum[passed]
        size = float(np.linalg.norm(p))
        way = (time - start) * size / float(np.hypot(size, batch.m[i]))
        turn = -float(batch.q[i]) * GEV_PER_T_MM * self._settings.field_t * way / size
        cos, sin = np.cos(turn), np.sin(turn)
        later = np.array([cos * p[0] - sin * p[1], sin * p[0] + cos * p[1], p[2]])
        mean = p / size
        if abs(turn) > 1e-9:
            mean = np.array([sin * p[0] - (1 - cos) * p[1], (1 - cos) * p[0] + sin * p[1], p[2] * turn]) / turn / size
        return position + way * mean, later

    def _kept(self, found: Passage, batch: _Batch, ends: _Ends) -> tuple[np.ndarray, Crossings]:
        """Codes [H, 4] and crossings of modules up to the particles' ends."""
        module = self._material.module[self._material.rows(found.surface)]
        kept = (module >= 0) & (found.time <= ends.time[found.hit_codes[:, 1] - 1])
        nobody = np.zeros(len(module), np.int64)
        return found.hit_codes[kept], Crossings(module, nobody, found.position, found.momentum).take(kept)

    def _next(self, batch: _Batch, ends: _Ends) -> _Batch:
        """What the ends' products are, above the cut in pT."""
        vertices = ends.vertices
        rows = np.array([row for vertex in vertices for row in vertex.products], float).reshape(-1, 6)
        of = np.repeat(np.arange(len(vertices)), [len(vertex.products) for vertex in vertices])
        places = np.array([(*vertex.position, vertex.time) for vertex in vertices]).reshape(-1, 4)
        begin = places[of]
        family = batch.family[[vertex.particle for vertex in vertices]].reshape(-1, 3)[of] + np.array([0, 0, 1])
        kept = np.hypot(rows[:, 3], rows[:, 4]) >= self._settings.pt_min_gev
        photon = rows[:, 0] == PHOTON
        kept &= ~photon | (np.hypot(rows[:, 3], rows[:, 4]) >= self._settings.photon_pt_min_gev)
        kept &= (rows[:, 1] != 0) | np.isin(np.abs(rows[:, 0]), COLLIDE) | (photon & self._settings.photons)
        pdg, q = (np.rint(rows[kept, k]).astype(np.int64) for k in range(2))
        m, p = rows[kept, 2], rows[kept, 3:]
        return _Batch(pdg=pdg, q=q, m=m, begin=begin[kept], p=p, family=family[kept])


def _first(primaries: dict[str, np.ndarray]) -> _Batch:
    """The batch of the collisions' particles."""
    begin = np.stack([primaries[name] for name in ("vx", "vy", "vz", "vt")], axis=1)
    p = np.stack([primaries[name] for name in ("px", "py", "pz")], axis=1)
    family = np.stack([primaries["vertex"], primaries["particle"], np.zeros_like(primaries["vertex"])], axis=1)
    return _Batch(primaries["pdg"], primaries["q"], primaries["m"], begin=begin, p=p, family=family)


def _visible(batch: _Batch) -> np.ndarray:
    """[N] whom Fatras flies: charged particles and photons."""
    return (batch.q != 0) | (batch.pdg == PHOTON)


def _beta(batch: _Batch) -> np.ndarray:
    p = np.linalg.norm(batch.p, axis=1)
    return p / np.hypot(p, batch.m)


_Made = tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]


def _made(batch: _Batch, found: Passage) -> _Made:
    """Codes and families (the generation counted from the collision) of Fatras' particles, and TrackML's columns."""
    family = batch.family[found.codes[:, 1] - 1].copy()
    family[:, 2] += found.codes[:, 2]
    return found.codes, family, found.particles()


def _numbered(
    made: list[_Made], crossings: list[tuple[np.ndarray, Crossings]]
) -> tuple[dict[str, np.ndarray], Crossings]:
    """Charged particles and crossings of all passes with ids; a family's secondaries are counted through."""
    sizes = [len(codes) for codes, _, _ in made]
    if not sizes:
        none = np.zeros(0)
        empty = Crossings(none.astype(np.int64), none.astype(np.int64), np.zeros((0, 3)), np.zeros((0, 3)))
        whole = ("particle_type", "q", "particle_id")
        names = ("particle_type", "q", "vx", "vy", "vz", "px", "py", "pz", "particle_id")
        return {name: none.astype(np.int64) if name in whole else none for name in names}, empty
    family = np.concatenate([family for _, family, _ in made])
    columns = {name: np.concatenate([c[name] for _, _, c in made]) for name in made[0][2]}
    secondary = _count_through(family) * (family[:, 2] > 0)
    check_numbers(family[:, 2], secondary)
    columns["particle_id"] = particle_ids(family[:, 0], family[:, 1], family[:, 2], secondary)
    first = np.cumsum([0, *sizes])
    parts = []
    for (codes, _, _), (hit_codes, found), start in zip(made, crossings, first, strict=False):
        known = _key(codes)
        order = np.argsort(known)
        row = order[np.searchsorted(known[order], _key(hit_codes))]
        parts.append((found, columns["particle_id"][start + row]))
    together = Crossings(
        np.concatenate([found.module for found, _ in parts]),
        np.concatenate([ids for _, ids in parts]),
        np.concatenate([found.position for found, _ in parts]),
        np.concatenate([found.momentum for found, _ in parts]),
    )
    charged = columns["q"] != 0
    return {name: values[charged] for name, values in columns.items()}, together


def _key(codes: np.ndarray) -> np.ndarray:
    """One number for Fatras' particle, generation and secondary."""
    return (codes[:, 1] << 32) + (codes[:, 2] << 16) + codes[:, 3]


def _count_through(family: np.ndarray) -> np.ndarray:
    """[P] the place of each among those of its family, from 1."""
    _, group = np.unique(family, axis=0, return_inverse=True)
    group = group.ravel()
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group)
    place = np.empty(len(group), np.int64)
    place[order] = np.arange(len(group)) - np.repeat(np.cumsum(counts) - counts, counts) + 1
    return place
