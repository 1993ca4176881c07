"""What a run, or a model in inference, needs of a dataset, and what does without: recipes and the models that ship.

Both are found by their own record of what they read, none by name. The checks are made by one rank for all, before
anything is computed (requirements/needs.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpctrack import named_recipes
from hpctrack.config import Named, RunConfig, lookup, parse
from hpctrack.events import emphasis
from hpctrack.events.features import FEATURES
from hpctrack.graphs import graph_columns
from hpctrack.losses import build_loss
from hpctrack.models import MODELS
from hpctrack.recipes import parse_yaml, read_recipe
from hpctrack.requirements.needs import EDGES, Need, check, of_features, of_selection
from hpctrack.storage.store import Dataset
from hpctrack.training import checkpoint, run_settings
from hpctrack.training.checkpoint_metadata import META, STATE


def of_model(model: Named, features: list[str], graph: Named | None, of: str = "data.features") -> list[Need]:
    """What a model sees of an event, `of` whom; InputError for an unknown name."""
    own = Need(f"model '{model.name}'", lookup(MODELS, model.name, "model").COLUMNS)
    of_graph = [Need(f"graph '{graph.name}' of {of}", graph_columns(graph))] if graph else []
    return [*of_features(features, of), own, *of_graph]


def of_inference(config: RunConfig) -> list[Need]:
    """What a run's model sees of an event in inference, where true edges are none of it."""
    graph = config.data.graph
    return of_model(config.model, config.data.features, graph if graph and graph.name != "truth" else None)


def of_run(config: RunConfig) -> list[Need]:
    """What training needs."""
    data, loss = config.data, build_loss(config.loss)
    terms = [Need(f"loss.{term}", columns) for term, columns in loss.columns.items()]
    kinds = [Need("data.emphasis", emphasis.COLUMNS)] if data.emphasis.wanted else []
    labels = [Need("data.graph, whose edges are true or false,", EDGES)] if data.graph and loss.edge_labels else []
    selection = of_selection(data.selection, "data.selection")
    return [*of_model(config.model, data.features, data.graph), *terms, *kinds, *labels, *selection]


def check_run(data: Dataset, config: RunConfig) -> None:
    """InputError if a dataset lacks what training needs: what, who needs it, and which recipes do without."""
    check(data, of_run(config), lambda lacks: recipes_without(lacks, config))


# ------------------------------------------------------------------------------------------------ what does without


def models_without(lacks: frozenset[str]) -> str:
    """The shipped models that see none of these columns, in words."""
    paths = sorted(path.parent for path in checkpoint.SHIPPED.glob(f"*/{STATE}"))
    configs = {path.name: run_settings.run_config(checkpoint.read_meta(path), path / META) for path in paths}
    return f"shipped models that do without: {_without(lacks, configs, of_inference)}"


def recipes_without(lacks: frozenset[str], config: RunConfig) -> str:
    """The recipes that need none of these columns, in words, and which features of this one would do."""
    if "truth.particle_row" in lacks:
        return "convert it with its truth"
    configs = {name: _recipe(name) for name in named_recipes.names()}
    kept = [name for name in config.data.features if lacks.isdisjoint(FEATURES[name].columns)]
    features = f", or data.features=[{','.join(kept)}]" if 0 < len(kept) < len(config.data.features) else ""
    return f"recipes that do without: {_without(lacks, configs, of_run)}{features}"


def _recipe(name: str) -> RunConfig:
    return parse(RunConfig, parse_yaml(read_recipe(named_recipes.path_of(name)), name), name)


def _without(lacks: frozenset[str], configs: Mapping[str, RunConfig], needs: Callable[[RunConfig], list[Need]]) -> str:
    names = [name for name, one in configs.items() if all(lacks.isdisjoint(need.columns) for need in needs(one))]
    return ", ".join(names) or "none"
