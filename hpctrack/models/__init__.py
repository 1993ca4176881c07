"""Models: one file a family, one line here. `forward(batch) -> dict of tensors` on a PyG Batch of whole events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor, nn
from torch_geometric.data import Batch

from hpctrack.config import Named, Section, lookup, parse
from hpctrack.models.attention import AttentionNetwork
from hpctrack.models.convolution import ConvolutionNetwork
from hpctrack.models.embedding import CondensationModel, EmbeddingModel, InfluencerModel
from hpctrack.models.filter import FilterNetwork
from hpctrack.models.interaction import InteractionNetwork
from hpctrack.models.triplet_network import TripletNetwork
from hpctrack.registry import Registry


class Model(Protocol):
    """An `nn.Module` with all of this; `MemoryModes` gives the memory modes, `BackboneModel` all but a backbone.

    An event's outputs depend neither on the other events of the batch nor on the order of its hits.
    """

    Options: ClassVar[type[Section]]  # the keys of the section `model` besides `name`
    n_features: int  # F, the number of inputs of a hit

    def __init__(self, features: Sequence[str], options: Any) -> None:
        """`features` [F]: names of the inputs, in the order of the columns of `batch.x`; `options`: of `Options`."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Outputs by name, of `batch.x` [N, F]: a row a hit, [N, …]; a row an edge, [M, …], in those named `edge_…`."""

    @property
    def memory_modes(self) -> tuple[str, ...]:
        """The modes of models/memory_modes.py that it has, from the least time to the least memory; `plain` first."""

    def set_memory(self, mode: str) -> None:
        """Memory mode of the following forward passes: changes memory and time, not what is computed."""

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of a training pass over events with so many `hits` [n] (and `edges` [n]), up to a factor: float [n]."""


MODELS: Registry[type[Model]] = Registry(
    "hpctrack.models",
    "model",
    {
        "attention": AttentionNetwork,
        "condensation": CondensationModel,
        "convolution": ConvolutionNetwork,
        "embedding": EmbeddingModel,
        "filter": FilterNetwork,
        "influencer": InfluencerModel,
        "interaction": InteractionNetwork,
        "triplets": TripletNetwork,
    },
)


def build_model(config: Named, features: Sequence[str], memory: str = "plain") -> nn.Module:
    """The model that the section `model` names, on inputs `features`, in a memory mode; InputError names a bad key."""
    model = lookup(MODELS, config.name, "model")
    built = model(features, parse(model.Options, config.options, "model", "model"))
    built.set_memory(memory)
    return built
