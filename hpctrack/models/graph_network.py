"""What the graph networks share: iterations of edges and nodes, run in any memory mode.

    x_0 = start(features), e_0 = edge_start(pair of hits)
    e_t+1, sums of messages at both ends = edge part of (x_t at the edge's ends, e_t)
    x_t+1 = node part of (x_t, sums)
    score and embedding of an edge = head(x_T at the edge's ends, e_T), embedding of a hit = hit_head(x_T)

Embeddings of hits and of edges beside the score are those of the GNNNodeEmbedding and the GNNEdgeEmbedding of Exa.TrkX
(D. Murnane, "Track reconstruction with metric learning and GNNs"; its public code trains both outputs together, as loss
`hybrid` does).

Legend: N hits, M edges, F features, H width, T iterations, E embedding dimensions, K what is read from an edge: 1 + E.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch_geometric.data import Batch

from hpctrack.config import Section, free_field
from hpctrack.division.divided import division_of, extended
from hpctrack.division.exchange import Received
from hpctrack.errors import InputError
from hpctrack.models.contracts import Model
from hpctrack.models.hit_geometry import PAIR_FEATURES, Geometry, pair_features
from hpctrack.models.layers import Layers
from hpctrack.models.memory_modes import MODES, MemoryModes, in_chunks, recompute
from hpctrack.models.perceptron import Activation, Norm, Sizes, SplitPerceptron
from hpctrack.models.sweeps import (
    Autocast,
    EdgeLayer,
    EdgeSweep,
    GradientSums,
    Graph,
    OnEdges,
    backward_edges,
    backward_rows,
    forward_edges,
    forward_rows,
    output,
    sums,
    whole,
)

EDGES_POWER = 1.9  # edges go with hits^1.9: neighbourhoods grow with pile-up
CHUNK = {"cpu": 4096, "cuda": 1 << 17}  # edges of a sweep's chunk: small enough for the cache, large enough for a GPU


class Iteration(EdgeLayer, Protocol):
    """An edge layer whose sums of messages update the nodes."""

    def update(self, x_NH: Tensor, inward_NH: Tensor, outward_NH: Tensor, degree_N1: Tensor, /) -> Tensor:
        """Node states after the iteration, [N, H]."""


class Score(nn.Module):
    """What is read from an edge, from its ends' states and, if the perceptron has a third part, its own."""

    def __init__(self, perceptron: SplitPerceptron) -> None:
        super().__init__()
        self.perceptron = perceptron

    def project(self, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """The nodes' shares in the first layer."""
        return self.perceptron.part(0, x_NH), self.perceptron.part(1, x_NH)

    def edge(self, source_cH: Tensor, target_cH: Tensor, e_cH: Tensor | None) -> OnEdges:
        """Logit and, if wanted, embedding [c, K]."""
        h_cH = source_cH + target_cH
        if e_cH is not None:
            h_cH = h_cH + self.perceptron.part(2, e_cH)
        return self.perceptron.rest(h_cH), None, None


class PairFeatures(nn.Module):
    """What a pair of hits says about a track through both (models/hit_geometry.py), as the first state of its edge."""

    def project(self, place_N4: Tensor) -> tuple[Tensor, Tensor]:
        """Edges gather coordinates."""
        return place_N4, place_N4

    def edge(self, source_c4: Tensor, target_c4: Tensor, _: Tensor | None) -> OnEdges:
        """[c, PAIR_FEATURES]."""
        return pair_features(source_c4, target_c4), None, None


class GraphNetwork(MemoryModes, Model):
    """Scores the edges of graphs. A network sets `start`, `edge_start` (or None), `iterations`, and calls `read_from`.

    A network that is recurrent has one iteration, which is repeated.
    """

    class Options(Section):
        """What all networks have; each adds its own."""

        if TYPE_CHECKING:
            width: int  # of hidden layers; each network has its own default
        layers: int = Field(2, ge=1, description="linear layers of each perceptron")
        norm: Norm = "layer"
        activation: Activation = "relu"
        chunk: int | None = free_field(
            None, ge=1, description="edges at a time in the harder memory modes; null: by device"
        )
        embed_hits: int = Field(0, ge=0, description="dimensions of an embedding of hits beside the score; 0: none")
        embed_edges: int = Field(0, ge=0, description="dimensions of an embedding of edges beside the score; 0: none")

        @property
        def sizes(self) -> Sizes:
            """Of the network's perceptrons."""
            return Sizes(self.layers, self.norm, self.activation)

    divisible = True
    static = True

    start: Callable[[Tensor], Tensor]
    edge_start: PairFeatures | None
    iterations: Layers[Iteration]
    head: Score
    hit_head: SplitPerceptron | None

    def __init__(self, features: Sequence[str], iterations: int, chunk: int | None) -> None:
        super().__init__()
        self.n_features, self.n_iterations, self.chunk = len(features), iterations, chunk

    def see_pairs(self, features: Sequence[str], wanted: bool) -> int:
        """Let edges begin as their pair features, or, if these are not wanted, without a state; the state's width."""
        self.edge_start = PairFeatures() if wanted else None
        if not wanted:
            return 0
        self.geometry = Geometry(features, "key 'model.pairs'")
        return PAIR_FEATURES

    def read_from(self, options: Options, hit: int, edge: int = 0, scores: SplitPerceptron | None = None) -> None:
        """Make the heads, on states of hits of width `hit` and of edges, if there are any, of width `edge`.

        `scores`: a perceptron of the network that scores edges, to be used if there is no more to read from them.
        """
        if scores is None or options.embed_edges:
            widths = [hit, hit, edge] if edge else [hit, hit]
            scores = SplitPerceptron(widths, options.width, 1 + options.embed_edges, options.sizes)
        self.head, self.hit_head = Score(scores), None
        if options.embed_hits:
            self.hit_head = SplitPerceptron([hit], options.width, options.embed_hits, options.sizes)

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """All of the ladder; without a GPU there is nowhere to offload to."""
        return MODES if next(self.parameters()).device.type == "cuda" else MODES[:-1]

    @property
    def steps(self) -> list[Iteration]:
        """The iterations in order, [T]."""
        return [self.iterations[t % len(self.iterations)] for t in range(self.n_iterations)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`edge_score` [M], logits of `batch.edge_index` [2, M], from `batch.x` [N, F].

        And, if wanted, `embedding` [N, E] of the hits and `edge_embedding` [M, E] of the edges.
        """
        graph = self.graph(batch)
        place_N4 = graph.extend(self.geometry(batch.x)) if self.edge_start is not None else batch.x
        start = self.start if self.memory == "plain" else partial(recompute, self.start)
        x_NH = start(batch.x).to(batch.x.dtype)
        if not torch.is_grad_enabled():
            read_MK, x_NH, _ = NodeStates(self, graph, place_N4).forward(x_NH)
        elif self.memory in ("chunks", "offload"):
            read_MK, x_NH = KeepNodeStates.apply(NodeStates(self, graph, place_N4), x_NH, *self.edge_parameters())
        else:
            read_MK, x_NH = self.keep_edge_states(graph, place_N4, x_NH)
        outputs = {"edge_score": read_MK[:, 0].clone()}  # FSDP wants outputs that are no views
        if read_MK.shape[1] > 1:
            outputs["edge_embedding"] = read_MK[:, 1:].clone()
        if self.hit_head is not None:
            outputs["embedding"] = self.embed(self.hit_head, x_NH, graph.chunk)
        return outputs

    def embed(self, head: SplitPerceptron, x_NH: Tensor, chunk: int) -> Tensor:
        """Embedding [N, E], by `head`, of hits with states `x_NH`."""
        if self.memory in ("chunks", "offload") or not torch.is_grad_enabled():
            return in_chunks(head, x_NH, size=chunk)
        return head(x_NH) if self.memory == "plain" else recompute(head, x_NH)

    def graph(self, batch: Batch) -> Graph:
        """The batch's edges."""
        edge_2M = edges_of(batch)
        chunk = self.chunk or CHUNK[batch.x.device.type]
        division = division_of(batch)
        halo = None if division is None else division.halo
        nodes = len(batch.x) + (0 if halo is None else len(halo.rows_h))
        return Graph(edge_2M[0], edge_2M[1], nodes, chunk, offload=self.memory == "offload", halo=halo)

    def edge_parameters(self) -> list[nn.Parameter]:
        """Weights of everything but `start`, each once."""
        return list(nn.ModuleList([m for m in (self.edge_start, self.iterations, self.head) if m]).parameters())

    def keep_edge_states(self, graph: Graph, place_N4: Tensor, x_NH: Tensor) -> tuple[Tensor, Tensor]:
        """What edges are read as [M, K] and x_T, where autograd keeps edge states: of all iterations, or of some."""
        run = whole if self.memory == "plain" else sweep
        degree_N1 = graph.degree(x_NH.dtype)
        received = Received() if self.memory == "nested" else None  # iterations computed again fetch nothing anew

        def extend(x_NH: Tensor, t: int) -> Tensor:
            return x_NH if graph.halo is None else extended(x_NH, graph.halo, received, t)

        def iterate(first: int, last: int, x_NH: Tensor, e_MH: Tensor | None) -> tuple[Tensor, Tensor | None]:
            for t, step in enumerate(self.steps[first:last], first):
                on_edges = run(step, graph, extend(x_NH, t), e_MH)
                update = step.update if self.memory == "plain" else partial(recompute, step.update)
                x_NH, e_MH = update(x_NH, *sums(on_edges, graph), degree_N1), on_edges[0]
            return x_NH, e_MH

        e_MH = run(self.edge_start, graph, place_N4, None)[0] if self.edge_start is not None else None
        if self.memory == "nested":
            size = max(1, math.isqrt(self.n_iterations))
            for first in range(0, self.n_iterations, size):
                x_NH, e_MH = recompute(iterate, first, first + size, x_NH, e_MH)
        else:
            x_NH, e_MH = iterate(0, self.n_iterations, x_NH, e_MH)
        return output(run(self.head, graph, extend(x_NH, self.n_iterations), e_MH)), x_NH

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass by event size; edges go with hits^1.9 if they are not known."""
        edges = expected_edges(hits) if edges is None else edges
        step = sum(p.numel() for p in self.iterations[0].parameters())
        return self.n_iterations * step * (hits + edges)


def expected_edges(hits: np.ndarray) -> np.ndarray:
    """A guess of how many edges events of so many hits [n] have, where they have not been counted."""
    return 4e-4 * hits**EDGES_POWER


def edges_of(batch: Batch) -> Tensor:
    """The batch's edges [2, M]; InputError if it has hits and no graph."""
    if batch.edge_index is not None:
        return batch.edge_index
    if batch.num_nodes:
        raise InputError("section 'model': the model scores edges, and the events have none; give a graph")
    return torch.zeros(2, 0, dtype=torch.long, device=batch.x.device)


def sweep(layer: EdgeLayer, graph: Graph, x_NH: Tensor, e_MH: Tensor | None) -> OnEdges:
    """A layer on all edges, computed again in the backward pass, chunk by chunk."""
    return EdgeSweep.apply(layer, graph, x_NH, e_MH, *layer.parameters())


@dataclass
class Kept:
    """What a pass of `NodeStates` keeps for its backward pass."""

    anchor: OnEdges  # the anchor's edge state, and the sums of the iteration before it
    last: OnEdges  # of the last iteration
    states: list[Tensor]  # x_0 … x_T, with the rows of the halo

    @property
    def tensors(self) -> list[Tensor | None]:
        """One behind the other, as autograd saves them."""
        return [*self.anchor, *self.last, *self.states]


class NodeStates:
    """A pass through a network that keeps the node states of every iteration, and two edge states whatever T is.

    An edge's state follows from its own start and the node states at its ends, so it can be brought back from these.
    Forward, there is one edge state, updated in place, and a copy half-way, the anchor. Backward, each iteration's is
    made again from the anchor, or from the start when the anchor is passed; then a new one is left half-way. The sums
    that updated the nodes in iteration t - 1 are made on the way to e_t, just before the backward pass gets there.
    For T = 8 this computes edges 10 times more than keeping all their states and computing each iteration again.
    """

    def __init__(self, network: GraphNetwork, graph: Graph, place_N4: Tensor) -> None:
        self.net, self.steps = network, network.steps
        self.graph, self.place_N4 = graph, place_N4
        self.degree_N1 = graph.degree(place_N4.dtype)
        self.anchor_at = 0  # iteration; 0: none
        self.anchor: OnEdges = (None, None, None)  # its edge state, and the sums of the iteration before it

    def forward(self, x_NH: Tensor, backward: bool = False) -> tuple[Tensor, Tensor, Kept]:
        """What edges are read as [M, K], x_T, and what to keep for a `backward` pass."""
        states: list[Tensor] = []
        graph = self.graph
        on_edges: OnEdges = (self.start_edges(), None, None)
        anchor_at = len(self.steps) // 2 if backward and on_edges[0] is not None else 0
        for t, step in enumerate(self.steps):
            if anchor_at and t == anchor_at:
                self.leave_anchor(t, on_edges)
            every_NH = graph.extend(x_NH)
            states.append(graph.shelve(every_NH) if backward else x_NH.new_empty(0))
            on_edges = forward_edges(step, graph, every_NH, on_edges[0], into=on_edges[0])
            x_NH = forward_rows(step.update, graph.chunk, x_NH, *sums(on_edges, graph), self.degree_N1)[0]
        every_NH = graph.extend(x_NH)
        read_MK = output(forward_edges(self.net.head, graph, every_NH, on_edges[0], totals=False))
        anchor, self.anchor = self.anchor, (None, None, None)
        return read_MK.to(x_NH.device), x_NH, Kept(anchor, on_edges, [*states, graph.shelve(every_NH)])

    def backward(self, kept: Kept, g_read_MK: Tensor, g_last_NH: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of x_0 and of the network's edge parameters, from those of what `forward` gave."""
        self.anchor, on_edges, states = kept.anchor, kept.last, kept.states
        graph, tally = self.graph, GradientSums(self.net.edge_parameters())
        x_NH = states.pop().to(graph.device)
        g_x, g_e = backward_edges(self.net.head, graph, x_NH, on_edges[0], (g_read_MK, None, None), tally=tally)
        g_x = graph.fold(g_x)
        g_x += g_last_NH
        for t in reversed(range(len(states))):
            step, x_NH = self.steps[t], states[t].to(graph.device)
            inputs, e_MH = [x_NH[graph.own], *sums(on_edges, graph)], on_edges[0]
            g_x, g_in, g_out = backward_rows(
                step.update, step, graph.chunk, inputs, [g_x], tally=tally, fixed=[self.degree_N1]
            )
            del inputs, on_edges
            on_edges = self.restore(t, states, e_MH)
            grads = (g_e, graph.pad(g_in), graph.pad(g_out))
            g_x_edges, g_e = backward_edges(step, graph, x_NH, on_edges[0], grads, tally=tally, into=g_e)
            g_x += graph.fold(g_x_edges)
            del g_in, g_out, grads, g_x_edges
        if self.net.edge_start is not None:
            backward_edges(self.net.edge_start, graph, self.place_N4, None, (g_e, None, None), tally=tally, nodes=False)
        return g_x, tally.gradients()

    def start_edges(self, into: Tensor | None = None) -> Tensor | None:
        """e_0 [M, H]."""
        if self.net.edge_start is None:
            return None
        return forward_edges(self.net.edge_start, self.graph, self.place_N4, None, into=into, totals=False)[0]

    def leave_anchor(self, t: int, on_edges: OnEdges) -> None:
        """Keep e_t and the sums before it, in the place of the old anchor."""
        e_MH = output(on_edges)
        place = self.graph.empty_edges(e_MH) if self.anchor[0] is None else self.anchor[0]
        self.anchor_at, self.anchor = t, (place.copy_(e_MH), *on_edges[1:])

    def restore(self, t: int, states: Sequence[Tensor], e_MH: Tensor | None) -> OnEdges:
        """e_t, written over `e_MH`, and the sums of iteration t - 1."""
        on_edges: OnEdges = (None, None, None)
        if e_MH is None:  # without edge states there are only the sums to make
            first, anchor_at = max(t - 1, 0), 0
        elif 0 < self.anchor_at <= t:
            first, on_edges, anchor_at = self.anchor_at, (e_MH.copy_(output(self.anchor)), *self.anchor[1:]), 0
        else:
            first, on_edges, anchor_at = 0, (self.start_edges(into=e_MH), None, None), t // 2
        for s in range(first, t):
            x_NH, wanted = states[s].to(self.graph.device), s + 1 in (t, anchor_at)
            on_edges = forward_edges(self.steps[s], self.graph, x_NH, on_edges[0], into=on_edges[0], totals=wanted)
            if s + 1 == anchor_at:
                self.leave_anchor(s + 1, on_edges)
        return on_edges


class KeepNodeStates(torch.autograd.Function):
    """`NodeStates` for autograd."""

    @staticmethod
    def forward(ctx: Any, run: NodeStates, x_NH: Tensor, *parameters: Tensor) -> tuple[Tensor, Tensor]:
        """What edges are read as [M, K], and x_T; `parameters` are the network's `edge_parameters`."""
        ctx.run, ctx.autocast = run, Autocast(x_NH.device)
        with ctx.autocast.restored():
            read_MK, last_NH, kept = run.forward(x_NH, backward=True)
        ctx.save_for_backward(*kept.tensors)
        return read_MK, last_NH.clone() if last_NH is x_NH else last_NH  # no output is an input

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_read_MK: Tensor, g_last_NH: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x_0 and the parameters."""
        saved = ctx.saved_tensors
        kept = Kept(tuple(saved[:3]), tuple(saved[3:6]), list(saved[6:]))
        with ctx.autocast.restored():
            g_x, gradients = ctx.run.backward(kept, g_read_MK, g_last_NH)
        return (None, g_x, *gradients)
