"""What ACTS can tell a model of a space point, and the model's features computed from that, within the exported model.

ACTS gives `NodeFeature`s divided by scales (Examples/Algorithms/TrackFindingGnn, createFeatures.cpp). All scales are 1
here: a model sees the numbers that a dataset has, in mm and rad, and scales them as events/features.py does.

Legend: N hits, A node features, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpctrack.errors import InputError
from hpctrack.events.features import FEATURES, feature_columns
from hpctrack.storage.schema import Event

NODE_FEATURES = {  # column of a dataset -> acts.examples.gnn.NodeFeature, in the order in which an export has them
    "hits.r": "R",
    "hits.phi": "Phi",
    "hits.z": "Z",
    "hits.x": "X",
    "hits.y": "Y",
    "hits.eta": "Eta",
    "cells.cell_count": "CellCount",
    "cells.cell_charge": "ChargeSum",
    "cells.size_u": "LocDir01",
    "cells.size_v": "LocDir11",
    "cells.local_eta": "LocEta1",
    "cells.local_phi": "LocPhi1",
    "cells.global_eta": "GlobEta1",
    "cells.global_phi": "GlobPhi1",
}
OF_CLUSTERS = [column for column in NODE_FEATURES if column.startswith("cells.") and "cell_" not in column]
COMPUTED: dict[str, Callable[[Mapping[str, Tensor]], Tensor]] = {  # of torch; the others divide a column by a unit
    "cos_phi": lambda c: torch.cos(c["hits.phi"]),
    "sin_phi": lambda c: torch.sin(c["hits.phi"]),
    "inverse_r": lambda c: 30.0 / c["hits.r"].clamp(min=1.0),
    "cell_count": lambda c: torch.log1p(c["cells.cell_count"]),
    "cell_charge": lambda c: torch.log1p(c["cells.cell_charge"].clamp(min=0.0)),
    "size_u": lambda c: torch.log1p(c["cells.size_u"]),
    "size_v": lambda c: torch.log1p(c["cells.size_v"]),
}


def own_column(feature: str) -> str:
    """The column that a feature is computed of; the others that it names are for augmentation."""
    return feature_columns([feature])[0]


def columns_of(features: Sequence[str], also: Sequence[str] = ()) -> list[str]:
    """The columns that `features` are computed of and `also`, in the order of NODE_FEATURES.

    InputError for a feature that no node feature of ACTS tells.
    """
    wanted = {own_column(feature) for feature in features} | set(also)
    for feature in features:
        if own_column(feature) not in NODE_FEATURES:
            raise InputError(
                f"key 'data.features': ACTS has no node feature for '{feature}'; a model for ACTS is trained without it"
            )
    return [column for column in NODE_FEATURES if column in wanted]


def node_features(event: Event, rows: np.ndarray, columns: Sequence[str]) -> np.ndarray:
    """What ACTS would give of the hits `rows` of an event: float32 [N, A]."""
    return np.stack([event.column(name)[rows].astype(np.float32) for name in columns], axis=1)


class Inputs(nn.Module):
    """The model's features [N, F] from node features [N, A], which are `columns` of a dataset."""

    def __init__(self, features: Sequence[str], columns: Sequence[str]) -> None:
        super().__init__()
        self.features, self.columns = list(features), list(columns)

    def column(self, x_NA: Tensor, name: str) -> Tensor:
        """A column [N]."""
        return x_NA[:, self.columns.index(name)]

    def forward(self, x_NA: Tensor) -> Tensor:
        """[N, F]."""
        columns = {own_column(name): self.column(x_NA, own_column(name)) for name in self.features}
        return torch.stack([computed(name, columns) for name in self.features], dim=1)


def computed(name: str, columns: Mapping[str, Tensor]) -> Tensor:
    """A feature [N] of columns [N]."""
    if name in COMPUTED:
        return COMPUTED[name](columns)
    by_unit: Callable[[Any], Any] = FEATURES[name].compute  # divides, whatever it is given
    return by_unit(columns)
