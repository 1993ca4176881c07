"""What convolutions look for, on the page: weights of the first, and the images that excite filters most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from hpctrack.reporting import page
from hpctrack.reporting.plots import styled, svg
from hpctrack.results.filters import Filters, Layer

COLUMNS = 8  # pictures in a row
INCHES = 1.35  # of a picture


def lead(found: Filters) -> str:
    """The line under a title: of which run."""
    return f"Run {found.run}, model '{found.model}', after {found.step:,} steps."


def sections(found: Filters) -> list[str]:
    """One section (HTML): the first convolution's weights, then a row of pictures for each convolution."""
    settings = found.settings
    pieces = [
        page.paragraph(
            f"{lead(found)} A picture is the image that excites a filter most: found from a random one by "
            f"{settings['steps']} steps along the gradient of the filter's mean activation, its border of one pixel "
            "left out, brought to the same mean and contrast. Axes that are not shown are averaged over."
        ),
        page.figures("", [(weights_figure(found.weights), "weights of filters")], weights_caption(found)),
        *(
            page.figures("", [(pictures_figure(layer.pictures), f"pictures of {layer.name}")], caption(layer))
            for layer in found.layers
        ),
        page.folded("Command", " ".join(found.command)),
    ]
    return [page.section("What convolutions look for", *pieces)]


def weights_caption(found: Filters) -> str:
    """What the picture of weights shows."""
    return f"Weights of the first convolution's {len(found.weights)} filters; red is positive, blue negative."


def caption(layer: Layer) -> str:
    """Of which convolution the pictures are."""
    kernel = " x ".join(map(str, layer.kernel))
    shown, number = len(layer.pictures), layer.filters
    of = f"all {number}" if shown == number else f"the first {shown} of {number}"
    return f"Convolution {layer.name}, kernel {kernel}: {of} filters."


@styled
def weights_figure(weights: Sequence[Sequence[Sequence[float]]]) -> str:
    """Kernels on one scale of colours, symmetric about zero."""
    values = np.asarray(weights)
    most = float(np.abs(values).max()) or 1.0
    return tiles(values, cmap="RdBu_r", vmin=-most, vmax=most)


@styled
def pictures_figure(pictures: Sequence[Sequence[Sequence[int]]]) -> str:
    """Grey levels."""
    return tiles(np.asarray(pictures), cmap="gray", vmin=0, vmax=255)


def tiles(values: np.ndarray, **how: object) -> str:
    """Pictures [K, rows, columns] beside each other, COLUMNS in a row."""
    rows = -(-len(values) // COLUMNS)
    tall = min(2.0, max(0.3, values.shape[1] / values.shape[2]))
    figure = Figure(figsize=(COLUMNS * INCHES, rows * INCHES * tall), layout="constrained")
    for axes, picture in zip(figure.subplots(rows, COLUMNS, squeeze=False).flat, values, strict=False):
        axes.imshow(picture, interpolation="nearest", origin="lower", aspect="auto", **how)
    for axes in figure.axes:
        axes.set_axis_off()
    return svg(figure)
