"""What the ablation changes in its base recipe, one thing at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hpctrack.config import RunConfig, parse
from hpctrack.errors import InputError
from hpctrack.losses.influencer import InfluencerLoss
from hpctrack.models.embedding import InfluencerModel

BASE = "base"
TERMS = ("attraction", "repulsion_ui", "repulsion_ii", "compactness")
FACTORS = {"off": 0.0, "half": 0.5, "double": 2.0}  # of a term's weight
EMBEDDINGS = (4, 8, 12, 16)
BACKBONES = {  # of like size, about 200,000 parameters; neighbour spaces, and so their loss, belong to the first alone
    "neighbours": ({"width": 64, "stages": 2, "steps": 3, "neighbours": 16, "space": 4}, 1.0),
    "transformer": ({"width": 64, "layers": 4, "heads": 4}, 0.0),
    "mlp": ({"width": 192, "layers": 4}, 0.0),
}
OPTIONS: dict[str, tuple[Any, ...]] = {  # of the loss
    "squared_hinge_ui": (False, True),
    "influencer_pairs": ("all", "other_tracks"),
    "per": ("pair", "hit"),
    "log_floor": (1e-6, 1e-4, 1e-2),
}
PAPER = {  # weights and repulsion as D. Murnane, "Influencer Loss" (CHEP 2023), has them
    **{"attraction": 1.0, "repulsion_ui": 1.0, "repulsion_ii": 1.0, "compactness": 0.0},
    **{"squared_hinge_ui": False, "influencer_pairs": "all", "per": "pair", "log_floor": 1e-6},
}


@dataclass(frozen=True, eq=False)
class Variant:
    """The base recipe with `values` (dotted key -> value) in place of its own."""

    name: str
    values: dict[str, Any]

    @property
    def overrides(self) -> list[str]:
        """As on a command line; JSON is YAML."""
        return [f"{key}={json.dumps(value)}" for key, value in self.values.items()]


def variants(recipe: RunConfig) -> dict[str, Variant]:
    """The base and all its variants by name; a value that the base has is no variant.

    InputError if the recipe is not of the influencer model and loss.
    """
    for section in ("model", "loss"):
        if getattr(recipe, section).name != "influencer":
            raise InputError(
                f"key '{section}.name': the ablation is of 'influencer', not {getattr(recipe, section).name}"
            )
    loss = parse(InfluencerLoss.Options, recipe.loss.options, "base recipe", "loss")
    model = parse(InfluencerModel.Options, recipe.model.options, "base recipe", "model")
    every = [Variant(BASE, {}), *of_loss(loss), *of_model(model)]
    return {variant.name: variant for variant in every}


def of_loss(base: InfluencerLoss.Options) -> Iterator[Variant]:
    """Weights off, halved and doubled, the paper's, each option's other values, auxiliary losses off."""
    for term in TERMS:
        weight = getattr(base, term)
        for word, factor in FACTORS.items() if weight else ():
            yield Variant(f"{term}-{word}", {f"loss.{term}": factor * weight})
    if any(getattr(base, key) != value for key, value in PAPER.items()):
        yield Variant("paper", {f"loss.{key}": value for key, value in PAPER.items()})
    for key, values in OPTIONS.items():
        for value in values:
            if value != getattr(base, key):
                yield Variant(f"{key}-{json.dumps(value)}".replace('"', ""), {f"loss.{key}": value})
    if base.neighbours:
        yield Variant("neighbours-off", {"loss.neighbours": 0.0})
    if base.neighbours and base.compactness:
        yield Variant("auxiliary-off", {"loss.neighbours": 0.0, "loss.compactness": 0.0})


def of_model(base: InfluencerModel.Options) -> Iterator[Variant]:
    """Other embedding sizes and backbones."""
    for size in EMBEDDINGS:
        if size != base.embedding:
            yield Variant(f"embedding-{size}", {"model.embedding": size})
    for name, (options, neighbours) in BACKBONES.items():
        if name != base.backbone["name"]:
            values = {"model.backbone": {"name": name, **options}, "loss.neighbours": neighbours}
            yield Variant(f"backbone-{name}", values)
