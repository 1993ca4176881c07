"""What a pass asks of a device, operator by operator, against what the device reaches: its share of the roofline.

FLOP are those of matrix products and their like, by torch's formulas. Bytes are those of each operator's tensors, in
and out, as if none stayed in a cache: what a pass moves unless kernels are fused. Views move nothing. What the device
reaches is measured: a large product in fp32 (TF32 off) and a large copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from hpctrack.training.telemetry import synchronize

PRODUCT, COPY = {"cpu": 1024, "cuda": 8192}, {"cpu": 1 << 24, "cuda": 1 << 30}  # side; bytes
REPEATS = 5


@dataclass(frozen=True)
class Peaks:
    """FLOP/s and bytes/s that a device reaches."""

    flops: float
    bytes: float


def peaks(device: torch.device) -> Peaks:
    """The best of some large products, and of some large copies, which read and write."""
    side, size = PRODUCT[device.type], COPY[device.type]
    a = torch.rand(side, side, device=device)
    x, y = (torch.zeros(size // 4, device=device) for _ in range(2))
    product, copy = best(lambda: a @ a, device), best(lambda: y.copy_(x), device)
    return Peaks(2 * side**3 / product, 2 * size / copy)


def best(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of some repetitions."""
    seconds = []
    for _ in range(REPEATS + 1):  # the first is a warm-up
        begin = synchronize(device)
        work()
        seconds.append(synchronize(device) - begin)
    return min(seconds[1:])


class Count(TorchDispatchMode):
    """Counts the FLOP of operators, and the bytes of the tensors that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.flop = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if formula := flop_registry.get(func.overloadpacket):
            self.flop += formula(*args, **kwargs, out_val=result)
        if not func.is_view:
            every = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in every)
        return result


def counted(work: Callable[[], Any]) -> tuple[float, float]:
    """FLOP and bytes of a piece of work."""
    with Count() as count:
        work()
    return float(count.flop), float(count.bytes)


def share(flop: float, moved: float, seconds: float, reached: Peaks) -> float:
    """The least time that the device could take for so many FLOP and bytes, over the time that it took."""
    return max(flop / reached.flops, moved / reached.bytes) / seconds
