"""Perceptrons: the plain one of two layers, and one whose first layer is applied to parts of its input one by one.

Legend: N rows, W width of a part, H hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from hpctrack.graphs.numerics import at_least_fp32, without_autocast

Norm = Annotated[Literal["layer", "none"], Field(description="normalization of hidden layers")]
Activation = Annotated[Literal["relu", "silu", "gelu", "tanh"], Field(description="of hidden layers")]
Sizes = tuple[int, str, str]  # of a SplitPerceptron: layers, norm, activation
ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU, "tanh": nn.Tanh}


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


def two_layers(width: int, hidden: int, out: int) -> nn.Sequential:
    """Perceptron [N, width] -> [N, out]."""
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


class SplitPerceptron(nn.Module):
    """A perceptron on the concatenation of parts of widths `widths` that is never made.

    W [a, b, c] = W_a a + W_b b + W_c c: parts that belong to nodes are multiplied on the nodes (`part`), gathered and
    added on the edges, and `rest` goes on from there. Linear layers are followed by norm and activation, the last one
    is bare; `weight` is that of the concatenated form.
    """

    def __init__(self, widths: Sequence[int], hidden: int, out: int, layers: int, norm: str, activation: str) -> None:
        super().__init__()
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
