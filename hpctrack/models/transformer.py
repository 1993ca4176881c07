"""Dense transformer backbone of the influencer paper, on events of any length without padding.

Legend: N hits in the batch, n hits of one event, H width, A heads, D = H / A.
"""

from __future__ import annotations

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from hpctrack.config import Section


class TransformerBackbone(nn.Module):
    """Pre-norm transformer encoder: every hit attends to every hit of its own event.

    Quadratic in the hits of an event, as in D. Murnane, "Influencer Loss" (CHEP 2023). Attention runs event by event in
    scaled_dot_product_attention, so nothing is padded and events cannot see each other.
    """

    class Options(Section):
        """Size of the encoder."""

        width: int = Field(128, ge=1)
        layers: int = Field(4, ge=1)
        heads: int = Field(4, ge=1)
        expansion: int = Field(4, ge=1, description="hidden width of the feed-forward part, in widths")

        @model_validator(mode="after")
        def _width_splits_into_heads(self) -> TransformerBackbone.Options:
            if self.width % self.heads:
                raise ValueError(f"width must be a multiple of heads, got {self.width} and {self.heads}")
            return self

    def __init__(self, n_features: int, options: Options, recompute: str = "none") -> None:
        super().__init__()
        self.width = options.width
        self.recompute = recompute
        self.encode = nn.Sequential(
            nn.Linear(n_features, options.width), nn.GELU(), nn.Linear(options.width, options.width)
        )
        self.blocks = nn.ModuleList(
            Block(options.width, options.heads, options.expansion) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(options.width)

    def forward(self, x_NF: Tensor, sizes: list[int]) -> Tensor:
        """Hidden state [N, H] of hits with features `x_NF`; `sizes` are the events' numbers of hits, in order."""
        h_NH = self.encode(x_NF)
        for block in self.blocks:
            if self.recompute == "layer" and torch.is_grad_enabled():
                h_NH = checkpoint(block, h_NH, sizes, use_reentrant=False)
            else:
                h_NH = block(h_NH, sizes)
        return self.norm(h_NH)


class Block(nn.Module):
    """Attention within each event, then a feed-forward part, both residual."""

    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(self, h_NH: Tensor, sizes: list[int]) -> Tensor:
        """[N, H] -> [N, H]."""
        h_NH = h_NH + self.out(self.attend(self.qkv(self.norm1(h_NH)), sizes))
        return h_NH + self.feed_forward(self.norm2(h_NH))

    def attend(self, qkv: Tensor, sizes: list[int]) -> Tensor:
        """Attention event by event; `qkv` is [N, 3 H]."""
        split = qkv.unflatten(1, (3, self.heads, -1)).permute(1, 2, 0, 3)  # [3, A, N, D]
        events = []
        for qkv_AnD in split.split(sizes, dim=2):
            q, k, v = (part.unsqueeze(0) for part in qkv_AnD)
            events.append(F.scaled_dot_product_attention(q, k, v).squeeze(0))
        return torch.cat(events, dim=1).transpose(0, 1).flatten(1) if events else qkv[:, : self.out.in_features]
