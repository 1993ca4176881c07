"""Deep sets: each hit is embedded by what it is and by the mean of its event (M. Zaheer et al., arXiv:1703.06114).

Legend: N hits in the batch, F features, B events, H hidden and E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch_geometric.data import Batch
from torch_geometric.nn import global_mean_pool

from hpctrack.config import Section
from hpctrack.models import Model
from hpctrack.models.memory_modes import MemoryModes
from hpctrack.numerics import at_least_fp32


class DeepSets(MemoryModes, Model):
    """Output `embedding` [N, E] of every hit."""

    class Options(Section):
        """The keys of the section `model`."""

        width: int = Field(64, ge=1, description="of the hidden layers")
        embedding: int = Field(8, ge=1, description="dimensions of the space in which a track's hits meet")

    def __init__(self, features: Sequence[str], options: Options) -> None:
        super().__init__()
        self.n_features, width = len(features), options.width
        self.hit = nn.Sequential(nn.Linear(self.n_features, width), nn.GELU(), nn.Linear(width, width))
        self.head = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, options.embedding))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """`embedding` [N, E] of `batch.x` [N, F]; `batch.batch` [N] says of which event a hit is."""
        h_NH = self.hit(batch.x)
        # in half precision a sum over an event's hits would stop growing at a few hundred of them
        mean_BH = global_mean_pool(at_least_fp32(h_NH), batch.batch, batch.num_graphs).to(h_NH.dtype)
        return {"embedding": self.head(torch.cat([h_NH, mean_BH[batch.batch]], dim=1))}

    def relative_cost(self, hits: np.ndarray, edges: np.ndarray | None = None) -> np.ndarray:
        """Cost of events by their numbers of hits, up to a factor."""
        return hits.astype(np.float64)
