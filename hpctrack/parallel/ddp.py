"""Strategy `ddp`: a replica on every rank; gradients are summed in buckets while backward goes on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from hpctrack.config import ParallelConfig
from hpctrack.parallel.engine import Engine, MakeOptimizer
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision


class DDPEngine(Engine):
    """Replicated model (torch's DistributedDataParallel); without ranks, the model itself."""

    def __init__(
        self,
        model: nn.Module,
        make_optimizer: MakeOptimizer,
        env: Env,
        precision: Precision,
        config: ParallelConfig,
        clip_norm: float | None = None,
    ) -> None:
        super().__init__(model, env, precision)
        self.optimizer = make_optimizer(model)
        if env.backend is not None:
            devices = [env.device] if env.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(
                model, device_ids=devices, gradient_as_bucket_view=True, bucket_cap_mb=config.bucket_mb
            )
            if config.compress == "bf16":
                self.parallel.register_comm_hook(None, in_bf16)

    def sync(self, last: bool) -> None:
        """Sum gradients in the next backward pass, or only accumulate."""
        if isinstance(self.parallel, DistributedDataParallel):
            self.parallel.require_backward_grad_sync = last

    def predict(self, batch: Any) -> dict[str, Tensor]:
        """Forward pass without gradients, of this rank alone."""
        with torch.inference_mode(), self.precision.autocast():
            return self.module(batch)


def in_bf16(state, bucket):  # torch looks at annotations and takes none that are text
    """torch's own hook, which by its name refuses all but NCCL; gloo can do it, too."""
    return default_hooks.bf16_compress_hook(state, bucket)
