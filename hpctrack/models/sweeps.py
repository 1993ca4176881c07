"""Sweeps over the edges of a graph in chunks that stay in the cache, forward and backward.

What a layer does on an edge depends on that edge and its two nodes alone. So a sweep takes a chunk of edges at a time,
and its backward pass computes a chunk's inside again while it holds no other chunk's: memory for the inside of a
layer is that of a chunk, whatever the layer is made of. Gradients of nodes and weights are added up in place, which
autograd would not do: it makes a tensor of all nodes for every chunk that was gathered from them.

Legend: N nodes, M edges, c edges of a chunk, H width, K width of what edges gather from a node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, overload

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from hpctrack.division.exchange import Halo
from hpctrack.numerics import at_least_fp32

OnEdges = tuple[Tensor | None, Tensor | None, Tensor | None]  # edge output, sum at targets, sum at sources


class Parametrized(Protocol):
    """What has weights, as an `nn.Module` has."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Weights."""


class EdgeLayer(Parametrized, Protocol):
    """What is computed on edges: first on nodes what their edges gather, then on each edge."""

    def project(self, x_NH: Tensor, /) -> tuple[Tensor, Tensor]:
        """What edges gather from their source and from their target, both [N, K]."""

    def edge(self, source_cK: Tensor, target_cK: Tensor, e_cH: Tensor | None, /) -> OnEdges:
        """Edge output, message to the target, message to the source; each may be None."""


def output(on_edges: OnEdges) -> Tensor:
    """What a layer that has an edge output gave for the edges; ValueError if it gave none."""
    if on_edges[0] is None:
        raise ValueError("the layer has no edge output, which is needed here")
    return on_edges[0]


def sums(on_edges: OnEdges, graph: Graph) -> tuple[Tensor, Tensor]:
    """Sums of messages at own nodes, of edges to and from them; ValueError if an iteration sent none one way."""
    _, inward, outward = on_edges
    if inward is None or outward is None:
        raise ValueError("an iteration must send a message to both ends of an edge")
    return (inward, outward) if graph.halo is None else (inward[graph.own], outward[graph.own])


@dataclass(frozen=True)
class Graph:
    """Edges from `source` to `target`, both [M], over `nodes` nodes; sweeps take `chunk` edges or nodes at a time.

    `offload`: what sweeps write for all edges lies in the host's memory, and so does what is shelved. With a `halo` the
    first nodes are a rank's own ones of an event, those behind them others' that its edges need; it is right for the
    own nodes alone what a layer sums up at nodes.
    """

    source: Tensor
    target: Tensor
    nodes: int
    chunk: int
    offload: bool = False
    halo: Halo | None = None

    @property
    def own(self) -> slice:
        """The own nodes."""
        return slice(0, self.nodes if self.halo is None else self.nodes - len(self.halo.rows_h))

    def extend(self, x_NH: Tensor) -> Tensor:
        """The own nodes' states, and those of the halo's behind them."""
        return x_NH if self.halo is None else torch.cat([x_NH, self.halo.pull(x_NH)])

    def fold(self, g_NH: Tensor) -> Tensor:
        """The transpose of `extend`: gradients of the own nodes, given those of all."""
        if self.halo is None:
            return g_NH
        n = self.own.stop
        return g_NH[:n] + self.halo.push(g_NH[n:], n)

    def pad(self, g_NH: Tensor) -> Tensor:
        """Gradients of sums at the own nodes, and zeros for the halo's, whose sums nobody reads."""
        if self.halo is None:
            return g_NH
        return torch.cat([g_NH, g_NH.new_zeros(len(self.halo.rows_h), *g_NH.shape[1:])])

    @property
    def device(self) -> torch.device:
        """Where is computed."""
        return self.source.device

    def edges(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Chunks of edges: rows, sources, targets; at least one, so that shapes are known."""
        for rows in chunks(len(self.source), self.chunk):
            yield rows, self.source[rows], self.target[rows]

    def empty_edges(self, like_c: Tensor) -> Tensor:
        """A tensor for all edges, of which `like_c` is a chunk's part."""
        shape = (len(self.source), *like_c.shape[1:])
        if not self.offload:
            return like_c.new_empty(shape)
        return torch.empty(shape, dtype=like_c.dtype, pin_memory=self.device.type == "cuda")

    def shelve(self, x_NH: Tensor) -> Tensor:
        """`x_NH` where it is to wait for the backward pass."""
        return x_NH.to("cpu") if self.offload else x_NH

    def degree(self, dtype: torch.dtype) -> Tensor:
        """Edges at each own node, in either direction, [N, 1]."""
        count_N = self.source.new_zeros(self.nodes)  # not bincount: compilers cannot know the size of what it gives
        for ends in (self.source, self.target):
            count_N.index_add_(0, ends, torch.ones_like(ends))
        return count_N[self.own].to(dtype).unsqueeze(1)


def chunks(n: int, size: int) -> Iterator[slice]:
    """Slices of `size` that cover 0 … n - 1; one empty slice for n = 0."""
    if n <= size:  # asked first: compiled code would hold for the steps of one range alone
        yield slice(0, n)
        return
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


def add_rows(total_NH: Tensor | None, index_c: Tensor, x_cH: Tensor, nodes: int) -> Tensor:
    """`total[index] += x` in at least fp32; a new total if there is none."""
    x_cH = at_least_fp32(x_cH)
    if total_NH is None:
        total_NH = x_cH.new_zeros(nodes, x_cH.shape[1])
    return total_NH.index_add_(0, index_c, x_cH)


class GatherRows(torch.autograd.Function):
    """`x[index]` for autograd, whose gradients are added up in at least fp32: a node may have thousands of edges."""

    @staticmethod
    def forward(ctx: Any, x_NK: Tensor, index_M: Tensor) -> Tensor:
        """[M, K]."""
        ctx.save_for_backward(index_M)
        ctx.nodes = len(x_NK)
        return x_NK[index_M]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_MK: Tensor) -> tuple[Tensor, None]:
        """Of `x_NK`."""
        return add_rows(None, ctx.saved_tensors[0], g_MK, ctx.nodes).to(g_MK.dtype), None


def whole(layer: EdgeLayer, graph: Graph, x_NH: Tensor, e_MH: Tensor | None) -> OnEdges:
    """A layer on all edges at once, for autograd: the plain way."""
    source_NK, target_NK = layer.project(x_NH)
    out, inward, outward = layer.edge(
        GatherRows.apply(source_NK, graph.source), GatherRows.apply(target_NK, graph.target), e_MH
    )
    return (
        out,
        None if inward is None else add_rows(None, graph.target, inward, graph.nodes),
        None if outward is None else add_rows(None, graph.source, outward, graph.nodes),
    )


# ------------------------------------------------------------------------------------------------ forward


@torch.no_grad()
def forward_rows(work: Callable[..., Tensor | tuple[Tensor, ...]], chunk: int, *inputs: Tensor) -> tuple[Tensor, ...]:
    """`work(*inputs)` in chunks of rows; always a tuple."""
    outputs: list[Tensor] = []
    n = len(inputs[0])
    for rows in chunks(n, chunk):
        found = work(*(x[rows] for x in inputs))
        found = (found,) if isinstance(found, Tensor) else found
        outputs = outputs or [part.new_empty(n, *part.shape[1:]) for part in found]
        for whole_, part in zip(outputs, found, strict=True):
            whole_[rows] = part
    return tuple(outputs)


@torch.no_grad()
def forward_edges(
    layer: EdgeLayer,
    graph: Graph,
    x_NH: Tensor,
    e_MH: Tensor | None,
    *,
    into: Tensor | None = None,
    totals: bool = True,
) -> OnEdges:
    """A layer on all edges, chunk by chunk: (edge output, sum of messages at targets, at sources).

    `into`: the tensor for the edge output, which may be `e_MH` itself. Without `totals` no sums are made.
    """
    source_NK, target_NK = forward_rows(layer.project, graph.chunk, x_NH)
    out, inward, outward = into, None, None
    for rows, source, target in graph.edges():
        e_cH = None if e_MH is None else e_MH[rows].to(graph.device)
        done, to_target, to_source = layer.edge(source_NK[source], target_NK[target], e_cH)
        if done is not None:
            out = graph.empty_edges(done) if out is None else out
            out[rows] = done
        if totals and to_target is not None:
            inward = add_rows(inward, target, to_target, graph.nodes)
        if totals and to_source is not None:
            outward = add_rows(outward, source, to_source, graph.nodes)
    return out, inward, outward


# ------------------------------------------------------------------------------------------------ backward


class GradientSums:
    """Gradients of parameters, added up in place."""

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self.parameters = list(parameters)
        self.sums = {id(p): torch.zeros_like(p) for p in self.parameters if p.requires_grad}

    def pull(
        self, layer: Parametrized, leaves: Sequence[Tensor], outputs: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        """Gradients of `leaves` for given gradients of `outputs`; the layer's parameters take theirs."""
        weights = [p for p in layer.parameters() if id(p) in self.sums]
        if not leaves and not weights:
            return []
        grads = [grad.to(output.dtype) for output, grad in zip(outputs, grads, strict=True)]
        found = torch.autograd.grad(outputs, [*leaves, *weights], grads, allow_unused=True)
        for weight, grad in zip(weights, found[len(leaves) :], strict=True):
            if grad is not None:
                self.sums[id(weight)].add_(grad)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=False)]

    def gradients(self) -> list[Tensor | None]:
        """Of all parameters, in their order."""
        return [self.sums.get(id(p)) for p in self.parameters]


def leaf(x: Tensor) -> Tensor:
    """`x` as the begin of a graph of its own."""
    return x.detach().requires_grad_()


def backward_rows(
    work: Callable[..., Tensor | tuple[Tensor, ...]],
    layer: Parametrized,
    chunk: int,
    inputs: Sequence[Tensor],
    grads: Sequence[Tensor],
    *,
    tally: GradientSums,
    fixed: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Gradients of `inputs` of `work(*inputs, *fixed)`, computed again in chunks of rows; weights go to `tally`."""
    found = [torch.empty_like(x) for x in inputs]
    for rows in chunks(len(inputs[0]), chunk):
        with torch.enable_grad():
            leaves = [leaf(x[rows]) for x in inputs]
            outputs = work(*leaves, *(x[rows] for x in fixed))
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
        for total, part in zip(found, tally.pull(layer, leaves, outputs, [g[rows] for g in grads]), strict=True):
            total[rows] = part
    return found


@overload
def backward_edges(
    layer: EdgeLayer,
    graph: Graph,
    x_NH: Tensor,
    e_MH: Tensor | None,
    grads: OnEdges,
    *,
    tally: GradientSums,
    into: Tensor | None = None,
    nodes: Literal[True] = True,
) -> tuple[Tensor, Tensor | None]: ...


@overload
def backward_edges(
    layer: EdgeLayer,
    graph: Graph,
    x_NH: Tensor,
    e_MH: Tensor | None,
    grads: OnEdges,
    *,
    tally: GradientSums,
    into: Tensor | None = None,
    nodes: bool,
) -> tuple[Tensor | None, Tensor | None]: ...


def backward_edges(
    layer: EdgeLayer,
    graph: Graph,
    x_NH: Tensor,
    e_MH: Tensor | None,
    grads: OnEdges,
    *,
    tally: GradientSums,
    into: Tensor | None = None,
    nodes: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `x_NH` (if `nodes`) and `e_MH`, from those of what `forward_edges` gave; weights go to `tally`.

    `into`: the tensor for the gradient of `e_MH`, which may be that of the edge output itself.
    """
    source_NK, target_NK = forward_rows(layer.project, graph.chunk, x_NH)
    g_source, g_target, g_e = None, None, into
    for rows, source, target in graph.edges():
        with torch.enable_grad():
            ends = [source_NK[source], target_NK[target]]
            ends = [leaf(end) for end in ends] if nodes else ends
            state = [] if e_MH is None else [leaf(e_MH[rows].to(graph.device))]
            outputs = layer.edge(ends[0], ends[1], state[0] if state else None)
        at: tuple[slice | Tensor, ...] = (rows, target, source)  # where the gradients of the three outputs are found
        given = [
            (out, grad[where].to(graph.device))
            for out, grad, where in zip(outputs, grads, at, strict=True)
            if out is not None and grad is not None
        ]
        found = tally.pull(layer, [*ends, *state] if nodes else state, *zip(*given, strict=True))
        if nodes:
            g_source = add_rows(g_source, source, found[0], graph.nodes)
            g_target = add_rows(g_target, target, found[1], graph.nodes)
        if state:
            g_e = graph.empty_edges(found[-1]) if g_e is None else g_e
            g_e[rows] = found[-1]
    if g_source is None or g_target is None:  # not `nodes`
        return None, g_e
    return backward_rows(layer.project, layer, graph.chunk, [x_NH], [g_source, g_target], tally=tally)[0], g_e


class EdgeSweep(torch.autograd.Function):
    """`forward_edges` of one layer for autograd; keeps its inputs only."""

    @staticmethod
    def forward(
        ctx: Any, layer: EdgeLayer, graph: Graph, x_NH: Tensor, e_MH: Tensor | None, *parameters: Tensor
    ) -> OnEdges:
        """See `forward_edges`; `parameters` are the layer's, in order."""
        ctx.layer, ctx.graph, ctx.autocast = layer, graph, Autocast(x_NH.device)
        ctx.save_for_backward(x_NH, e_MH)
        ctx.set_materialize_grads(False)
        with ctx.autocast.restored():
            return forward_edges(layer, graph, x_NH, e_MH)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_out: Tensor | None, g_inward: Tensor | None, g_outward: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Gradients of nodes, edges and parameters."""
        grads = g_out, g_inward, g_outward
        x_NH, e_MH = ctx.saved_tensors
        tally = GradientSums(ctx.layer.parameters())
        if all(grad is None for grad in grads):
            return (None, None, None, None, *tally.gradients())
        with ctx.autocast.restored():
            g_x, g_e = backward_edges(
                ctx.layer, ctx.graph, x_NH, e_MH, grads, tally=tally, nodes=ctx.needs_input_grad[2]
            )
        return (None, None, g_x, g_e, *tally.gradients())


class Autocast:
    """The autocast state of now, for computing again later; weights are cast anew, as the cache holds no gradients."""

    def __init__(self, device: torch.device) -> None:
        self.kind = device.type
        self.enabled, self.dtype = torch.is_autocast_enabled(self.kind), torch.get_autocast_dtype(self.kind)

    def restored(self) -> AbstractContextManager:
        """Context with that state."""
        return torch.autocast(self.kind, self.dtype, enabled=self.enabled, cache_enabled=False)
