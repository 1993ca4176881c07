"""Network `line_graph`: segments are nodes, pairs of segments that share a hit are edges (T. Kortus et al.).

Each step, a relation network makes a message of both segments' states and the angle between them, in both directions;
a segment takes the largest of its messages, number by number, and an object network makes its next state of both. With
width 16 and one step these are the 4,961 weights of the paper.

`steps` above 1 sees further along a track. `compete` tells each segment, at every step, how its rivals at either hit
are scored so far: only one of them can be right.

Messages are made a chunk of pairs at a time. Of a pair only its angle is kept, 4 bytes, in place of 128 waves; what the
first layer makes of the waves is a function of that one number, which is tabulated (`table`).

Legend: N hits, M segments, T pairs of segments, t of a chunk, F features of a hit, H width, W width of a state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Section, free_field
from hpctrack.graphs.triplets import triplets
from hpctrack.models.contracts import Model
from hpctrack.models.graph_network import edges_of, expected_edges
from hpctrack.models.layers import Layers
from hpctrack.models.memory_modes import MemoryModes, recompute
from hpctrack.models.segments.blocks import (
    FoldedLinear,
    Normed,
    Places,
    Rest,
    Standardised,
    angles,
    between,
    on_grid,
    waves,
)
from hpctrack.numerics import at_least_fp32, best_other, without_autocast

WAVES = 64
RIVALS = 3  # numbers that say how a segment does: its score, and that of its best rivals at either hit
ALONE = -8.0  # logit of rivals where there are none


class Seen(NamedTuple):
    """Segments between hits at `place_N3` [N, 3]: ends [2, M], inputs [M, W], states [M, H] and scores [M]."""

    edge_2M: Tensor
    place_N3: Tensor
    raw_MW: Tensor
    state_MH: Tensor
    score_M: Tensor


class LineGraphNetwork(MemoryModes, Model):
    """Scores segments by the segments before and behind them."""

    memory_modes = ("plain", "recompute", "chunks")
    called: ClassVar[str] = "line_graph"  # in errors

    class Options(Section):
        """Sizes, and the fixed numbers that inputs are standardised by."""

        width: int = Field(16, ge=1, description="of states, messages and hidden layers")
        steps: int = Field(1, ge=1, description="of message passing, each with weights of its own")
        compete: bool = Field(False, description="from the second step on, segments see how their rivals are scored")
        mean: list[float] = Field([], description="of each feature of a hit, over training events; []: 0")
        std: list[float] = Field([], description="standard deviation of each; []: 1")
        table: int = Field(16384, ge=0, description="steps of the table of angles, linear between; 0: waves themselves")
        chunk: int = free_field(1 << 16, ge=1, description="pairs at a time in mode chunks")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.n_features, self.options = len(features), options
        self.places = Places(features, f"the model '{self.called}'")
        self.standardised = Standardised(options.mean, options.std, len(features))
        raw, h = 2 * len(features), options.width
        more = h + (RIVALS if options.compete else 0)
        self.steps = Layers(Step(raw + (more if step else 0), h) for step in range(options.steps))
        self.readouts = Layers(Normed(h, h, 1) for _ in range(options.steps if options.compete else 1))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`edge_score` [M], logits of `batch.edge_index`; in fp32 at least, since half precision would exchange which
        message is the largest."""
        with without_autocast(batch.x):
            return {"edge_score": self.scores(batch)}

    def scores(self, batch: Batch) -> Tensor:
        """[M]."""
        return self.seen(batch).score_M

    def seen(self, batch: Batch) -> Seen:
        """What the network makes of a batch."""
        edge_2M = edges_of(batch)
        x_NF = self.standardised(batch.x)
        raw_MW = torch.cat([x_NF[edge_2M[0]], x_NF[edge_2M[1]]], dim=1)
        place_N3 = self.places(batch.x)
        pairs = Pairs.of(place_N3, edge_2M, batch.num_nodes)
        h_MH, score_M = raw_MW, None
        for number, step in enumerate(self.steps):
            rivals: list[Tensor] = [] if score_M is None else [rivalry(score_M, edge_2M, batch.num_nodes)]
            h_MH = self.step(step, torch.cat([raw_MW, h_MH, *rivals], dim=1) if number else raw_MW, pairs)
            if self.options.compete:
                score_M = at_least_fp32(self.readouts[number](h_MH)).squeeze(1)
        if score_M is None:
            score_M = at_least_fp32(self.readouts[0](h_MH)).squeeze(1)
        return Seen(edge_2M, place_N3, raw_MW, h_MH, score_M)

    def step(self, step: Step, state_MW: Tensor, pairs: Pairs) -> Tensor:
        """The next states [M, H]."""
        receiver_MH, sender_MH = step.relation.part(0, state_MW), step.relation.part(1, state_MW)
        table_GH = None
        if self.options.table:
            table_GH = step.relation.part(2, waves(on_grid(self.options.table, state_MW), WAVES))
        sizes = self.options.chunk if self.memory == "chunks" else max(1, len(pairs.angle_T))
        largest, any_M1 = list[Tensor](), list[Tensor]()
        for direction in pairs.both():
            any_M1.append(direction.begin.diff()[:, None] > 0)
            found = [receiver_MH.new_zeros(0, self.options.width)]
            for first, last, sender_t, receiver_t, angle_t in direction.chunks(sizes):
                args = (step, receiver_MH[first:last], sender_MH, table_GH, sender_t, receiver_t - first, angle_t)
                found.append(largest_message(*args) if self.memory == "plain" else recompute(largest_message, *args))
            largest.append(torch.cat(found))
        one_MH, two_MH = largest  # 0 where there is no message, which is no message of 0
        largest_MH = torch.where(any_M1[0] & any_M1[1], torch.maximum(one_MH, two_MH), one_MH + two_MH)
        return step.update(state_MW, largest_MH)

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass, with as many pairs as edges that meet evenly make."""
        edges = expected_edges(hits) if edges is None else edges
        h = self.options.width
        return self.options.steps * (2 * edges**2 / np.maximum(hits, 1) * (2 * h * h + 2 * h) + edges * 6 * h * h)


class Step(nn.Module):
    """One interaction: R1 [state, state, waves] -> message, O [state, largest message] -> next state."""

    def __init__(self, state: int, h: int) -> None:
        super().__init__()
        self.relation, self.message = FoldedLinear([state, state, 2 * WAVES], h), Rest(h, h)
        self.object, self.next = FoldedLinear([state, h], h), Rest(h, h, normed=True)

    def update(self, state_MW: Tensor, message_MH: Tensor) -> Tensor:
        """[M, H]."""
        return self.next(self.object.part(0, state_MW) + self.object.part(1, message_MH))


def largest_message(
    step: Step,
    receiver_mH: Tensor,
    sender_MH: Tensor,
    table_GH: Tensor | None,
    sender_t: Tensor,
    *of_pairs: Tensor,
) -> Tensor:
    """The largest messages to some segments [m, H]; 0 for one without a neighbour. Equal ones share the gradient."""
    receiver_t, angle_t = of_pairs
    of_angle_tH = between(table_GH, angle_t) if table_GH is not None else step.relation.part(2, waves(angle_t, WAVES))
    message_tH = step.message(receiver_mH[receiver_t] + sender_MH[sender_t] + of_angle_tH)
    into_tH = receiver_t[:, None].expand_as(message_tH)
    return torch.zeros_like(receiver_mH, dtype=message_tH.dtype).scatter_reduce(
        0, into_tH, message_tH, "amax", include_self=False
    )


class Direction(NamedTuple):
    """Pairs in the order of their receivers: sender, receiver and angle [T], and where each receiver's begin."""

    sender_T: Tensor
    receiver_T: Tensor
    angle_T: Tensor
    begin: Tensor  # [M + 1]

    def chunks(self, size: int) -> Iterator[tuple[int, int, Tensor, Tensor, Tensor]]:
        """Receivers from `first` to before `last`, and their pairs, about `size` of these at a time."""
        n = len(self.begin) - 1
        total = int(self.begin[-1])
        cuts = torch.searchsorted(
            self.begin, torch.arange(size, max(total, size), size, device=self.begin.device)
        ).tolist()
        for first, last in zip([0, *cuts], [*cuts, n], strict=True):
            if last > first or not n:
                own = slice(int(self.begin[first]), int(self.begin[last]))
                yield first, last, self.sender_T[own], self.receiver_T[own], self.angle_T[own]


class Pairs(NamedTuple):
    """Pairs of segments, of which the second goes on where the first ends: first, second and angle [T]."""

    first_T: Tensor
    second_T: Tensor
    angle_T: Tensor
    n_segments: int

    @classmethod
    @torch.no_grad()
    def of(cls, place_N3: Tensor, edge_2M: Tensor, n_hits: int) -> Pairs:
        """Those of the segments `edge_2M` between hits at `place_N3`."""
        first_T, second_T = triplets(edge_2M, n_hits)
        along_M3 = place_N3[edge_2M[1]] - place_N3[edge_2M[0]]
        return cls(first_T, second_T, angles(along_M3[first_T], along_M3[second_T]), edge_2M.shape[1])

    def both(self) -> Iterator[Direction]:
        """Messages to the first of each pair, and to the second."""
        yield self._to(self.second_T, self.first_T, self.angle_T)
        order = self.second_T.argsort(stable=True)
        yield self._to(self.first_T[order], self.second_T[order], self.angle_T[order])

    def _to(self, sender_T: Tensor, receiver_T: Tensor, angle_T: Tensor) -> Direction:
        count_M = torch.bincount(receiver_T, minlength=self.n_segments)
        return Direction(sender_T, receiver_T, angle_T, torch.cat([count_M.new_zeros(1), count_M.cumsum(0)]))


def rivalry(score_M: Tensor, edge_2M: Tensor, n_hits: int) -> Tensor:
    """[M, 3]: each segment's score, and how the best rival at its first hit and at its last one is scored."""
    found = [score_M]
    for end_M in edge_2M:
        found.append(best_other(score_M, end_M, n_hits, ALONE))
    return torch.stack(found, dim=1).clamp(min=ALONE, max=-ALONE)
