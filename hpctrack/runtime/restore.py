"""Whether a checkpoint's state fits the model and the optimizer that are to go on from it, before they take it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from hpctrack.config import OptimConfig
from hpctrack.runtime.optim import build_optimizer

State = dict[str, Any]


def model_problem(state: State, own: State) -> str | None:
    """What makes a model's weights unusable: a kind of number, or values that are not finite; None if nothing does.

    Names and shapes are torch's to compare.
    """
    for name, value in state.items():
        if name in own and value.is_floating_point() != own[name].is_floating_point():
            return f"'{name}' has numbers of type {value.dtype}, not {own[name].dtype}"
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"{int((~torch.isfinite(value)).sum())} of {value.numel()} numbers of '{name}' are not finite"
    return None


def optimizer_problem(state: State, parameters: list[Tensor], config: OptimConfig) -> str | None:
    """What makes an optimizer's state unusable for these parameters; None if nothing does.

    Every parameter has the entries that an optimizer of this configuration gives it at its first step, of its shape.
    """
    numbers = [number for group in state["param_groups"] for number in group.get("params") or ()]
    if numbers != list(range(len(parameters))):
        return f"the optimizer's groups are not of {len(parameters)} parameters"
    expected, counted = first_state(config)
    steps = [group["step"] for group in state["param_groups"] if "step" in group]
    if (counted and state["state"] and len(steps) < len(state["param_groups"])) or not all(map(is_count, steps)):
        return "the optimizer's groups do not count their steps"
    for index, values in state["state"].items():
        if not 0 <= index < len(parameters):
            return f"the optimizer has parameter {index} of {len(parameters)}"
        parameter = parameters[index]
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))  # a part of it may be here
        like = expected[len(shape) >= 2]
        if values.keys() != like.keys():
            return f"parameter {index} has {', '.join(map(str, values))}; expected {', '.join(like)}"
        for key, value in values.items():
            if not fits(value, like[key], shape):
                return f"{key} of parameter {index} is not finite, or not as its parameter"
    return None


def fits(value: Any, example: Any, shape: tuple[int, ...]) -> bool:
    """Whether an entry of a parameter's state is of the kind of `example`, finite, and of the parameter's shape."""
    if isinstance(example, Tensor) != isinstance(value, Tensor):
        return False
    if not isinstance(example, Tensor):
        number = isinstance(value, (int, float)) and math.isfinite(value) and value >= 0
        return number if isinstance(example, (int, float)) else type(value) is type(example)
    if tuple(value.shape) != (shape if example.dim() else ()) or not bool(torch.isfinite(value).all()):
        return False
    return bool(value.dim()) or float(value) >= 0


def is_count(value: Any) -> bool:
    """Whether it is a number of steps."""
    return type(value) is int and value >= 0


def first_state(config: OptimConfig) -> tuple[dict[bool, State], bool]:
    """The state that the optimizer gives a parameter at its first step: of matrices (True) and of vectors (False).

    And whether its groups count the steps.
    """
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(layer, config)
    for parameter in layer.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    states = {parameter.dim() >= 2: dict(optimizer.state[parameter]) for parameter in layer.parameters()}
    return states, "step" in optimizer.param_groups[0]
