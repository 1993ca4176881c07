"""Named rules: whom other groups count as targets, which hits they count, and what they call efficiency and fakes.

A rule stands beside the metrics of this project (metrics.py), never in their place. Each follows the code that its
group's numbers come from; `source` says where to read it. Long form: docs/reference/metrics.md.

Hits that a rule does not count do not exist for it: a particle has the others alone, and a candidate that was made from
all hits is looked at by the others alone. As everywhere, candidates of fewer than 3 hits are not looked at, and counts
are added over events before they are divided.

Shapes: H hits, P particles, C candidates as lists (offsets [C + 1], hit rows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass

import numpy as np

from hpctrack.errors import InputError
from hpctrack.evaluation.event_rules import EVENT_RULES, EventRule
from hpctrack.evaluation.judging import (
    Judge,
    Seen,
    by_majority,
    duplicates_a_target,
    duplicates_by_double_majority,
    lost_on_targets,
    not_of_a_target,
    one_to_one,
    restricted,
    same_hits,
    single_of_targets,
    unmatched_of_targets,
    with_noise,
    without_double_majority,
)
from hpctrack.evaluation.kinds import particle_kinematics
from hpctrack.evaluation.matching import check_candidates, exclusive_lists
from hpctrack.evaluation.metrics import (
    METRICS,
    Counts,
    Entries,
    double_majority_efficiency,
    efficiency,
    fake_rate,
    fraction,
    perfect_efficiency,
    total,
)
from hpctrack.evaluation.tally import READINGS, Cuts, EventCounts
from hpctrack.requirements.needs import DIRECTIONS, TRACKS, Need
from hpctrack.storage.detector import PIXEL, TRACKML, Detector
from hpctrack.storage.schema import Candidates, Event

ALL = "all"  # names every rule on collisions
COLUMNS = ["hits.volume_id", "hits.layer_id", "hits.eta", *TRACKS, *DIRECTIONS]


# ------------------------------------------------------------------------------------------------ who is counted


@dataclass(frozen=True)
class Sample:
    """Targets: pT (GeV) from the cut on, or `above` it, |eta| below a cut, and at least so many hits or layers of hits.

    `part`, `hits_eta_max`: the hits that exist, in the volumes of this part of the detector and up to this |eta| seen
    from the origin; all by default. Layers are counted before the second of these cuts.
    """

    pt_gev: float
    _: KW_ONLY
    above: bool = False
    eta_below: float | None = None
    least: int = 3
    of: str = "hits"
    part: str = ""
    hits_eta_max: float | None = None

    def text(self, detector: Detector) -> str:
        """In words, for tables and captions."""
        words = [f"pT {'>' if self.above else '>='} {self.pt_gev:g} GeV"]
        words += [f"|eta| < {self.eta_below:g}"] if self.eta_below is not None else []
        words += [f">= {self.least} {self.of}"]
        hits = [f"volumes {', '.join(map(str, self.volumes(detector)))}"] if self.part else []
        hits += [f"|eta| <= {self.hits_eta_max:g}"] if self.hits_eta_max is not None else []
        return ", ".join(words) + (f"; hits: {', '.join(hits)}" if hits else "")

    def volumes(self, detector: Detector) -> tuple[int, ...]:
        """Of the part."""
        return detector.parts.get(self.part, ())

    def seen(self, event: Event, detector: Detector) -> np.ndarray:
        """Hits that exist, bool [H]."""
        there = self._in_volumes(event, detector)
        return there if self.hits_eta_max is None else there & (np.abs(event.column("hits.eta")) <= self.hits_eta_max)

    def targets(self, event: Event, detector: Detector) -> np.ndarray:
        """Target particles, bool [P]; none without a hit that exists."""
        pt, eta = particle_kinematics(event)
        row = event.column("truth.particle_row")
        target = (pt > self.pt_gev) if self.above else (pt >= self.pt_gev)
        if self.eta_below is not None:
            target &= np.abs(eta) < self.eta_below
        own = np.flatnonzero(self._in_volumes(event, detector) & (row >= 0))
        target &= _places(event, own, self.of) >= self.least
        seen = row[self.seen(event, detector) & (row >= 0)]
        return target & (np.bincount(seen, minlength=len(target)) > 0)

    def _in_volumes(self, event: Event, detector: Detector) -> np.ndarray:
        volume = event.column("hits.volume_id")
        return np.isin(volume, self.volumes(detector)) if self.part else np.ones(len(volume), dtype=bool)


PLACES: dict[str, tuple[str, ...]] = {  # what is counted of a particle's hits, and in which columns they differ
    "hits": (),
    "layers": ("volume_id", "layer_id"),
    "different layer_ids": ("layer_id",),
}


def _places(event: Event, rows: np.ndarray, of: str) -> np.ndarray:
    """How many different places the hits `rows` of each particle have [P]."""
    place = event.column("truth.particle_row")[rows].astype(np.int64)
    for column in PLACES[of]:
        place = (place << 16) + event.column(f"hits.{column}")[rows]
    if PLACES[of]:
        place = np.unique(place) >> 16 * len(PLACES[of])
    return np.bincount(place, minlength=event.n_particles)


# ------------------------------------------------------------------------------------------------ the rules


@dataclass(frozen=True)
class Measure:
    """A number of a rule: its entries as in metrics.py, its name for people, and what it is a fraction of.

    `above_gev`: only of targets above this pT.
    """

    entries: Callable[[Seen, np.ndarray], Entries]
    title: str
    numerator: str
    denominator: str
    above_gev: float | None = None


@dataclass(frozen=True)
class Rule:
    """Whose numbers these are, by which sample, judged how; no sample: that of the command line."""

    who: str
    source: str
    sample: Sample | None
    measures: Mapping[str, Measure]
    judge: Judge = by_majority

    def text(self, cuts: Cuts, detector: Detector) -> str:
        """Targets and hits, in words."""
        return cuts.text() if self.sample is None else self.sample.text(detector)


_OWN = "> 50 % of its hits"
_DOUBLE = Measure(
    double_majority_efficiency,
    "Double-majority efficiency",
    f"targets with a candidate holding > 50 % of their hits, of which they own {_OWN}",
    "targets",
)
_PERFECT = Measure(perfect_efficiency, "Perfect efficiency", "targets with a candidate of their hits alone", "targets")
_SINGLE = Measure(efficiency, "Efficiency", f"targets with a candidate of which they own {_OWN}", "targets")
_A_TARGET = Measure(
    duplicates_a_target, "Duplicate rate", "matched candidates beyond the first of their target", "targets with one"
)
_OF_TARGETS = "candidates whose majority particle is a target"
_ABOVE = 1.0  # GeV, where MaskFormer's summary is given once more
_MASKS = "candidates without double majority, nor with the hits of an earlier one"
RULES: dict[str, Rule] = {
    "hpctrack": Rule(
        "this project: any particle can match a candidate, noise cannot",
        "hpctrack/evaluation/metrics.py",
        None,
        {
            name: Measure(metric.entries, metric.title, metric.numerator, metric.denominator)
            for name, metric in METRICS.items()
            if name != "lhc_efficiency"
        },
    ),
    "influencer": Rule(
        "InfluencerNet: a candidate that holds half a track or less is a fake",
        "murnanedaniel/InfluencerNet, src/models/object_condensation_base.py, get_tracking_metrics; "
        "examples/CHEP2023/influencer_config.yaml; the text of the paper (EPJ Web Conf. 295 (2024) 09016, Eq. 3) is "
        "rule hpctrack",
        Sample(1.0),
        {
            "double_majority_efficiency": _DOUBLE,
            "fake_rate": Measure(
                without_double_majority,
                "Fake rate",
                "candidates without double majority with a particle of >= 3 hits",
                "candidates",
            ),
            "duplicate_rate": Measure(
                duplicates_by_double_majority,
                "Duplicate rate",
                "double-majority candidates beyond the first of their particle",
                "double-majority candidates",
            ),
        },
    ),
    "gnn_tracking": Rule(
        "gnn_tracking (object condensation): only candidates of targets can be fakes",
        "gnn-tracking/gnn_tracking, src/gnn_tracking/metrics/cluster_metrics.py, tracking_metrics, and "
        "preprocessing/point_cloud_builder.py; arXiv:2309.16754, arXiv:2312.03823",
        Sample(0.9, eta_below=4.0, of="different layer_ids", part=PIXEL),
        {
            "double_majority_efficiency": _DOUBLE,
            "perfect_efficiency": _PERFECT,
            "fake_rate": Measure(
                single_of_targets, "Fake rate", "candidates of targets without double majority", _OF_TARGETS
            ),
        },
    ),
    "heptv2": Rule(
        "HEPTv2: only candidates of targets can be fakes, and half a track is none",
        "Graph-COM/HEPTv2, heptv2/eval/metrics.py (double_majority, fake_rate, dup_rate), heptv2/data/preprocess.py, "
        "heptv2/configs/infer.yaml; arXiv:2606.20437",
        Sample(0.9, of="layers", part=PIXEL, hits_eta_max=4.0),
        {
            "double_majority_efficiency": _DOUBLE,
            "efficiency": _SINGLE,
            "perfect_efficiency": _PERFECT,
            "fake_rate": Measure(
                unmatched_of_targets, "Fake rate", f"candidates of targets who do not own {_OWN}", _OF_TARGETS
            ),
            "duplicate_rate": _A_TARGET,
        },
    ),
    "maskformer": Rule(
        "MaskFormer: one candidate a target, all others are fakes, soft tracks too",
        "samvanstroud/hepattn, src/hepattn/experiments/trackml/eval/track_evaluate.py and run_track_eval_plots.py, "
        "data.py, configs/tracking.yaml; arXiv:2411.07149",
        Sample(0.6, above=True, eta_below=2.5, part=PIXEL),
        {
            "double_majority_efficiency": _DOUBLE,
            "perfect_efficiency": _PERFECT,
            "fake_rate": Measure(not_of_a_target, "Fake rate", _MASKS, "candidates"),
            "duplicate_rate": Measure(
                same_hits, "Duplicate rate", "candidates with the hits of an earlier one", "candidates"
            ),
            "double_majority_efficiency_above_1_gev": Measure(
                double_majority_efficiency,
                f"Double-majority efficiency, pT > {_ABOVE:g} GeV",
                f"{_DOUBLE.numerator}",
                f"targets of pT > {_ABOVE:g} GeV",
                _ABOVE,
            ),
            "fake_rate_above_1_gev": Measure(
                lost_on_targets,
                f"Fake rate, pT > {_ABOVE:g} GeV",
                f"{_MASKS}, that have more hits of a target of pT > {_ABOVE:g} GeV than others have",
                "candidates",
                _ABOVE,
            ),
        },
        judge=one_to_one,
    ),
    "exatrkx": Rule(
        "Exa.TrkX (acorn, matching style ATLAS): as this project, but noise counts like a particle",
        "GNN4ITkTeam/CommonFramework (acorn), acorn/stages/track_building/utils.py and track_building_stage.py; "
        "HSF-reco-and-software-triggers/Tracking-ML-Exa.TrkX, Examples/TrackML_Quickstart",
        Sample(1.0),
        {
            "efficiency": _SINGLE,
            "fake_rate": Measure(
                fake_rate, "Fake rate", f"candidates of which neither a particle nor noise owns {_OWN}", "candidates"
            ),
            "duplicate_rate": _A_TARGET,
        },
        judge=with_noise,
    ),
}


def chosen(names: Iterable[str]) -> list[str]:
    """The rules that are named, in the order of the tables; ALL: all of RULES. InputError for an unknown one."""
    asked = set(names)
    if unknown := sorted(asked - RULES.keys() - EVENT_RULES.keys() - {ALL}):
        known = ", ".join((*RULES, *EVENT_RULES))
        raise InputError(f"--rules {unknown[0]}: no such rule; there are: {known}; {ALL}: every one on collisions")
    return [name for name in RULES if name in asked or ALL in asked] + [name for name in EVENT_RULES if name in asked]


def columns(names: Sequence[str]) -> list[str]:
    """The columns of an event that these rules read."""
    own = [name for rule in names if rule in EVENT_RULES for name in EVENT_RULES[rule].needs]
    return list(dict.fromkeys([*(COLUMNS if set(names) & RULES.keys() else ()), *own]))


def needs(names: Iterable[str]) -> list[Need]:
    """What a dataset must have for these rules, beside that of the command line's cuts."""
    own = [Need(f"--rules {name}", EVENT_RULES[name].needs) for name in names if name in EVENT_RULES]
    peers = [name for name in names if name in RULES and RULES[name].sample is not None]
    return [*own, *(Need(f"--rules {name}", [*TRACKS, *DIRECTIONS]) for name in peers)]


# ------------------------------------------------------------------------------------------------ counting


def check_detector(names: Iterable[str], detector: Detector, where: str) -> None:
    """InputError that begins with `where` for a rule that counts hits in a part that is not known of the detector."""
    for name in names:
        sample = RULES[name].sample if name in RULES else None
        if sample is not None and sample.part and not sample.volumes(detector):
            known = ", ".join(f"{place} {volume}" for volume, place in detector.names().items())
            raise InputError(
                f"{where}: --rules {name}: counts hits in {sample.part} volumes, and which of the detector's those are "
                f"is not known ({known or 'nothing is known of it'}); leave the rule out, or convert again with "
                "--detectors FILE, whose modules say their pitches"
            )


def count(
    event: Event, found: Candidates, names: Sequence[str], cuts: Cuts, detector: Detector = TRACKML
) -> dict[str, EventCounts]:
    """Counts of one event by each rule; InputError if the candidates do not fit it, or it is of another detector."""
    row = event.column("truth.particle_row")
    check_candidates(found, len(row))
    lists = ((found.hit_offsets, found.hit_rows), exclusive_lists(found.track_ids))
    counts = {}
    for name in names:
        if name in EVENT_RULES:
            own_counts = [EVENT_RULES[name].count(event, each) for each in lists]
            counts[name] = EventCounts(len(row), event.n_particles, dict(zip(READINGS, own_counts, strict=True)))
            continue
        rule, seen = RULES[name], np.ones(len(row), dtype=bool)
        if rule.sample is None:
            target = cuts.targets(event)
        else:
            _check_volumes(event, name, rule.sample, detector)
            seen, target = rule.sample.seen(event, detector), rule.sample.targets(event, detector)
        own = np.where(seen, row, -1)
        readings = {
            reading: _measured(event, rule, rule.judge(restricted(each, seen), own, target))
            for reading, each in zip(READINGS, lists, strict=True)
        }
        counts[name] = EventCounts(int(seen.sum()), int(target.sum()), readings)
    return counts


def _measured(event: Event, rule: Rule, judged: tuple[Seen, np.ndarray]) -> dict[str, Counts]:
    found, target = judged
    counts = {}
    for name, measure in rule.measures.items():
        of = target
        if measure.above_gev is not None:
            of = target & (particle_kinematics(event)[0] > measure.above_gev)
        counts[name] = total(measure.entries(found, of))
    return counts


def _check_volumes(event: Event, name: str, sample: Sample, detector: Detector) -> None:
    other = np.setdiff1d(event.column("hits.volume_id"), detector.volumes)
    if sample.part and len(other):
        whose = "TrackML's" if detector is TRACKML else "the dataset's"
        raise InputError(
            f"--rules {name}: counts hits in the volumes {', '.join(map(str, sample.volumes(detector)))} of {whose} "
            f"detector, but event {event.event_id} has hits in volume {other[0]}, which is none of its; leave the rule "
            "out"
        )


def add_up(
    events: Sequence[dict[str, EventCounts]], names: Sequence[str], cuts: Cuts, detector: Detector = TRACKML
) -> dict[str, dict]:
    """Each rule's sums over events, as results.json has them; InputError if a rule's volumes have no hit."""
    return {name: _add_up([event[name] for event in events], name, cuts, detector) for name in names}


def _add_up(events: Sequence[EventCounts], name: str, cuts: Cuts, detector: Detector) -> dict:
    rule: Rule | EventRule = EVENT_RULES[name] if name in EVENT_RULES else RULES[name]
    hits = sum(event.hits for event in events)
    if events and not hits and rule.sample is not None and rule.sample.part:
        volumes = ", ".join(map(str, rule.sample.volumes(detector)))
        raise InputError(f"--rules {name}: no event has a hit in its volumes {volumes}; leave the rule out")
    selection = rule.text(cuts, detector) if isinstance(rule, Rule) else rule.text(cuts)
    summed = {"who": rule.who, "selection": selection, "source": rule.source}
    numbers = {"events": len(events), "hits": hits, "target_particles": sum(event.targets for event in events)}
    readings = {
        reading: {
            key: ratio(*(sum(event.readings[reading][key][k] for event in events) for k in (0, 1)))
            | {"title": measure.title, "numerator_is": measure.numerator, "denominator_is": measure.denominator}
            for key, measure in rule.measures.items()
        }
        for reading in READINGS
    }
    return {**summed, **numbers, "error_is": "binomial, half of the 68 % Wilson interval; none above 1", **readings}


def ratio(numerator: int, denominator: int) -> dict[str, float | int | None]:
    """A binomial fraction; above 1, where candidates are counted a target, the value without an error."""
    if numerator <= denominator:
        return fraction(numerator, denominator)
    value = numerator / denominator
    return {"value": value, "error": None, "lo": None, "hi": None, "numerator": numerator, "denominator": denominator}
