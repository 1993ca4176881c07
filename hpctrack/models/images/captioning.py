"""Captioning: from an image to a sequence of straight tracks, by convolutions and an LSTM that is read step by step.

HEP.TrkX (D. Anderson et al., Connecting the Dots 2017), as image captions are written: the image's features are the
LSTM's input at every step, and step s gives the track with the s-th smallest intercept. A second branch on the same
features gives the covariance of each track's parameters.

Legend: B events, N hits, S tracks at most, K numbers of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.models.images.canvas import CanvasModel, CanvasOptions, begin_as_keras, convolutions, flat_size
from hpctrack.models.images.recurrent import OneBiasLSTM
from hpctrack.models.perceptron import Exact

CHANNELS = (8, 8, 0, 32, 32)  # 0 halves the image


class CaptioningModel(CanvasModel):
    """Outputs `event_lines` [B, 2 S], of each track its intercept at plane 0 and its slope, in pixels.

    With `covariance`, also `event_covariance` [B, 3 S]; with `presence`, `event_presence` [B, S], logits of whether
    there is such a track. `hit_distance` [N, S] is how far hits are from the tracks, along columns, in pixels.
    """

    class Options(CanvasOptions):
        """Sizes, and what is given besides lines."""

        slots: int = Field(6, ge=1, description="most tracks of an event")
        channels: list[int] = Field(list(CHANNELS), min_length=1, description="of convolutions; 0 halves the image")
        width: int = Field(400, ge=1, description="of the LSTM, and of the linear layer before it")
        covariance: bool = Field(False, description="give the covariance of each track, which loss.likelihood trains")
        presence: bool = Field(False, description="give whether there is such a track, which loss.presence trains")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        self.slots = options.slots
        self.see = convolutions(options.channels)
        flat = flat_size(options.channels, self.shape)
        self.lines = Branch(flat, options.width, self.slots, 2 + options.presence)
        self.covariance = Branch(flat, options.width, self.slots, 3) if options.covariance else None
        begin_as_keras(self)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs of `batch.x` [N, F]."""
        seen_BK = self.see(self.image(batch)).flatten(1)
        told_BSD = self.lines(seen_BK)
        line_BS2 = to_pixels(told_BSD[..., :2], self.shape)
        outputs = {
            "event_lines": line_BS2.flatten(1),
            "hit_distance": distances(self.positions(batch), batch, line_BS2),
        }
        if told_BSD.shape[2] > 2:
            outputs["event_presence"] = told_BSD[..., 2]
        if self.covariance is not None:
            outputs["event_covariance"] = self.covariance(seen_BK).flatten(1)
        return outputs


class Branch(nn.Module):
    """A linear layer, whose output an LSTM gets at each of S steps, and what is read of its states."""

    def __init__(self, flat: int, width: int, slots: int, out: int) -> None:
        super().__init__()
        self.slots = slots
        self.linear = nn.Linear(flat, width)
        self.sequence = OneBiasLSTM(width, width)
        self.read = Exact(nn.Linear(width, out))

    def forward(self, seen_BK: Tensor) -> Tensor:
        """[B, K] -> [B, S, out]."""
        return self.read(self.sequence(self.linear(seen_BK).unsqueeze(1).expand(-1, self.slots, -1)))


def to_pixels(raw: Tensor, shape: tuple[int, int]) -> Tensor:
    """Intercepts and slopes in pixels [..., 2] of numbers of order 1: 0 is the middle of a canvas, or straight on."""
    planes, columns = shape
    return torch.stack([columns * (0.5 + 0.25 * raw[..., 0]), 0.5 * columns / planes * raw[..., 1]], dim=-1)


def distances(position_N2: Tensor, batch: Batch, line_BS2: Tensor) -> Tensor:
    """How far each hit is from its event's lines, along columns, [N, S]; hits are in the middle of their pixels.

    A track's pixel at plane i is the one that holds intercept + slope i.
    """
    line_NS2 = line_BS2[batch.batch]
    plane_N1, column_N1 = position_N2.floor().split(1, dim=1)
    return column_N1 + 0.5 - line_NS2[..., 0] - line_NS2[..., 1] * plane_N1
