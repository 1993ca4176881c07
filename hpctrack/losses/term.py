"""What a loss returns, so that batching, accumulation and the number of ranks cannot change it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LossTerm(NamedTuple):
    """One term of a loss over some events: the sum of its per-event values, and the number of events that have it.

    Sums and counts are added over micro-batches and ranks; the term's value is sum / count. A term that no event has is
    a zero that still hangs on the graph, with count 0.
    """

    sum: Tensor
    count: int


def at_least_fp32(x: Tensor) -> Tensor:
    """Losses are computed in fp32 at least, whatever precision the model runs in."""
    return x if x.dtype == torch.float64 else x.float()
