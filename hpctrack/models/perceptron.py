"""Perceptrons: the plain one of two layers, one whose first layer is applied to parts of its input one by one, and the
backbone `mlp`, every hit for itself, the encoder of metric learning.

Legend: N rows or hits, F features, W width of a part, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hpctrack.config import Section
from hpctrack.division.divided import Division
from hpctrack.models.contracts import Backbone
from hpctrack.models.memory_modes import in_chunks, recompute
from hpctrack.numerics import at_least_fp32, without_autocast

Norm = Annotated[Literal["layer", "none"], Field(description="normalization of hidden layers")]
Activation = Annotated[Literal["relu", "silu", "gelu", "tanh"], Field(description="of hidden layers")]
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "tanh": nn.Tanh}


class Sizes(NamedTuple):
    """Of a SplitPerceptron: linear layers, what normalizes hidden ones, and what follows them."""

    layers: int
    norm: str
    activation: str


class Heads(Protocol):
    """Options of attention."""

    width: int
    heads: int


H = TypeVar("H", bound=Heads)


class LayerNorm(nn.LayerNorm):
    """Layer norm in fp32 at least, given back in the input's type.

    Without it CPUs add up the gradients of weight and bias over all rows in the input's type; bf16 stops adding at 256.
    """

    def forward(self, x_NH: Tensor) -> Tensor:
        """[N, H] -> [N, H]."""
        return super().forward(at_least_fp32(x_NH)).to(x_NH.dtype)


class Exact(nn.Sequential):
    """Layers in fp32 at least, under autocast, too: where features come in and embeddings go out.

    bf16 keeps 8 bits: it would move a hit at z = 1 m by 2 mm, and hits of a track in a learned space apart.
    """

    def forward(self, x: Tensor) -> Tensor:
        """The layers, one after the other."""
        with without_autocast(x):
            return super().forward(at_least_fp32(x))


class ExactLinear(nn.Linear):
    """A linear layer in fp32 at least, as `Exact`."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, W] -> [N, H]."""
        with without_autocast(x):
            return super().forward(at_least_fp32(x))


def width_splits_into_heads(options: H) -> H:
    """For `model_validator`: ValueError unless the width is a multiple of the number of attention heads."""
    if options.width % options.heads:
        raise ValueError(f"width must be a multiple of heads, got {options.width} and {options.heads}")
    return options


def two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """Perceptron [N, width] -> [N, out]."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class SplitPerceptron(nn.Module):
    """A perceptron on the concatenation of parts of widths `widths` that is never made.

    W [a, b, c] = W_a a + W_b b + W_c c: parts that belong to nodes are multiplied on the nodes (`part`), gathered and
    added on the edges, and `rest` goes on from there. Linear layers are followed by norm and activation, the last one
    is bare; `weight` is that of the concatenated form.
    """

    def __init__(self, widths: Sequence[int], hidden: int, out: int, sizes: Sizes) -> None:
        super().__init__()
        layers, norm, activation = sizes
        self.widths = tuple(widths)
        self.first = nn.Linear(sum(widths), hidden if layers > 1 else out)
        self.rest = nn.Sequential()
        for layer in range(1, layers):
            if norm == "layer":
                self.rest.append(LayerNorm(hidden))
            self.rest.append(ACTIVATIONS[activation]())
            self.rest.append(nn.Linear(hidden, hidden if layer < layers - 1 else out))

    def part(self, index: int, x_NW: Tensor) -> Tensor:
        """Share [N, H] of part `index` in the first layer; the bias is in part 0."""
        begin = sum(self.widths[:index])
        weight = self.first.weight[:, begin : begin + self.widths[index]]
        return F.linear(x_NW, weight, self.first.bias if index == 0 else None)

    def forward(self, *parts: Tensor) -> Tensor:
        """Output [N, out] for all parts, row by row."""
        h_NH = self.part(0, parts[0])
        for index, x_NW in enumerate(parts[1:], start=1):
            h_NH = h_NH + self.part(index, x_NW)
        return self.rest(h_NH)


# ------------------------------------------------------------------------------------------------ backbone mlp


class MlpBackbone(Backbone):
    """Linear layers with norm and activation; no hit sees another.

    There is no batch norm: a batch's statistics would make an event depend on those beside it, and a step on the number
    of ranks. Layer norm, of each hit by itself, takes its place.
    """

    memory_modes = ("plain", "recompute", "chunks")
    divisible = True
    static = True

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

    def forward(
        self, x_NF: Tensor, sizes: list[int], division: Division | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden state [N, H] of hits with features `x_NF`, no more outputs; `sizes` and `division` play no part."""
        if self.memory == "chunks":
            return in_chunks(self.layers, x_NF), {}
        return self.layers(x_NF) if self.memory == "plain" else recompute(self.layers, x_NF), {}

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """Weights applied in a forward pass by event size."""
        return sum(p.numel() for p in self.parameters()) * hits
