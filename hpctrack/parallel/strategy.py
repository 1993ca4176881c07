"""How model and optimizer are spread over ranks: each strategy is an Engine, one line in STRATEGIES."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision


class DDPEngine:
    """Replicated model; gradients summed over ranks once per optimizer step.

    `forward(batch, last)` runs in the engine's precision, `backward(loss)` accumulates, `gradient_norm` unscales and
    clips, `step()` updates, `discard()` does not. Losses come divided by the global counts already, so gradients are
    summed over ranks, not averaged.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, env: Env, precision: Precision) -> None:
        self.env = env
        self.module = model
        self.optimizer = optimizer
        self.precision = precision
        self.parallel: nn.Module = model
        if env.backend is not None:
            devices = [env.device] if env.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)

    def forward(self, batch: Any, last: bool, mode: str | None = None) -> dict[str, Tensor]:
        """Forward pass of a micro-batch, in a memory mode; the backward of a `last` one sums gradients over ranks."""
        if isinstance(self.parallel, DistributedDataParallel):
            self.parallel.require_backward_grad_sync = last
        if mode is not None:
            self.module.set_memory(mode)
        with self.precision.autocast():
            return self.parallel(batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; DDP averages over ranks, hence the factor."""
        self.precision.scale(loss * self.env.world if self.env.backend else loss).backward()

    def sum_gradients(self) -> None:
        """The sum over ranks that backward left out, for a step without a `last` micro-batch."""
        if self.env.backend is None:
            return
        for parameter in self.module.parameters():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self.module.parameters()]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.env.world  # as DDP does, see `backward`
        for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(summed.view_as(gradient))

    def gradient_norm(self, clip_norm: float | None) -> float:
        """Norm of the summed gradient, which is scaled down to `clip_norm` if it is larger."""
        self.precision.unscale(p.grad for p in self.module.parameters() if p.grad is not None)
        bound = clip_norm if clip_norm is not None else float("inf")
        return float(nn.utils.clip_grad_norm_(self.module.parameters(), bound))

    def step(self) -> None:
        """Update the weights and clear the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def discard(self) -> None:
        """Clear the gradients and leave the weights as they are."""
        self.optimizer.zero_grad(set_to_none=True)

    def predict(self, batch: Any) -> dict[str, Tensor]:
        """Forward pass without gradients."""
        with torch.inference_mode(), self.precision.autocast():
            return self.module(batch)

    def state_dict(self) -> dict[str, Any]:
        """Model and optimizer state, loadable on any number of ranks."""
        return {"model": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Inverse of `state_dict`."""
        self.module.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


STRATEGIES = {"ddp": DDPEngine}
