"""Model outputs -> track candidates: a table of builders, and their tuning.

A builder with an open option is tuned on validation events: `grid()` lists the settings to try, `sweep` applies a
builder with each to an event, `tuning_counts` counts how each does, `choose` picks one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hpctrack.config import Named, lookup, parse
from hpctrack.evaluation.matching import match
from hpctrack.evaluation.metrics import METRICS
from hpctrack.registry import Registry
from hpctrack.tracking.builder import Builder, Outputs
from hpctrack.tracking.condensing import CondensationBuilder, GreedyBuilder
from hpctrack.tracking.edge_clustering import ComponentsBuilder, DbscanBuilder, HdbscanBuilder, WalkBuilder
from hpctrack.tracking.radius_builder import RadiusBuilder
from hpctrack.tracking.stage_edges import EdgesBuilder, RadiusEdgesBuilder, RadiusGraphBuilder

BUILDERS: Registry[type[Builder]] = Registry(
    "hpctrack.builders",
    "builder",
    {
        "components": ComponentsBuilder,
        "condensation": CondensationBuilder,
        "dbscan": DbscanBuilder,
        "edges": EdgesBuilder,
        "greedy": GreedyBuilder,
        "hdbscan": HdbscanBuilder,
        "radius": RadiusBuilder,
        "radius_edges": RadiusEdgesBuilder,
        "radius_graph": RadiusGraphBuilder,
        "walk": WalkBuilder,
    },
)
OF_EDGES = ("edges", "radius_edges", "radius_graph")  # these make edges for a next stage, not candidates


def build_builder(config: Named, **tuned: Any) -> Builder:
    """The builder that the section `builder` names; `tuned` fills options that tuning found."""
    builder = lookup(BUILDERS, config.name, "builder")
    return builder(parse(builder.Options, config.options | tuned, "builder", "builder"))


def settings(config: Named) -> list[dict[str, Any]]:
    """The settings of the builder's grid, of the options that the section `builder` leaves open."""
    builder = build_builder(config)
    tried = [{k: v for k, v in s.items() if getattr(builder.options, k) is None} for s in builder.grid()]
    return [setting for k, setting in enumerate(tried) if setting not in tried[:k]]


def tuning_counts(config: Named, events: Iterable[tuple[Outputs, np.ndarray, np.ndarray]]) -> np.ndarray:
    """How every setting of the grid does on `events`: int64 [settings, 5].

    Events are (outputs, particle [N], target [P]): each hit's particle 0..P-1, or -1, and which of these are wanted. A
    candidate of another particle is no fake. Columns: double-majority numerator and denominator, fake-rate numerator
    and denominator, events at which the setting cannot be (too many pairs within a radius); add them over ranks.
    """
    grid = settings(config)
    builders = [build_builder(config, **setting) for setting in grid]
    counts = np.zeros((len(grid), 5), dtype=np.int64)
    for outputs, particle, target in events:
        for k, found in enumerate(type(builders[0]).sweep(builders, outputs)):
            if found is None:
                counts[k, 4] += 1
                continue
            matched = match(found.offsets, found.rows, particle, len(target))
            counts[k, :2] += METRICS["double_majority_efficiency"].count(matched, target)
            counts[k, 2:4] += METRICS["fake_rate"].count(matched, target)
    return counts


def choose(config: Named, counts: np.ndarray) -> dict[str, Any]:
    """The setting with the largest double-majority efficiency minus fake rate; of equals the first.

    Not one that cannot be at some event, unless there is no other.
    """
    efficiency = counts[:, 0] / np.maximum(counts[:, 1], 1)
    fake_rate = np.where(counts[:, 3] > 0, counts[:, 2] / np.maximum(counts[:, 3], 1), 1.0)
    return settings(config)[int(np.argmax(efficiency - fake_rate - 4.0 * (counts[:, 4] > 0)))]
