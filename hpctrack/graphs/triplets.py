"""Triplets: pairs of edges of which the second begins where the first ends. They are the edges of the line graph, whose
nodes are the edges of the graph.

A triplet is true if both its edges are; as these share a hit, they are then of one particle.

Legend: N hits, M edges, T triplets, t triplets of a chunk, B events.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch_geometric.data import Batch

CHUNK = 1 << 20  # triplets at a time: bounds the memory beside that of the result


@torch.no_grad()
def triplets(edge_2M: Tensor, n_hits: int) -> Tensor:
    """All triplets int64 [2, T] of edges, as numbers of a first and a second edge, in the order of the first."""
    found_2T = edge_2M.new_empty(2, int(continuations(edge_2M, n_hits).sum()))
    begin = 0
    for part_2t in triplet_chunks(edge_2M, n_hits):
        found_2T[:, begin : begin + part_2t.shape[1]] = part_2t
        begin += part_2t.shape[1]
    return found_2T


@torch.no_grad()
def triplet_chunks(edge_2M: Tensor, n_hits: int, size: int = CHUNK) -> Iterator[Tensor]:
    """The triplets [2, t] in their order, about `size` at a time: no less than those of one first edge.

    M log M work to sort edges by their first hit, then linear in the number of triplets.
    """
    source_M, target_M = edge_2M
    by_source_M = source_M.argsort(stable=True)
    degree_N = torch.bincount(source_M, minlength=n_hits)
    first_N = degree_N.cumsum(0) - degree_N
    number_M = degree_N[target_M]
    end_M = number_M.cumsum(0)
    total = int(end_M[-1]) if len(end_M) else 0
    cuts = torch.searchsorted(end_M, torch.arange(size, max(total, size), size, device=end_M.device)).tolist()
    for low, high in zip([0, *cuts], [*cuts, len(end_M)], strict=True):
        number = number_M[low:high]
        first_t = torch.arange(low, high, device=end_M.device).repeat_interleave(number)
        within_t = torch.arange(len(first_t), device=end_M.device) - (number.cumsum(0) - number)[first_t - low]
        yield torch.stack([first_t, by_source_M[first_N[target_M[first_t]] + within_t]])


def continuations(edge_2M: Tensor, n_hits: int) -> Tensor:
    """How many triplets each edge is the first of, [M]."""
    return torch.bincount(edge_2M[0], minlength=n_hits)[edge_2M[1]]


def true_triplets(batch: Batch, edge_M: Tensor) -> Tensor:
    """The triplets [2, T] made of those true edges of a batch that are in the mask `edge_M`."""
    number_K = (batch.edge_truth & edge_M).nonzero().squeeze(1)
    return number_K[triplets(batch.edge_index[:, number_K], batch.num_nodes)]


def per_event(batch: Batch) -> Tensor:
    """Number of triplets of each event, [B]."""
    event_M = batch.batch[batch.edge_index[0]]
    number_M = continuations(batch.edge_index, batch.num_nodes)
    return number_M.new_zeros(batch.num_graphs).index_add_(0, event_M, number_M)
