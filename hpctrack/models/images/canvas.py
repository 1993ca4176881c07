"""What models of flat images share: planes and the columns in each as the two axes of a picture of an event.

Legend: B events, N hits, F features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.events.images import image
from hpctrack.models.contracts import Model
from hpctrack.models.memory_modes import MemoryModes
from hpctrack.numerics import at_least_fp32


class CanvasOptions(Section):
    """The size of the image, and which features are its axes."""

    planes: int = Field(50, ge=1, description="pixels along the first axis")
    columns: int = Field(50, ge=1, description="pixels along the second axis")
    plane: str = Field("plane", description="feature that is the first axis, in pixels")
    column: str = Field("column", description="feature that is the second axis, in pixels")


class CanvasModel(MemoryModes, Model):
    """A model that sees where hits are on a canvas, in pixels, and nothing else of them."""

    def __init__(self, features: Sequence[str], options: CanvasOptions) -> None:
        super().__init__()
        self.n_features, self.shape = len(features), (options.planes, options.columns)
        for key, name in (("plane", options.plane), ("column", options.column)):
            if name not in features:
                raise InputError(
                    f"key 'model.{key}': '{name}' is not in data.features, which has {', '.join(features)}; add it"
                )
        self.axes = [list(features).index(options.plane), list(features).index(options.column)]

    def positions(self, batch: Batch) -> Tensor:
        """Planes and columns of the hits, [N, 2], in pixels; hits beyond the canvas are there, too."""
        return at_least_fp32(batch.x[:, self.axes])

    def image(self, batch: Batch) -> Tensor:
        """1 where a pixel has a hit, [B, 1, planes, columns]."""
        return image(self.positions(batch), batch.batch, batch.num_graphs, self.shape).unsqueeze(1)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of events: an image costs the same whatever is on it."""
        return np.ones(len(hits))


def convolutions(channels: Sequence[int]) -> nn.Sequential:
    """3 x 3 convolutions to so many channels, each with ReLU; 0 in the place of channels halves the image (maximum)."""
    layers: list[nn.Module] = []
    start = 1
    for number in channels:
        layers += [nn.Conv2d(start, number, 3, padding=1), nn.ReLU()] if number else [nn.MaxPool2d(2)]
        start = number or start
    return nn.Sequential(*layers)


def flat_size(channels: Sequence[int], shape: tuple[int, int]) -> int:
    """Numbers that `convolutions` leaves of an image of this shape; InputError if it is halved to nothing."""
    if not any(channels):
        raise InputError("key 'model.channels': only halvings; give at least one convolution")
    halvings = sum(not number for number in channels)
    planes, columns = (size >> halvings for size in shape)
    if not planes * columns:
        raise InputError(
            f"section 'model': an image of {shape[0]} x {shape[1]} pixels cannot be halved {halvings} times"
        )
    return [number for number in channels if number][-1] * planes * columns


def begin_as_keras(module: nn.Module) -> None:
    """Weights of convolutions and linear layers uniform after X. Glorot and Y. Bengio (2010), no biases."""
    for layer in module.modules():
        if isinstance(layer, (nn.Conv2d, nn.Conv3d, nn.Linear)):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
