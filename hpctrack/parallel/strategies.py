"""How model and optimizer are spread over ranks: each strategy is an Engine, one line in STRATEGIES.

ddp: a replica on every rank; gradients are summed in buckets while backward goes on. fsdp: every rank keeps a share of
weights, gradients and optimizer state (torch's fully_shard). deepspeed: ZeRO (parallel/zero.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch_geometric.data import Batch

from hpctrack.config import ParallelConfig
from hpctrack.parallel.engine import Engine, MakeOptimizer, units
from hpctrack.parallel.zero import ZeroEngine


class DDPEngine(Engine):
    """Replicated model (torch's DistributedDataParallel); without ranks, the model itself."""

    def wrap(self, make_optimizer: MakeOptimizer, config: ParallelConfig, clip_norm: float | None) -> None:
        """Wrap the model, if there are ranks."""
        self.optimizer = make_optimizer(self.module)
        if self.env.backend is not None:
            devices = [self.env.device] if self.env.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(
                self.module, device_ids=devices, gradient_as_bucket_view=True, bucket_cap_mb=config.bucket_mb
            )
            if config.compress == "bf16":
                self.parallel.register_comm_hook(None, in_bf16)

    def sync(self, last: bool) -> None:
        """Sum gradients in the next backward pass, or only accumulate."""
        if isinstance(self.parallel, DistributedDataParallel):
            self.parallel.require_backward_grad_sync = last

    def sum_gradients(self, nothing: Batch) -> None:
        """As the contract says; without ranks all is summed, only weights that no term used are still without one."""
        if self.env.backend is not None:
            super().sum_gradients(nothing)
            return
        for parameter in self.module.parameters():
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Forward pass without gradients, of this rank alone."""
        with torch.inference_mode(), self.precision.autocast():
            return self.module(batch)


def in_bf16(state, bucket):  # type: ignore[no-untyped-def]  # torch looks at annotations and takes none that are text
    """torch's own hook, which by its name refuses all but NCCL; gloo can do it, too."""
    return default_hooks.bf16_compress_hook(state, bucket)


# ------------------------------------------------------------------------------------------------ fsdp


class FSDPEngine(Engine):
    """Weights are gathered unit by unit for a forward and a backward pass; see Zhao et al., arXiv:2304.11277."""

    lockstep = True

    def wrap(self, make_optimizer: MakeOptimizer, config: ParallelConfig, clip_norm: float | None) -> None:
        """Share out the units, then the rest of the model."""
        mesh = init_device_mesh(self.env.device.type, (self.env.world,))
        policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if config.compress == "bf16" else None)
        for part in dict.fromkeys([*units(self.module), self.module]):
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
        self.optimizer = make_optimizer(self.module)  # of the shards

    def sync(self, last: bool) -> None:
        """Sum gradients in the next backward pass, or only accumulate."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(last)


# ------------------------------------------------------------------------------------------------ table


STRATEGIES: dict[str, type[Engine]] = {"ddp": DDPEngine, "fsdp": FSDPEngine, "deepspeed": ZeroEngine}
