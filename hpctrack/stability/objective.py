"""The losses of chosen events as functions of a model's weights: values, gradients, Hessian-vector products.

Everything random in a loss is drawn from one seed anew for each event, so that neighbouring weights see the same draws.
Dropout is off. P: number of weights; a vector of weights is flat, in the order of `model.parameters()`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch_geometric.data import Batch

from hpctrack.errors import InputError
from hpctrack.losses import Loss, objective
from hpctrack.models import Model

Values = dict[str, dict[str, float | None]]  # of each loss each term; None where it is not finite
TOTAL = "total"  # beside the terms: their sum with the loss's weights
NO_SECOND = "--hessian exact: {} has a gradient that cannot be differentiated again; use --hessian differences"


ONCE = once_differentiable(lambda ctx: None).__code__  # that of every gradient which is marked so


class Objective:
    """Losses by name on batches of one event each, at whatever weights the model is given.

    `seed`: of what a loss draws.
    """

    def __init__(self, model: Model, losses: Mapping[str, Loss], batches: Sequence[Batch], seed: int) -> None:
        self.model, self.losses, self.batches, self.seed = model.eval(), losses, batches, seed
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device

    @property
    def weights_P(self) -> Tensor:
        """A copy of the model's weights."""
        return parameters_to_vector(self.parameters).detach().clone()

    def put(self, weights_P: Tensor) -> None:
        """Give the model these weights."""
        vector_to_parameters(weights_P.detach().clone(), self.parameters)

    @contextlib.contextmanager
    def at(self, weights_P: Tensor) -> Iterator[None]:
        """The model has these weights, then its own again."""
        own = self.weights_P
        self.put(weights_P)
        try:
            yield
        finally:
            self.put(own)

    def values(self, look: Callable[[int, dict[str, Tensor]], None] | None = None) -> Values:
        """Each term of each loss, the mean over the events that have it, and `total`.

        `look` is shown the number and the model's outputs of every event.
        """
        sums = {name: dict.fromkeys(loss.weights, 0.0) for name, loss in self.losses.items()}
        counts = {name: self.counts(name) for name in self.losses}
        with torch.no_grad():
            for number, batch in enumerate(self.batches):
                outputs = self.model(batch)
                if look:
                    look(number, outputs)
                for name, loss in self.losses.items():
                    with fixed_randomness(self.seed, self.device):
                        for term, found in loss(outputs, batch).items():
                            sums[name][term] += float(found.sum)
        found = {}
        for name, loss in self.losses.items():
            terms = {term: value / max(1, counts[name][term]) for term, value in sums[name].items()}
            total = sum(loss.weights[term] * value for term, value in terms.items())
            found[name] = {term: finite(value) for term, value in {TOTAL: total, **terms}.items()}
        return found

    def counts(self, name: str, events: Sequence[int] | None = None) -> dict[str, float]:
        """How many of the events (all, unless some are given) have each term of a loss."""
        loss, chosen = self.losses[name], range(len(self.batches)) if events is None else events
        found = dict.fromkeys(loss.weights, 0.0)
        for event in chosen:
            for term, count in loss.counts(self.batches[event]).items():
                found[term] += count
        return found

    def gradient(self, name: str, event: int, counts: Mapping[str, float], graph: bool = False) -> Tensor:
        """One event's part [P] of the gradient of a loss over events that have its terms so many times.

        With `graph` it can be differentiated again.
        """
        loss, batch = self.losses[name], self.batches[event]
        with fixed_randomness(self.seed, self.device):
            value = objective(loss.weights, loss(self.model(batch), batch), counts)
        if graph and (once := differentiable_once(value)):
            raise InputError(NO_SECOND.format(once))
        return self._derivative(value, graph)

    def hessian_times(self, vector_P: Tensor, name: str, event: int, counts: Mapping[str, float]) -> Tensor:
        """One event's part [P] of the product of the loss's Hessian and a vector, by a second derivative.

        InputError if model or loss compute a gradient that has no derivative.
        """
        try:
            slope = self.gradient(name, event, counts, graph=True) @ vector_P
            return self._derivative(slope).detach() if slope.requires_grad else torch.zeros_like(vector_P)
        except RuntimeError as error:
            if "derivative for" not in str(error) or "not implemented" not in str(error):
                raise
            raise InputError(NO_SECOND.format("an operation of torch")) from None

    def hessian_times_by_differences(
        self, vector_P: Tensor, name: str, event: int, counts: Mapping[str, float]
    ) -> Tensor:
        """The same product from two gradients beside the weights, of a model that need not be smooth."""
        size = float(vector_P.norm())
        if size == 0:
            return torch.zeros_like(vector_P)
        own = self.weights_P
        rounding = float(torch.finfo(own.dtype).eps) ** (1 / 3)  # errors of the formula and of rounding are alike
        step = rounding * max(1.0, float(own.norm())) / size
        sides = []
        for sign in (1.0, -1.0):
            with self.at(own + sign * step * vector_P):
                sides.append(self.gradient(name, event, counts))
        return (sides[0] - sides[1]) / (2 * step)

    def _derivative(self, value: Tensor, graph: bool = False) -> Tensor:
        parts = torch.autograd.grad(
            value, self.parameters, create_graph=graph, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.reshape(-1) for part in parts])


def differentiable_once(value: Tensor) -> str | None:
    """The name of an operation that a value comes from and whose gradient has no derivative; None if there is none.

    Torch itself says so only where the gradient that goes into the operation depends on the weights. Elsewhere it would
    take the operation's curvature for zero, without a word.
    """
    ahead, seen = [value.grad_fn], set()
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        own = getattr(type(node), "_forward_cls", None)  # of operations that are written in Python
        if own is not None and getattr(own.backward, "__code__", None) is ONCE:
            return str(own.__name__)
        ahead += [before for before, _ in node.next_functions]
    return None


@contextlib.contextmanager
def fixed_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """What torch draws inside depends on `seed` alone; what it draws afterwards does not depend on this."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def finite(value: float) -> float | None:
    """The number, or None: JSON has no infinities."""
    return value if math.isfinite(value) else None
