"""What every strategy is: model, optimizer and ranks behind one contract, and how to get its state whole again."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard
from torch_geometric.data import Batch

from hpctrack.config import ParallelConfig
from hpctrack.models import Model
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import Precision

MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]


class Engine:
    """Model and optimizer, spread over ranks.

    `forward(batch, last)` runs in the engine's precision, `backward(loss)` accumulates, `gradient_norm` unscales and
    clips, `step()` updates, `discard()` does not. Losses come divided by the global counts already, so gradients are
    summed over ranks, not averaged. With `lockstep`, forward and backward are collective: all ranks must run them
    equally often, in the same memory modes. `state_dict` has the same content for every strategy and number of ranks.
    With `can_discard`, passes whose gradients are discarded leave no trace.
    """

    lockstep = False
    can_discard = True

    def __init__(
        self,
        model: Model,
        make_optimizer: MakeOptimizer,
        env: Env,
        precision: Precision,
        config: ParallelConfig,
        *,
        clip_norm: float | None = None,
    ) -> None:
        self.env = env
        self.module = model
        self.precision = precision
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.parallel: nn.Module = model
        self.optimizer: torch.optim.Optimizer
        self.wrap(make_optimizer, config, clip_norm)

    def wrap(self, make_optimizer: MakeOptimizer, config: ParallelConfig, clip_norm: float | None) -> None:
        """Set `optimizer`, and `parallel` unless it is `module` itself; steps will be clipped to `clip_norm`."""
        raise NotImplementedError

    def sync(self, last: bool) -> None:
        """Whether the next backward pass ends a step, so that gradients are to be summed over ranks."""
        raise NotImplementedError

    def forward(self, batch: Batch, last: bool, mode: str | None = None) -> dict[str, Tensor]:
        """Forward pass of a micro-batch, in a memory mode; the backward of a `last` one sums gradients over ranks."""
        self.sync(last)
        if mode is not None:
            self.module.set_memory(mode)
        with self.precision.autocast():
            return self.parallel(batch)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients; every strategy averages them over ranks, hence the factor."""
        self.precision.scale(loss * self.env.world).backward()

    def sum_gradients(self, nothing: Batch) -> None:
        """The sum over ranks that backward left out, for a step without a `last` micro-batch.

        It comes with a pass over `nothing`, a batch without hits, whose gradients are zero.
        """
        outputs = self.forward(nothing, last=True)
        self.backward(reduce(operator.add, [value.sum() for value in outputs.values()]) * 0.0)

    def gradient_norm(self, clip_norm: float | None) -> float:
        """Norm of the summed gradient, which is scaled down to `clip_norm` if it is larger."""
        parameters = [p for p in self.module.parameters() if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.precision.unscale(gradients)
        bound = clip_norm if clip_norm is not None else float("inf")
        norm = nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):  # whole, since some versions of torch add their 1e-6 to each rank's part of it
            norm = norm.full_tensor()
        nn.utils.clip_grads_with_norm_(parameters, bound, norm)
        return float(norm)

    def step(self) -> None:
        """Update the weights and clear the gradients."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def discard(self) -> None:
        """Clear the gradients and leave the weights as they are."""
        self.optimizer.zero_grad(set_to_none=True)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Forward pass without gradients."""
        with torch.no_grad(), self.precision.autocast():
            return self.parallel(batch)

    def state_dict(self) -> dict[str, Any]:
        """Model and optimizer state, whole, on the CPU, loadable by any strategy on any number of ranks; collective.

        The optimizer's state is torch's own: by number of the parameter, in the order of the parameter groups.
        """
        optimizer = self.optimizer.state_dict()
        state = {index: {k: whole(v) for k, v in values.items()} for index, values in optimizer["state"].items()}
        model = {name: whole(value) for name, value in self.module.state_dict().items()}
        return {"model": model, "optimizer": {"state": state, "param_groups": optimizer["param_groups"]}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Inverse of `state_dict`; every rank has the whole state, best mapped from the file, and copies its share."""
        own = self.module.state_dict()
        self.module.load_state_dict({name: like(value, own.get(name)) for name, value in state["model"].items()})
        parameters = dict(enumerate(self.parameters))
        shared = {
            index: {key: like(value, parameters.get(index), copy=True) for key, value in values.items()}
            for index, values in state["optimizer"]["state"].items()
        }
        groups = zip(self.optimizer.state_dict()["param_groups"], state["optimizer"]["param_groups"], strict=True)
        # settings are the configuration's; some optimizers count their steps here
        merged = [mine | {key: saved[key] for key in ("params", "step") if key in saved} for mine, saved in groups]
        self.optimizer.load_state_dict({"state": shared, "param_groups": merged})

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the order in which the optimizer numbers them."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def whole(value: Any) -> Any:
    """A tensor that is spread over ranks as a whole one, on the CPU; anything else as it is."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return value.detach().cpu() if isinstance(value, Tensor) else value


def like(value: Any, example: Any, copy: bool = False) -> Any:
    """This rank's share of a whole tensor, if `example` is spread over ranks and of its shape; else as it is.

    No more than the share goes to the device of `example`. With `copy` nothing shares memory with `value`.
    """
    if not isinstance(value, Tensor):
        return value
    fits = isinstance(example, Tensor) and value.shape == example.shape
    if not isinstance(example, DTensor) or not fits:
        return value.to(example.device if fits else value.device, copy=True) if copy else value
    assert tuple(example.placements) == (Shard(0),), example.placements  # as fully_shard does it, by torch.chunk
    begin = -(-len(value) // example.device_mesh.size()) * example.device_mesh.get_local_rank()
    share = value[begin : begin + len(example.to_local())].to(example.device, copy=True)
    return DTensor.from_local(
        share, example.device_mesh, example.placements, run_check=False, shape=value.shape, stride=value.stride()
    )


def units(model: nn.Module) -> list[nn.Module]:
    """The parts whose weights are gathered together where weights are shared out: the members of module lists.

    Gathering goes with calling a part. If there are none, or none made to be called, it is the model as a whole.
    """
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    layers = [layer for layers in lists for layer in layers]
    callable_ = all(type(layer).forward is not nn.Module.forward for layer in layers)
    return layers if layers and callable_ else [model]
