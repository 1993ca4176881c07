"""Rules that count by more than whose a candidate's hits are, or by hits in place of tracks; none is one of `all`.

Legend: H hits, P particles, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hpctrack.evaluation import calorimeter
from hpctrack.evaluation.judging import Lists
from hpctrack.evaluation.matching import match
from hpctrack.evaluation.metrics import Counts
from hpctrack.evaluation.tally import Cuts
from hpctrack.requirements.needs import TRACKS
from hpctrack.storage.schema import Event


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


def of_clusters(event: Event, lists: Lists) -> dict[str, Counts]:
    """Hits that are in the one candidate of their particle / hits of particles.

    A candidate is of the particle with most hits in it, of however few hits; a particle has one, that with most of its
    hits. Hits of other particles' candidates, and those of no candidate, are lost. A candidate in which noise has as
    many hits as any particle is of none.
    """
    found = match(*lists, event.column("truth.particle_row"), event.n_particles)
    of = found.majority >= 0
    best_P = np.zeros(event.n_particles, dtype=np.int64)
    np.maximum.at(best_P, found.majority[of], found.majority_hits[of])
    return {"clustering": (int(best_P.sum()), int(found.particle_hits.sum()))}


EVENT_RULES: dict[str, EventRule] = {
    "proton_ct": EventRule(
        who="proton CT (T. Kortus et al.): tracks of primaries that reach their Bragg peak",
        source="SIVERT-pCT/e2e-tracking; arXiv:2407.13420",
        selection=f">= {calorimeter.MIN_HITS} hits, all of primaries, the deepest above "
        f"{calorimeter.MIN_DEPOSIT_MEV:g} MeV",
        needs=calorimeter.COLUMNS,
        measures={
            "purity": Number("Purity", "tracks of one primary's hits", "tracks that are looked at"),
            "efficiency": Number("Efficiency", "tracks of one primary's hits", "primaries without secondaries"),
            "edge_tpr": Number("True edges chosen", "true edges within a track", "true edges"),
            "edge_fpr": Number("False edges chosen", "false edges within a track", "false edges"),
        },
        count=calorimeter.of_protons,
    ),
    "ramp": EventRule(
        who="the challenge ramp (2017): hits in clusters that are matched one to one",
        source="S. Amrouche et al., EPJ Web Conf. 150 (2017) 00015; ramp-kits/HEP_tracking",
        selection="all hits of particles",
        needs=[*TRACKS, "particles.particle_id"],
        measures={
            "clustering": Number("Clustering", "hits in the one candidate of their particle", "hits of particles"),
        },
        count=of_clusters,
    ),
}
