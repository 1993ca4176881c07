"""Strategy `fsdp`: every rank keeps a share of weights, gradients and optimizer state (torch's fully_shard)."""

from __future__ import annotations

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from hpctrack.config import ParallelConfig
from hpctrack.parallel.engine import Engine, MakeOptimizer, units
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision


class FSDPEngine(Engine):
    """Weights are gathered unit by unit for a forward and a backward pass; see Zhao et al., arXiv:2304.11277."""

    lockstep = True

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
        mesh = init_device_mesh(env.device.type, (env.world,))
        policy = MixedPrecisionPolicy(reduce_dtype=torch.bfloat16 if config.compress == "bf16" else None)
        for part in dict.fromkeys([*units(model), model]):
            fully_shard(part, mesh=mesh, mp_policy=policy, reshard_after_forward=config.reshard_after_forward)
        self.optimizer = make_optimizer(model)  # of the shards

    def sync(self, last: bool) -> None:
        """Sum gradients in the next backward pass, or only accumulate."""
        assert isinstance(self.module, FSDPModule)
        self.module.set_requires_gradient_sync(last)
