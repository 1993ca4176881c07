"""What a loss returns, so that batching, accumulation and the number of ranks cannot change it."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LossTerm(NamedTuple):
    """One term of a loss over some events: the sum of its per-event values, and the number of events that have it.

    Sums and counts are added over micro-batches and ranks; the term's value is sum / count. A term that no event has is
    a zero that still hangs on the graph, with count 0.
    """

    sum: Tensor
    count: int
