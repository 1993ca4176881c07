"""The ladder of memory modes that all models climb, from the least time to the least memory.

    plain      autograd keeps what it needs
    recompute  each layer (or iteration) keeps its input only; the rest is computed again in the backward pass
    nested     groups of layers keep their input only; inside, recompute
    chunks     recompute, working through hits or edges in chunks, so that nothing that goes with them is kept per layer
    offload    chunks, and what is kept waits in the host's memory (GPUs only)

A model has `memory_modes`, those of the ladder that it supports, in this order, and `set_memory(mode)`, which holds for
the following forward passes. A mode changes memory and time, not what is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

MODES = ("plain", "recompute", "nested", "chunks", "offload")
T = TypeVar("T")
CHUNK = 4096  # hits (or edges) at a time, if a model does not know better


class MemoryModes:
    """Mixin of models and backbones: `memory` is the mode of the following forward passes."""

    memory: str = "plain"

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """Those that it has, `plain` first; a model or backbone with more sets a tuple of them in its place."""
        return ("plain",)

    def set_memory(self, mode: str) -> None:
        """Memory mode of the following forward passes; ValueError for one that is not in `memory_modes`."""
        if mode not in self.memory_modes:
            raise ValueError(
                f"{type(self).__name__} has no memory mode '{mode}'; one of: {', '.join(self.memory_modes)}"
            )
        self.memory = mode


def recompute(work: Callable[..., T], *args: Any) -> T:
    """`work(*args)`, keeping only the arguments: the backward pass computes it again, under the same autocast."""
    if not torch.is_grad_enabled():
        return work(*args)
    return checkpoint(work, *args, use_reentrant=False)


def run_layers(layers: Sequence[Callable[..., Tensor]], h: Tensor, mode: str, *args: Any) -> Tensor:
    """`h = layer(h, *args)` for all layers, in a memory mode; `chunks` is nested, and the layers' own work besides.

    nested: sqrt(L) groups of sqrt(L) layers each keep their input, and while one is computed again, its layers theirs
    (T. Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016).
    """
    if mode in ("plain", "recompute"):
        for layer in layers:
            h = layer(h, *args) if mode == "plain" else recompute(layer, h, *args)
        return h
    size = max(1, math.isqrt(len(layers)))
    for start in range(0, len(layers), size):
        h = recompute(run_layers, layers[start : start + size], h, "recompute", *args)
    return h


def in_chunks(work: Callable[[Tensor], Tensor], x: Tensor, dim: int = 0, size: int = CHUNK) -> Tensor:
    """`work(x)` part by part along `dim`, if parts do not depend on each other; each computed again backward."""
    return torch.cat([recompute(work, part) for part in x.split(size, dim)], dim)
