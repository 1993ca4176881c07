"""What the graph networks share: iterations of edges and nodes, run in any memory mode.

    x_0 = start(features), e_0 = edge_start(pair of hits)
    e_t+1, sums of messages at both ends = edge part of (x_t at the edge's ends, e_t)
    x_t+1 = node part of (x_t, sums)
    score = head(x_T at the edge's ends, e_T)

Legend: N hits, M edges, F features, H width, T iterations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch_geometric.data import Batch

from hpctrack.errors import InputError
from hpctrack.models.memory import MODES, MemoryModes, again
from hpctrack.models.sweeps import (
    Autocast,
    EdgeLayer,
    EdgeSweep,
    Graph,
    OnEdges,
    Tally,
    backward_edges,
    backward_rows,
    forward_edges,
    forward_rows,
    whole,
)

CHUNK = {"cpu": 4096, "cuda": 1 << 17}  # edges of a sweep's chunk: small enough for the cache, large enough for a GPU


class Iteration(EdgeLayer, Protocol):
    """An edge layer whose sums of messages update the nodes."""

    def update(self, x_NH: Tensor, inward_NH: Tensor, outward_NH: Tensor, degree_N1: Tensor) -> Tensor:
        """Node states after the iteration, [N, H]."""


class GraphNetwork(MemoryModes, nn.Module):
    """Scores the edges of graphs. A network sets `start`, `edge_start` (or None), `iterations` and `head`.

    A network that is recurrent has one iteration, which is repeated.
    """

    start: Callable[[Tensor], Tensor]
    edge_start: EdgeLayer | None
    iterations: nn.ModuleList
    head: EdgeLayer

    def __init__(self, features: Sequence[str], iterations: int, chunk: int | None) -> None:
        super().__init__()
        self.n_features, self.n_iterations, self.chunk = len(features), iterations, chunk

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """All of the ladder; without a GPU there is nowhere to offload to."""
        return MODES if next(self.parameters()).device.type == "cuda" else MODES[:-1]

    @property
    def steps(self) -> list[Iteration]:
        """The iterations in order, [T]."""
        return [self.iterations[t % len(self.iterations)] for t in range(self.n_iterations)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`edge_score` [M], logits of `batch.edge_index` [2, M], from `batch.x` [N, F]."""
        graph = self.graph(batch)
        place_N4 = self.geometry(batch.x) if self.edge_start is not None else batch.x
        x_NH = self.start(batch.x).to(batch.x.dtype)
        if not torch.is_grad_enabled():
            score_M1 = NodeStates(self, graph, place_N4).forward(x_NH)
        elif self.memory in ("chunks", "offload"):
            score_M1 = KeepNodeStates.apply(NodeStates(self, graph, place_N4), x_NH, *self.edge_parameters())
        else:
            score_M1 = self.keep_edge_states(graph, place_N4, x_NH)
        return {"edge_score": score_M1.squeeze(1)}

    def graph(self, batch: Batch) -> Graph:
        """The batch's edges; InputError if it has hits and no graph."""
        edges = batch.edge_index
        if edges is None:
            if batch.num_nodes:
                raise InputError("section 'model': the model scores edges, and the events have none; give a graph")
            edges = torch.zeros(2, 0, dtype=torch.long, device=batch.x.device)
        chunk = self.chunk or CHUNK[batch.x.device.type]
        return Graph(edges[0], edges[1], batch.num_nodes, chunk, self.memory == "offload")

    def edge_parameters(self) -> list[nn.Parameter]:
        """Weights of everything but `start`, each once."""
        return list(nn.ModuleList([m for m in (self.edge_start, self.iterations, self.head) if m]).parameters())

    def keep_edge_states(self, graph: Graph, place_N4: Tensor, x_NH: Tensor) -> Tensor:
        """Scores [M, 1] in the modes in which autograd keeps edge states: of all iterations, or of some."""
        run = whole if self.memory == "plain" else sweep
        degree_N1 = graph.degree(x_NH.dtype)

        def iterate(steps: Sequence[Iteration], x_NH: Tensor, e_MH: Tensor | None) -> tuple[Tensor, Tensor | None]:
            for step in steps:
                e_MH, inward, outward = run(step, graph, x_NH, e_MH)
                update = step.update if self.memory == "plain" else lambda *args, step=step: again(step.update, *args)
                x_NH = update(x_NH, inward, outward, degree_N1)
            return x_NH, e_MH

        e_MH = run(self.edge_start, graph, place_N4, None)[0] if self.edge_start is not None else None
        if self.memory == "nested":
            size = max(1, math.isqrt(self.n_iterations))
            for first in range(0, self.n_iterations, size):
                x_NH, e_MH = again(iterate, self.steps[first : first + size], x_NH, e_MH)
        else:
            x_NH, e_MH = iterate(self.steps, x_NH, e_MH)
        return run(self.head, graph, x_NH, e_MH)[0]

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Weights applied in a forward pass by event size; edges go with hits^1.9 if they are not known."""
        edges = 4e-4 * hits**1.9 if edges is None else edges
        step = sum(p.numel() for p in self.iterations[0].parameters())
        return self.n_iterations * step * (hits + edges)


def sweep(layer: EdgeLayer, graph: Graph, x_NH: Tensor, e_MH: Tensor | None) -> OnEdges:
    """A layer on all edges, computed again in the backward pass, chunk by chunk."""
    return EdgeSweep.apply(layer, graph, x_NH, e_MH, *layer.parameters())


class NodeStates:
    """A pass through a network that keeps the node states of every iteration, and of the edge states only the last.

    An edge's state follows from its own start and the node states at its ends, so it can be brought back from these.
    Forward, there is one edge state, updated in place; backward, it and its gradient. The sums that updated the nodes
    in iteration t - 1 are made again on the way to e_t, just before the backward pass gets there.
    """

    def __init__(self, network: GraphNetwork, graph: Graph, place_N4: Tensor) -> None:
        self.net, self.steps = network, network.steps
        self.graph, self.place_N4 = graph, place_N4
        self.degree_N1 = graph.degree(place_N4.dtype)
        self.kept: list[Tensor | None] = []

    def forward(self, x_NH: Tensor) -> Tensor:
        """Scores [M, 1]; `kept` is what `backward` needs."""
        states, inward, outward = [], None, None
        e_MH = self.start_edges()
        for step in self.steps:
            states.append(self.graph.shelve(x_NH))
            e_MH, inward, outward = forward_edges(step, self.graph, x_NH, e_MH, into=e_MH)
            x_NH = forward_rows(step.update, self.graph.chunk, x_NH, inward, outward, self.degree_N1)[0]
        self.kept = [e_MH, inward, outward, *states, self.graph.shelve(x_NH)]
        return forward_edges(self.net.head, self.graph, x_NH, e_MH, totals=False)[0].to(x_NH.device)

    def backward(self, g_score_M1: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Gradients of x_0 and of the network's edge parameters; `kept` is used up."""
        (e_MH, inward, outward, *states), self.kept = self.kept, []
        graph, tally = self.graph, Tally(self.net.edge_parameters())
        g_x, g_e = backward_edges(
            self.net.head, graph, states.pop().to(graph.device), e_MH, (g_score_M1, None, None), tally
        )
        for t in reversed(range(len(states))):
            step, x_NH = self.steps[t], states[t].to(graph.device)
            g_x, *g_sums = backward_rows(
                step.update, step, graph.chunk, [x_NH, inward, outward], [g_x], tally, fixed=[self.degree_N1]
            )
            inward = outward = None
            e_MH, inward, outward = self.restore(t, states, e_MH)
            g_x_edges, g_e = backward_edges(step, graph, x_NH, e_MH, (g_e, *g_sums), tally, into=g_e)
            g_x += g_x_edges
            del g_sums, g_x_edges
        if self.net.edge_start is not None:
            backward_edges(self.net.edge_start, graph, self.place_N4, None, (g_e, None, None), tally, nodes=False)
        return g_x, tally.gradients()

    def start_edges(self, into: Tensor | None = None) -> Tensor | None:
        """e_0 [M, H]."""
        if self.net.edge_start is None:
            return None
        return forward_edges(self.net.edge_start, self.graph, self.place_N4, None, into, totals=False)[0]

    def restore(self, t: int, states: Sequence[Tensor], e_MH: Tensor | None) -> OnEdges:
        """e_t, written over `e_MH`, and the sums of iteration t - 1."""
        inward = outward = None
        first = 0 if e_MH is not None else max(t - 1, 0)  # without edge states there is only the sum to make
        e_MH = self.start_edges(into=e_MH)
        for s in range(first, t):
            x_NH = states[s].to(self.graph.device)
            e_MH, inward, outward = forward_edges(self.steps[s], self.graph, x_NH, e_MH, e_MH, totals=s == t - 1)
        return e_MH, inward, outward


class KeepNodeStates(torch.autograd.Function):
    """`NodeStates` for autograd."""

    @staticmethod
    def forward(ctx: FunctionCtx, run: NodeStates, x_NH: Tensor, *parameters: Tensor) -> Tensor:
        """Scores [M, 1]; `parameters` are the network's `edge_parameters`."""
        ctx.run, ctx.autocast = run, Autocast(x_NH.device)
        with ctx.autocast.again():
            score_M1 = run.forward(x_NH)
        ctx.save_for_backward(*run.kept)
        run.kept = []
        return score_M1

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, g_score_M1: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x_0 and the parameters."""
        ctx.run.kept = list(ctx.saved_tensors)
        with ctx.autocast.again():
            g_x, gradients = ctx.run.backward(g_score_M1)
        return (None, g_x, *gradients)
