"""Whether a dataset has what a model, or a method, sees of it; asked before the first event, by one rank for all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpctrack.config import lookup
from hpctrack.inference.stages import InferConfig
from hpctrack.requirements import fields
from hpctrack.requirements.needs import Need, check, of_selection
from hpctrack.storage.store import Dataset
from hpctrack.tracking.methods import METHODS, MethodConfig
from hpctrack.training import checkpoint, data_needs


def check_stages(
    data: Dataset, configs: Sequence[InferConfig], paths: Sequence[Path], names: Sequence[Path]
) -> list[str]:
    """Lines to be said of fields that differ; `names` are the checkpoints as they were asked for.

    InputError if the dataset lacks what one of them needs, or if a model's track parameters are of another field.
    """
    lines = []
    for config, path, name in zip(configs, paths, names, strict=True):
        seen = data_needs.of_model(config.model, config.features, config.graph, str(name))
        check(data, seen, data_needs.models_without)
        check(data, of_selection(config.selection, "selection"))
        trained_t = fields.trained_field(checkpoint.read_meta(path))
        estimates = bool(config.model.options.get("parameters"))
        if line := fields.check_field(data, str(name), trained_t, estimates):
            lines.append(line)
    return lines


def check_method(data: Dataset, config: MethodConfig) -> None:
    """InputError if the dataset lacks what the method, or the choice of hits, needs."""
    method = lookup(METHODS, config.method.name, "method")
    own = Need(f"method '{config.method.name}'", method.COLUMNS)
    check(data, [own, *of_selection(config.selection, "selection")])
