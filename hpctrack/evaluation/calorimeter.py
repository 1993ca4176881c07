"""Rule `proton_ct`: tracks of protons in a digital tracking calorimeter, as T. Kortus et al. count them.

A track is looked at if it has more than 4 hits, all of primaries, and its deepest hit left more than 0.0625 MeV: one
that left less ended before the Bragg peak. Hits of primaries are those that weigh (simulation/telescope/source.py).
Edges are the pairs of hits of neighbouring planes within the angles of `data.graph: planes`; an edge is chosen if both
its hits are in one track.

Legend: H hits, P particles, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpctrack.evaluation.judging import Lists
from hpctrack.evaluation.metrics import Counts
from hpctrack.evaluation.tally import Cuts
from hpctrack.graphs.planes import Planes
from hpctrack.requirements.needs import TRACKS
from hpctrack.storage.schema import Event

MIN_HITS, MIN_DEPOSIT_MEV = 5, 0.0625
COLUMNS = [*Planes.COLUMNS, "cells.cell_charge", "truth.weight", *TRACKS, "particles.particle_id"]


class Number(NamedTuple):
    """What a number of the rule is called, and what it is a fraction of."""

    title: str
    numerator: str
    denominator: str


@dataclass(frozen=True)
class EventRule:
    """A rule that looks at more than whose a candidate's hits are; `count` has each number's counts of an event."""

    who: str
    source: str
    selection: str
    needs: list[str]
    measures: Mapping[str, Number]
    count: Callable[[Event, Lists], dict[str, Counts]]
    sample: None = None

    def text(self, cuts: Cuts) -> str:
        """Targets and hits, in words."""
        return self.selection


def of_protons(event: Event, lists: Lists) -> dict[str, Counts]:
    """Purity, efficiency, and rates of true and of false edges, as (numerator, denominator)."""
    offsets, rows = lists
    row, plane = event.column("truth.particle_row").astype(np.int64), event.column("hits.layer_id").astype(np.int64)
    primary, deposit = event.column("truth.weight") > 0, event.column("cells.cell_charge")
    chosen = [rows[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    seen = [hits for hits in chosen if len(hits) >= MIN_HITS and primary[hits].all()]
    seen = [hits for hits in seen if deposit[hits[np.argmax(plane[hits])]] > MIN_DEPOSIT_MEV]
    right = sum(bool((row[hits] == row[hits[0]]).all() and row[hits[0]] >= 0) for hits in seen)
    mixed = np.bincount(row[(row >= 0) & ~primary], minlength=event.n_particles) > 0
    there = np.bincount(row[row >= 0], minlength=event.n_particles) > 0
    label = np.full(len(row), -1, dtype=np.int64)
    label[rows] = np.repeat(np.arange(len(chosen)), np.diff(offsets))
    i, j = Planes(Planes.Options())(event, np.arange(len(row)))
    true, taken = (row[i] == row[j]) & (row[i] >= 0), (label[i] == label[j]) & (label[i] >= 0)
    return {
        "purity": (right, len(seen)),
        "efficiency": (right, int((there & ~mixed).sum())),
        "edge_tpr": (int((taken & true).sum()), int(true.sum())),
        "edge_fpr": (int((taken & ~true).sum()), int((~true).sum())),
    }


EVENT_RULES: dict[str, EventRule] = {
    "proton_ct": EventRule(
        who="proton CT (T. Kortus et al.): tracks of primaries that reach their Bragg peak",
        source="SIVERT-pCT/e2e-tracking; arXiv:2407.13420",
        selection=f">= {MIN_HITS} hits, all of primaries, the deepest above {MIN_DEPOSIT_MEV:g} MeV",
        needs=COLUMNS,
        measures={
            "purity": Number("Purity", "tracks of one primary's hits", "tracks that are looked at"),
            "efficiency": Number("Efficiency", "tracks of one primary's hits", "primaries without secondaries"),
            "edge_tpr": Number("True edges chosen", "true edges within a track", "true edges"),
            "edge_fpr": Number("False edges chosen", "false edges within a track", "false edges"),
        },
        count=of_protons,
    )
}
