"""Track candidates on disk: what their files hold; products.py has all that they share with other products."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hpctrack.errors import InputError
from hpctrack.storage.journals import pack, unpack
from hpctrack.storage.products import Extra, Product, Store
from hpctrack.storage.schema import ESTIMATE, Candidates
from hpctrack.storage.store import Dataset

COLUMNS: dict[str, np.dtype] = {  # of a record and of a file: name -> type
    "hit_offsets": np.dtype("<i8"),
    "hit_rows": np.dtype("<i4"),
    "scores": np.dtype("<f4"),
    "track_ids": np.dtype("<i4"),
}
PARAMETERS = np.dtype(("<f4", (len(ESTIMATE),)))  # of each candidate: follow the columns where a model estimates them


def encode(candidates: Candidates) -> bytes:
    """One event as bytes, for a journal: the columns' lengths, the columns, and what there is of track parameters."""
    parameters = candidates.parameters
    rest = b"" if parameters is None else np.ascontiguousarray(parameters, PARAMETERS.base).tobytes()
    return pack(candidates, COLUMNS, rest)


def decode(event_id: int, payload: bytes) -> Candidates:
    """Inverse of `encode`."""
    columns, end = unpack(payload, COLUMNS)
    parameters = np.frombuffer(payload, PARAMETERS, offset=end) if end < len(payload) else None
    return Candidates(event_id, **columns, parameters=parameters)


def candidates_of(event_id: int, columns: Mapping[str, np.ndarray]) -> Candidates:
    """The candidates of an event from a file's columns; ValueError if they cannot be of its hits."""
    starts, rows, n_hits = columns["hit_offsets"], columns["hit_rows"], len(columns["track_ids"])
    if starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(rows):
        raise ValueError(f"hit_offsets must rise from 0 to the {len(rows)} hit_rows")
    if len(rows) and not 0 <= rows.min() <= rows.max() < n_hits:
        raise ValueError(f"hit_rows from {rows.min()} to {rows.max()}, but the event has {n_hits} hits")
    return Candidates(event_id, **columns)


CANDIDATES = Product(
    name="candidates",
    format="hpctrack-candidates",
    what="a candidates folder",
    advice="write the candidates again",
    columns=COLUMNS,
    offsets={"offsets/candidates": ["scores"], "offsets/candidate_hits": ["hit_rows"], "offsets/hits": ["track_ids"]},
    lists={"hit_offsets": "scores"},
    extra=Extra("parameters", PARAMETERS, of="scores", words="track parameters", labels=ESTIMATE),
    encode=encode,
    decode=decode,
    record=candidates_of,
)


class CandidateStore(Store[Candidates]):
    """Read a folder of candidates: `event_ids`, `attributes`, `read(i)`."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, CANDIDATES)

    def rows_in(self, dataset: Dataset) -> np.ndarray:
        """Row in `dataset` of each event that has candidates, int64 [n]; InputError if they were made from another."""
        made_from = self.attributes.get("dataset_fingerprint")
        if made_from != dataset.fingerprint:
            raise InputError(
                f"{self.folder}: made from a dataset with fingerprint {made_from}, but {dataset.folder} has "
                f"{dataset.fingerprint}; give the dataset that `hpctrack infer` read"
            )
        row = np.searchsorted(dataset.event_ids, self.event_ids)
        row = np.minimum(row, max(len(dataset) - 1, 0))
        missing = np.flatnonzero(dataset.event_ids[row] != self.event_ids) if len(dataset) else [0]
        if len(self) and len(missing):
            raise InputError(f"{self.folder}: event {self.event_ids[missing[0]]} is not in {dataset.folder}")
        return row
