"""Optimizers and the learning rate, a pure function of the step and of the events that a step consumes."""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import nn

from hpctrack.config import OptimConfig, PlanConfig
from hpctrack.errors import InputError

SCALING = {"none": 0.0, "linear": 1.0, "sqrt": 0.5}  # power of (events a step / base_batch)


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer that the section `optim` names; biases, norms and other vectors are not decayed.

    adamw: Loshchilov and Hutter, arXiv:1711.05101. lamb: You et al., arXiv:1904.00962, weight decay within the update
    as in its Algorithm 2. lars: You et al., arXiv:1708.03888, with plain SGD for vectors. sgd: with momentum.
    """
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if config.name == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas)
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)
    library = load_library(config.name)
    if config.name == "lamb":
        return library.Lamb(groups, config.lr, config.betas, weight_decouple=False)
    return library.LARS(groups, config.lr, momentum=config.momentum)


def load_library(name: str) -> ModuleType:
    """The package pytorch_optimizer; InputError if it is not installed."""
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise InputError(
            f"optim.name={name} needs pytorch-optimizer ({error}): pip install 'hpctrack[optim]'"
        ) from None
    return pytorch_optimizer


def learning_rate(step: int, steps: int, config: OptimConfig, plan: PlanConfig) -> float:
    """Learning rate of optimizer step `step` (from 0) of `steps`: linear warm-up, then constant or half a cosine."""
    peak = peak_rate(config, plan)
    if step < config.warmup_steps:
        return peak * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return peak
    progress = (step - config.warmup_steps) / max(1, steps - 1 - config.warmup_steps)
    floor = config.final_lr_fraction
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def peak_rate(config: OptimConfig, plan: PlanConfig) -> float:
    """`lr`, scaled with the mean number of events in a step.

    linear: Goyal et al., arXiv:1706.02677. sqrt: keeps the noise of an update, Krizhevsky, arXiv:1404.5997.
    """
    events = plan.events_per_step or plan.cost_per_step  # the latter in mean events
    assert events is not None
    return config.lr * (events / config.base_batch) ** SCALING[config.scale_lr]


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set every group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr
