"""Method `hopfield`: the annealed network of 1988 to 1991 on segments between neighbouring layers.

Segments are the house's doublets. Hits are taken in the order of their positions, not of their rows, so the result does
not depend on how an event's hits are ordered.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from hpctrack.config import Section
from hpctrack.events.truth import layer_number
from hpctrack.storage.schema import Candidates, Event
from hpctrack.tracking.builder import Lists, TooManyPairs
from hpctrack.tracking.hopfield.chains import chains, walks
from hpctrack.tracking.hopfield.couplings import Cosine, Coupling, Curvature, Hits, best_partners, supports
from hpctrack.tracking.hopfield.network import Cooling, Network, OfStrongest, relax
from hpctrack.tracking.hopfield.segments import Measured, MeasuredCurvature, barrel, segments
from hpctrack.tracking.hopfield.sets import SETS

PARTS = ("segments_s", "couplings_s", "relax_s", "chains_s", "build_s")
Set = Literal[
    "curvature", "curvature-barrel", "denby-peterson", "aleph", "aleph-annealed", "strongest", "alpha-g", "fizmat"
]


class Hopfield:
    """Chains are candidates; none overlap. A candidate's score is the mean activation of its segments."""

    class Options(Section):
        """A set gives every option below it that is not given. Lengths in mm, angles in rad."""

        set: Set = Field("curvature", description="named set of parameters, under what is given beside it")
        segments: str = Field(
            "trackml",
            min_length=1,
            description="trackml: that whole detector, with cuts and spreads measured on tracks of pT > 1 GeV in 2 T; "
            "the file of `hpctrack segments`, for another; barrel: TrackML's ten barrel layers, each with the next",
        )
        phi_slope_max_per_mm: float = Field(4e-4, gt=0, description="barrel: cut on |dphi / dr| of a segment")
        z0_max_mm: float = Field(200.0, gt=0, description="barrel: cut on |z| where a segment meets the beam line")
        skips: int = Field(0, ge=0, le=9, description="barrel: layers that a segment may leave out, at most")
        coupling: Literal["curvature", "cosine"] = Field(description="what makes two segments support each other")
        spread_k_per_mm: float = Field(4e-5, gt=0, description="curvature, barrel: s_k, of the change of dphi / dr")
        spread_s: float = Field(0.06, gt=0, description="curvature, barrel: s_s, of the change of dz / dr")
        spread_scale: float = Field(6.0, gt=0, description="curvature: measured spreads times this are s_k and s_s")
        coupling_min: float = Field(1e-3, ge=0, lt=1, description="weaker couplings are none")
        cosine_power: float = Field(ge=0, le=100, description="cosine: lambda")
        length_power: float = Field(ge=0, le=10, description="cosine: mu; the coupling falls with the lengths")
        length_mm: float = Field(100.0, gt=0, description="cosine: the unit of these lengths")
        cosine_min: float = Field(ge=-1, lt=1, description="cosine: no coupling at or below")
        partners: Literal["all", "strongest", "fixed"] = Field(
            description="on either side: all; the strongest at the time; or the one of the largest coupling"
        )
        support: float = Field(gt=0, le=1e6, description="c, factor of the couplings")
        competition: float = Field(ge=0, le=1e6, description="alpha, between segments that leave or enter a hit")
        bias: float = Field(ge=-1e6, le=1e6, description="B, of every segment")
        crowding: float = Field(ge=0, le=1.0, description="delta, that holds the sum of V near the number of hits")
        start: float = Field(ge=0, le=1, description="V of every segment at first")
        t_begin: float = Field(gt=0, le=1e6, description="temperature of the first step")
        t_end: float = Field(gt=0, le=1e6, description="and of the last; in between geometric")
        steps: int = Field(ge=1, le=100_000, description="cooling steps")
        rest: int = Field(ge=0, le=100_000, description="steps more at the last temperature, until still, at most")
        still: float = Field(5e-4, ge=0, lt=1, description="mean |dV| of a step below which a network is still")
        damping: float = Field(gt=0, le=1, description="share of the new V in a step; 1: none, which may oscillate")
        halving: bool = Field(description="t_begin and the bias until half the steps, then half of both")
        threshold: float = Field(ge=0, le=1, description="segments of a smaller V are off")
        tracks: Literal["chains", "walks"] = Field(
            description="what is on: chains, each hit with one successor and one predecessor, by V; or the walks of "
            "builder `walk` along V, which take hits beside them"
        )
        join: float = Field(0.5, gt=0, le=1, description="walks: V of a segment by which a hit beside one joins it")
        min_hits: int = Field(ge=2, description="shorter tracks are no candidates")
        segments_max: int = Field(20_000_000, ge=1, description="an event with more is refused: memory")
        triplets_max: int = Field(500_000_000, ge=1, description="an event with more is refused: time")

        @model_validator(mode="before")
        @classmethod
        def _of_the_set(cls, values: Any) -> Any:
            if not isinstance(values, dict):
                return values
            name = values.get("set")
            return SETS[name if isinstance(name, str) and name in SETS else "curvature"] | values

    COLUMNS: ClassVar = ["hits.r", "hits.phi", "hits.z", "hits.volume_id", "hits.layer_id"]

    def __init__(self, options: Options) -> None:
        self.options = options
        self.of_trackml = options.segments in ("trackml", "barrel")
        self.measured = None if options.segments == "barrel" else Measured.of(options.segments)
        self.inputs: Mapping[str, str] = {} if self.measured is None else {"segments_digest": self.measured.digest}

    def reconstruct(self, event: Event, rows: np.ndarray) -> tuple[Candidates, dict[str, float]]:
        """Candidates from the hits `rows` [N] of an event, and the seconds of each part.

        TooManyPairs that names the event if it has more segments or triplets than the options allow.
        """
        o, times = self.options, [time.perf_counter()]
        r, phi, z = (event.column(name)[rows] for name in self.COLUMNS[:3])
        rows = rows[np.lexsort((z, phi, r))]
        try:
            hits, edge_2M = self.segments(event, rows)
            times.append(time.perf_counter())
            network = self.network(hits, edge_2M)
        except TooManyPairs as error:
            raise TooManyPairs(f"event {event.event_id}: {error}") from error
        times.append(time.perf_counter())
        value_M = relax(network, o.start, self.cooling)
        times.append(time.perf_counter())
        find = chains if o.tracks == "chains" else walks(o.join)
        found = find(edge_2M, value_M, len(rows), o.threshold, o.min_hits)
        times.append(time.perf_counter())
        candidates = in_row_order(found.at(rows)).candidates(event.n_hits, event.event_id, o.min_hits)
        times.append(time.perf_counter())
        return candidates, dict(zip(PARTS, np.diff(times).tolist(), strict=True))

    @property
    def cooling(self) -> Cooling:
        """How the network relaxes."""
        o = self.options
        return Cooling(o.t_begin, o.t_end, o.steps, o.rest, o.damping, still=o.still, halving=o.halving)

    def segments(self, event: Event, rows: np.ndarray) -> tuple[Hits, np.ndarray]:
        """Hits [N] and segments [2, M] of these, as numbers 0..N-1."""
        o = self.options
        r, phi, z, volume, layer = (event.column(name)[rows] for name in self.COLUMNS)
        number = layer_number(volume, layer)
        own = barrel(o.phi_slope_max_per_mm, o.z0_max_mm, o.skips) if self.measured is None else self.measured.pairs
        edge_2M = segments(event, rows, own, o.segments_max)
        return Hits(r.astype(np.float64), phi.astype(np.float64), z.astype(np.float64), number), edge_2M

    def network(self, hits: Hits, edge_2M: np.ndarray) -> Network:
        """The network of these segments."""
        o, n_hits = self.options, len(hits.r)
        support = supports(
            edge_2M, n_hits, self.coupling(hits), scale=o.support, least=o.coupling_min, most=o.triplets_max
        )
        if o.partners == "fixed":
            support = best_partners(support, edge_2M)
        kind = OfStrongest if o.partners == "strongest" else Network
        return kind(edge_2M, n_hits, support, o.competition, o.bias, o.crowding, expected=float(n_hits))

    def coupling(self, hits: Hits) -> Coupling:
        """What couples segments of these hits."""
        o = self.options
        if o.coupling == "cosine":
            return Cosine(hits, o.cosine_power, o.length_power, o.length_mm, o.cosine_min)
        if self.measured is None:
            return Curvature(hits, o.spread_k_per_mm, o.spread_s)
        return MeasuredCurvature(hits, self.measured, o.spread_scale)


def in_row_order(found: Lists) -> Lists:
    """The same candidates, each with its rows ascending, in the order of their first rows."""
    of = np.repeat(np.arange(len(found.scores)), np.diff(found.offsets))
    order = np.lexsort((found.rows, of))
    rows = found.rows[order]
    by_first = np.argsort(rows[found.offsets[:-1]], kind="stable")
    rank = np.empty(len(by_first), dtype=np.int64)
    rank[by_first] = np.arange(len(by_first))
    size = np.diff(found.offsets)[by_first]
    offsets = np.append(0, np.cumsum(size)).astype(np.int64)
    return Lists(offsets, rows[np.argsort(rank[of], kind="stable")], found.scores[by_first])
