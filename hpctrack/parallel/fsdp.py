"""Strategy `fsdp`: every rank keeps a share of weights, gradients and optimizer state (torch's fully_shard)."""

from __future__ import annotations

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from hpctrack.config import ParallelConfig
from hpctrack.parallel.engine import Engine, MakeOptimizer, units


class FSDPEngine(Engine):
    """Weights are gathered unit by unit for a forward and a backward pass; see Zhao et al., arXiv:2304.11277."""

    lockstep = True

    def spread(self, make_optimizer: MakeOptimizer, config: ParallelConfig, clip_norm: float | None) -> None:
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
