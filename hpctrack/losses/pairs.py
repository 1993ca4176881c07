"""Sums of hinges over the pairs of points within a margin, with memory that does not grow with the number of pairs.

The sum is a scalar, so its gradient is known as soon as its pairs are: one pass over chunks of pairs adds up both, and
only the gradients [N, E] wait for the backward pass. The last part is the loss for the spaces in which a backbone looks
for each hit's neighbours, since that search itself has no gradient.

Legend: M and N points, E dimensions (D of a space of neighbours), P pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch_geometric.data import Batch

from hpctrack.division.divided import division_of
from hpctrack.errors import InputError
from hpctrack.graphs.cells import REACH
from hpctrack.graphs.neighbours import Block, block_square_distance, near_blocks
from hpctrack.losses.term import Tracks, events, hit_weights, labels, of_rows

SpaceWeight = Annotated[  # an option of losses of models that look for neighbours
    float, Field(ge=0, description="weight of the loss on the backbone's `space_0`, `space_1`, …")
]
TINY = 1e-12  # inside square roots, whose slope at 0 is infinite
COINCIDENT = (1 + 1e-6) * TINY**0.5  # distances up to this are those of points at one place


class Points(NamedTuple):
    """Points `x` [M, E], their groups [M], of which only different ones meet, and weights [M] or None for 1."""

    x: Tensor
    group: Tensor
    weight: Tensor | None = None


def hinge_sum(a: Points, b: Points | None, margin: float, squared: bool = False) -> tuple[Tensor, int]:
    """Sum of weight_m weight_n max(0, margin - |a_m - b_n|), or its square, over pairs, and the pairs in reach.

    Pairs are of different groups. Without b: ordered pairs m != n of a. Exact, in O(M + N) memory; differentiable once.
    """
    other = b or a
    if (a.weight is None) != (other.weight is None):
        raise ValueError("points have weights on one side alone: give them to both, or to none")
    tensors = (a.x, other.x, a.weight, other.weight)
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    total, count = HingeSum.apply(*tensors, a.group, other.group, b is None, margin, squared, wanted)
    return total, int(count)


class HingeSum(torch.autograd.Function):
    """Value, number of pairs and gradients in one pass; if `symmetric`, over one order of the pairs, counted twice."""

    @staticmethod
    def forward(
        ctx: Any,
        a_ME: Tensor,
        b_NE: Tensor,
        weight_M: Tensor | None,
        weight_N: Tensor | None,
        group_M: Tensor,
        group_N: Tensor,
        symmetric: bool,
        margin: float,
        squared: bool,
        wanted: bool,
    ) -> tuple[Tensor, Tensor]:
        """The sum, in the type of `a_ME`, and the number of pairs in reach; `wanted`: gradients are."""
        both = None if weight_M is None or weight_N is None else (weight_M, weight_N)
        slopes = [torch.zeros_like(x) for x in (a_ME, b_NE)] if wanted else []
        weight_slopes = [torch.zeros_like(weight) for weight in both or ()] if wanted else []
        total, count = (a_ME.new_zeros((), dtype=torch.float64) for _ in range(2))
        for candidates in near_blocks(a_ME, None if symmetric else b_NE, margin):
            block = different(candidates, group_M, group_N)
            x, y = a_ME[block.rows], b_NE[block.cols]
            distance = (block_square_distance(x, y, block) + TINY).sqrt_()
            hinge = (margin - distance).clamp_(min=0)
            if not block.listed:
                hinge.masked_fill_(group_M[block.rows, None] == group_N[block.cols], 0)
            if block.shape == "triangle":
                hinge.triu_(1)
            active = hinge.sign()
            count += exact_sum(active)
            value, slope = (hinge.square(), 2 * hinge) if squared else (hinge, active)
            weights = None if both is None else block_weights(*both, block)
            total += exact_sum(value if weights is None else value * weights)
            if wanted:
                pull = slope.div_(distance).masked_fill_(distance <= COINCIDENT, 0)  # 10^6 times 0, but for rounding
                add_slopes(slopes, x, y, block, pull if weights is None else pull.mul_(weights))
            if wanted and both is not None:
                add_weight_slopes(weight_slopes, *both, block, value)
        times = 2 if symmetric else 1
        if wanted:
            ctx.save_for_backward(*slopes, *(weight_slopes or (None, None)))
        ctx.times = times
        ctx.mark_non_differentiable(count)
        return (total * times).to(a_ME.dtype), count * times

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Of both points and both weights."""
        slopes = [None if slope is None else grad * ctx.times * slope for slope in ctx.saved_tensors]
        return *slopes, None, None, None, None, None, None


def different(block: Block, group_M: Tensor, group_N: Tensor) -> Block:
    """A list of pairs without those of one group; another block is left as it is."""
    if not block.listed:
        return block
    keep = group_M[block.rows] != group_N[block.cols]
    return Block(block.rows[keep], block.cols[keep], "list")


def block_weights(weight_M: Tensor, weight_N: Tensor, block: Block) -> Tensor:
    """Products of the weights of a block's pairs, [P] for a list, else [rows, cols]."""
    of_rows = weight_M[block.rows]
    return (of_rows if block.listed else of_rows.unsqueeze(1)) * weight_N[block.cols]


def exact_sum(values: Tensor) -> Tensor:
    """Sum in fp64 of short sums in the values' own type, which is faster and still exact for counts."""
    return (values.sum(-1) if values.dim() > 1 else values).sum(dtype=torch.float64)


def add_slopes(slopes: list[Tensor], x: Tensor, y: Tensor, block: Block, pull: Tensor) -> None:
    """Add a block's part to the slopes of x (rows), -pull (x - y), and its negative to those of y (columns)."""
    slope_a, slope_b = slopes
    if block.listed:
        push = (x - y).mul_(pull.unsqueeze(1))
        slope_a.index_add_(0, block.rows, push, alpha=-1)
        slope_b.index_add_(0, block.cols, push)
    else:
        centre = y.mean(0)  # keeps the products small whose difference is the sum of pull (x - y)
        x, y = x - centre, y - centre
        slope_a.index_add_(0, block.rows, torch.addmm(pull.sum(1, keepdim=True) * x, pull, y, beta=-1))
        slope_b.index_add_(0, block.cols, torch.addmm(pull.sum(0).unsqueeze(1) * y, pull.T, x, beta=-1))


def add_weight_slopes(slopes: list[Tensor], weight_M: Tensor, weight_N: Tensor, block: Block, value: Tensor) -> None:
    """Add a block's part to the slopes of the weights: a pair's value times the weight of the other point."""
    of_rows, of_cols = weight_M[block.rows], weight_N[block.cols]
    slopes[0].index_add_(0, block.rows, value * of_cols if block.listed else value @ of_cols)
    slopes[1].index_add_(0, block.cols, value * of_rows if block.listed else value.T @ of_rows)


# ------------------------------------------------------------------------------ an event's pairs, over all its ranks


class EventHits:
    """The N hits of an event as pairs are made of them: all on this rank, or own ones and those of other ranks.

    `track` [N] and `weight` [N] or None are of all hits. Sums over pairs are this rank's part of the event's, numbers
    of pairs are the event's.
    """

    def __init__(self, batch: Batch, rows: slice, weight_N: Tensor | None) -> None:
        self.rows, self.division = rows, division_of(batch)
        self.track, self.weight = labels(batch).track[rows], of_rows(weight_N, rows)
        if self.division is not None:
            self.rows = slice(0, batch.num_nodes)

    def __len__(self) -> int:
        return len(self.track)

    def every(self, x_NE: Tensor) -> Tensor:
        """A model's output for all hits of the event, [N, E]."""
        return x_NE[self.rows] if self.division is None else self.division.gather(x_NE)

    def own(self, x_NE: Tensor, group_N: Tensor) -> Points:
        """A model's output for this rank's hits as points, in these groups of all hits, with the hits' weights."""
        rows = slice(None) if self.division is None else self.division.rows_n
        return Points(x_NE[self.rows], group_N[rows], of_rows(self.weight, rows))

    def once(self, value: Tensor) -> Tensor:
        """What all ranks of the event have alike, as this rank's part of it."""
        return value if self.division is None else self.division.on_leader(value)

    def between(self, own: Points, every: Points, margin: float, squared: bool = False) -> tuple[Tensor, int]:
        """`hinge_sum` of points of two kinds, of which one has this rank's hits alone, the other those of all."""
        if self.division is None:
            return hinge_sum(own, every, margin, squared)
        found, number = hinge_sum(*in_reach(own, every, margin), margin, squared)
        return found, self.division.total(number)

    def mine(self, points: Points, some_N: Tensor) -> Points:
        """Of points of `some` of all hits (bool [N]) those of this rank."""
        if self.division is None:
            return points
        return choose(points, self.division.owner_N[some_N] == self.division.place.number)

    def within(
        self, points: Points, margin: float, squared: bool = False, some_N: Tensor | None = None
    ) -> tuple[Tensor, int]:
        """`hinge_sum` of points of all hits, or of `some` of them (bool [N]), with each other.

        Pairs within a rank are its own. Of those of two ranks the first takes its own points with the other's even
        ones, the second its odd ones with all of the first's: as many, wherever the points are.
        """
        if self.division is None:
            return hinge_sum(points, None, margin, squared)
        number, owner, odd = self.division.place.number, self.division.owner_N, self.division.number_N % 2 == 1
        if some_N is not None:
            owner, odd = owner[some_N], odd[some_N]
        own = owner == number
        found, pairs = hinge_sum(choose(points, own), None, margin, squared)
        for a, b in ((own, (owner > number) & ~odd), (own & odd, owner < number)):
            more, n = hinge_sum(*in_reach(choose(points, a), choose(points, b), margin), margin, squared)
            found, pairs = found + 2 * more, pairs + 2 * n
        return found, self.division.total(pairs)


def hits_of_events(batch: Batch) -> Iterator[EventHits]:
    """The hits of each event."""
    whole = labels(batch)
    weight_N = hit_weights(whole)
    return (EventHits(batch, rows, weight_N) for rows in events(whole))


def in_reach(a: Points, b: Points, margin: float) -> tuple[Points, Points]:
    """The points of either kind that lie in the box around the others, widened by the margin: no other is in reach."""
    b = choose(b, in_box(b.x.detach(), a.x.detach(), margin))
    return choose(a, in_box(a.x.detach(), b.x.detach(), margin)), b


def in_box(x_ME: Tensor, around_NE: Tensor, margin: float) -> Tensor:
    """Which points lie in the box around others, widened by a margin, bool [M]; around none there is no box."""
    if not len(around_NE):
        return x_ME.new_zeros(len(x_ME), dtype=torch.bool)
    wide = margin * REACH
    return ((x_ME >= around_NE.amin(0) - wide) & (x_ME <= around_NE.amax(0) + wide)).all(1)


def choose(points: Points, some_M: Tensor) -> Points:
    """Some of the points, bool [M]."""
    return Points(points.x[some_M], points.group[some_M], of_rows(points.weight, some_M))


# ------------------------------------------------------------------------------ spaces in which neighbours are searched


TRACK_RADIUS = 0.25  # within it a hit is not pulled: hits of a track then are nearer (0.5) than those of others (1)


def neighbours(outputs: dict[str, Tensor], batch: Batch) -> Tensor:
    """Metric-learning loss on `space_0`, `space_1`, … [N, D], per hit of a track, summed over events and spaces.

    Each hit x of a track with mean m is pulled by max(0, |x - m|^2 - TRACK_RADIUS^2) and pushes every hit y of no or
    another track by max(0, 1 - |x - y|)^2. At zero all hits of a track are nearer to each other than to any other hit,
    so that a search for k neighbours finds them all if the track has up to k + 1. The mean, not the next hit on the
    track, is what all of them can meet at; it costs O(N). Hits of no track do not push each other: no search starts
    from the hope to find them, and there may be many. InputError if there is no such output.
    """
    spaces = [outputs[name] for name in sorted(outputs) if name.startswith("space_")]
    if not spaces:
        raise InputError(
            "loss.neighbours: the model has no outputs space_0, space_1, …; set the weight to 0, or take a "
            "backbone that looks for neighbours in a space it learns"
        )
    tracks, hits = Tracks(batch), list(hits_of_events(batch))
    total = spaces[0].new_zeros(())
    for space_ND in spaces:
        x_MD = space_ND[tracks.hits]
        square_M = (x_MD - tracks.mean(x_MD)[tracks.track]).square().sum(1)
        pull = tracks.per_hit((square_M - TRACK_RADIUS**2).clamp(min=0))
        total = total + pull + repel_others(space_ND, hits)
    return total


def repel_others(space_ND: Tensor, hits: Iterable[EventHits]) -> Tensor:
    """Squared hinge from hits on tracks to all hits of other tracks or none, per hit on a track, summed over events.

    Hits count as `hit_weights` says.
    """
    total = space_ND.new_zeros(())
    for event in hits:
        every, on_track = Points(event.every(space_ND), event.track, event.weight), event.track >= 0
        on_tracks, others = choose(every, on_track), choose(every, ~on_track)
        push = event.within(on_tracks, 1.0, squared=True, some_N=on_track)[0]
        push = push + event.between(event.mine(on_tracks, on_track), others, 1.0, squared=True)[0]
        total = total + push / max(1, len(on_tracks.x))
    return total
