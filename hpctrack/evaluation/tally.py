"""Counts of one event and their sum over events: all that results.json is made of.

An EventTally holds integers only (and one score), so the sum does not depend on the order of events or on the number of
processes. Two readings of the candidates are counted alike: the lists, which may overlap ("candidates"), and the
exclusive tracks, one a hit ("exclusive"). Fakes have no true particle: they are binned by what the candidate's own hits
say of its direction and transverse momentum.

Shapes: C candidates as lists (offsets [C + 1], rows); hits in mm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hpctrack.config import SelectionConfig
from hpctrack.evaluation.matching import check_candidates, exclusive_lists, match
from hpctrack.evaluation.metrics import (
    METRICS,
    MIN_CANDIDATE_HITS,
    SCORE_SOURCE,
    Counts,
    census,
    counted,
    fraction,
    matched,
    mean_score,
    particles_of,
    trackml_score,
)
from hpctrack.events.selection import Draw, target_particles
from hpctrack.events.sizes import nothing_left
from hpctrack.storage.schema import GEV_PER_T_MM, Candidates, Event
from hpctrack.storage.store import Dataset


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


# ------------------------------------------------------------------------------------------------ counts


READINGS = ("candidates", "exclusive")
COLUMNS = [
    *("hits.x", "hits.y", "hits.z", "truth.particle_row", "truth.weight"),
    *("particles.px", "particles.py", "particles.pz"),
]
PT_EDGES_GEV = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)  # the last bin is open
ETA_EDGES = tuple(np.arange(-4, 4.5, 0.5).tolist())  # the first and the last bin are open
MAX_TRACK_BINS = 8


@dataclass(frozen=True)
class Cuts:
    """Which particles are targets: pT (GeV) and number of hits at least, |eta| at most."""

    pt_min_gev: float = 1.0
    min_hits: int = 3
    eta_max: float | None = None

    def targets(self, event: Event) -> np.ndarray:
        """Target particles of the event, bool [P]."""
        target = target_particles(event, self.pt_min_gev, self.min_hits)
        if self.eta_max is not None:
            target &= np.abs(particle_kinematics(event)[1]) <= self.eta_max
        return target

    def text(self) -> str:
        """In words, for tables and captions."""
        words = [f"pT >= {self.pt_min_gev:g} GeV", f">= {self.min_hits} hits"]
        if self.eta_max is not None:
            words.append(f"|eta| <= {self.eta_max:g}")
        return ", ".join(words)

    def check(self, n_targets: int, dataset: Dataset) -> None:
        """InputError if there are particles but no target: of nothing there is no efficiency."""
        if n_targets or not dataset.n_particles.any():
            return
        chosen = Draw(SelectionConfig(pt_min_gev=self.pt_min_gev, min_hits=self.min_hits))
        raise nothing_left(dataset, chosen, lambda field: f"--{field.replace('_', '-')}", f"cuts {self.text()}")

    def pt_edges(self) -> list[float]:
        """Bin edges for true transverse momentum: from the cut on."""
        return [self.pt_min_gev, *(edge for edge in PT_EDGES_GEV if edge > self.pt_min_gev)]


@dataclass
class Reading:
    """Counts of one reading: per metric, per kind of candidate, and per bin (numerators, denominators)."""

    metrics: dict[str, Counts]
    census: dict[str, int]
    binned: dict[tuple[str, str], np.ndarray]  # (metric, variable) -> int [2, bins]


@dataclass
class EventTally:
    """One event: sizes, counts of both readings, TrackML score of the exclusive tracks."""

    event_id: int
    n_hits: int
    n_noise: int
    n_targets: int
    score: float | None
    deviations: np.ndarray | None = None  # of track parameters (evaluation/resolutions.py)
    readings: dict[str, Reading] = field(default_factory=dict)


def particle_kinematics(event: Event) -> tuple[np.ndarray, np.ndarray]:
    """Transverse momentum (GeV) and pseudorapidity of the particles at their creation [P]."""
    px, py, pz = (event.column(f"particles.{c}").astype(np.float64) for c in ("px", "py", "pz"))
    pt = np.hypot(px, py)
    with np.errstate(invalid="ignore", divide="ignore"):
        return pt, np.arcsinh(pz / pt)


def tally_event(event: Event, candidates: Candidates, cuts: Cuts) -> EventTally:
    """Count one event; InputError if the candidates do not fit its hits."""
    particle_row = event.column("truth.particle_row")
    check_candidates(candidates, len(particle_row))
    target = cuts.targets(event)
    weight = event.column("truth.weight")
    tally = EventTally(
        event.event_id,
        n_hits=len(particle_row),
        n_noise=int(np.count_nonzero(particle_row < 0)),
        n_targets=int(np.count_nonzero(target)),
        score=trackml_score(candidates.track_ids, particle_row, weight, len(target)),
    )
    lists = ((candidates.hit_offsets, candidates.hit_rows), exclusive_lists(candidates.track_ids))
    for name, (offsets, rows) in zip(READINGS, lists, strict=True):
        tally.readings[name] = _tally_reading(event, offsets, rows, target, cuts)
    return tally


def _tally_reading(event: Event, offsets: np.ndarray, rows: np.ndarray, target: np.ndarray, cuts: Cuts) -> Reading:
    found = match(offsets, rows, event.column("truth.particle_row"), len(target))
    counts = {name: metric.count(found, target) for name, metric in METRICS.items()}
    is_found = particles_of(found, matched(found))
    x, y, z = (event.column(f"hits.{axis}") for axis in "xyz")
    look = counted(found)
    fake = ~matched(found)[look]
    pt, eta = particle_kinematics(event)
    own_pt = pt_estimate(offsets, rows, x, y, event.field_t)[look]
    own_eta = eta_estimate(offsets, rows, x, y, z)[look]
    binned = {
        ("efficiency", "pt"): _histogram(pt[target], is_found[target], [*cuts.pt_edges(), np.inf]),
        ("efficiency", "eta"): _histogram(eta[target], is_found[target], _open(ETA_EDGES)),
        ("fake_rate", "pt"): _histogram(own_pt, fake, [*PT_EDGES_GEV, np.inf]),
        ("fake_rate", "eta"): _histogram(own_eta, fake, _open(ETA_EDGES)),
    }
    return Reading(counts, census(found, target), binned)


def _open(edges: Sequence[float]) -> list[float]:
    return [-np.inf, *edges[1:-1], np.inf]


def _histogram(values: np.ndarray, chosen: np.ndarray, edges: Sequence[float]) -> np.ndarray:
    """Counts [2, bins] of the chosen and of all values; bins are closed below, so none is lost or counted twice."""
    which = np.searchsorted(edges, values, side="right") - 1
    which = np.clip(np.where(np.isnan(values), len(edges) - 2, which), 0, len(edges) - 2)
    return np.stack(
        [np.bincount(which[chosen], minlength=len(edges) - 1), np.bincount(which, minlength=len(edges) - 1)]
    )


def add_up(tallies: Sequence[EventTally], cuts: Cuts) -> dict:
    """Sums over events: {"candidates": …, "exclusive": …}, each with metrics, census and binned rates."""
    return {name: _add_up_reading(tallies, name, cuts) for name in READINGS}


def _add_up_reading(tallies: Sequence[EventTally], reading: str, cuts: Cuts) -> dict:
    parts = [tally.readings[reading] for tally in tallies]
    numbers = {}
    for name, metric in METRICS.items():
        numerator, denominator = (sum(part.metrics[name][k] for part in parts) for k in (0, 1))
        numbers[name] = fraction(numerator, denominator) | {
            "title": metric.title,
            "numerator_is": metric.numerator,
            "denominator_is": metric.denominator,
            "selection": f"targets: {cuts.text()}; candidates: >= {MIN_CANDIDATE_HITS} hits",
            "events": len(tallies),
            "error_is": "binomial, half of the 68 % Wilson interval",
            "source": metric.source,
        }
    if reading == "exclusive":
        numbers["trackml_score"] = mean_score([tally.score for tally in tallies]) | {
            "title": "TrackML score",
            "numerator_is": "sum of the events' scores",
            "denominator_is": "events with a total weight",
            "selection": "all hits of the events",
            "events": len(tallies),
            "error_is": "standard error of the mean from the spread between events",
            "source": SCORE_SOURCE,
        }
    edges = {
        ("efficiency", "pt"): [*cuts.pt_edges(), None],
        ("efficiency", "eta"): [None, *ETA_EDGES[1:-1], None],
        ("fake_rate", "pt"): [*PT_EDGES_GEV, None],
        ("fake_rate", "eta"): [None, *ETA_EDGES[1:-1], None],
    }
    binned: dict = {"efficiency": {}, "fake_rate": {}}
    for (rate, variable), bounds in edges.items():
        counts = sum((part.binned[rate, variable] for part in parts), np.zeros((2, len(bounds) - 1), np.int64))
        binned[rate][variable] = [
            {"from": bounds[i], "to": bounds[i + 1], **fraction(*counts[:, i].tolist())} for i in range(len(bounds) - 1)
        ]
    for rate in binned:
        binned[rate]["n_tracks"] = _against_tracks(tallies, reading, rate)
    kinds = {kind: sum(part.census[kind] for part in parts) for kind in (parts[0].census if parts else ())}
    return {"metrics": numbers, "census": kinds, "binned": binned}


def _against_tracks(tallies: Sequence[EventTally], reading: str, metric: str) -> list[dict]:
    """The metric against the number of target tracks in the event, in bins of whole numbers [from, to)."""
    tracks = np.array([tally.n_targets for tally in tallies], dtype=np.int64)
    edges = track_edges(tracks)
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = [t for t in tallies if low <= t.n_targets < high]
        numerator, denominator = (sum(t.readings[reading].metrics[metric][k] for t in inside) for k in (0, 1))
        mean = sum(t.n_targets for t in inside) / len(inside) if inside else None
        row = {"from": low, "to": high, "events": len(inside), "mean": mean}
        rows.append(row | fraction(numerator, denominator))
    return rows


def track_edges(tracks: np.ndarray) -> list[int]:
    """Edges of at most about MAX_TRACK_BINS bins of equal round width that cover the numbers of tracks."""
    if not len(tracks):
        return []
    low, high = int(tracks.min()), int(tracks.max())
    width = next(w for k in range(12) for w in (10**k, 2 * 10**k, 5 * 10**k) if (high - low) // w < MAX_TRACK_BINS)
    start = low // width * width
    return list(range(start, high + width + 1, width))


def event_row(tally: EventTally) -> dict:
    """One event for results.json: sizes, score, and the counts [numerator, denominator] of every metric."""
    row: dict = {key: getattr(tally, key) for key in ("event_id", "n_hits", "n_noise", "n_targets")}
    for name, reading in tally.readings.items():
        row[name] = {"n_candidates": reading.census["candidates"]} | {m: list(c) for m, c in reading.metrics.items()}
    return row | {"trackml_score": tally.score}
