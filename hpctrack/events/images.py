"""Images are a view of an event's hits: which pixels are on, made where a model needs them.

Coordinates are features of hits: `plane`, `column` and `row` count planes and pixels (source `planes`, 1 mm a pixel).

Legend: N hits, A axes of an image, B events of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def places(coordinates_NA: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Pixel of each hit, int64 [N, A], and whether it is in an image of this shape, bool [N].

    A coordinate c is in pixel p for p <= c < p + 1. A hit outside has the pixel 0 everywhere.
    """
    end_A = torch.tensor(list(shape), device=coordinates_NA.device)
    pixel_NA = coordinates_NA.floor()
    inside_N = ((pixel_NA >= 0) & (pixel_NA < end_A)).all(dim=1)
    return torch.where(inside_N[:, None], pixel_NA, 0).long(), inside_N


def image(
    coordinates_NA: Tensor, batch_N: Tensor, n_events: int, shape: Sequence[int], dtype: torch.dtype | None = None
) -> Tensor:
    """Images [B, *shape] of events: 1 where there is a hit, 0 elsewhere; hits outside are left out.

    `coordinates_NA`: of the hits along the image's axes, numbers of any kind; `batch_N`: their events. The type is that
    of the coordinates if these are floating, unless one is given.
    """
    pixel_NA, inside_N = places(coordinates_NA, shape)
    if dtype is None:
        dtype = coordinates_NA.dtype if coordinates_NA.is_floating_point() else torch.get_default_dtype()
    found = coordinates_NA.new_zeros((n_events, *shape), dtype=dtype)
    found[(batch_N[inside_N], *pixel_NA[inside_N].T)] = 1
    return found
