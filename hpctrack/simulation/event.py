"""What a source gives, what the digitisation makes of it, the four TrackML tables in the end, and the truth weights.

H hits, C cells. Units: mm, GeV. Cells are CSR: those of hit i are `offsets[i]:offsets[i + 1]`. Weights say how much
each hit counts in the score: S. Amrouche et al., "The Tracking Machine Learning challenge: Accuracy phase", The NeurIPS
2018 Competition, Springer, arXiv:1904.06778; the numbers are those of the organisers' trackml-library
(trackml/weights.py). This is the first (accuracy) phase's definition; in the second, secondaries weighed nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hpctrack.simulation.geometry import Geometry
from hpctrack.storage.schema import PARTICLES

Tables = dict[str, dict[str, np.ndarray]]  # table -> column -> values, in the order of the CSV files


def particle_ids(
    vertex: np.ndarray, primary: np.ndarray, generation: np.ndarray | int = 0, secondary: np.ndarray | int = 0
) -> np.ndarray:
    """TrackML's particle_id, int64 and never 0: which collision, which particle of it, which of that one's secondaries.

    12 + 16 + 12 + 12 bits and 12 for the process, which stays 0; trackml-library's decode_particle_id reads them.
    """
    v, p, g, s = (np.asarray(field, np.int64) for field in (vertex, primary, generation, secondary))
    return (v << np.int64(52)) + (p << np.int64(36)) + (g << np.int64(24)) + (s << np.int64(12))


def check_numbers(generation: np.ndarray, secondary: np.ndarray) -> None:
    """RuntimeError if there are more than the bits of particle_id can tell apart."""
    if max(generation.max(initial=0), secondary.max(initial=0)) >= 1 << 12:
        raise RuntimeError("secondaries are too many to number in 12 + 12 bits of particle_id")


@dataclass(frozen=True)
class Crossings:
    """True passages of charged particles through modules."""

    module: np.ndarray  # int64 [H] row of the geometry
    particle_id: np.ndarray  # int64 [H]
    position: np.ndarray  # [H, 3] mm, on the module's plane
    momentum: np.ndarray  # [H, 3] GeV

    def __len__(self) -> int:
        return len(self.module)

    def take(self, rows: np.ndarray) -> Crossings:
        """The chosen rows, a mask or indices."""
        return Crossings(self.module[rows], self.particle_id[rows], self.position[rows], self.momentum[rows])


@dataclass(frozen=True)
class Cells:
    """Cells of hits; all offsets are zero where the digitisation makes none."""

    offsets: np.ndarray  # int64 [H + 1]
    ch0: np.ndarray  # int64 [C]
    ch1: np.ndarray
    value: np.ndarray  # [C]

    @staticmethod
    def none(n_hits: int) -> Cells:
        """No cells for any hit."""
        return Cells(np.zeros(n_hits + 1, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))

    @property
    def counts(self) -> np.ndarray:
        """[H] cells of each hit."""
        return np.diff(self.offsets)

    def take(self, hits: np.ndarray) -> Cells:
        """The cells of the hits with these indices, in that order."""
        counts = self.counts[hits]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][hits] - offsets[:-1], counts)
        return Cells(offsets, self.ch0[rows], self.ch1[rows], self.value[rows])

    def append(self, other: Cells) -> Cells:
        """These and then the other's."""
        offsets = np.concatenate([self.offsets, self.offsets[-1] + other.offsets[1:]])
        names = ("ch0", "ch1", "value")
        return Cells(offsets, *(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


@dataclass(frozen=True)
class Measurements:
    """Digitised hits; noise has particle_id 0, its truth is its own position and zero momentum."""

    truth: Crossings
    position: np.ndarray  # [H, 3] mm, measured
    cells: Cells

    def append(self, other: Measurements) -> Measurements:
        """These and then the other's."""
        names = ("module", "particle_id", "position", "momentum")
        truth = Crossings(*(np.concatenate([getattr(self.truth, n), getattr(other.truth, n)]) for n in names))
        return Measurements(truth, np.concatenate([self.position, other.position]), self.cells.append(other.cells))


def trackml_tables(
    particles: dict[str, np.ndarray],
    measured: Measurements,
    geometry: Geometry,
    rng: np.random.Generator,
    weighs: np.ndarray | None = None,
) -> Tables:
    """Number the hits and write down the event as TrackML does.

    Hits stand in the order of volume, layer and module, shuffled within a module, so that hit_id says nothing about the
    particle; hit_id runs from 1. `particles` has schema.PARTICLES' columns without nhits, which is counted here.
    `weighs` [H]: the hits that weigh the same, others nothing; None: TrackML's weights.
    """
    n = len(measured.truth)
    order = np.lexsort([rng.random(n), measured.truth.module])
    truth, cells, position = measured.truth.take(order), measured.cells.take(order), measured.position[order]
    by_id = np.argsort(particles["particle_id"])
    particles = {name: values[by_id] for name, values in particles.items()}
    known = particles["particle_id"]
    signal = truth.particle_id != 0
    row = np.where(signal, np.searchsorted(known, truth.particle_id), -1)
    particles["nhits"] = np.bincount(row[signal], minlength=len(known))
    if weighs is None:
        weight = hit_weights(row, truth.position[:, 2], particles)
    else:
        weight = weighs[order] / max(1, np.count_nonzero(weighs))
    hit_id = np.arange(1, n + 1)
    ids = {name: geometry.columns[name][truth.module] for name in ("volume_id", "layer_id", "module_id")}
    return {
        "hits": {"hit_id": hit_id, **dict(zip("xyz", position.T, strict=True)), **ids},
        "cells": {"hit_id": np.repeat(hit_id, cells.counts), "ch0": cells.ch0, "ch1": cells.ch1, "value": cells.value},
        "particles": {name: particles[name] for name in PARTICLES},
        "truth": {
            "hit_id": hit_id,
            "particle_id": truth.particle_id,
            **dict(zip(("tx", "ty", "tz"), truth.position.T, strict=True)),
            **dict(zip(("tpx", "tpy", "tpz"), truth.momentum.T, strict=True)),
            "weight": weight,
        },
    }


# ------------------------------------------------------------------------------------------------ truth weights


# Importance of the hits along a track, from the first (most important: it says where the track begins) to the last;
# stretched to the number of hits.
_ALONG_TRACK = (10.0, 8.0, 6.0, 5.0, 3.0, 3.0, 3.0, 5.0, 6.0)
MIN_HITS = 4  # shorter tracks do not count
MAX_HITS = 20  # hits beyond this one do not count


@functools.cache
def order_weights() -> np.ndarray:
    """[MAX_HITS + 1, MAX_HITS]: share of hit i (from 0) in a track of n hits; rows from MIN_HITS on sum to 1."""
    weights = np.zeros((MAX_HITS + 1, MAX_HITS))
    support = np.linspace(0.0, 1.0, len(_ALONG_TRACK))
    for n in range(MIN_HITS, MAX_HITS + 1):
        share = np.interp(np.linspace(0.0, 1.0, n), support, _ALONG_TRACK)
        weights[n, :n] = share / share.sum()
    return weights


def pt_weight(pt: np.ndarray) -> np.ndarray:
    """0.2 up to 0.5 GeV, rising linearly to 1 at 3 GeV and above."""
    return np.interp(pt, (0.5, 3.0), (0.2, 1.0))


def hit_weights(row: np.ndarray, tz: np.ndarray, particles: Mapping[str, np.ndarray]) -> np.ndarray:
    """Weights [H] of the hits, sum 1 over the event (0 where no track counts).

    row: [H] the hit's particle as a row of `particles`, -1 for noise, which weighs 0; tz: [H] mm, true z. Hits of a
    track are ordered by |tz - vz|, as the organisers do.
    """
    weight = np.zeros(len(row))
    signal = np.flatnonzero(row >= 0)
    owner = row[signal]
    nhits = np.bincount(owner, minlength=len(particles["vz"]))
    along = np.lexsort([np.abs(tz[signal] - particles["vz"][owner]), owner])
    first = np.cumsum(nhits) - nhits
    place = np.empty(len(signal), np.int64)
    place[along] = np.arange(len(signal)) - first[owner[along]]
    share = order_weights()[np.minimum(nhits[owner], MAX_HITS), np.minimum(place, MAX_HITS - 1)]
    share[place >= MAX_HITS] = 0.0
    weight[signal] = share * pt_weight(np.hypot(particles["px"], particles["py"]))[owner]
    total = weight.sum()
    return weight / total if total > 0 else weight
