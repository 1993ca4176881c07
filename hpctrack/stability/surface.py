"""The loss on a plane through a run's weights: two directions, and a square of points.

Directions are kept in a file, so that a call that was killed goes on with the same ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hpctrack.errors import InputError, MachineError
from hpctrack.files.atomic import publish, temporary_name
from hpctrack.parallel.collectives import run_on_main
from hpctrack.parallel.env import Env
from hpctrack.stability.directions import leading_directions, normalised, random_vector, sum_in_order
from hpctrack.stability.objective import Objective, Values
from hpctrack.stability.tasks import Place, in_pieces


@dataclass(frozen=True)
class SurfaceOptions:
    """What is computed: the kind of directions, of which loss (None: the run's own), and the square of points.

    `grid` points a side, from -`span` to `span` times the directions, which are as long as the weights.
    """

    directions: Literal["hessian", "random"] = "hessian"
    hessian: Literal["auto", "exact", "differences"] = "auto"
    hessian_loss: str | None = None
    iterations: int = 100
    tolerance: float = 1e-3
    grid: int = 21
    span: float = 0.5

    @property
    def axis(self) -> list[float]:
        """The places of the points on each axis."""
        return np.linspace(-self.span, self.span, self.grid).tolist() if self.grid > 1 else [0.0]


def surface(
    objective: Objective, own_loss: str, options: SurfaceOptions, place: Place, *, folder: Path
) -> dict[str, Any]:
    """The losses on the plane, and what its directions are; all ranks come together."""
    plane, about = directions(objective, own_loss, options, place, folder=folder)
    weights, axis = objective.weights_P, options.axis
    keys = [f"{i},{j}" for i in range(len(axis)) for j in range(len(axis))]

    def compute(key: str) -> Values:
        i, j = map(int, key.split(","))
        with objective.at(weights + axis[i] * plane[0] + axis[j] * plane[1]):
            return objective.values()

    found = in_pieces(folder, keys, compute, place)
    with objective.at(weights):
        centre = run_on_main(objective.values, place.env)
    losses = {
        name: {
            term: [[found[f"{i},{j}"][name][term] for i in range(len(axis))] for j in range(len(axis))]
            for term in centre[name]
        }
        for name in objective.losses
    }
    return {"directions": about, "axis": axis, "centre": centre, "losses": losses}


def directions(
    objective: Objective, own_loss: str, options: SurfaceOptions, place: Place, *, folder: Path
) -> tuple[Tensor, dict[str, Any]]:
    """Two directions [2, P], filter-normalised, and what is said of them."""
    path = folder / "directions.pt"
    if run_on_main(path.is_file, place.env):
        kept = load(path)
        return kept["plane"].to(objective.weights_P), kept["about"]
    starts = [random_vector(objective.weights_P, place.seed, k) for k in range(2)]
    about: dict[str, Any] = {"kind": options.directions, "seed": place.seed}
    if options.directions == "hessian":
        starts, more = hessian_directions(objective, options.hessian_loss or own_loss, options, starts, place)
        about |= more
    plane = torch.stack([normalised(start, objective.parameters) for start in starts])
    size = plane.norm(dim=1)
    about |= {"lengths": size.tolist(), "cosine": float(plane[0] @ plane[1] / (size[0] * size[1]).clamp(min=1e-300))}
    run_on_main(lambda: keep(path, {"plane": plane.cpu(), "about": about}), place.env)
    return plane, about


def hessian_directions(
    objective: Objective, name: str, options: SurfaceOptions, starts: list[Tensor], place: Place
) -> tuple[list[Tensor], dict[str, Any]]:
    """The two leading eigenvectors of a loss's Hessian over all events, and their eigenvalues."""
    how = chosen_product(objective, name, options, starts[0], place.env)
    product = objective.hessian_times if how == "exact" else objective.hessian_times_by_differences
    counts, events = objective.counts(name), len(objective.batches)
    done = 0

    def of_all(vector: Tensor) -> Tensor:
        nonlocal done
        done += 1
        place.alive(f"product {done} with the Hessian")
        return sum_in_order(events, partial(_of_event, product, vector, name, counts), vector, place.env)

    found = leading_directions(of_all, starts, options.iterations, options.tolerance)
    if not all(bool(one.vector_P.isfinite().all()) for one in found):
        raise MachineError(f"the Hessian of the loss '{name}' is not finite at the run's weights")
    about = [{"value": one.value, "iterations": one.iterations, "converged": one.converged} for one in found]
    return [one.vector_P for one in found], {"loss": name, "hessian": how, "eigen": about}


def _of_event(product: Callable[..., Tensor], vector: Tensor, name: str, counts: dict[str, float], k: int) -> Tensor:
    return product(vector, name, k, counts)


def chosen_product(objective: Objective, name: str, options: SurfaceOptions, start: Tensor, env: Env) -> str:
    """`exact` or `differences`: as asked for, or with `auto` the first that model and loss allow; rank 0 tries."""
    if options.hessian != "auto":
        return options.hessian

    def attempt() -> str:
        try:
            objective.hessian_times(start, name, 0, objective.counts(name))
        except InputError:
            return "differences"
        return "exact"

    how = run_on_main(attempt, env)
    if how == "differences":
        env.say("Hessian by differences of gradients: model or loss cannot be differentiated twice")
    return how


def keep(path: Path, value: dict[str, Any]) -> None:
    """Write the first file of a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(path, value)


def save(path: Path, value: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all."""
    temporary = temporary_name(path)
    try:
        torch.save(value, temporary)
        publish(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any]:
    """The same again; no code in the file is run."""
    return torch.load(path, map_location="cpu", weights_only=True)
