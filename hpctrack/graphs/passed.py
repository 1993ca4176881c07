"""Edges that an earlier stage of a pipeline has just found, passed on in memory; apart from `stored`, for torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hpctrack.graphs.contracts import Owners
from hpctrack.graphs.stored import COLUMNS, StoredEdges, edges_among, part_among, square_of_distance
from hpctrack.storage.edges import Edges
from hpctrack.storage.schema import Event


class EdgeTensors(NamedTuple):
    """Edges of one event on the device where they were found: rows of its hit tables, int64 [M], and scores [M]."""

    event_id: int
    sender: Tensor
    receiver: Tensor
    score: Tensor

    def stored(self) -> Edges:
        """As they are written."""
        sender, receiver = (end.int().cpu().numpy() for end in (self.sender, self.receiver))
        return Edges(self.event_id, sender, receiver, self.score.float().cpu().numpy())


class PassedEdges:
    """As StoredEdges, of the one event whose edges are `found`; they stay on the device that they are on."""

    COLUMNS: ClassVar[Sequence[str]] = COLUMNS
    found: Edges | EdgeTensors  # of the event that is asked for next

    def __init__(self, options: StoredEdges.Options) -> None:
        self.options = options

    def __call__(self, event: Event, rows: np.ndarray) -> np.ndarray | Tensor:
        """Edges int64 [2, M] among the hits `rows` [N], as numbers of these."""
        if isinstance(self.found, Edges):
            return edges_among(event, rows, self.found, self.options.score_min)
        return tensors_among(event, rows, self.found, self.options.score_min)

    def of_part(self, event: Event, rows: np.ndarray, owners: Owners, number: int) -> tuple[np.ndarray, np.ndarray]:
        """As Graph.of_part (graphs/contracts.py)."""
        found = self.found if isinstance(self.found, Edges) else self.found.stored()
        return part_among(event, rows, found, self.options.score_min, owners=owners, number=number)

    def subsets(self, event: Event, rows: np.ndarray, edge_2M: np.ndarray) -> None:
        """There are none."""


def tensors_among(event: Event, rows: np.ndarray, found: EdgeTensors, score_min: float) -> Tensor:
    """As `edges_among`, on the device of the edges."""
    device = found.score.device
    number_N = torch.full((event.n_hits,), -1, device=device)
    number_N[torch.from_numpy(rows).to(device)] = torch.arange(len(rows), device=device)
    begin, end = number_N[found.sender], number_N[found.receiver]
    inside = (begin >= 0) & (end >= 0) & (found.score >= score_min)
    begin, end = begin[inside], end[inside]
    square_N = torch.from_numpy(square_of_distance(event, rows)).to(device)
    inward = square_N[begin] > square_N[end]
    return torch.stack([torch.where(inward, end, begin), torch.where(inward, begin, end)])
