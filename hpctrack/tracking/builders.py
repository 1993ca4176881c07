"""Model outputs -> track candidates, or what a next stage sees: a table of builders, and their tuning.

A builder with an open option is tuned on validation events: it says itself which settings are tried, what is counted of
each, and which is best (tracking/builder.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hpctrack.config import Named, lookup, parse
from hpctrack.registry import Registry
from hpctrack.tracking.assignment.builder import AssignmentBuilder
from hpctrack.tracking.builder import Builder, Outputs
from hpctrack.tracking.condensing import CondensationBuilder, GreedyBuilder
from hpctrack.tracking.edge_clustering import ComponentsBuilder, DbscanBuilder, HdbscanBuilder, WalkBuilder
from hpctrack.tracking.hopfield.builder import HopfieldBuilder
from hpctrack.tracking.radius_builder import RadiusBuilder
from hpctrack.tracking.seeded import SeededBuilder
from hpctrack.tracking.slot_builders import LinesBuilder, SlotsBuilder
from hpctrack.tracking.stage_edges import EdgesBuilder, RadiusEdgesBuilder, RadiusGraphBuilder
from hpctrack.tracking.stage_hits import HitsBuilder

BUILDERS: Registry[type[Builder]] = Registry(
    "hpctrack.builders",
    "builder",
    {
        "assignment": AssignmentBuilder,
        "components": ComponentsBuilder,
        "condensation": CondensationBuilder,
        "dbscan": DbscanBuilder,
        "edges": EdgesBuilder,
        "greedy": GreedyBuilder,
        "hdbscan": HdbscanBuilder,
        "hits": HitsBuilder,
        "hopfield": HopfieldBuilder,
        "lines": LinesBuilder,
        "radius": RadiusBuilder,
        "radius_edges": RadiusEdgesBuilder,
        "radius_graph": RadiusGraphBuilder,
        "slots": SlotsBuilder,
        "seeded": SeededBuilder,
        "walk": WalkBuilder,
    },
)


def build_builder(config: Named, **tuned: Any) -> Builder:
    """The builder that the section `builder` names; `tuned` fills options that tuning found."""
    builder = lookup(BUILDERS, config.name, "builder")
    return builder(parse(builder.Options, config.options | tuned, "builder", "builder"))


def settings(config: Named) -> list[dict[str, Any]]:
    """The settings of the builder's grid, each once, of the options that the section `builder` leaves open."""
    builder = build_builder(config)
    tried = [{k: v for k, v in s.items() if getattr(builder.options, k) is None} for s in builder.grid()]
    return list({tuple(setting.items()): setting for setting in tried}.values())


def tuning_counts(config: Named, events: Iterable[tuple[Outputs, np.ndarray, np.ndarray]]) -> np.ndarray:
    """How every setting of the grid does on `events`: int64 [settings, n_counts]; add them over ranks.

    Events are (outputs, particle [N], target [P]), as `Builder.count` takes them.
    """
    builders = of_grid(config)
    counts = np.zeros((len(builders), builders[0].n_counts), dtype=np.int64)
    for event in events:
        counts += type(builders[0]).count(builders, *event)
    return counts


def choose(config: Named, counts: np.ndarray) -> dict[str, Any]:
    """The setting that is best by the `counts` of all."""
    builders = of_grid(config)
    return settings(config)[type(builders[0]).choose(builders, counts)]


def of_grid(config: Named) -> list[Builder]:
    """The builder with each setting of its grid."""
    builder = build_builder(config)
    return [type(builder)(builder.options.model_copy(update=setting)) for setting in settings(config)]
