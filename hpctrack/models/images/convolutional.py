"""Convolutional models of HEP.TrkX on planes of pixels: a stack that keeps the image's size, and autoencoders.

An image has the planes as its first axis and one or two axes of pixels, so convolutions are of two or three dimensions.

Legend: S seeds, L planes, W pixels along an axis, P pixels of a plane, C channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pydantic import Field
from torch import Tensor, nn

from hpctrack.errors import InputError
from hpctrack.models.images.canvas import begin_as_keras
from hpctrack.models.images.planes import PlanesModel


def convolution(n_axes: int, before: int, after: int) -> nn.Module:
    """3 x 3 or 3 x 3 x 3, the image keeps its size."""
    kind = nn.Conv2d if n_axes == 1 else nn.Conv3d
    return kind(before, after, 3, padding=1)


def as_image(image_SLP: Tensor, shape: Sequence[int]) -> Tensor:
    """[S, 1, *shape] with channels last in memory, which the layers behind keep: faster on CPUs."""
    return image_SLP.reshape(-1, *shape, 1).movedim(-1, 1)


class PlaneConvolution(PlanesModel):
    """Convolutions of three pixels with ReLU, one after the other; the last has one channel, the score.

    A pixel is scored from those within `layers` + 1 planes and pixels of it.
    """

    class Options(PlanesModel.Options):
        """The network."""

        layers: int = Field(10, ge=1, description="convolutions before the last one")
        filters: int = Field(8, ge=1, description="channels of each")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        n_axes = len(options.axes)
        self.layers = nn.Sequential()
        for layer in range(options.layers):
            known = options.filters if layer else 1
            self.layers += nn.Sequential(convolution(n_axes, known, options.filters), nn.ReLU())
        self.layers.append(convolution(n_axes, options.filters, 1))
        begin_as_keras(self.layers)

    def score(self, image_SLP: Tensor) -> Tensor:
        """Logits [S, L, P]."""
        return self.layers(as_image(image_SLP, self.shape)).reshape(image_SLP.shape)


class PlaneAutoencoder(PlanesModel):
    """Planes as lines: convolutions that halve the image after each, and their mirror image that doubles it again.

    Pixels and planes must be multiples of two to the number of channels.
    """

    class Options(PlanesModel.Options):
        """The network."""

        planes: int = Field(48, ge=2, description="number of planes")
        pixels: int = Field(48, ge=2, description="of a plane")
        axes: list[str] = Field(
            ["column"], min_length=1, max_length=1, description="feature along the planes, in pixels"
        )
        channels: list[int] = Field([8, 16, 32, 64], min_length=1, description="of the convolutions, each halved after")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        step = 2 ** len(options.channels)
        for key, size in (("planes", options.planes), ("pixels", options.pixels)):
            if size % step:
                raise InputError(
                    f"key 'model.{key}': {size} is not a multiple of {step}, which the channels halve it by"
                )
        self.down, self.up, known = nn.Sequential(), nn.Sequential(), 1
        for channels in options.channels:
            self.down += nn.Sequential(convolution(1, known, channels), nn.ReLU(), nn.MaxPool2d(2))
            known = channels
        for channels in reversed(options.channels):
            self.up += nn.Sequential(convolution(1, known, channels), nn.ReLU(), nn.Upsample(scale_factor=2))
            known = channels
        self.up.append(convolution(1, known, 1))
        for layers in (self.down, self.up):
            begin_as_keras(layers)

    def score(self, image_SLP: Tensor) -> Tensor:
        """Logits [S, L, P]."""
        return self.up(self.down(as_image(image_SLP, self.shape))).squeeze(1)


class SquareAutoencoder(PlanesModel):
    """Planes as squares: convolutions in three dimensions that halve each plane, never their number, to one pixel; then
    a linear layer gives back the pixels of each plane.

    The talk prints no kernel for the last two; 3 x 2 x 2 and 3 x 1 x 1 have its numbers of weights. Dropout is left
    out: it would make a run depend on the number of its ranks.
    """

    class Options(PlanesModel.Options):
        """The image; pixels are a multiple of 32."""

        pixels: int = Field(32, ge=32, multiple_of=32, description="along each axis of a plane")
        axes: list[str] = Field(
            ["row", "column"], min_length=2, max_length=2, description="features along them, in pixels"
        )
        filters: int = Field(
            8, ge=1, description="channels of the first convolution; the others have up to 16 times more"
        )

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        c = options.filters
        blocks = [(1, c, c), (c, 2 * c, 2 * c), (2 * c, 4 * c), (4 * c, 8 * c)]
        self.layers = nn.Sequential()
        for block in blocks:
            for known, number in itertools.pairwise(block):
                self.layers += nn.Sequential(convolution(2, known, number), nn.ReLU())
            self.layers.append(nn.MaxPool3d((1, 2, 2)))
        # An even kernel has one pixel more on the high side.
        self.layers += nn.Sequential(nn.ConstantPad3d((0, 1, 0, 1, 1, 1), 0.0), nn.Conv3d(8 * c, 12 * c, (3, 2, 2)))
        self.layers += nn.Sequential(nn.ReLU(), nn.MaxPool3d((1, 2, 2)))
        self.layers += nn.Sequential(nn.Conv3d(12 * c, 16 * c, (3, 1, 1), padding=(1, 0, 0)), nn.ReLU())
        self.back = nn.Linear(16 * c * (options.pixels // 32) ** 2, self.n_pixels)
        for layers in (self.layers, self.back):
            begin_as_keras(layers)

    def score(self, image_SLP: Tensor) -> Tensor:
        """Logits [S, L, P]."""
        found = self.layers(as_image(image_SLP, self.shape))  # [S, C, L, 1, 1] of 32 x 32 pixels
        return self.back(found.transpose(1, 2).flatten(2))
