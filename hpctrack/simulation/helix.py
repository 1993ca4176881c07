"""Source `helix`: numpy only. Charged particles on helices through the TrackML detector's modules, with scattering.

A stand-in for tests and first steps: spectra, vertices, occupancy and resolution are like those of pile-up, but
particles do not come from collisions, lose no energy and make no secondaries; a fifth starts off the beam, like decays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from hpctrack.simulation.event import Crossings, particle_ids
from hpctrack.simulation.geometry import Geometry, Row
from hpctrack.simulation.pythia import BEAM_SPOT_MM, MAX_RADIUS_MM
from hpctrack.simulation.settings import Settings
from hpctrack.storage.schema import GEV_PER_T_MM

PARTICLES_PER_VERTEX = 50  # of a soft collision at 14 TeV within |eta| < 4, pT > 0.15 GeV
DISPLACED, DECAY_MM = 0.2, 60.0  # share born away from the beam, mean distance
PT_SCALE_GEV, PT_POWER = 1.0, 7.0  # dN/dpT ~ pT (1 + pT / scale)^-power: median 0.44 GeV above 0.15
SCATTERING_GEV = 0.0136 * 0.02**0.5  # sigma of the angle x p, at each layer of 2 % radiation length
SPECIES = ((211, 0.82), (321, 0.10), (2212, 0.08))
SEARCH_MM = 8.0  # modules lie this close to their layer's nominal cylinder or plane


@dataclass(frozen=True)
class Helices:
    """Transverse circles (centre, signed radius, starting angle) and z along the arc; [P] each."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    phi: np.ndarray  # direction at the start
    radius: np.ndarray  # mm, signed: positive turns anticlockwise
    cot: np.ndarray  # pz / pT
    pt: np.ndarray

    def at(self, rows: np.ndarray, arc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Position and unit-free direction (dx, dy, dz per mm of transverse arc), [n, 3] each."""
        angle = self.phi[rows] + arc / self.radius[rows]
        x = self.x[rows] + self.radius[rows] * (np.sin(angle) - np.sin(self.phi[rows]))
        y = self.y[rows] - self.radius[rows] * (np.cos(angle) - np.cos(self.phi[rows]))
        z = self.z[rows] + self.cot[rows] * arc
        return np.stack([x, y, z], axis=1), np.stack([np.cos(angle), np.sin(angle), self.cot[rows]], axis=1)


class HelixSource:
    """Stateless but for the geometry."""

    OPTIONS: ClassVar = ("particles",)
    PACKAGES: ClassVar = ()

    def __init__(self, settings: Settings, geometry: Geometry) -> None:
        self._settings = settings
        self._geometry = geometry

    def generate(self, event_id: int) -> tuple[dict[str, np.ndarray], Crossings]:
        """Particles and their crossings of one event."""
        particles = _particles(self._settings, self._settings.stream(event_id, "particles"))
        pt = np.hypot(particles["px"], particles["py"])
        # A positive charge turns clockwise in a field along +z.
        radius = -particles["q"] * pt / (GEV_PER_T_MM * self._settings.field_t)
        phi = np.arctan2(particles["py"], particles["px"])
        start = (particles["vx"], particles["vy"], particles["vz"])
        helices = Helices(*start, phi, radius, particles["pz"] / pt, pt)
        rows, arc, layer = _layer_crossings(helices, self._geometry)
        offset = _scattering(helices, rows, arc, self._settings.stream(event_id, "passage"))
        module, owner, position, direction = _module_crossings(
            helices, rows, arc, layer, offset, geometry=self._geometry
        )
        momentum = direction * pt[owner, None]
        return particles, Crossings(module, particles["particle_id"][owner], position, momentum)


def _particles(settings: Settings, rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = rng.poisson(settings.particles)
    n_vertices = max(1, round(settings.particles / PARTICLES_PER_VERTEX))
    vertex = np.sort(rng.integers(n_vertices, size=n))
    born = (rng.normal(size=(n_vertices, 3)) * BEAM_SPOT_MM)[vertex]
    grid = np.geomspace(settings.pt_min_gev, 100.0, 2000)
    density = grid * (1 + grid / PT_SCALE_GEV) ** -PT_POWER
    steps = np.diff(grid) * (density[1:] + density[:-1]) / 2
    cdf = np.concatenate([[0], np.cumsum(steps)])
    pt = np.interp(rng.random(n) * cdf[-1], cdf, grid)
    phi, eta = rng.uniform(-np.pi, np.pi, n), rng.uniform(-settings.eta_max, settings.eta_max, n)
    displaced = rng.random(n) < DISPLACED
    # Flown straight from the collision, roughly along the daughter's direction.
    flight = np.where(displaced, rng.exponential(DECAY_MM, n), 0.0)
    mother_phi, cot = phi + rng.normal(0, 0.3, n), np.sinh(eta)
    born = born + flight[:, None] * np.stack([np.cos(mother_phi), np.sin(mother_phi), np.clip(cot, -5, 5)], axis=1)
    q = rng.choice([-1, 1], n)
    codes, shares = zip(*SPECIES, strict=True)
    number = 1 + np.arange(n) - np.searchsorted(vertex, vertex)  # within the vertex
    return {
        "particle_id": particle_ids(vertex + 1, number),
        "particle_type": q * rng.choice(codes, n, p=shares),
        "vx": born[:, 0],
        "vy": born[:, 1],
        "vz": born[:, 2],
        "px": pt * np.cos(phi),
        "py": pt * np.sin(phi),
        "pz": pt * cot,
        "q": q,
    }


def _layer_crossings(helices: Helices, geometry: Geometry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the particles meet the layers' nominal surfaces: particle, arc [mm] and layer [C], by particle and arc.

    Only the way out counts: up to half a turn, and until the particle leaves the tracker.
    """
    limit = np.minimum(np.pi * np.abs(helices.radius), arc_to_radius(helices, MAX_RADIUS_MM + SEARCH_MM))
    rows, arcs, layers = [], [], []
    for layer, members in _rows_by_layer(geometry).items():
        barrel, position = members[0].barrel, members[0].position
        low = min(row.centre - row.half_width for row in members) - SEARCH_MM
        high = max(row.centre + row.half_width for row in members) + SEARCH_MM
        if barrel:
            arc = arc_to_radius(helices, position)
        else:
            with np.errstate(divide="ignore"):
                arc = (position - helices.z) / helices.cot
        hit = np.flatnonzero((arc > 0) & (arc < limit))
        point, _ = helices.at(hit, arc[hit])
        along = point[:, 2] if barrel else np.hypot(point[:, 0], point[:, 1])
        hit = hit[(along > low) & (along < high)]
        rows.append(hit)
        arcs.append(arc[hit])
        layers.append(np.full(len(hit), layer))
    row, arc, layer_of = np.concatenate(rows), np.concatenate(arcs), np.concatenate(layers)
    order = np.lexsort([arc, row])
    return row[order], arc[order], layer_of[order]


def _rows_by_layer(geometry: Geometry) -> dict[int, list[Row]]:
    grouped: dict[int, list[Row]] = {}
    for row in geometry.rows:
        grouped.setdefault(1000 * row.volume_id + row.layer_id, []).append(row)
    return grouped


def arc_to_radius(helices: Helices, radius: float) -> np.ndarray:
    """Transverse arc [P], mm, to the first crossing of a cylinder; infinite for those born outside or never there."""
    x, y = helices.x - helices.radius * np.sin(helices.phi), helices.y + helices.radius * np.cos(helices.phi)
    distance = np.maximum(np.hypot(x, y), 1e-9)
    # |P|^2 = r^2 at the angle a of the direction with sin(a - b) = k, where b is the direction of the circle's centre.
    k = (radius**2 - distance**2 - helices.radius**2) / (2 * helices.radius * distance)
    reached = (np.abs(k) <= 1) & (np.hypot(helices.x, helices.y) < radius)
    lean, b = np.arcsin(np.clip(k, -1, 1)), np.arctan2(y, x)
    turns = [((angle - helices.phi) * np.sign(helices.radius)) % (2 * np.pi) for angle in (b + lean, b + np.pi - lean)]
    return np.where(reached, np.minimum(*turns) * np.abs(helices.radius), np.inf)


def _scattering(helices: Helices, rows: np.ndarray, arc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[C, 3] mm: how far multiple scattering at the layers before has moved each crossing off its helix."""
    stretch = np.hypot(1.0, helices.cot)[rows]
    path, sigma = arc * stretch, SCATTERING_GEV / (helices.pt[rows] * stretch)
    first = np.searchsorted(rows, rows)
    shifts = []
    for _ in range(2):
        kick = rng.normal(size=len(rows)) * sigma
        angle, lever = (np.cumsum(values) - values for values in (kick, kick * path))  # of the crossings before
        shifts.append((angle - angle[first]) * path - (lever - lever[first]))
    direction = helices.at(rows, arc)[1]
    zero, one = np.zeros(len(rows)), np.ones(len(rows))
    sideways = np.stack([-direction[:, 1], direction[:, 0], zero], axis=1)
    cot = direction[:, 2:]
    upward = np.stack([zero, zero, one], axis=1) - cot * np.concatenate([direction[:, :2], cot], axis=1) / (1 + cot**2)
    return shifts[0][:, None] * sideways + shifts[1][:, None] * upward * stretch[:, None]


def _module_crossings(
    helices: Helices, rows: np.ndarray, arc: np.ndarray, layer: np.ndarray, offset: np.ndarray, *, geometry: Geometry
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The modules met near the layers' crossings: module, particle, position and direction [H]; overlaps give two."""
    point = helices.at(rows, arc)[0] + offset
    phi, r = np.arctan2(point[:, 1], point[:, 0]), np.hypot(point[:, 0], point[:, 1])
    of_layer = {key: np.flatnonzero(layer == key) for key in np.unique(layer).tolist()}
    tries, modules = [], []
    for key, members in _rows_by_layer(geometry).items():
        for row in members if key in of_layer else ():
            along = (point[of_layer[key], 2] if row.barrel else r[of_layer[key]]) - row.centre
            near = of_layer[key][np.abs(along) < row.half_width + SEARCH_MM]
            place = (phi[near] / np.pi + 1) / 2 * len(row.modules) - 0.5
            for side in (0, 1):
                tries.append(near)
                modules.append(row.modules[(np.floor(place).astype(np.int64) + side) % len(row.modules)])
    if not tries:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3))
    tried, module = np.concatenate(tries), np.concatenate(modules)
    owner, shift, s = rows[tried], offset[tried], arc[tried].copy()
    normal, centre = geometry.rotation[module][:, :, 2], geometry.centre[module]
    for _ in range(5):  # Newton's steps to the module's plane
        position, direction = helices.at(owner, s)
        slope = np.einsum("hi,hi->h", direction, normal)
        slope = np.where(np.abs(slope) < 1e-3, 1e-3, slope)
        s -= np.clip(np.einsum("hi,hi->h", position + shift - centre, normal) / slope, -5 * SEARCH_MM, 5 * SEARCH_MM)
    position, direction = helices.at(owner, s)
    u, v, w = geometry.to_local(module, position + shift).T
    inside = (np.abs(w) < 1e-6) & (np.abs(v) <= geometry.half[module, 1]) & (np.abs(u) <= geometry.half_u(module, v))
    return module[inside], owner[inside], (position + shift)[inside], direction[inside]
