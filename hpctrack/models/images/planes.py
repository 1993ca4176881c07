"""Models that follow a seed through planes of pixels: for every plane, which of its pixels is on the seed's track.

S. Farrell et al., "The HEP.TrkX Project: deep neural networks for HL-LHC online and offline tracking", EPJ Web Conf.
150 (2017) 00003. The image of a seed, which is a hit, has that hit alone in its own plane and all hits of the event in
the other planes. Scores are a softmax over the pixels of each plane, and a hit's is that of its pixel. So outputs are
rows of edges from seeds to hits (graph `seeds`), and neither the order of hits nor other events play a part.

Legend: S seeds, L planes, W pixels along an axis, P pixels of a plane (W or W * W), N hits, M edges, A axes of an
image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.errors import InputError
from hpctrack.events.images import image, places
from hpctrack.models.contracts import Model
from hpctrack.models.graph_network import edges_of
from hpctrack.models.memory_modes import MemoryModes, in_chunks, recompute
from hpctrack.numerics import at_least_fp32

CHUNK = 64  # seeds at a time
AZIMUTH = "phi"  # the feature that counts half turns and not pixels


class PlanesModel(MemoryModes, Model):
    """A model of scores [S, L, P] of images [S, L, P], which a subclass computes in `score`."""

    memory_modes: tuple[str, ...] = ("plain", "recompute", "chunks")

    class Options(Section):
        """The image."""

        planes: int = Field(10, ge=2, description="number of planes")
        pixels: int = Field(32, ge=2, description="along each axis of a plane; of phi: bins of the full turn")
        plane: str = Field("plane", description="feature that says the plane of a hit, from 0")
        axes: list[str] = Field(
            ["row", "column"],
            min_length=1,
            max_length=2,
            description="features along the axes of a plane, in pixels; phi: cylinders",
        )

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.n_features, self.options = len(features), options
        named = [options.plane, *options.axes]
        for key, name in zip(["plane", *["axes"] * len(options.axes)], named, strict=True):
            if name not in features:
                raise InputError(
                    f"key 'model.{key}': '{name}' is not in data.features, which has {', '.join(features)}; add it"
                )
        self.columns = [list(features).index(name) for name in named]
        self.shape = (options.planes, *[options.pixels] * len(options.axes))
        self.n_pixels = math.prod(self.shape[1:])

    def score(self, image_SLP: Tensor) -> Tensor:
        """Logits [S, L, P] of images of 0 and 1."""
        raise NotImplementedError

    def sees(self, pixel_NA: Tensor) -> Tensor:
        """Which of these pixels there are, bool [N]: all, unless a subclass has smaller planes."""
        return torch.ones(len(pixel_NA), dtype=torch.bool, device=pixel_NA.device)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """For each edge from a seed to a hit, [M]: log-probabilities that the track is where the hit is (`edge_score`)
        and of the best other pixel of its plane (`edge_best`), and the plane (`edge_plane`).

        The score of a hit that is in no image is that of an even guess; its plane is -1, and all pixels are better.
        """
        edge_2M, where_NA = edges_of(batch), self.coordinates(batch.x)
        pixel_NA, inside_N = places(where_NA, self.shape)
        inside_N = inside_N & self.sees(pixel_NA)
        seed_S, number_M = torch.unique(edge_2M[0], return_inverse=True)
        seen_N = inside_N.nonzero().squeeze(1)
        of_event = image(where_NA[seen_N], batch.batch[seen_N], batch.num_graphs, self.shape)
        image_SLP = alone(of_event[batch.batch[seed_S]], pixel_NA[seed_S], inside_N[seed_S]).flatten(2)
        logit_SLP = self.in_mode(image_SLP.to(batch.x.dtype))
        score_SLP = torch.log_softmax(at_least_fp32(logit_SLP), dim=2)
        plane_M, flat_M = (values[edge_2M[1]] for values in (pixel_NA[:, 0], self.flat(pixel_NA)))
        even = score_SLP.new_tensor(-math.log(self.n_pixels))
        found_M, own_M = inside_N[edge_2M[1]], score_SLP[number_M, plane_M, flat_M]
        first_M, second_M = score_SLP.topk(2, dim=2).values[number_M, plane_M].T
        return {
            "edge_score": torch.where(found_M, own_M, even),
            "edge_best": torch.where(found_M, torch.where(own_M < first_M, first_M, second_M), 0.0),
            "edge_plane": torch.where(found_M, plane_M, -1).to(score_SLP.dtype),
        }

    def in_mode(self, image_SLP: Tensor) -> Tensor:
        """`score` in the memory mode: kept, computed again in the backward pass, or so for some seeds at a time."""
        if self.memory == "chunks":
            return in_chunks(self.score, image_SLP, size=CHUNK)
        return self.score(image_SLP) if self.memory == "plain" else recompute(self.score, image_SLP)

    def coordinates(self, x_NF: Tensor) -> Tensor:
        """Planes and pixels of hits, [N, A]: a pixel p begins at p."""
        found_NA = at_least_fp32(x_NF[:, self.columns])
        turns = [name == AZIMUTH for name in (self.options.plane, *self.options.axes)]
        if any(turns):
            bins_NA = ((found_NA + 1) / 2 * self.options.pixels) % self.options.pixels
            found_NA = torch.where(torch.tensor(turns, device=x_NF.device), bins_NA, found_NA)
        return found_NA

    def flat(self, pixel_NA: Tensor) -> Tensor:
        """Numbers [N] of pixels in their planes."""
        return (pixel_NA[:, 1:] * pixel_NA.new_tensor([self.options.pixels, 1][-len(self.options.axes) :])).sum(1)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """As many images as there are seeds: a plane's share of the hits, at least one."""
        return 1.0 + hits / self.options.planes


def alone(image_S: Tensor, pixel_SA: Tensor, inside_S: Tensor) -> Tensor:
    """Images [S, L, …] in which each seed, in pixel [S, A], is the only hit of its plane; seeds outside change none."""
    rows = inside_S.nonzero().squeeze(1)
    pixels = pixel_SA[rows].T
    image_S[rows, pixels[0]] = 0
    image_S[(rows, *pixels)] = 1
    return image_S
