"""What the filters of a model's convolutions look for: the image that excites each most, and the first one's weights.

Activation maximisation (D. Erhan et al., "Visualizing Higher-Layer Features of a Deep Network", 2009) as in HEP.TrkX'
notebooks: from a random image, steps along the gradient of a filter's mean activation, divided by its root mean square.
Any model with convolutions will do: the image takes the place of the first one's input, and nothing before it matters.

Legend: K filters of a layer, C channels of an image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch, Data

from hpctrack.errors import InputError
from hpctrack.models import Model

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
STEADY = 1e-5  # added to the root mean square of a gradient
RATE = 1.0
GREY, CONTRAST = 0.5, 0.1  # mean and standard deviation of a picture as it is shown


class _Reached(Exception):
    """The forward pass has come to the layer; nothing behind it is computed."""


def convolutions(model: nn.Module) -> dict[str, Convolution]:
    """The model's convolutions by name, in the order in which they are made; InputError if it has none."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Convolution)}
    if not found:
        raise InputError("the model has no convolution, so there are no filters to show")
    return found


class Excited:
    """A model whose first convolution sees an image of ours: `activation(layer, image)`."""

    def __init__(self, model: Model) -> None:
        self.model, self.layers = model.eval(), convolutions(model)
        self.first, self.shape = self._look()

    def _look(self) -> tuple[Convolution, torch.Size]:
        """The convolution that comes first in a forward pass, and the shape of what it sees of one event, [C, …]."""
        seen: list[tuple[Convolution, torch.Size]] = []
        hooks = [
            layer.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].shape[1:])))
            for layer in self.layers.values()
        ]
        with torch.no_grad():
            self.model(nothing(self.model))
        for hook in hooks:
            hook.remove()
        if not seen:
            raise InputError("the model uses none of its convolutions on an event without hits")
        return seen[0]

    def activation(self, layer: Convolution, image: Tensor) -> Tensor:
        """Output [n, K, …] of a convolution for images [n, C, …] in the place of the first one's input."""
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(output)
            raise _Reached

        hooks = [
            self.first.register_forward_pre_hook(lambda module, inputs: (image,)),
            layer.register_forward_hook(stop),
        ]
        try:
            self.model(nothing(self.model))
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        return found[0]

    def pictures(self, layer: Convolution, most: int, steps: int, seed: int) -> Tensor:
        """Images [K, C, …] that excite the first `most` filters of a convolution."""
        number = min(most, layer.weight.shape[0])
        generator = torch.Generator().manual_seed(seed)
        parameter = next(self.model.parameters())
        image = torch.rand((number, *self.shape), generator=generator).to(parameter)
        for _ in range(steps):
            image = image.detach().requires_grad_()
            own = torch.diagonal(inner(self.activation(layer, image))[:, :number]).movedim(-1, 0)
            (slope,) = torch.autograd.grad(own.flatten(1).mean(1).sum(), image)
            size = slope.flatten(1).square().mean(1).sqrt().view(-1, *[1] * (slope.dim() - 1))
            image = image + RATE * slope / (size + STEADY)
        return image.detach()


def nothing(model: Model) -> Batch:
    """A batch of one event without hits."""
    none, parameter = torch.zeros(0, dtype=torch.long), next(model.parameters())
    data = Data(
        x=parameter.new_zeros(0, model.n_features),
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        hit_row=none,
        event_id=torch.tensor([0]),
        num_nodes=0,
    )
    return Batch.from_data_list([data])


def inner(x: Tensor) -> Tensor:
    """Without a border of one pixel, where the image is larger than that: padding excites filters as well."""
    for dim in range(2, x.dim()):
        if x.shape[dim] > 2:
            x = x.narrow(dim, 1, x.shape[dim] - 2)
    return x


def flat(x: Tensor) -> Tensor:
    """[K, C, …] -> [K, rows, columns]: the mean over all axes but the last two; one row where there is one axis."""
    while x.dim() > 3:
        x = x.mean(1)
    return x


def grey(picture_KRC: Tensor) -> Tensor:
    """Levels 0 to 255 of pictures [K, rows, columns], each with the same mean and contrast."""
    mean = picture_KRC.mean((1, 2), keepdim=True)
    spread = picture_KRC.std((1, 2), keepdim=True, correction=0)
    shown = GREY + CONTRAST * (picture_KRC - mean) / (spread + STEADY)
    return (255 * shown.clamp(0, 1)).round().long()


def describe(model: Model, most: int, steps: int, seed: int) -> dict[str, Any]:
    """`weights` and `layers` of filters.json (results/filters.py)."""
    excited = Excited(model)
    weights = flat(excited.first.weight.detach().float())
    return {
        "weights": [[[round(number, 6) for number in row] for row in rows] for rows in weights.tolist()],
        "layers": list(layers(excited, most, steps, seed)),
    }


def layers(excited: Excited, most: int, steps: int, seed: int) -> Iterator[dict[str, Any]]:
    """Each convolution with its pictures."""
    for name, layer in excited.layers.items():
        pictures = grey(flat(inner(excited.pictures(layer, most, steps, seed))))
        kernel = list(layer.weight.shape[2:])
        yield {"name": name, "filters": len(layer.weight), "kernel": kernel, "pictures": pictures.tolist()}
