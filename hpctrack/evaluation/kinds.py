"""Kinds of track: the quantities in whose bins every metric is counted. Long form: docs/reference/metrics.md.

Each quantity is one of a target's truth; those that make sense without truth are one of a candidate, too, because the
fake rate is a fraction of candidates, and a fake has no true particle.

Shapes: H hits, P particles, T targets, C candidates as lists (offsets [C + 1], rows); mm, GeV, rad.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np
from scipy.spatial import cKDTree

from hpctrack.storage.schema import GEV_PER_T_MM, Event, parts_of

_MOMENTA = ("particles.px", "particles.py", "particles.pz")


@dataclass(frozen=True)
class Kind:
    """A quantity: its name for people, its unit, where its bins begin (the last one is open), what it is read off."""

    title: str
    unit: str = ""
    _: KW_ONLY
    edges: tuple[float, ...]
    of_target: str
    of_candidate: str | None = None  # None: a fake has none, so the fake rate is not binned in it
    needs: tuple[str, ...] = ()  # columns of the event without which a target's is not known
    cut: str | None = None  # of Cuts: targets have no less, so their bins begin there

    @property
    def label(self) -> str:
        """Title and unit, as an axis has them."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


_ETA = {"of_target": "true, at its creation", "of_candidate": "of the mean of its hits, seen from the origin"}
KINDS: dict[str, Kind] = {
    "hits": Kind(
        "hits on the track",
        edges=(3, 4, 5, 7, 9),
        of_target="its hits in the event",
        of_candidate="its own hits",
        cut="min_hits",
    ),
    "pt": Kind(
        "transverse momentum",
        "GeV",
        edges=(0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0),
        of_target="true, at its creation",
        of_candidate="of the circle through the beam line that fits its hits best",
        needs=_MOMENTA[:2],
        cut="pt_min_gev",
    ),
    "eta": Kind("pseudorapidity", edges=(-np.inf, *np.arange(-3.5, 4, 0.5).tolist()), **_ETA, needs=_MOMENTA),
    "abs_eta": Kind("|pseudorapidity|", edges=(0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5), **_ETA, needs=_MOMENTA),
    "vertex_r": Kind(
        "radius of creation",
        "mm",
        edges=(0.0, 1.0, 5.0, 30.0, 100.0, 300.0),
        of_target="distance of its creation vertex from the beam line x = y = 0",
        needs=("particles.vx", "particles.vy"),
    ),
    "vertex_z": Kind(
        "|z| of creation",
        "mm",
        edges=(0.0, 5.0, 10.0, 20.0, 50.0, 200.0, 1000.0),
        of_target="distance of its creation vertex from z = 0",
        needs=("particles.vz",),
    ),
    "distance": Kind(
        "distance to the nearest other target",
        edges=(0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
        of_target="in eta and phi, seen from the origin, from its outermost hit to that of another target",
        of_candidate="likewise, to that of a target that is not its majority particle",
    ),
}
COLUMNS = ["truth.particle_row", "hits.x", "hits.y", "hits.z", "hits.eta", "hits.phi"]
COLUMNS += dict.fromkeys(column for kind in KINDS.values() for column in kind.needs)  # where the data has them


def begins(variable: str, least: float | None = None) -> list[float]:
    """Where the bins of a variable begin; `least`: what is below does not occur, so they begin there."""
    edges = list(KINDS[variable].edges)
    return edges if least is None else [least, *(edge for edge in edges if edge > least)]


def bin_of(values: np.ndarray, first: Sequence[float]) -> np.ndarray:
    """Number of each value's bin, int64, 0 to len(first) - 1.

    Bins are closed below, the outermost take in everything beyond, and NaN goes into the last.
    """
    which = np.searchsorted(first, values, side="right") - 1
    return np.clip(np.where(np.isnan(values), len(first) - 1, which), 0, len(first) - 1)


def not_told(columns: Collection[str]) -> dict[str, str]:
    """Variable -> what hides which kind of it a target is, as people call it; `columns`: those that the data has."""
    lacks = {name: [column for column in kind.needs if column not in columns] for name, kind in KINDS.items()}
    return {name: ", ".join(parts_of(without)) for name, without in lacks.items() if without}


def described() -> dict[str, dict[str, str | None]]:
    """Of each variable for results.json: its name, unit, and what it is of a target and of a candidate."""
    names = ("title", "unit", "of_target", "of_candidate")
    return {variable: {name: getattr(kind, name) for name in names} for variable, kind in KINDS.items()}


# ------------------------------------------------------------------------------------------------ what each is


def of_particles(event: Event, target: np.ndarray, crowd: Crowd) -> dict[str, np.ndarray]:
    """Variable -> values [P]; without those for which the event lacks columns. `distance` is NaN but for targets."""
    row = event.column("truth.particle_row")
    distance = np.full(len(target), np.nan)
    distance[target] = crowd.distances(crowd.targets_T2, np.arange(len(crowd.targets_T2)))
    values: dict[str, np.ndarray] = {"hits": np.bincount(row[row >= 0], minlength=len(target)), "distance": distance}
    told = KINDS.keys() - not_told(columns_of(event))
    if "pt" in told:
        values["pt"] = np.hypot(*_particles(event, "px", "py"))
    if "eta" in told:
        values["eta"] = particle_kinematics(event)[1]
        values["abs_eta"] = np.abs(values["eta"])
    if "vertex_r" in told:
        values["vertex_r"] = np.hypot(*_particles(event, "vx", "vy"))
    if "vertex_z" in told:
        values["vertex_z"] = np.abs(*_particles(event, "vz"))
    return values


def of_candidates(
    event: Event, offsets: np.ndarray, rows: np.ndarray, majority: np.ndarray, crowd: Crowd
) -> dict[str, np.ndarray]:
    """Variable -> values [C], of those variables that a candidate has by itself; `majority` [C]: as of its match."""
    x, y, z = (event.column(f"hits.{axis}") for axis in "xyz")
    eta = eta_estimate(offsets, rows, x, y, z)
    return {
        "hits": np.diff(offsets),
        "pt": pt_estimate(offsets, rows, x, y, event.field_t),
        "eta": eta,
        "abs_eta": np.abs(eta),
        "distance": crowd.distance_of_candidates(offsets, rows, majority),
    }


def columns_of(event: Event) -> set[str]:
    """The columns that were loaded, as `table.column`."""
    return {f"{table}.{column}" for table, inside in event.tables.items() for column in inside}


def _particles(event: Event, *columns: str) -> list[np.ndarray]:
    return [event.column(f"particles.{column}").astype(np.float64) for column in columns]


def particle_kinematics(event: Event) -> tuple[np.ndarray, np.ndarray]:
    """Transverse momentum (GeV) and pseudorapidity of the particles at their creation [P]."""
    px, py, pz = _particles(event, "px", "py", "pz")
    pt = np.hypot(px, py)
    with np.errstate(invalid="ignore", divide="ignore"):
        return pt, np.arcsinh(pz / pt)


class Crowd:
    """How near targets are to one another where they leave the detector: at their outermost hits, in eta and phi.

    The outermost hit is the one farthest from the origin; its direction is as seen from there, and phi is periodic.
    """

    def __init__(self, event: Event, target: np.ndarray) -> None:
        row = event.column("truth.particle_row")
        x, y, z = (event.column(f"hits.{axis}").astype(np.float64) for axis in "xyz")
        phi = event.column("hits.phi").astype(np.float64) % (2 * np.pi)
        phi[phi >= 2 * np.pi] = 0.0  # what the remainder of a tiny negative number is rounded to
        self.direction_H2 = np.column_stack([event.column("hits.eta"), phi])
        self.far_H = x * x + y * y + z * z
        self.number = np.full(len(target) + 1, -1)  # of each particle among the targets; the last place is noise's
        self.number[:-1][target] = np.arange(np.count_nonzero(target))
        own = np.flatnonzero(np.append(target, False)[row])
        self.targets_T2 = self.direction_H2[own[outermost(self.number[row[own]], self.far_H[own])]]
        self.tree = cKDTree(self.targets_T2, boxsize=[0, 2 * np.pi])  # 0: eta is not periodic

    def distances(self, points_M2: np.ndarray, own_M: np.ndarray) -> np.ndarray:
        """From each point to the nearest target but number `own` (-1: to any), [M]; infinite if there is none."""
        if not len(self.targets_T2):
            return np.full(len(points_M2), np.inf)
        distance, number = self.tree.query(points_M2, k=[1, 2])
        return np.where(number[:, 0] == own_M, distance[:, 1], distance[:, 0])

    def distance_of_candidates(self, offsets: np.ndarray, rows: np.ndarray, majority: np.ndarray) -> np.ndarray:
        """From each candidate's outermost hit to the nearest target but its majority particle [C]; NaN without hits."""
        size = np.diff(offsets)
        distance = np.full(len(size), np.nan)
        outer = rows[outermost(np.repeat(np.arange(len(size)), size), self.far_H[rows])]
        distance[size > 0] = self.distances(self.direction_H2[outer], self.number[majority[size > 0]])
        return distance


def outermost(group: np.ndarray, far: np.ndarray) -> np.ndarray:
    """Place of the largest `far` in each group, in the order of the groups' numbers; of equals the last."""
    order = np.lexsort((far, group))
    return order[np.flatnonzero(np.diff(group[order], append=-1))]


def eta_estimate(offsets: np.ndarray, rows: np.ndarray, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Pseudorapidity of each candidate's mean hit, arcsinh(sum z / sum r) [C]; NaN without a hit off the beam line.

    The vertex is taken at the origin. Outer hits weigh most, so a vertex shift of 5 mm in z matters little.
    """
    radius = np.hypot(x.astype(np.float64), y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.arcsinh(_sum(offsets, z[rows]) / _sum(offsets, radius[rows]))


def pt_estimate(offsets: np.ndarray, rows: np.ndarray, x: np.ndarray, y: np.ndarray, field_t: float) -> np.ndarray:
    """Transverse momentum (GeV) [C] of the circle through the beam line that fits each candidate's hits best.

    A circle of radius R through the origin is, in u = x/r^2, v = y/r^2, a straight line at distance 1/(2R) from the
    origin (conformal mapping, M. Hansroul et al., NIM A 270 (1988) 498). The line is fitted by total least squares with
    weights r^4, that is equal position errors of all hits. NaN for fewer than two hits, infinite for a straight track.
    """
    x, y = x[rows].astype(np.float64), y[rows].astype(np.float64)
    r2 = np.maximum(x * x + y * y, 1e-6)
    u, v, weight = x / r2, y / r2, r2 * r2
    with np.errstate(invalid="ignore", divide="ignore"):
        total = _sum(offsets, weight)
        mean_u, mean_v = _sum(offsets, weight * u) / total, _sum(offsets, weight * v) / total
        size = np.diff(offsets)
        du, dv = u - np.repeat(mean_u, size), v - np.repeat(mean_v, size)
        uu, uv, vv = (_sum(offsets, weight * product) for product in (du * du, du * dv, dv * dv))
        along = 0.5 * np.arctan2(2 * uv, uu - vv)  # angle of the line
        distance = np.abs(mean_v * np.cos(along) - mean_u * np.sin(along))
        pt = GEV_PER_T_MM * abs(field_t) / (2 * distance)
    return np.where(size >= 2, pt, np.nan)


def _sum(offsets: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Sums over consecutive blocks of `values`, 0 for an empty block."""
    candidate = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return np.bincount(candidate, weights=values, minlength=len(offsets) - 1)
