"""Tracks from queries: a decoder whose queries attend to the hits of an event, each to become one straight track.

What HEP.TrkX announced to follow its captions (2017): attention, no order of tracks, no number of tracks to be known,
and hits assigned to tracks. Each query gives a line and whether there is such a track; a layer of the decoder sees how
far hits are from the lines of the layer before, and hits beyond that line's reach less (N. Carion et al., arXiv
2005.12872; B. Cheng et al., arXiv 2112.01527, for what is attended to).

Legend: B events, N hits, n hits of the largest event, S queries, H width, A heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch
from torch_geometric.utils import to_dense_batch

from hpctrack.config import Named, lookup, parse
from hpctrack.errors import InputError
from hpctrack.models.backbones import BACKBONES
from hpctrack.models.images.canvas import CanvasModel, CanvasOptions
from hpctrack.models.images.captioning import distances, to_pixels
from hpctrack.models.layers import Layers
from hpctrack.models.perceptron import Exact, LayerNorm, two_layers
from hpctrack.numerics import at_least_fp32


class TrackQueryModel(CanvasModel):
    """Outputs `event_lines` [B, 2 S], `event_presence` [B, S], a logit, and `hit_distance` [N, S], as captioning's.

    With `covariance`, also `event_covariance` [B, 3 S]; with `hits`, `hit_slot` [N, S + 1]: logits of the track that a
    hit belongs to, the last: none.
    """

    class Options(CanvasOptions):
        """Sizes, and what is given besides lines."""

        slots: int = Field(6, ge=1, description="most tracks of an event")
        backbone: dict[str, Any] = Field(
            {"name": "mlp", "width": 64, "layers": 3}, description="the network on hits, before queries see them"
        )
        layers: int = Field(4, ge=1, description="of the decoder")
        heads: int = Field(4, ge=1, description="attention heads; the backbone's width is a multiple of them")
        covariance: bool = Field(False, description="give the covariance of each track, which loss.likelihood trains")
        hits: bool = Field(False, description="give the track that each hit belongs to, which loss.hits trains")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        named = parse(Named, options.backbone, "model", "model.backbone")
        kind = lookup(BACKBONES, named.name, "model.backbone")
        axes = [options.plane, options.column]
        self.backbone = kind(axes, parse(kind.Options, named.options, "model", "model.backbone"))
        width = self.backbone.width
        if width % options.heads:
            raise InputError(f"key 'model.heads': {options.heads} does not divide the backbone's width, {width}")
        self.start = nn.Parameter(torch.randn(options.slots, width))
        self.nothing = nn.Parameter(torch.zeros(width))  # what queries attend to where there is no hit
        self.decoder = Layers(DecoderLayer(width, options.heads) for _ in range(options.layers))
        self.read = nn.ModuleDict({"line": Exact(LayerNorm(width), *two_layers(width, width, 2))})
        self.read["presence"] = Exact(LayerNorm(width), nn.Linear(width, 1))
        if options.covariance:
            self.read["covariance"] = Exact(LayerNorm(width), *two_layers(width, width, 3))
        self.assign = HitAssignment(width) if options.hits else None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of `batch.x` [N, F]."""
        position_N2, sizes = self.positions(batch), batch.ptr.diff().tolist()
        size_2 = position_N2.new_tensor(self.shape)
        h_NH, _ = self.backbone(2 * position_N2 / size_2 - 1, sizes)
        hits_BnH, there_Bn = to_dense_batch(h_NH, batch.batch, batch_size=batch.num_graphs)
        query_BSH = self.start.to(h_NH.dtype).expand(batch.num_graphs, -1, -1)
        line_BS2 = to_pixels(self.read["line"](query_BSH), self.shape)
        for layer in self.decoder:
            far_NS = distances(position_N2, batch, line_BS2)
            far_BnS, _ = to_dense_batch(far_NS, batch.batch, batch_size=batch.num_graphs)
            query_BSH = layer(query_BSH, hits_BnH, there_Bn, far_BnS.transpose(1, 2), self.nothing)
            line_BS2 = to_pixels(self.read["line"](query_BSH), self.shape)
        outputs = {
            "event_lines": line_BS2.flatten(1),
            "event_presence": self.read["presence"](query_BSH).squeeze(2),
            "hit_distance": distances(position_N2, batch, line_BS2),
        }
        if "covariance" in self.read:
            outputs["event_covariance"] = self.read["covariance"](query_BSH).flatten(1)
        if self.assign is not None:
            outputs["hit_slot"] = self.assign(h_NH, query_BSH, outputs["hit_distance"], batch)
        return outputs

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of events: hits are embedded and seen by all queries."""
        return self.backbone.relative_cost(hits) + len(self.start) * self.backbone.width * hits.astype(np.float64)


class DecoderLayer(nn.Module):
    """Queries hear each other, then the hits, then themselves; all residual, normed before.

    The attention to a hit has a part that is learned of how far it is from the query's line: -(distance / reach)^2 / 2,
    with a reach that each head learns.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_own, self.norm_ask, self.norm_hits, self.norm_feed = (LayerNorm(width) for _ in range(4))
        self.own, self.own_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.ask, self.tell, self.heard = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.log_reach = nn.Parameter(torch.linspace(0.0, 3.0, heads))
        self.feed_forward = two_layers(width, 4 * width, width)

    def forward(
        self, query_BSH: Tensor, hits_BnH: Tensor, there_Bn: Tensor, far_BSn: Tensor, nothing_H: Tensor
    ) -> Tensor:
        """Queries after the layer; `there_Bn`: which hits there are; `far_BSn`: distances to lines, pixels."""
        q, k, v = self.split(self.own(self.norm_own(query_BSH)), 3)
        query_BSH = query_BSH + self.own_out(self.join(F.scaled_dot_product_attention(q, k, v)))
        none_B1H = nothing_H.to(hits_BnH.dtype).expand(len(hits_BnH), 1, -1)
        memory = self.norm_hits(torch.cat([hits_BnH, none_B1H], dim=1))
        (q,), (k, v) = self.split(self.ask(self.norm_ask(query_BSH)), 1), self.split(self.tell(memory), 2)
        reach_A11 = self.log_reach.exp()[:, None, None]
        near = -0.5 * (far_BSn[:, None].detach() / reach_A11).square()
        near = near.masked_fill(~there_Bn[:, None, None], -torch.inf)
        near = F.pad(near, (0, 1)).to(q.dtype)  # nothing is there for all
        query_BSH = query_BSH + self.heard(self.join(F.scaled_dot_product_attention(q, k, v, attn_mask=near)))
        return query_BSH + self.feed_forward(self.norm_feed(query_BSH))

    def split(self, x_BLH: Tensor, parts: int) -> list[Tensor]:
        """Parts, each [B, A, L, H / A]."""
        return [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in x_BLH.chunk(parts, dim=2)]

    def join(self, x: Tensor) -> Tensor:
        """[B, A, L, H / A] -> [B, L, H]."""
        return x.transpose(1, 2).flatten(2)


class HitAssignment(nn.Module):
    """Scores of a hit and a track: of their states, and of how far the hit is from the line."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hit, self.track = Exact(nn.Linear(width, width)), Exact(LayerNorm(width), nn.Linear(width, width))
        self.none = Exact(nn.Linear(width, 1))
        self.log_reach = nn.Parameter(torch.zeros(1))

    def forward(self, h_NH: Tensor, query_BSH: Tensor, far_NS: Tensor, batch: Batch) -> Tensor:
        """`hit_slot` [N, S + 1]."""
        track_BSH, hit_NH = self.track(query_BSH), self.hit(h_NH)
        score_NS = (track_BSH[batch.batch] * hit_NH.unsqueeze(1)).sum(2) / hit_NH.shape[1] ** 0.5
        near_NS = torch.log1p((far_NS / self.log_reach.exp()).square())
        return at_least_fp32(torch.cat([score_NS - near_NS, self.none(h_NH)], dim=1))
