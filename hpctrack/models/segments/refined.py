"""Network `line_graph_refined`: the line graph, then a deeper look at those segments that are still in question.

`line_graph` sees one segment ahead and one behind, of all pairs, of which there are hundreds for each hit. Its scores
leave few segments that could be chosen: here, the `keep` best at both their hits. Among these, `rounds` of messages
reach further along a track at little cost. Each round tells a segment its score, how its rivals at either hit are
scored, and of each neighbour in which direction the path bends there: kinks of neighbouring planes belong together,
since scattering inside of an absorber moves a particle and turns it at once. A round adds to the score.

Weights of `line_graph` have the same names here, so that `train.start_from` takes them over.

Legend: N hits, M segments, K segments that are kept, T pairs of these, H width of a state, D width of a round.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Batch

from hpctrack.config import Section
from hpctrack.models.graph_network import expected_edges
from hpctrack.models.layers import Layers
from hpctrack.models.memory_modes import recompute
from hpctrack.models.perceptron import LayerNorm
from hpctrack.models.segments.blocks import Rest
from hpctrack.models.segments.line_graph import ALONE, RIVALS, LineGraphNetwork, Pairs, Seen, rivalry

SCALES = (0.01, 0.03, 0.1)  # of kinks: differences of directions, about rad
OF_PAIR = 3 * len(SCALES)


class RefinedLineGraph(LineGraphNetwork):
    """Scores segments twice: all of them, then the best of each hit in view of those around."""

    called = "line_graph_refined"

    class Options(LineGraphNetwork.Options, Section):
        """Those of the first network, and of the second."""

        keep: int = Field(3, ge=1, description="best segments of each hit, forwards and backwards, that are seen again")
        rounds: int = Field(4, ge=1, description="of messages among them, each with weights of its own")
        wide: int = Field(32, ge=1, description="of states and messages in these rounds")

    options: Options

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__(features, options)
        d = options.wide
        self.begin = nn.Linear(2 * len(features) + 3 + options.width, d)
        self.rounds = Layers(Round(d) for _ in range(options.rounds))

    def scores(self, batch: Batch) -> Tensor:
        """[M]; those that are not looked at again keep their first score."""
        seen = self.seen(batch)
        kept_K = best(seen.score_M.detach(), seen.edge_2M, batch.num_nodes, self.options.keep).nonzero().squeeze(1)
        return seen.score_M.index_put((kept_K,), self.again(seen, kept_K, batch.num_nodes))

    def again(self, seen: Seen, kept_K: Tensor, n_hits: int) -> Tensor:
        """Scores of the kept segments, [K]."""
        edge_2K, score_K = seen.edge_2M[:, kept_K], seen.score_M[kept_K]
        pairs = Pairs.of(seen.place_N3, edge_2K, n_hits)
        along_K3 = F.normalize(seen.place_N3[edge_2K[1]] - seen.place_N3[edge_2K[0]], dim=1)
        along_K3 = along_K3.to(score_K.dtype)
        kink_T3 = along_K3[pairs.second_T] - along_K3[pairs.first_T]
        of_pair_TP = torch.cat([(kink_T3 / scale).tanh() for scale in SCALES], dim=1)
        first = torch.cat([seen.raw_MW[kept_K], along_K3, seen.state_MH[kept_K]], dim=1)
        state_KD = self.begin(first.to(self.begin.weight.dtype))
        for one in self.rounds:
            around_K3 = rivalry(score_K, edge_2K, n_hits) / -ALONE
            args = (state_KD, around_K3, of_pair_TP, pairs.first_T, pairs.second_T)
            state_KD, more_K = one(*args) if self.memory == "plain" else recompute(one, *args)
            score_K = score_K + more_K
        return score_K

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass; of the second look with as many segments as can be kept."""
        edges = expected_edges(hits) if edges is None else edges
        kept, d = np.minimum(edges, self.options.keep * hits), self.options.wide
        pairs = kept * self.options.keep
        return super().relative_cost(hits, edges) + self.options.rounds * d * d * (pairs * 4 + kept * 5)


class Round(nn.Module):
    """Messages from the segments before and behind, the largest of each kind, and a next state and score of these."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm, self.own = LayerNorm(d), nn.Linear(d + RIVALS, d)
        self.sent, self.had = Layers(nn.Linear(d, d) for _ in range(2)), Layers(nn.Linear(d, d) for _ in range(2))
        self.bend = Layers(nn.Linear(OF_PAIR, d) for _ in range(2))
        self.message = Layers(Rest(d, d) for _ in range(2))
        self.update, self.score = Rest(d, d), nn.Linear(d, 1)
        self.gather = nn.Linear(3 * d, d)
        nn.init.zeros_(self.score.weight)  # begins as what the scores were
        nn.init.zeros_(self.score.bias)

    def forward(
        self, state_KD: Tensor, around_K3: Tensor, of_pair_TP: Tensor, first_T: Tensor, second_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next states [K, D], and what is added to the scores [K]."""
        own_KD = F.leaky_relu(self.own(torch.cat([self.norm(state_KD), around_K3.to(state_KD.dtype)], dim=1)))
        found = [own_KD]
        for side, (to_T, from_T) in enumerate(((first_T, second_T), (second_T, first_T))):
            sent_TD, had_TD = self.sent[side](own_KD)[from_T], self.had[side](own_KD)[to_T]
            message_TD = self.message[side](sent_TD + had_TD + self.bend[side](of_pair_TP.to(own_KD.dtype)))
            into_TD = to_T[:, None].expand_as(message_TD)
            none_KD = torch.zeros_like(own_KD)
            found.append(none_KD.scatter_reduce(0, into_TD, message_TD, "amax", include_self=False))
        state_KD = state_KD + self.update(self.gather(torch.cat(found, dim=1)))
        return state_KD, self.score(state_KD).squeeze(1)


def best(score_M: Tensor, edge_2M: Tensor, n_hits: int, keep: int) -> Tensor:
    """Which segments are among the `keep` best of both their hits, bool [M]; as good as the last of these is enough.

    So it does not depend on the order of the segments.
    """
    if not len(score_M):
        return torch.zeros_like(score_M, dtype=torch.bool)
    order_M = score_M.argsort(descending=True, stable=True)
    kept_M = torch.ones_like(score_M, dtype=torch.bool)
    for end_M in edge_2M:
        sorted_M = order_M[end_M[order_M].argsort(stable=True)]
        count_N = torch.bincount(end_M, minlength=n_hits)
        begin_N = count_N.cumsum(0) - count_N
        last_N = score_M[sorted_M[(begin_N + keep - 1).clamp(max=len(end_M) - 1)]]
        last_N = torch.where(count_N >= keep, last_N, float("-inf"))
        kept_M &= score_M >= last_N[end_M]
    return kept_M
