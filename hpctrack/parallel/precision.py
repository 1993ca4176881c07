"""Number formats: of weights and inputs, of the forward pass (autocast), the loss scale of fp16, and TF32."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from hpctrack.errors import MachineError

WEIGHTS = {"fp32": torch.float32, "bf16": torch.float32, "fp16": torch.float32, "fp64": torch.float64}
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of matrix products; weights and sums stay as they are
FIRST_SCALE, GROWTH_STEPS = 2.0**16, 2000  # as in torch.amp.GradScaler


class Precision:
    """`fp32`, `bf16`, `fp16` or `fp64` on a device; with `tf32`, GPUs round the inputs of fp32 products to 10 bits.

    fp16 gradients below 6e-8 would be 0, so the loss is multiplied by a scale, a power of two, and gradients are
    divided by it before they are used. If they overflow, the step is left out and the scale halved; after GROWTH_STEPS
    good steps it is doubled (Micikevicius et al., "Mixed precision training", ICLR 2018). The norm of the gradient
    summed over ranks decides, which is the same number on every rank: so all of them leave a step out, or none.
    """

    def __init__(self, name: str, device: torch.device, tf32: bool = False) -> None:
        self.name, self.device = name, device
        self.weights_dtype = WEIGHTS[name]
        self.loss_scale = FIRST_SCALE if name == "fp16" else 1.0
        self.good_steps = self.skipped_steps = 0
        torch.set_float32_matmul_precision("high" if tf32 else "highest")  # of the whole process
        torch.backends.cudnn.allow_tf32 = tf32  # convolutions and LSTMs, where torch's default is yes

    @property
    def scaled(self) -> bool:
        """Whether steps may be left out because the scaled gradient overflows."""
        return self.name == "fp16"

    def autocast(self) -> AbstractContextManager:
        """Mixed precision for forward passes."""
        dtype = AUTOCAST.get(self.name)
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def scale(self, loss: Tensor) -> Tensor:
        """The loss to call backward on."""
        return loss * self.loss_scale if self.scaled else loss

    def unscale(self, gradients: Iterable[Tensor]) -> None:
        """Divide gradients, in place, by what `scale` multiplied the loss with."""
        if self.scaled:
            torch._foreach_mul_(list(gradients), 1.0 / self.loss_scale)

    def accept(self, norm: float) -> bool:
        """Whether a step with this global gradient norm is to be taken; adapts the scale.

        MachineError if even an unscaled gradient is not finite in fp16.
        """
        finite = norm < float("inf")
        if not self.scaled:
            return finite
        if finite:
            self.good_steps += 1
            if self.good_steps == GROWTH_STEPS:
                self.loss_scale, self.good_steps = self.loss_scale * 2, 0
            return True
        if self.loss_scale <= 1.0:
            raise MachineError("gradient is not finite in fp16 at any loss scale; train with bf16 or fp32")
        self.loss_scale, self.good_steps, self.skipped_steps = self.loss_scale / 2, 0, self.skipped_steps + 1
        return False

    def state(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {"loss_scale": self.loss_scale, "good_steps": self.good_steps, "skipped_steps": self.skipped_steps}

    def load(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.loss_scale = float(state["loss_scale"])
        self.good_steps, self.skipped_steps = int(state["good_steps"]), int(state["skipped_steps"])


def emulated(name: str, device: torch.device) -> bool:
    """Whether torch's matrix products in the format are loops in software: tens of times as long as in fp32.

    So they are without oneDNN, and on processors for which it has no kernels of the format: those with AVX2 alone.
    """
    if name not in AUTOCAST or device.type != "cpu":
        return False
    return not torch.backends.mkldnn.is_available() or not getattr(torch.ops.mkldnn, f"_is_mkldnn_{name}_supported")()
