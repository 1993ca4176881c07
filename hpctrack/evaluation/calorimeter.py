"""Rule `proton_ct`: tracks of protons in a digital tracking calorimeter, as T. Kortus et al. count them.

A track is looked at if it has more than 4 hits, all of primaries, and its deepest hit left more than 0.0625 MeV: one
that left less ended before the Bragg peak. Hits of primaries are those that weigh (simulation/telescope/source.py).
Edges are the pairs of hits of neighbouring planes within the angles of `data.graph: planes`; an edge is chosen if both
its hits are in one track.

Legend: H hits, P particles, C candidates.
"""

from __future__ import annotations

import numpy as np

from hpctrack.evaluation.judging import Lists
from hpctrack.evaluation.metrics import Counts
from hpctrack.graphs.planes import Planes
from hpctrack.requirements.needs import TRACKS
from hpctrack.storage.schema import Event

MIN_HITS, MIN_DEPOSIT_MEV = 5, 0.0625
COLUMNS = [*Planes.COLUMNS, "cells.cell_charge", "truth.weight", *TRACKS, "particles.particle_id"]


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
