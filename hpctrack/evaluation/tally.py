"""Counts of one event and their sum over events: all that results.json is made of.

An EventTally holds integers only (and one score), so the sum does not depend on the order of events or on the number of
processes. Two readings of the candidates are counted alike: the lists, which may overlap ("candidates"), and the
exclusive tracks, one a hit ("exclusive"). Each metric is counted in all and in bins of the kinds of track (kinds.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpctrack.config import SelectionConfig
from hpctrack.evaluation import kinds
from hpctrack.evaluation.kinds import KINDS
from hpctrack.evaluation.matching import Match, check_candidates, exclusive_lists, match
from hpctrack.evaluation.metrics import (
    METRICS,
    MIN_CANDIDATE_HITS,
    SCORE_SOURCE,
    Counts,
    census,
    fraction,
    mean_score,
    total,
    trackml_score,
)
from hpctrack.events.selection import Draw, target_particles
from hpctrack.events.sizes import nothing_left
from hpctrack.requirements.needs import DIRECTIONS, MOMENTA, TRACKS, Need
from hpctrack.storage.schema import Candidates, Event
from hpctrack.storage.store import Dataset

READINGS = ("candidates", "exclusive")
COLUMNS = [  # without which nothing is counted; kinds.py has those of the kinds
    *("hits.x", "hits.y", "hits.z", "truth.particle_row", "truth.weight"),
    *("particles.px", "particles.py", "particles.pz"),
]
SCORE = Need("TrackML score", ["truth.weight"])  # which is left out where there are none
MAX_TRACK_BINS = 8


@dataclass(frozen=True)
class Cuts:
    """Which particles are targets: pT (GeV) and number of hits at least, |eta| at most."""

    pt_min_gev: float = 1.0
    min_hits: int = 3
    eta_max: float | None = None

    def targets(self, event: Event) -> np.ndarray:
        """Target particles of the event, bool [P]."""
        return target_particles(event, self.pt_min_gev, self.min_hits, eta_max=self.eta_max)

    def text(self) -> str:
        """In words, for tables and captions."""
        words = [f"pT >= {self.pt_min_gev:g} GeV", f">= {self.min_hits} hits"]
        if self.eta_max is not None:
            words.append(f"|eta| <= {self.eta_max:g}")
        return ", ".join(words)

    def needs(self) -> list[Need]:
        """What a dataset must have to be judged by these cuts."""
        cut_pt = [Need("--pt-min-gev", MOMENTA)] if self.pt_min_gev > 0 else []
        cut_eta = [Need("--eta-max", DIRECTIONS)] if self.eta_max is not None else []
        return [Need("evaluation", TRACKS), *cut_pt, *cut_eta]

    def check(self, n_targets: int, dataset: Dataset) -> None:
        """InputError if there are particles but no target: of nothing there is no efficiency."""
        if n_targets or not dataset.n_particles.any():
            return
        chosen = Draw(SelectionConfig(pt_min_gev=self.pt_min_gev, min_hits=self.min_hits))
        raise nothing_left(dataset, chosen, lambda field: f"--{field.replace('_', '-')}", f"cuts {self.text()}")

    def begins(self, variable: str, of_candidates: bool = False) -> list[float]:
        """Where the bins of a kind begin: those of targets where the cut is."""
        cut = None if of_candidates else KINDS[variable].cut
        return kinds.begins(variable, None if cut is None else getattr(self, cut))


@dataclass
class Reading:
    """Counts of one reading: per metric, per kind of candidate, and per bin (numerators, denominators)."""

    metrics: dict[str, Counts]
    census: dict[str, int]
    binned: dict[tuple[str, str], np.ndarray]  # (metric, variable) -> int [2, bins]


@dataclass(frozen=True)
class EventCounts:
    """One event by a named rule: hits and targets that it counts, and of each reading each measure's counts."""

    hits: int
    targets: int
    readings: dict[str, dict[str, Counts]]


@dataclass
class EventTally:
    """One event: sizes, counts of both readings, TrackML score of the exclusive tracks."""

    event_id: int
    n_hits: int
    n_noise: int
    n_targets: int
    score: float | None
    deviations: np.ndarray | None = None  # of track parameters (evaluation/resolutions.py)
    by_rule: dict[str, EventCounts] = field(default_factory=dict)  # of evaluation/rules.py
    readings: dict[str, Reading] = field(default_factory=dict)


def tally_event(event: Event, candidates: Candidates, cuts: Cuts) -> EventTally:
    """Count one event; InputError if the candidates do not fit its hits."""
    particle_row = event.column("truth.particle_row")
    check_candidates(candidates, len(particle_row))
    target = cuts.targets(event)
    weight = event.tables["truth"].get("weight")
    tally = EventTally(
        event.event_id,
        n_hits=len(particle_row),
        n_noise=int(np.count_nonzero(particle_row < 0)),
        n_targets=int(np.count_nonzero(target)),
        score=None if weight is None else trackml_score(candidates.track_ids, particle_row, weight, len(target)),
    )
    crowd = kinds.Crowd(event, target)
    of_particles = _bins(kinds.of_particles(event, target, crowd), cuts)
    lists = ((candidates.hit_offsets, candidates.hit_rows), exclusive_lists(candidates.track_ids))
    for name, (offsets, rows) in zip(READINGS, lists, strict=True):
        found = match(offsets, rows, particle_row, len(target))
        own = kinds.of_candidates(event, offsets, rows, found.majority, crowd)
        tally.readings[name] = _tally_reading(found, target, of_particles, _bins(own, cuts, True))
    return tally


Bins = dict[str, tuple[int, np.ndarray]]  # variable -> number of bins, and the bin of each entry


def _bins(values: Mapping[str, np.ndarray], cuts: Cuts, of_candidates: bool = False) -> Bins:
    begins = {name: cuts.begins(name, of_candidates) for name in values}
    return {name: (len(begins[name]), kinds.bin_of(of, begins[name])) for name, of in values.items()}


def _tally_reading(found: Match, target: np.ndarray, of_particles: Bins, of_candidates: Bins) -> Reading:
    counts: dict[str, Counts] = {}
    binned: dict[tuple[str, str], np.ndarray] = {}
    for name, metric in METRICS.items():
        entries = metric.entries(found, target)
        counts[name] = total(entries)
        for variable, (n_bins, which) in (of_candidates if metric.of_candidates else of_particles).items():
            sums = [np.bincount(which, weights=entry, minlength=n_bins) for entry in entries]
            binned[name, variable] = np.stack(sums).astype(np.int64)  # sums of whole numbers, exact below 2^53
    return Reading(counts, census(found, target), binned)


def add_up(tallies: Sequence[EventTally], cuts: Cuts, hidden: Collection[str] = ()) -> dict:
    """Sums over events: {"candidates": …, "exclusive": …}, each with metrics, census and binned rates.

    `hidden`: variables that the dataset does not tell of its particles (kinds.not_told).
    """
    return {name: _add_up_reading(tallies, name, cuts, hidden) for name in READINGS}


def _add_up_reading(tallies: Sequence[EventTally], reading: str, cuts: Cuts, hidden: Collection[str]) -> dict:
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
    binned = {name: _add_up_bins(parts, name, cuts, hidden) for name in METRICS}
    for name, variables in binned.items():
        variables["n_tracks"] = _against_tracks(tallies, reading, name)
    where = {kind: sum(part.census[kind] for part in parts) for kind in (parts[0].census if parts else ())}
    return {"metrics": numbers, "census": where, "binned": binned}


def _add_up_bins(parts: Sequence[Reading], metric: str, cuts: Cuts, hidden: Collection[str]) -> dict[str, list[dict]]:
    """Variable -> the metric in its bins; None: without bound."""
    of_candidates = METRICS[metric].of_candidates
    binned = {}
    for variable, kind in KINDS.items():
        if (kind.of_candidate is None) if of_candidates else (variable in hidden):
            continue
        begins = cuts.begins(variable, of_candidates)
        counts = sum((part.binned[metric, variable] for part in parts), np.zeros((2, len(begins)), np.int64))
        bounds = [begin if np.isfinite(begin) else None for begin in begins] + [None]
        binned[variable] = [
            {"from": bounds[i], "to": bounds[i + 1], **fraction(*counts[:, i].tolist())} for i in range(len(begins))
        ]
    return binned


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
