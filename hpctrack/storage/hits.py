"""Kept hits on disk: which hits of each event a hit filter has kept, for later stages to see.

A folder of hits belongs to one dataset, whose fingerprint it holds; by custom it is `DATASET/hits/NAME`. products.py
has all that it shares with candidates and edges: in a file every column is concatenated over events, with offsets and a
checksum for each event.

Legend: K kept hits of an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpctrack.storage.journals import pack, unpack
from hpctrack.storage.products import Product, Store

COLUMNS = {"row": np.dtype("<i4"), "score": np.dtype("<f4")}


@dataclass(frozen=True)
class Hits:
    """Kept hits of one event: rows of its hit tables, and how probable each is a target's."""

    event_id: int
    row: np.ndarray  # int32 [K], ascending
    score: np.ndarray  # float32 [K], from 0 to 1

    def __len__(self) -> int:
        return len(self.row)


def encode(hits: Hits) -> bytes:
    """One event as bytes, for a journal: the columns' lengths, then the columns."""
    return pack(hits, COLUMNS)


def decode(event_id: int, payload: bytes) -> Hits:
    """Inverse of `encode`."""
    return hits_of(event_id, unpack(payload, COLUMNS)[0])


def hits_of(event_id: int, columns: Mapping[str, np.ndarray]) -> Hits:
    """The kept hits of an event from a file's columns; ValueError if they cannot be some of its hits."""
    row, score = columns["row"], columns["score"]
    if len(row) and (row[0] < 0 or (row[1:] <= row[:-1]).any()):
        raise ValueError("row must rise from 0 or more, each hit once")
    if not ((score >= 0) & (score <= 1)).all():
        raise ValueError("score must be from 0 to 1")
    return Hits(event_id, **columns)


HITS = Product(
    name="hits",
    format="hpctrack-hits",
    what="a hits folder",
    advice="run the inference again that wrote the hits",
    columns=COLUMNS,
    offsets={"offsets/hits": list(COLUMNS)},
    checksums=True,
    counts={"n_kept": "row"},
    encode=encode,
    decode=decode,
    record=hits_of,
)


class HitStore(Store[Hits]):
    """Read a folder of kept hits: `event_ids`, `n_kept`, `attributes`, `read(i)`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, HITS)

    @property
    def n_kept(self) -> np.ndarray:
        """Kept hits of each event [n]."""
        return self.counts["n_kept"]
