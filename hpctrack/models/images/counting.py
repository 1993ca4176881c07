"""What a convolutional network says of a whole image: how many tracks there are, or in which bins of their parameters.

HEP.TrkX (S. Farrell et al.): five convolutions, the image halved between them, and one linear layer.

Legend: B events, C counts 0..most, Q bins of intercept and slope.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.models.images.canvas import CanvasModel, CanvasOptions, begin_as_keras, convolutions, flat_size
from hpctrack.models.perceptron import Exact


class CountingModel(CanvasModel):
    """Output `event_count` [B, most + 1]: logits of the number of tracks."""

    class Options(CanvasOptions):
        """Sizes."""

        planes: int = Field(64, ge=1, description="pixels along the first axis")
        columns: int = Field(64, ge=1, description="pixels along the second axis")
        channels: list[int] = Field(
            [8, 0, 12, 0, 16, 0, 20, 0, 24], min_length=1, description="of convolutions; 0 halves the image"
        )
        most: int = Field(16, ge=1, description="most tracks of an event")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        self.see = convolutions(options.channels)
        self.count = Exact(nn.Linear(flat_size(options.channels, self.shape), options.most + 1))
        begin_as_keras(self)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`event_count` of `batch.x` [N, F]."""
        return {"event_count": self.count(self.see(self.image(batch)).flatten(1))}


class LineBinsModel(CanvasModel):
    """Output `event_bins` [B, Q]: logits of whether a track has its intercept and slope in a bin, slopes fastest."""

    class Options(CanvasOptions):
        """Sizes."""

        planes: int = Field(64, ge=1, description="pixels along the first axis")
        columns: int = Field(64, ge=1, description="pixels along the second axis")
        channels: list[int] = Field(
            [8, 0, 16, 0, 32, 0, 64, 0, 128, 128], min_length=1, description="of convolutions; 0 halves the image"
        )
        bins: int = Field(16, ge=1, description="of intercepts, and of slopes")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        self.see = convolutions(options.channels)
        self.bins = Exact(nn.Linear(flat_size(options.channels, self.shape), options.bins**2))
        begin_as_keras(self)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`event_bins` of `batch.x` [N, F]."""
        return {"event_bins": self.bins(self.see(self.image(batch)).flatten(1))}
