"""Backbone `mlp`: every hit for itself, the encoder of metric learning.

Legend: N hits in the batch, F features, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from hpctrack.config import Section
from hpctrack.models.memory import CHUNK, MemoryModes, again, in_chunks
from hpctrack.models.perceptron import ACTIVATIONS, Activation, ExactLinear, LayerNorm, Norm


class MlpBackbone(MemoryModes, nn.Module):
    """Linear layers with norm and activation; no hit sees another.

    There is no batch norm: a batch's statistics would make an event depend on those beside it, and a step on the number
    of ranks. Layer norm, of each hit by itself, takes its place.
    """

    memory_modes = ("plain", "recompute", "chunks")

    class Options(Section):
        """Size."""

        width: int = Field(512, ge=1, description="of hidden layers")
        layers: int = Field(4, ge=1, description="linear layers")
        norm: Norm = "layer"
        activation: Activation = "relu"

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.width = options.width
        self.layers = nn.Sequential()
        for layer in range(options.layers):
            known = options.width if layer else len(features)
            self.layers.append((nn.Linear if layer else ExactLinear)(known, options.width))
            if options.norm == "layer":
                self.layers.append(LayerNorm(options.width))
            self.layers.append(ACTIVATIONS[options.activation]())

    def forward(self, x_NF: Tensor, sizes: list[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden state [N, H] of hits with features `x_NF`, no more outputs; `sizes` play no part."""
        if self.memory == "chunks":
            return in_chunks(self.layers, x_NF, size=CHUNK), {}
        return self.layers(x_NF) if self.memory == "plain" else again(self.layers, x_NF), {}

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """Weights applied in a forward pass by event size."""
        return sum(p.numel() for p in self.parameters()) * hits
