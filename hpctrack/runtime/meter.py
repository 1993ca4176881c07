"""The peak memory of a piece of work, counted exactly."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class MemoryMeter:
    """`peak` bytes of tensors alive at once within the block, and `now` bytes alive, beyond those from before it.

    On GPUs the allocator's own counts. On the CPU, whose allocator keeps none, each tensor's storage counts from the
    operator that made it to the end of its last holder: the same number as torch's profiler finds from allocations, at
    some microseconds an operator. What an operator takes for itself, and what the C library keeps of freed memory, is
    not in it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.live = None if device.type == "cuda" else LiveStorages()

    def __enter__(self) -> MemoryMeter:
        if self.live is None:
            torch.cuda.reset_peak_memory_stats(self.device)
            self.before = torch.cuda.memory_allocated(self.device)
        else:
            self.live.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is None:
            self.peak = torch.cuda.max_memory_allocated(self.device) - self.before
            self.now = torch.cuda.memory_allocated(self.device) - self.before
        else:
            self.live.__exit__(None, None, None)
            self.peak, self.now = self.live.peak, self.live.now


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of storages that operators make, until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()  # storages alive, by address

    def __torch_dispatch__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        for tensor in tree_leaves((args, kwargs)):
            self.see(tensor, counts=False)  # it was there before the block
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            self.see(tensor, counts=True)
        return result

    def see(self, tensor: Any, counts: bool) -> None:
        """Take note of a tensor's storage; of one not seen before, its bytes count or not."""
        if not isinstance(tensor, torch.Tensor) or tensor.untyped_storage()._cdata in self.known:
            return
        storage = tensor.untyped_storage()
        size = storage.nbytes() if counts else 0
        self.known.add(storage._cdata)
        weakref.finalize(storage, self.gone, storage._cdata, size)
        self.now += size
        self.peak = max(self.peak, self.now)

    def gone(self, address: int, size: int) -> None:
        """A storage was freed."""
        self.known.discard(address)
        self.now -= size
