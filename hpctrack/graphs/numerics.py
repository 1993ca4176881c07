"""The precision in which is computed what low precision would spoil."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_fp32(x: Tensor) -> Tensor:
    """`x` in fp32 at least, whatever precision a model runs in: for losses, distances, softmax and sums."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
