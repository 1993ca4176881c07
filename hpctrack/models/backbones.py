"""Backbones: one file each, one line here; and what all models of the form backbone + heads share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Named, Section, lookup, parse
from hpctrack.division.divided import division_of
from hpctrack.models.contracts import Backbone, Compiler, Model
from hpctrack.models.hit_geometry import Geometry, on_circle
from hpctrack.models.neighbour_attention import NeighbourBackbone
from hpctrack.models.perceptron import Exact, MlpBackbone, two_layers
from hpctrack.models.transformer import TransformerBackbone
from hpctrack.registry import Registry

BACKBONES: Registry[type[Backbone]] = Registry(
    "hpctrack.backbones",
    "backbone",
    {"mlp": MlpBackbone, "neighbours": NeighbourBackbone, "transformer": TransformerBackbone},
)


class HeadModel(Model):
    """A backbone and heads {output: dimensions}, perceptrons on its hidden state."""

    class Options(Section):
        """The backbone: a name and that backbone's own options."""

        backbone: dict[str, Any] = Field(
            {"name": "neighbours"}, description="the network on hits: its name and its own options (backbone, below)"
        )

    def __init__(self, features: Sequence[str], options: Options, heads: dict[str, int]) -> None:
        super().__init__()
        self.n_features = len(features)
        named = parse(Named, options.backbone, "model", "model.backbone")
        kind = lookup(BACKBONES, named.name, "model.backbone")
        self.backbone = kind(features, parse(kind.Options, named.options, "model", "model.backbone"))
        width = self.backbone.width
        self.heads = nn.ModuleDict({name: Exact(*two_layers(width, width, out)) for name, out in heads.items()})

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each head's output [N, its dimensions] and the backbone's own, of `batch.x` [N, F] and bounds `batch.ptr`."""
        division = division_of(batch)
        parts = () if division is None else (division,)
        h_NH, extra = self.backbone(batch.x, batch.ptr.diff().tolist(), *parts)
        return self.read(h_NH, batch.x) | extra

    def read(self, h_NH: Tensor, x_NF: Tensor) -> dict[str, Tensor]:
        """Each head's output, of the hidden state of hits with features `x_NF`."""
        return {name: out(h_NH) for name, out in self.heads.items()}

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """The backbone's memory modes (models/memory_modes.py)."""
        return self.backbone.memory_modes

    def set_memory(self, mode: str) -> None:
        """Memory mode of the following forward passes."""
        self.backbone.set_memory(mode)

    @property
    def divisible(self) -> bool:  # type: ignore[override]  # what the backbone says
        """Whether it can take a rank's part of an event: if its backbone can."""
        return self.backbone.divisible

    @property
    def static(self) -> bool:  # type: ignore[override]  # what the backbone says
        """Whether shapes follow from the number of hits alone: if its backbone's do."""
        return self.backbone.static

    @property
    def row_wise(self) -> bool:  # type: ignore[override]  # what the backbone says
        """Whether it has `compile_rows`: if its backbone has it."""
        return self.backbone.row_wise

    def compile_rows(self, compiler: Compiler) -> None:
        """Of the backbone."""
        self.backbone.compile_rows(compiler)

    @property
    def chunk(self) -> int | None:
        """Hits at a time, if the backbone goes in chunks in every mode."""
        return getattr(self.backbone, "chunk", None)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of events by their numbers of hits, up to a factor; edges play no part."""
        return self.backbone.relative_cost(hits)


class BackboneModel(HeadModel):
    """With heads for `points`, which embed hits, before those for other outputs.

    With `azimuth` points have two more dimensions, (cos phi, sin phi) times it: hits of far azimuths are apart without
    learning, which training on sectors cannot teach.
    """

    class Options(HeadModel.Options):
        """Embedding and backbone."""

        embedding: int = Field(8, ge=1, description="dimensions of the space in which a track's hits meet")
        azimuth: float = Field(0.0, ge=0, description="radius of a circle of hits by phi, two more dimensions; 0: none")

    def __init__(
        self, features: Sequence[str], options: Options, points: Sequence[str], heads: dict[str, int] | None = None
    ) -> None:
        super().__init__(features, options, {name: options.embedding for name in points} | (heads or {}))
        self.points, self.azimuth = tuple(points), options.azimuth
        self.geometry = Geometry(features, "model.azimuth") if options.azimuth else None

    def read(self, h_NH: Tensor, x_NF: Tensor) -> dict[str, Tensor]:
        """Each head's output, of the hidden state of hits with features `x_NF`; points with their azimuth."""
        outputs = super().read(h_NH, x_NF)
        if self.geometry is None:
            return outputs
        circle_N2 = on_circle(self.geometry(x_NF), self.azimuth)
        return outputs | {name: torch.cat([outputs[name], circle_N2], dim=1) for name in self.points}
