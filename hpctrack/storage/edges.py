"""Edges on disk: what a stage of a pipeline found, by event, for the next stage to read.

A folder of edges belongs to one dataset, whose fingerprint it holds; by custom it is `DATASET/edges/NAME`. products.py
has all that edges share with candidates. In a file every column is concatenated over events, with offsets and a
checksum for each event.

Legend: M edges of an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpctrack.storage.journals import pack, unpack
from hpctrack.storage.products import Product, Store

COLUMNS = {"sender": np.dtype("<i4"), "receiver": np.dtype("<i4"), "score": np.dtype("<f4")}


@dataclass(frozen=True)
class Edges:
    """Edges of one event: rows of its hit tables, and how probable each edge is."""

    event_id: int
    sender: np.ndarray  # int32 [M]
    receiver: np.ndarray  # int32 [M]
    score: np.ndarray  # float32 [M], from 0 to 1

    def __len__(self) -> int:
        return len(self.score)


def encode(edges: Edges) -> bytes:
    """One event as bytes, for a journal: the columns' lengths, then the columns."""
    return pack(edges, COLUMNS)


def decode(event_id: int, payload: bytes) -> Edges:
    """Inverse of `encode`."""
    return edges_of(event_id, unpack(payload, COLUMNS)[0])


def edges_of(event_id: int, columns: Mapping[str, np.ndarray]) -> Edges:
    """The edges of an event from a file's columns."""
    return Edges(event_id, **columns)


EDGES = Product(
    name="edges",
    format="hpctrack-edges",
    what="an edges folder",
    advice="run the inference again that wrote the edges",
    columns=COLUMNS,
    offsets={"offsets/edges": list(COLUMNS)},
    checksums=True,
    counts={"n_edges": "score"},
    encode=encode,
    decode=decode,
    record=edges_of,
)


class EdgeStore(Store[Edges]):
    """Read a folder of edges: `event_ids`, `n_edges`, `attributes`, `read(i)`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, EDGES)

    @property
    def n_edges(self) -> np.ndarray:
        """Edges of each event [n]."""
        return self.counts["n_edges"]
