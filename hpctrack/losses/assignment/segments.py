"""Predict then track, and predict and track: losses on the scores of segments (T. Kortus et al., arXiv:2407.13420).

`segments` is the cross-entropy of the scores. `assignment` is the Hamming loss of the choice that the exact assignment
makes of them, with an estimate of its gradient. Both are the mean over an event's edges, or the sum of the means over
its subsets of edges where its graph has some (`edge_subset`: those with an end in a tracker, and the rest).

Legend: N hits, M edges, m of an event, B events, G groups (a subset of an event's edges).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section, Seed
from hpctrack.graphs.assignment import Assignment
from hpctrack.losses.assignment.estimators import ESTIMATORS, Strength
from hpctrack.losses.classification import with_edge
from hpctrack.losses.term import BaseLoss, needed
from hpctrack.numerics import group_sum

if TYPE_CHECKING:
    from typing_extensions import Self

COLDEST = 2e-3  # strength of sinkhorn


class OfSegments(Section):
    """How true edges of particles that are no targets count."""

    edges: float = Field(1.0, ge=0, description="weight of the term")
    others: Literal["ignore", "true", "false"] = Field(
        "ignore", description="true edges of particles that are no targets: left out, or of one class"
    )


class SegmentLoss(BaseLoss):
    """Term `edges`: cross-entropy of an edge's score, the sum of the means over an event's subsets of edges."""

    class Options(OfSegments):
        """As of all on segments."""

    counted = {"edges": with_edge}

    def terms(self, outputs: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """The term for `edge_score` [M], logits of the batch's edges with `edge_truth` [M] and `track` [N]."""
        score_M = needed(outputs, "edge_score", "a model that scores edges")
        if not len(score_M):
            return {"edges": score_M.sum()}
        true_M, share_M = classes(batch, self.options.others, score_M.dtype)
        return {"edges": (share_M * self.of_edges(score_M, true_M, batch)).sum()}

    def of_edges(self, score_M: Tensor, true_M: Tensor, batch: Batch) -> Tensor:
        """What each edge adds to its mean, [M]."""
        return F.binary_cross_entropy_with_logits(score_M, true_M.to(score_M.dtype), reduction="none")


def classes(batch: Batch, others: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Which edges are to be chosen, bool [M], and one over the number in the group of each [M], 0 for one left out."""
    other_M = batch.edge_truth & (batch.track[batch.edge_index[0]] < 0)
    true_M = batch.edge_truth & ~other_M if others == "false" else batch.edge_truth
    counts_M = (~other_M if others == "ignore" else torch.ones_like(other_M)).to(dtype)
    group_M = batch.batch[batch.edge_index[0]]
    if "edge_subset" in batch:
        group_M = group_M * (int(batch.edge_subset.max()) + 1) + batch.edge_subset
    size_G = group_sum(counts_M, group_M, int(group_M.max()) + 1)
    return true_M, counts_M / size_G.clamp(min=1)[group_M]


class AssignmentLoss(SegmentLoss):
    """Term `edges`: share of an event's edges of which the assignment is wrong, the sum of the means over subsets.

    The choice of an event is that of the most edges out of each hit and into it at most once, and of these the one of
    the least sum of 1 - probability. Each event's own edges alone decide its gradient.
    """

    class Options(OfSegments):
        """How the gradient of the choice is estimated."""

        estimator: Literal["blackbox", "identity", "perturbed", "sinkhorn"] = Field(
            "blackbox", description="of the gradient of the choice (losses/assignment/estimators.py)"
        )
        strength: float = Field(
            0.01,
            gt=0,
            description="blackbox: lambda, perturbed: sigma, sinkhorn: temperature; as a cost per edge, of 0 to 1",
        )
        margin: float = Field(
            0.0,
            ge=0,
            lt=1,
            description="the gradient is estimated where true edges cost so much more and others so much less, so that "
            "choices which are right by little teach too; half of strength looks as far on either side",
        )
        samples: int = Field(4, ge=1, le=1000, description="perturbed: draws of noise an event, the same at each step")
        rounds: int = Field(50, ge=1, le=10_000, description="sinkhorn: rounds of scaling")
        seed: Seed = Field(0, description="of what the estimator perturbed draws")
        threads: int = Field(1, ge=1, le=256, description="problems solved at a time", json_schema_extra={"free": True})

        @model_validator(mode="after")
        def _fits_together(self) -> Self:
            least = COLDEST * (1 + self.margin)  # costs are up to 1 + margin
            if self.estimator == "sinkhorn" and self.strength < least:
                what = "exp(-(1 + margin) / strength)" if self.margin else "exp(-1 / strength)"
                raise ValueError(f"strength: with sinkhorn at least {least:g}, for {what} must not be 0")
            if self.estimator == "identity" and self.margin:
                raise ValueError("margin: with identity it changes nothing, for that looks at no cost; leave it out")
            return self

    def of_edges(self, score_M: Tensor, true_M: Tensor, batch: Batch) -> Tensor:
        """Whether the choice of each edge is wrong, 0 or 1 [M]."""
        wrong = [score_M.new_zeros(0)]
        event_M, n = batch.batch[batch.edge_index[0]], batch.num_nodes
        for event in event_M.unique().tolist():
            own = (event_M == event).nonzero().squeeze(1)
            seed = (int(self.options.seed), int(batch.event_id[event]))
            wrong.append(Hamming.apply(score_M[own], batch.edge_index[:, own], true_M[own], n, self.options, seed))
        order_M = event_M.argsort(stable=True)
        return torch.cat(wrong)[order_M.argsort()]


class Hamming(torch.autograd.Function):
    """Whether the assignment is wrong at each edge of an event; the gradient goes to their scores."""

    @staticmethod
    def forward(ctx: Any, score_m: Tensor, edge_2m: Tensor, true_m: Tensor, n_hits: int, *how: Any) -> Tensor:
        """0 or 1 [m], of logits [m]."""
        options, seed = how
        solve = Assignment(edge_2m.cpu().numpy(), n_hits, options.threads)
        probability = torch.sigmoid(score_m.detach().double())
        cost_m, true = (1 - probability).cpu().numpy(), true_m.cpu().numpy()
        chosen = solve(cost_m)
        sign = np.where(true, -1.0, 1.0)
        by = Strength(options.strength, options.samples, options.rounds, seed)
        harder_m = cost_m - options.margin * sign if options.margin else cost_m
        there = solve(harder_m) if options.margin else chosen
        slope = ESTIMATORS[options.estimator](solve, harder_m, there, sign, by)
        slope_m = torch.from_numpy(slope).to(score_m.device)
        ctx.save_for_backward((-slope_m * probability * (1 - probability)).to(score_m.dtype))
        return torch.from_numpy(chosen != true).to(score_m)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        """The estimate for sum(g y), with what the loss makes of each edge; subsets do not share a problem."""
        return grads[0] * ctx.saved_tensors[0], None, None, None, None, None
