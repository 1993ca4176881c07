"""Doublets: pairs of hits on neighbouring layers that a stiff track from near the beam spot could have made.

Cuts as in S. Farrell et al., arXiv:1810.06111, and the Exa.TrkX talks, on the chord from the inner to the outer hit:
|dphi / dr| (for a track from the beam line about 0.15 B / pT per m: 0.3 /m at 1 GeV in 2 T) and the |z| at which its
line in (r, z) meets the beam line.

Legend: N hits, M edges, A and B hits of the inner and of the outer layer, c candidates of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.events.truth import layer_number
from hpctrack.graphs.contracts import Graph, Owners
from hpctrack.storage.detector import TRACKML
from hpctrack.storage.schema import Event
from hpctrack.storage.store import Dataset, open_dataset

CHUNK = 1 << 20  # candidates at a time: bounds the memory
ROUNDING = 1e-5  # rad, by which the search goes beyond the cut, which decides
SAMPLE = 16  # of so many inner hits one says which share of candidates become edges
Two = tuple[np.ndarray, np.ndarray]  # as hits [A] of an inner layer and [B] of an outer one, each sorted by phi


class Hits(NamedTuple):
    """Where hits are, [N] each."""

    r: np.ndarray
    phi: np.ndarray
    z: np.ndarray


class Doublets(Graph):
    """Edges from inner to outer hits of neighbouring layers, in the order of their ends."""

    class Options(Section):
        """The cuts, and which layers are neighbours."""

        phi_slope_max_per_mm: float = Field(0.001, gt=0, description="cut on |dphi / dr|, rad per mm")
        z0_max_mm: float = Field(200.0, gt=0, description="cut on |z| where the chord meets the beam line")
        pairs: Literal["barrel"] | list[tuple[int, int, int, int]] = Field(
            "barrel",
            description="inner volume and layer, outer volume and layer; barrel: each barrel layer with the next",
        )
        skips: int = Field(0, ge=0, description="barrel: layers between two hits, at most; tracks may miss a layer")

        @field_validator("pairs", mode="before")
        @classmethod
        def _tuples(cls, pairs: object) -> object:
            return [tuple(p) if isinstance(p, list) else p for p in pairs] if isinstance(pairs, list) else pairs

    COLUMNS = ["hits.r", "hits.phi", "hits.z", "hits.volume_id", "hits.layer_id"]

    def __init__(self, options: Options, folder: Path | None = None, data: Dataset | None = None) -> None:
        self.options = options
        found = _ahead(options.skips, folder, data) if options.pairs == "barrel" else options.pairs
        self.pairs = [(a << 8 | b, c << 8 | d) for a, b, c, d in found]  # as layer_number

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray:
        """Edges int64 [2, M] among the hits `rows` [N] of an event, as numbers of these, 0..N-1."""
        return self.edges(*self.layers(event, rows))

    def of_part(self, event: Event, rows: np.ndarray, owners: Owners, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As the contract says; what a hit costs is found from numbers of candidates, and no other edge is made."""
        hits, layers = self.layers(event, rows)
        cost_N = np.ones(len(rows))
        for inner, outer in layers:
            cost_N[inner] += self.expected(hits, inner, outer)
        owner_N = owners(cost_N)
        own_N = owner_N == number
        parts = [(a[own_N[a]], b) for a, b in layers] + [(a[~own_N[a]], b[own_N[b]]) for a, b in layers]
        return owner_N, self.edges(hits, parts)

    def layers(self, event: Event, rows: np.ndarray) -> tuple[Hits, list[Two]]:
        """The hits, and those of each pair of neighbouring layers."""
        r, phi, z, volume, layer = (event.column(name)[rows] for name in self.COLUMNS)
        number = layer_number(volume, layer)
        by_layer = np.lexsort((phi, number))
        sorted_numbers = number[by_layer]

        def of_layer(n: int) -> np.ndarray:
            return by_layer[slice(*np.searchsorted(sorted_numbers, [n, n + 1]))]

        return Hits(r, phi, z), [(of_layer(inner), of_layer(outer)) for inner, outer in self.pairs]

    def edges(self, hits: Hits, layers: list[Two]) -> np.ndarray:
        """Edges [2, M] between inner and outer hits, in the order of their ends."""
        keys = [np.zeros(0, np.int64)]
        for inner, outer in layers:
            for i, j in self.candidates(hits.r, hits.phi, inner, outer):
                keep = self.accepts(*hits, i, j)
                keys.append(i[keep] * len(hits.r) + j[keep])
        key = np.sort(np.concatenate(keys))
        return np.stack(np.divmod(key, max(1, len(hits.r))))

    def expected(self, hits: Hits, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """About how many edges lead from each of the hits `a` to hits `b`, float [A], of which a few are made."""
        size, some = self.windows(hits.r, hits.phi, a, b)[1], a[::SAMPLE]
        made = sum(int(self.accepts(*hits, i, j).sum()) for i, j in self.candidates(hits.r, hits.phi, some, b))
        return size * (made / max(1, int(size[::SAMPLE].sum())))

    def windows(self, r: np.ndarray, phi: np.ndarray, a: np.ndarray, b: np.ndarray) -> Two:
        """For each of the hits `a` [A] the first of three turns of `b` that is near in phi, and how many are."""
        if not len(a) or not len(b):
            return np.zeros(len(a), np.int64), np.zeros(len(a), np.int64)
        reach = self.options.phi_slope_max_per_mm * np.maximum(r[b].max() - r[a], 0) + ROUNDING
        around = np.concatenate([phi[b] - 2 * np.pi, phi[b], phi[b] + 2 * np.pi])
        first = np.searchsorted(around, phi[a] - reach)
        return first, np.minimum(np.searchsorted(around, phi[a] + reach, side="right") - first, len(b))

    def candidates(self, r: np.ndarray, phi: np.ndarray, a: np.ndarray, b: np.ndarray) -> Iterator[Two]:
        """Chunks of pairs (i, j) from hits `a` [A] and `b` [B], sorted by phi: among them all within the phi cut."""
        first, size = self.windows(r, phi, a, b)
        if not size.any():
            return
        total = np.cumsum(size)
        for part in np.split(np.arange(len(a)), np.searchsorted(total, np.arange(CHUNK, total[-1], CHUNK))):
            own = np.repeat(part, size[part])
            within = np.arange(len(own)) - np.repeat(np.cumsum(size[part]) - size[part], size[part])
            yield a[own], b[(first[own] + within) % len(b)]

    def accepts(self, r: np.ndarray, phi: np.ndarray, z: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Which pairs pass the cuts, bool [c]; the outer hit lies further from the beam line."""
        dr = r[j] - r[i]
        turn = np.abs(phi[j] - phi[i])
        turn = np.minimum(turn, np.float32(2 * np.pi) - turn)
        z0_dr = np.abs(z[i] * dr - r[i] * (z[j] - z[i]))
        return (dr > 0) & (turn < self.options.phi_slope_max_per_mm * dr) & (z0_dr < self.options.z0_max_mm * dr)


def _ahead(skips: int, folder: Path | None, data: Dataset | None) -> list[tuple[int, int, int, int]]:
    """Each barrel layer with the next ones, as the dataset's detector has them; InputError if that is not known."""
    data = open_dataset(folder) if data is None and folder is not None else data
    layers = TRACKML.neighbours if data is None else data.detector.neighbours
    if len(layers) < 2:
        raise InputError(
            f"key 'data.graph.pairs': barrel: {folder}: no barrel layers of its detector are known (`hpctrack convert "
            "--detectors` names its file); list pairs of layers instead"
        )
    return [(*a, *b) for k, a in enumerate(layers) for b in layers[k + 1 : k + 2 + skips]]
