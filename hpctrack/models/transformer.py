"""Dense transformer backbone of the influencer paper, on events of any length without padding.

Legend: N hits in the batch, n hits of one event, H width, A heads, D = H / A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from hpctrack.config import Section
from hpctrack.division.divided import Division
from hpctrack.division.exchange import Received
from hpctrack.models.contracts import Backbone
from hpctrack.models.memory_modes import CHUNK, in_chunks, run_layers
from hpctrack.models.perceptron import Exact, LayerNorm, two_layers, width_splits_into_heads


class TransformerBackbone(Backbone):
    """Pre-norm transformer encoder: every hit attends to every hit of its own event.

    Quadratic in the hits of an event, as in D. Murnane, "Influencer Loss" (CHEP 2023). Attention runs event by event in
    scaled_dot_product_attention, so nothing is padded and events cannot see each other.
    """

    memory_modes = ("plain", "recompute", "nested", "chunks")
    divisible = True

    class Options(Section):
        """Size of the encoder."""

        width: int = Field(128, ge=1, description="of a hit's state")
        layers: int = Field(4, ge=1, description="encoder layers")
        heads: int = Field(4, ge=1, description="attention heads; width is a multiple of them")
        expansion: int = Field(4, ge=1, description="hidden width of the feed-forward part, in widths")

        _width_splits_into_heads = model_validator(mode="after")(width_splits_into_heads)

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.options = options
        self.width = options.width
        self.encode = Exact(*two_layers(len(features), options.width, options.width))
        self.blocks = nn.ModuleList(
            Block(options.width, options.heads, options.expansion) for _ in range(options.layers)
        )
        self.norm = LayerNorm(options.width)

    def forward(
        self, x_NF: Tensor, sizes: list[int], division: Division | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Hidden state [N, H] of hits with features `x_NF`, no more outputs; `sizes`: the events' hits, in order."""
        h_NH, blocks = self.encode(x_NF), list[Callable[..., Tensor]](self.blocks)
        if division is not None:
            received = Received() if self.memory != "plain" else None  # a block computed again collects nothing anew
            blocks = [
                partial(block, everyone=partial(division.gather, received=received, number=number))
                for number, block in enumerate(self.blocks)
            ]
        return self.norm(run_layers(blocks, h_NH, self.memory, sizes, self.memory == "chunks")), {}

    def relative_cost(self, hits: np.ndarray) -> np.ndarray:
        """Multiplications of a forward pass by event size: linear layers go with hits, attention with their square."""
        width, layers, expansion = self.options.width, self.options.layers, self.options.expansion
        return layers * width * ((4 + 2 * expansion) * width * hits + 2.0 * hits**2)


class Block(nn.Module):
    """Attention within each event, then a feed-forward part, both residual."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = LayerNorm(width)
        self.feed_forward = two_layers(width, expansion * width, width)

    def forward(
        self,
        h_NH: Tensor,
        sizes: list[int],
        chunked: bool = False,
        everyone: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """[N, H] -> [N, H]; `chunked` bounds the memory of the backward pass at the cost of computing twice.

        `everyone`: collects the rows of all ranks, if the hits are a rank's own ones of one event.
        """
        qkv = self.qkv(self.norm1(h_NH))
        heard_NH = self.attend(qkv, sizes, chunked) if everyone is None else self.attend_to_all(qkv, everyone, chunked)
        h_NH = h_NH + self.out(heard_NH)
        return h_NH + maybe_chunked(lambda part: self.feed_forward(self.norm2(part)), h_NH, 0, chunked)

    def attend(self, qkv: Tensor, sizes: list[int], chunked: bool) -> Tensor:
        """Attention event by event; `qkv` is [N, 3 H]."""
        split = qkv.unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)  # [3, A, N, D]
        events = []
        for qkv_AnD in split.split(sizes, dim=2):
            q, k, v = (part.unsqueeze(0) for part in qkv_AnD)
            attention = partial(F.scaled_dot_product_attention, key=k, value=v)
            events.append(maybe_chunked(attention, q, 2, chunked).squeeze(0))
        return torch.cat(events, dim=1).transpose(0, 1).flatten(1) if events else qkv[:, : self.out.in_features]

    def attend_to_all(self, qkv: Tensor, everyone: Callable[[Tensor], Tensor], chunked: bool) -> Tensor:
        """Attention of a rank's own hits to all of the event, whose keys and values it collects; `qkv` is [n, 3 H]."""
        width = self.out.in_features
        key, value = everyone(qkv[:, width:]).unflatten(1, (2, self.heads, -1)).permute(1, 2, 0, 3)  # [A, N, D] each
        query = qkv[:, :width].unflatten(1, (self.heads, -1)).transpose(0, 1).unsqueeze(0)
        attention = partial(F.scaled_dot_product_attention, key=key.unsqueeze(0), value=value.unsqueeze(0))
        return maybe_chunked(attention, query, 2, chunked).squeeze(0).transpose(0, 1).flatten(1)


def maybe_chunked(work: Callable[[Tensor], Tensor], x: Tensor, dim: int, chunked: bool) -> Tensor:
    """`work(x)`, or chunk by chunk of hits along `dim`."""
    return in_chunks(work, x, dim, CHUNK) if chunked else work(x)
