"""Sequence models of HEP.TrkX on planes of pixels: an LSTM (S. Hochreiter and J. Schmidhuber, 1997) that goes from
plane to plane, in one direction or both, with linear layers before and behind, or a plane ahead.

Legend: S seeds, L planes, P pixels of a plane, H hidden width, W pixels of a window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from hpctrack.config import Section
from hpctrack.models.images.canvas import begin_as_keras
from hpctrack.models.images.planes import PlanesModel
from hpctrack.models.images.recurrent import OneBiasLSTM
from hpctrack.simulation.planes.straight import window_widths

NOWHERE = -1e4  # logit of pixels that a plane has not


class PlaneLSTM(PlanesModel):
    """The talk's LSTM, deep LSTM, bidirectional LSTM and next-layer LSTM, as the options say.

    Linear layers have ReLU between them. Weights begin as Keras' do; gates are plain sigmoids.
    """

    class Options(PlanesModel.Options):
        """The network."""

        hidden: int | None = Field(None, ge=1, description="width of the LSTM; null: as many as a plane has pixels")
        before: int = Field(0, ge=0, description="linear layers before the LSTM, each as wide as a plane has pixels")
        after: int = Field(1, ge=1, description="linear layers behind it; the last one scores the pixels")
        bidirectional: bool = Field(False, description="a second LSTM goes back from the last plane")
        ahead: bool = Field(
            False, description="predict each plane from those before it alone; nothing is known of the first"
        )

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        self.ahead, pixels = options.ahead, self.n_pixels
        hidden = options.hidden or pixels
        self.before = nn.Sequential()
        for _ in range(options.before):
            self.before += nn.Sequential(nn.Linear(pixels, pixels), nn.ReLU())
        self.lstm = OneBiasLSTM(pixels, hidden, options.bidirectional)
        self.after = nn.Sequential(nn.Linear(hidden * (1 + options.bidirectional), pixels))
        for _ in range(options.after - 1):
            self.after += nn.Sequential(nn.ReLU(), nn.Linear(pixels, pixels))
        for layers in (self.before, self.after):
            begin_as_keras(layers)

    def score(self, image_SLP: Tensor) -> Tensor:
        """Logits [S, L, P]; `ahead`, those of plane 0 are all 0, and none sees its own plane or later ones."""
        seen_SLP = image_SLP[:, :-1] if self.ahead else image_SLP
        logit_SLP = self.after(self.lstm(self.before(seen_SLP)))
        return torch.cat([torch.zeros_like(logit_SLP[:, :1]), logit_SLP], dim=1) if self.ahead else logit_SLP


class WindowLSTM(PlanesModel):
    """An LSTM over planes of several widths: a linear map from each plane to the LSTM, and one back to its pixels.

    Planes are lines of pixels; the first are narrow windows about the middle (simulation/planes/straight.py).
    """

    bounds_L2: Tensor  # first pixel of each plane's window, and its end

    class Options(Section):
        """The image and the network."""

        planes: int = Field(48, ge=2, description="number of planes")
        pixels: int = Field(48, ge=2, description="of the widest plane, even")
        plane: str = Field("plane", description="feature that says the plane of a hit, from 0")
        axes: list[str] = Field(
            ["column"], min_length=1, max_length=1, description="feature along the planes, in pixels"
        )
        hidden: int = Field(48, ge=1, description="width of the LSTM, and of what it sees of a plane")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, PlanesModel.Options(**options.model_dump(exclude={"hidden"})))
        self.widths = window_widths(options.planes, options.pixels).tolist()
        self.first = [(options.pixels - width) // 2 for width in self.widths]
        numbers = [
            str(plane) for plane in range(len(self.widths))
        ]  # dictionaries: so small layers are shared out as one
        self.before = nn.ModuleDict(
            {n: nn.Linear(w, options.hidden) for n, w in zip(numbers, self.widths, strict=True)}
        )
        self.lstm = OneBiasLSTM(options.hidden, options.hidden)
        self.after = nn.ModuleDict({n: nn.Linear(options.hidden, w) for n, w in zip(numbers, self.widths, strict=True)})
        for layers in (self.before, self.after):
            begin_as_keras(layers)
        bounds = torch.tensor([[first, first + width] for first, width in zip(self.first, self.widths, strict=True)])
        self.register_buffer("bounds_L2", bounds, persistent=False)

    def sees(self, pixel_NA: Tensor) -> Tensor:
        """Whether a pixel is in its plane's window."""
        first_N, end_N = self.bounds_L2[pixel_NA[:, 0]].T
        return (pixel_NA[:, 1] >= first_N) & (pixel_NA[:, 1] < end_N)

    def score(self, image_SLP: Tensor) -> Tensor:
        """Logits [S, L, P], far down where a plane has no pixel."""
        windows = [
            image_SLP[:, plane, first : first + width]
            for plane, (first, width) in enumerate(zip(self.first, self.widths, strict=True))
        ]
        inner = [torch.relu(layer(window)) for layer, window in zip(self.before.values(), windows, strict=True)]
        state_SLH = self.lstm(torch.stack(inner, dim=1))
        rows = []
        for plane, (layer, first) in enumerate(zip(self.after.values(), self.first, strict=True)):
            beyond = self.options.pixels - first - self.widths[plane]
            rows.append(nn.functional.pad(layer(state_SLH[:, plane]), (first, beyond), value=NOWHERE))
        return torch.stack(rows, dim=1)
