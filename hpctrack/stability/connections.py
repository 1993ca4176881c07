"""Mode connectivity: the loss on the straight line between two runs' weights, and on a curve that was fitted to be low.

The curve is a quadratic Bezier, phi(t) = (1 - t)^2 a + 2 t (1 - t) c + t^2 b, whose control point c is trained on the
loss at random t (T. Garipov et al., "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", NeurIPS 2018).
P: number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hpctrack.errors import MachineError
from hpctrack.stability.objective import Objective
from hpctrack.stability.surface import load, save
from hpctrack.stability.tasks import Place, in_pieces

LINE = "line"
SAVE_EVERY = 50  # steps of a fit


@dataclass(frozen=True)
class CurveOptions:
    """How a curve is fitted, to which losses (none: that of its first run), and at how many points paths are looked at.

    `fit_events`: to so many events at most, the first ones of the data that curves are fitted to.
    """

    curve_loss: tuple[str, ...] = ()
    steps: int = 1000
    lr: float = 1e-3
    events_per_step: int = 8
    fit_events: int = 100
    points: int = 51

    @property
    def places(self) -> list[float]:
        """Where on a path it is looked at, from 0 to 1."""
        return np.linspace(0.0, 1.0, self.points).tolist()


def on_line(a_P: Tensor, b_P: Tensor, t: float) -> Tensor:
    """A point of the straight line from a to b."""
    return (1 - t) * a_P + t * b_P


def on_curve(a_P: Tensor, c_P: Tensor, b_P: Tensor, t: float) -> Tensor:
    """A point of the curve from a to b."""
    return (1 - t) ** 2 * a_P + 2 * t * (1 - t) * c_P + t**2 * b_P


def fit(
    objective: Objective,
    loss: str,
    ends: tuple[Tensor, Tensor],
    options: CurveOptions,
    seed: Sequence[int],
    *,
    path: Path,
    alive: Callable[[str], None],
) -> Tensor:
    """The control point [P] of the curve between two runs; goes on from `path`, where it is kept.

    Each step draws t and its events from `seed` and its number alone. MachineError for a loss that is not finite.
    """
    c, done = ((ends[0] + ends[1]) / 2).requires_grad_(), 0
    optimizer = torch.optim.RMSprop([c], lr=options.lr)
    if path.is_file():
        kept = load(path)
        c.data, done = kept["c"].to(c), int(kept["step"])
        optimizer.load_state_dict(kept["optimizer"])
    while done < options.steps:
        alive(f"{path.stem}, step {done + 1}")
        rng = np.random.default_rng([*seed, done])
        t, events = float(rng.random()), rng.integers(0, len(objective.batches), options.events_per_step).tolist()
        counts = objective.counts(loss, events)
        with objective.at(on_curve(ends[0], c.detach(), ends[1], t)):
            slope = torch.zeros_like(c)
            for event in events:
                slope = slope + objective.gradient(loss, event, counts)
        if not bool(slope.isfinite().all()):
            raise MachineError(
                f"{path.stem}: the gradient of '{loss}' is not finite at step {done + 1}; lower --curve-lr"
            )
        c.grad = 2 * t * (1 - t) * slope
        optimizer.step()
        done += 1
        if done % SAVE_EVERY == 0 or done == options.steps:
            save(path, {"c": c.detach().cpu(), "step": done, "optimizer": optimizer.state_dict()})
    return c.detach()


@dataclass(frozen=True)
class Ends:
    """The runs between which paths are: their weights [P], the names of their losses, and what they decide.

    `judge(run)`: what looks at the model's outputs along a path, with that run's builder, and gives counts.
    """

    weights: Sequence[Tensor]
    losses: Sequence[str]
    judge: Callable[[int], Judge]

    def kinds(self, options: CurveOptions) -> dict[tuple[int, int], list[str]]:
        """The paths of each pair of runs: the line, and a curve for each loss."""
        pairs = [(a, b) for a in range(len(self.weights)) for b in range(a + 1, len(self.weights))]
        return {(a, b): [LINE, *(options.curve_loss or (self.losses[a],))] for a, b in pairs}


class Judge(Protocol):
    """What looks at the outputs of every event, then gives counts."""

    def look(self, number: int, outputs: dict[str, Tensor]) -> None:
        """The outputs of an event."""

    def counts(self) -> dict[str, Any]:
        """What was decided, over all events."""


def connections(
    ends: Ends, evaluated: Objective, fitted: Objective, options: CurveOptions, place: Place, *, folder: Path
) -> list[dict[str, Any]]:
    """Every pair of runs, with losses and decisions at the points of its line and curves.

    `evaluated`: the losses along the paths; `fitted`: those that curves are fitted to, on other events.
    """
    kinds = ends.kinds(options)
    curves = [f"{a}-{b}-{kind}" for (a, b), of in kinds.items() for kind in of if kind != LINE]

    def control(key: str) -> Path:
        return folder / f"curve-{key}.pt"

    def fit_one(key: str) -> bool:
        a, b, loss = key.split("-", 2)
        pair = ends.weights[int(a)], ends.weights[int(b)]
        seed = (place.seed, int(a), int(b))
        fit(fitted, loss, pair, options, seed, path=control(key), alive=place.alive)
        return True

    in_pieces(folder / "curves", curves, fit_one, place)
    controls = {key: load(control(key))["c"].to(ends.weights[0]) for key in curves}
    keys = [f"{a}-{b}-{kind}@{k}" for (a, b), of in kinds.items() for kind in of for k in range(options.points)]

    def look(key: str) -> dict[str, Any]:
        path, _, k = key.rpartition("@")
        a, b, kind = path.split("-", 2)
        pair, t = (ends.weights[int(a)], ends.weights[int(b)]), options.places[int(k)]
        point = on_line(*pair, t) if kind == LINE else on_curve(pair[0], controls[path], pair[1], t)
        judge = ends.judge(int(a))
        with evaluated.at(point):
            values = evaluated.values(judge.look)
        return {"losses": values, "decisions": judge.counts()}

    found = in_pieces(folder / "points", keys, look, place)
    return [
        {"a": a, "b": b, "paths": {kind: series(found, f"{a}-{b}-{kind}", options.points) for kind in of}}
        for (a, b), of in kinds.items()
    ]


def series(found: dict[str, Any], path: str, points: int) -> dict[str, Any]:
    """What was found at the points of a path, as lists over these: of each loss each term, of each kind the counts."""
    rows = [found[f"{path}@{k}"] for k in range(points)]
    joined: dict[str, Any] = {}
    for what in ("losses", "decisions"):
        known = {name: list(of) for row in rows for name, of in row[what].items()}
        joined[what] = {
            name: {key: [row[what].get(name, {}).get(key) for row in rows] for key in keys}
            for name, keys in known.items()
        }
    return joined
