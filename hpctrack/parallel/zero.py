"""Strategy `deepspeed`: ZeRO stages 1, 2, 3 (Rajbhandari et al., arXiv:1910.02054) by the DeepSpeed library.

Its configuration follows from ours, in `settings`. Weights stay in float32 whatever the precision of products, as with
the other strategies; DeepSpeed's own bf16 mode keeps them in bfloat16 and so computes something else.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpctrack.config import ParallelConfig
from hpctrack.errors import InputError
from hpctrack.parallel.engine import Engine, MakeOptimizer, units, whole
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision

PERSISTENT = 100_000  # stage 3: weights of at most so many elements stay whole between passes, as DeepSpeed's default
NEVER = 1 << 60


class ZeroEngine(Engine):
    """Shares of optimizer state (stage 1), also of gradients (2), also of weights (3) on every rank.

    DeepSpeed takes norm, clipping and update as one, so `gradient_norm` does all three and `step` nothing; an update
    with a gradient that is not finite is left out.
    """

    lockstep = True  # from stage 2 on, every backward pass shares gradients out
    can_discard = False  # the library keeps gradients where they cannot be cleared
    parallel: Any  # DeepSpeed's own engine and optimizer; the library says no types
    zero: Any

    def wrap(self, make_optimizer: MakeOptimizer, config: ParallelConfig, clip_norm: float | None) -> None:
        """Let the library share out; InputError if stage 3 cannot."""
        self.stage, model = config.zero_stage, self.module
        layers = units(model)
        if self.stage == 3 and model in layers:  # it misses the backward pass of a model as a whole
            raise InputError(
                f"parallel.zero_stage=3 shares out layers that are called one by one, which those of "
                f"{type(model).__name__} are not: use 2, or parallel.strategy=fsdp"
            )
        self.optimizer = make_optimizer(model)
        self.whole_parameters = super().parameters
        self.groups = self.optimizer.state_dict()["param_groups"]
        library = load_library(self.env)
        for layer in layers:
            # gathered as a whole, like FSDP's units; how often its parts run may then differ
            library.utils.set_z3_leaf_module(layer, True)
        self.parallel, *_ = library.initialize(
            model=model, optimizer=self.optimizer, config=settings(config, self.precision, clip_norm)
        )
        self.zero = self.parallel.optimizer

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order in which the optimizer numbered them; now it has shares."""
        return self.whole_parameters

    def sync(self, last: bool) -> None:
        """Whether the next backward pass is the last one before an update."""
        self.parallel.set_gradient_accumulation_boundary(last)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; DeepSpeed averages over ranks, hence the factor."""
        self.parallel.backward(loss * self.env.world, scale_wrt_gas=False)

    def gradient_norm(self, clip_norm: float | None) -> float:
        """Norm of the summed gradient; the weights have been updated if it is finite, clipped as `settings` says."""
        self.parallel.step()
        return float(self.parallel.get_global_grad_norm()) if self.parallel.was_step_applied() else float("inf")

    def step(self) -> None:
        """Done by `gradient_norm`."""

    def state_dict(self) -> dict[str, Any]:
        """Model and optimizer state, whole and on the CPU, as of `Engine`; collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        weights = dict(self.module.named_parameters())
        model = {
            name: whole(safe_get_full_fp32_param(weights[name]) if name in weights else value)
            for name, value in self.module.state_dict().items()
        }
        share: dict[str, Any] = next(iter(self.optimizer.state.values()), {})
        if share:
            self.link_state()
        state: dict[int, dict[str, Any]] = {index: {} for index in range(len(self.parameters) if share else 0)}
        for key, value in share.items():
            for index, parameter in enumerate(self.parameters):
                if is_sharded(value):
                    state[index][key] = whole(safe_get_full_optimizer_state(parameter, key))
                else:  # one tensor each: optimizers count steps in place
                    state[index][key] = value.detach().cpu().clone() if torch.is_tensor(value) else value
        rates = {"lr": self.optimizer.param_groups[0]["lr"]}
        groups = [group | rates for group in self.groups]
        return {"model": model, "optimizer": {"state": state, "param_groups": groups}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`, of any strategy's; RuntimeError if it is of another model."""
        from deepspeed.runtime.zero import GatheredParameters

        if differing := state["model"].keys() ^ self.module.state_dict().keys():
            raise RuntimeError(f"names differ: {', '.join(sorted(differing))}")
        for name, buffer in self.module.named_buffers():
            buffer.copy_(state["model"].get(name, buffer))
        for name, parameter in self.module.named_parameters():
            value = state["model"][name].to(self.env.device)
            with GatheredParameters(parameter, modifier_rank=0, enabled=self.stage == 3), torch.no_grad():
                if value.shape != parameter.shape:
                    raise RuntimeError(f"size mismatch for {name}: {tuple(value.shape)}, not {tuple(parameter.shape)}")
                parameter.copy_(value)
            self.set_share(parameter, value)
        saved = state["optimizer"]["state"]
        if saved:
            self.make_state(saved[0])
            self.link_state()
            for index, parameter in enumerate(self.parameters):
                for key, value in saved[index].items():
                    if is_sharded(value):
                        self.set_share(parameter, value.to(self.env.device), key)

    def set_share(self, parameter: nn.Parameter, value: Tensor, key: str | None = None) -> None:
        """Set this rank's share of the weights that are updated, or of the optimizer's `key`, from the whole of it."""
        from deepspeed import utils

        if self.stage == 3:  # where the library's function for whole values fails if they cannot be divided evenly
            n = parameter.ds_tensor.numel()  # type: ignore[attr-defined]  # the library gives it one
            padded = functional.pad(value.flatten(), (0, n * self.env.world - value.numel()))
            self.zero.set_local_hp_param(padded.narrow(0, n * self.env.rank, n), parameter, key)
        elif key is None:
            utils.safe_set_full_fp32_param(parameter, value)
        else:
            utils.safe_set_full_optimizer_state(parameter, value, key)

    def make_state(self, example: Mapping[str, Any]) -> None:
        """Let the optimizer have the state of steps that it has not taken: shares of zeros, and `example`'s scalars."""
        zero, third = self.zero, self.stage == 3
        for share in zero.fp32_partitioned_groups_flat if third else zero.single_partition_of_fp32_groups:
            self.optimizer.state[share] = {
                key: (
                    torch.zeros_like(share) if is_sharded(value) else value.clone() if torch.is_tensor(value) else value
                )
                for key, value in example.items()
            }

    def link_state(self) -> None:
        """Let the parameters know their optimizer state; DeepSpeed forgets those of all groups but the first."""
        if self.stage < 3:
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()


def is_sharded(value: Any) -> bool:
    """Whether a value of an optimizer's state goes with the parameter's elements, rather than with its steps."""
    return torch.is_tensor(value) and value.dim() > 0


def load_library(env: Env) -> ModuleType:
    """DeepSpeed, set up for our process group; InputError if it is not installed."""
    os.environ.setdefault("DS_ACCELERATOR", env.device.type)
    os.environ.setdefault("LOCAL_RANK", str(env.local_rank))  # it wants that even of a single process
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(
            f"parallel.strategy=deepspeed needs DeepSpeed ({error}): pip install 'hpctrack[deepspeed]', or use fsdp"
        ) from None
    deepspeed.utils.logger.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*is deprecated", FutureWarning)  # torch's names for what it calls at every step
    # none of its own kernels: to find out which could be had, it runs a compiler, and compiles one for CPUs at once
    deepspeed.ops.__compatible_ops__ = {}
    deepspeed.init_distributed(dist_backend=env.backend, auto_mpi_discovery=False, verbose=False)
    return deepspeed


def settings(config: ParallelConfig, precision: Precision, clip_norm: float | None) -> dict[str, Any]:
    """DeepSpeed's configuration. The size of batches is ours to decide: it is told that every pass is one of one."""
    elements = int(config.bucket_mb * 2**20 / 4)
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "reduce_bucket_size": elements,
        "allgather_bucket_size": elements,
        "stage3_param_persistence_threshold": PERSISTENT,
    }
    for name in ("offload_optimizer", "offload_param"):
        if getattr(config, name):
            zero[name] = {"device": "cpu"}
    values = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip_norm or 0.0,
        "zero_allow_untested_optimizer": True,  # it is torch's own
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "steps_per_print": NEVER,
    }
    if precision.name == "bf16":
        values["torch_autocast"] = {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    if config.compress == "bf16":
        values["communication_data_type"] = "bf16"
    return values
