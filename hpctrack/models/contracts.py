"""What a model is, and what a backbone is: the base classes of both, whose methods each of them has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.models.memory_modes import MemoryModes

Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]  # of a function on tensors, as torch.compile


class Model(nn.Module):
    """Made as `Model(features, options)`: names of the inputs [F], the columns of `batch.x`, and options of `Options`.

    `MemoryModes` gives the memory modes, `HeadModel` all but a backbone. An event's outputs depend neither on the
    other events of the batch nor on the order of its hits.
    """

    Options: ClassVar[type[Section]]  # the keys of the section `model` besides `name`
    COLUMNS: ClassVar[Sequence[str]] = ()  # of an event, that a dataset must have beside those of its features
    n_features: int  # F, the number of inputs of a hit
    divisible: bool = False  # whether it can take a batch that is a rank's part of an event (division/divided.py)
    static: bool = False  # whether all shapes within follow from the batch's numbers of hits and edges alone
    row_wise: bool = False  # whether it has `compile_rows`

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs by name, of `batch.x` [N, F]: a row a hit, [N, …].

        A row an edge, [M, …], in those named `edge_…`; a row an event, [B, …], in those named `event_…`.
        """
        raise NotImplementedError

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """The modes of models/memory_modes.py that it has, from the least time to the least memory; `plain` first."""
        raise NotImplementedError

    def set_memory(self, mode: str) -> None:
        """Memory mode of the following forward passes: changes memory and time, not what is computed."""
        raise NotImplementedError

    def compile_rows(self, compiler: Compiler) -> None:
        """Let what is computed of each hit, and of each pair of hits, by itself be compiled: all but a search."""
        raise NotImplementedError

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of a training pass over events with so many `hits` [n] (and `edges` [n]), up to a factor: float [n]."""
        raise NotImplementedError


class Backbone(MemoryModes, nn.Module):
    """A network on hits, made as `Backbone(features, options)`: names of the inputs [F], and `options` of `Options`."""

    Options: ClassVar[type[Section]]  # the keys of the section `model.backbone` besides `name`
    width: int  # H
    divisible: bool = False  # whether it can take a rank's part of an event
    static: bool = False  # whether all shapes within follow from the number of hits alone
    row_wise: bool = False  # whether it has `compile_rows`

    def forward(self, x_NF: Tensor, sizes: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden states [N, H] of events with so many hits each, one behind the other; and more outputs by name.

        One that is `divisible` takes a third argument, a Division (division/divided.py), None for whole events: with it
        the hits are a rank's own ones of one event.
        """
        raise NotImplementedError

    def compile_rows(self, compiler: Compiler) -> None:
        """Let what is computed of each hit, and of each pair of hits, by itself be compiled: all but a search."""
        raise NotImplementedError

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """Cost of a training pass over events with so many hits, up to a factor."""
        raise NotImplementedError
