"""Sums of hinges over the pairs of points within a margin, with memory that does not grow with the number of pairs.

The sum is a scalar, so its gradient is known as soon as its pairs are: one pass over chunks of pairs adds up both, and
only the gradient [N, E] waits for the backward pass.

Legend: M and N points, E dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hpctrack.graphs.radius import Block, block_square_distance, near_blocks

TINY = 1e-12  # inside square roots, whose slope at 0 is infinite


def hinge_sum(
    a_ME: Tensor, group_M: Tensor, b_NE: Tensor | None, group_N: Tensor | None, margin: float, squared: bool = False
) -> tuple[Tensor, int]:
    """Sum of max(0, margin - |a_m - b_n|), or its square, over pairs of different groups, and the number of its pairs.

    Without b: over ordered pairs m != n of a. Exact, O(M + N) memory; differentiable once.
    """
    wanted = torch.is_grad_enabled() and (a_ME.requires_grad or (b_NE is not None and b_NE.requires_grad))
    total, count = HingeSum.apply(a_ME, b_NE, group_M, group_N, margin, squared, wanted)
    return total, int(count)


class HingeSum(torch.autograd.Function):
    """Value, number of pairs and gradients in one pass."""

    @staticmethod
    def forward(
        ctx: Any,
        a_ME: Tensor,
        b_NE: Tensor | None,
        group_M: Tensor,
        group_N: Tensor | None,
        margin: float,
        squared: bool,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        symmetric = b_NE is None
        other_NE, other_group = (a_ME, group_M) if symmetric else (b_NE, group_N)
        slope_a = torch.zeros_like(a_ME) if wanted else None
        slope_b = slope_a if symmetric or not wanted else torch.zeros_like(b_NE)
        total = a_ME.new_zeros((), dtype=torch.float64)
        count = torch.zeros((), dtype=torch.long, device=a_ME.device)
        for candidates in near_blocks(a_ME, b_NE, margin):
            block = different(candidates, group_M, other_group)
            distance = (block_square_distance(a_ME, other_NE, block) + TINY).sqrt_()
            hinge = (margin - distance).clamp_(min=0)
            if block.whole:
                hinge.masked_fill_(group_M[block.rows, None] == other_group[block.cols], 0)
            count += torch.count_nonzero(hinge)
            total += (hinge.square() if squared else hinge).sum(dtype=torch.float64)
            if wanted:
                pull = (2 * hinge if squared else (hinge > 0).to(hinge.dtype)).div_(distance)
                add_slopes(slope_a, slope_b, a_ME, other_NE, block, pull)
        twice = 2 if symmetric else 1
        if wanted:
            ctx.save_for_backward(slope_a.mul_(twice), *([] if symmetric else [slope_b]))
        ctx.mark_non_differentiable(count)
        return (total * twice).to(a_ME.dtype), count * twice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        slopes = [grad * slope for slope in ctx.saved_tensors]
        return *(slopes if len(slopes) == 2 else (slopes[0], None)), None, None, None, None, None


def different(block: Block, group_M: Tensor, group_N: Tensor) -> Block:
    """A list of pairs without those of one group; a whole block is left as it is."""
    if block.whole:
        return block
    keep = group_M[block.rows] != group_N[block.cols]
    return Block(block.rows[keep], block.cols[keep], whole=False)


def add_slopes(slope_a: Tensor, slope_b: Tensor, a_ME: Tensor, b_NE: Tensor, block: Block, pull: Tensor) -> None:
    """Add -pull (a - b) to the rows' slope and its negative to the columns', for every pair of a block."""
    a, b = a_ME[block.rows], b_NE[block.cols]
    if block.whole:
        centre = b.mean(0)  # keeps the products small whose difference is the sum of pull (a - b)
        a, b = a - centre, b - centre
        slope_a.index_add_(0, block.rows, torch.addmm(pull.sum(1, keepdim=True) * a, pull, b, beta=-1))
        slope_b.index_add_(0, block.cols, torch.addmm(pull.sum(0).unsqueeze(1) * b, pull.T, a, beta=-1))
    else:
        push = (a - b).mul_(pull.unsqueeze(1))
        slope_a.index_add_(0, block.rows, push, alpha=-1)
        slope_b.index_add_(0, block.cols, push)
