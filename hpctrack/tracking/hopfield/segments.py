"""Segments between neighbouring layers, and what was measured of them on true tracks: which layers follow each other,
how far segments of tracks point past the beam line, and how well two in a row agree.

A file of `hpctrack segments` has this; the one beside this module is of TrackML's detector, in 2 T.

Legend: N hits, M segments, t triplets of a chunk.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import InputError
from hpctrack.events.truth import layer_number
from hpctrack.graphs.doublets import Doublets
from hpctrack.storage.schema import Event
from hpctrack.tracking.builder import TooManyPairs
from hpctrack.tracking.hopfield.couplings import Hits, changes

FORMAT = {"format": "hpctrack-segments", "version": 1}
TRACKML = Path(__file__).parent / "trackml.json"
Cut = tuple[int, int, Doublets]  # numbers of the inner and of the outer layer, and what accepts segments between them


def barrel(phi_slope_max_per_mm: float, z0_max_mm: float, skips: int) -> list[Cut]:
    """The ten barrel layers of TrackML's detector, each with the next, and with those after `skips` at most."""
    made = Doublets(Doublets.Options(phi_slope_max_per_mm=phi_slope_max_per_mm, z0_max_mm=z0_max_mm, skips=skips))
    return [(inner, outer, made) for inner, outer in made.pairs]


def segments(event: Event, rows: np.ndarray, cuts: Iterable[Cut], most: int) -> np.ndarray:
    """Segments int64 [2, M] that pass the cuts among hits `rows` [N], as numbers 0..N-1, in the order of their ends.

    TooManyPairs as soon as there are more than `most`.
    """
    r, phi, z, volume, layer = (event.column(name)[rows] for name in Doublets.COLUMNS)
    number = layer_number(volume, layer)
    by_layer = np.lexsort((phi, number))
    sorted_numbers, keys, total = number[by_layer], [np.zeros(0, np.int64)], 0
    for inner, outer, made in cuts:
        a, b = (by_layer[slice(*np.searchsorted(sorted_numbers, [n, n + 1]))] for n in (inner, outer))
        for i, j in made.candidates(r, phi, a, b):
            keep = made.accepts(r, phi, z, i, j)
            keys.append(i[keep] * len(rows) + j[keep])
            total += len(keys[-1])
            if total > most:
                raise TooManyPairs(
                    f"more than segments_max={most} segments of {len(rows)} hits; tighten the cuts on segments, or "
                    "raise it (memory: about 100 bytes each)"
                )
    return np.stack(np.divmod(np.sort(np.concatenate(keys)), max(1, len(rows))))


@dataclass(frozen=True)
class Measured:
    """What was measured: `pairs` of layers with their cuts, and the spreads of triplets by their three layers.

    `key` ascending, of three layers (`key_of`); `spread` [K, 2], of the changes of the slopes; `along_z` [K], whether
    these are against z. `digest`: of all that.
    """

    pairs: Sequence[Cut]
    key: np.ndarray
    spread: np.ndarray
    along_z: np.ndarray
    digest: str

    @classmethod
    def of(cls, name: str) -> Measured:
        """Of the file `name`, or `trackml`; InputError for what is no such file."""
        path = TRACKML if name == "trackml" else Path(name)
        try:
            content = json.loads(path.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path}: cannot be read as JSON ({error}); `hpctrack segments` makes such files"
            ) from None
        if not isinstance(content, dict) or {k: content.get(k) for k in FORMAT} != FORMAT:
            raise InputError(f"{path}: not a file of `hpctrack segments`, version {FORMAT['version']}")
        try:
            return cls.parse(content)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: a pair or triplet is not as `hpctrack segments` writes it ({error!r})") from None

    @classmethod
    def parse(cls, content: dict[str, Any]) -> Measured:
        """Of what `measure` gives."""
        pairs: list[Cut] = []
        for pair in content["pairs"]:
            accepting = Doublets(_cuts(pair["phi_slope_max_per_mm"], pair["z0_max_mm"]))
            pairs.append((_number(pair["from"]), _number(pair["to"]), accepting))
        triplets = content["triplets"]
        layers = np.array([[_number(layer) for layer in one["layers"]] for one in triplets], dtype=np.int64).reshape(
            -1, 3
        )
        spread = np.array([[one["spread_k"], one["spread_s"]] for one in triplets], dtype=np.float64).reshape(-1, 2)
        if not (np.isfinite(spread).all() and (spread > 0).all()):
            raise ValueError("spreads must be above 0")
        key, along_z = key_of(*layers.T), np.array([one["along"] == "z" for one in triplets], dtype=bool)
        order = np.argsort(key)
        own = json.dumps([content["pairs"], triplets], sort_keys=True)
        return cls(pairs, key[order], spread[order], along_z[order], hashlib.sha256(own.encode()).hexdigest()[:16])


def _number(layer: Sequence[int]) -> int:
    volume, number = layer
    return int(layer_number(np.array(volume), np.array(number)))


def _cuts(phi_slope_max_per_mm: float, z0_max_mm: float) -> Doublets.Options:
    return Doublets.Options(phi_slope_max_per_mm=phi_slope_max_per_mm, z0_max_mm=z0_max_mm, pairs=[])


def key_of(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """One number for three layers' numbers."""
    return (a << 32) | (b << 16) | c


@dataclass(frozen=True)
class MeasuredCurvature:
    """As Curvature (couplings.py), with the spreads of the three layers, `scale` times; others are not coupled."""

    hits: Hits
    measured: Measured
    scale: float

    def __call__(self, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        """T [t] of the segments from hits a to b and from b to c."""
        known, key = self.measured.key, key_of(*(self.hits.layer[of] for of in (a, b, c)))
        found = np.zeros(len(a))
        if not len(known):
            return found
        at = np.minimum(np.searchsorted(known, key), len(known) - 1)
        t = np.flatnonzero(known[at] == key)
        at = at[t]
        change = np.stack(changes(self.hits, (a[t], b[t], c[t]), self.measured.along_z[at]), axis=1)
        found[t] = np.exp(-0.5 * ((change / (self.scale * self.measured.spread[at])) ** 2).sum(1))
        return found
