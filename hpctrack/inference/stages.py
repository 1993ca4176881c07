"""What an event goes through: a checkpoint's model and a builder, or several as the stages of a pipeline.

Settings of each stage come from its checkpoint's run, then from overrides. A method that needs no training
(tracking/methods.py) may stand in their place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named, Section, Seed, SelectionConfig, parse
from hpctrack.errors import InputError, MachineError
from hpctrack.events.loader import EventLoader
from hpctrack.events.selection import Draw
from hpctrack.graphs import build_graph
from hpctrack.graphs.stored import PassedEdges, StoredEdges
from hpctrack.models import build_model
from hpctrack.parallel.precision import WEIGHTS, Precision
from hpctrack.recipes import apply_overrides
from hpctrack.storage.edges import Edges
from hpctrack.storage.schema import Candidates
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builder import Built, to_numpy, with_parameters
from hpctrack.tracking.builders import build_builder
from hpctrack.tracking.methods import MethodConfig, Timing
from hpctrack.training import checkpoint, checkpoint_metadata, run_settings

INFER = 2  # random stream of draws in inference


class InferConfig(Section):
    """What inference takes from the checkpoint's run, or from overrides."""

    seed: Seed
    features: list[str]
    selection: SelectionConfig = SelectionConfig()
    graph: Named | None = None
    model: Named
    builder: Named
    precision: str


def stages(runs: Sequence[Path], overrides: Sequence[str]) -> tuple[list[Path], list[InferConfig]]:
    """Checkpoints and settings of a pipeline's stages: the selection of hits is for all, the rest for the last one."""
    paths = [checkpoint.find(run) for run in runs]
    of_all = [override for override in overrides if override.startswith("selection.")]
    each = [of_all] * (len(paths) - 1) + [overrides]
    return paths, [infer_config(checkpoint.read_meta(path), own, path) for path, own in zip(paths, each, strict=True)]


def infer_config(meta: dict[str, Any], overrides: Sequence[str], path: Path) -> InferConfig:
    """Settings of this inference: the run's model and (tuned) builder, then the overrides."""
    run = run_settings.run_config(meta, path / checkpoint_metadata.META)
    for override in overrides:
        if not override.startswith(("selection.", "graph.", "builder.", "builder=")):
            raise InputError(
                f"override '{override}': inference takes selection.key=value, graph.key=…, builder.key=… and builder=…"
            )
    graph = run.data.graph
    values = {
        "seed": run.seed,
        "features": run.data.features,
        "selection": {},
        "graph": graph.model_dump() if graph and graph.name != "truth" else None,
        "model": run.model.model_dump(),
        "builder": run.builder.model_dump() | meta["tuned"],
        "precision": run.train.precision,
    }
    config = parse(InferConfig, apply_overrides(values, overrides, str(path)), str(path), overrides=overrides)
    if build_builder(config.builder).needs_tuning:
        raise InputError(f"{path}: training has not ended, so the builder is not tuned; give builder.radius=…")
    return config


def method_config(name: str, overrides: Sequence[str]) -> MethodConfig:
    """Settings of a method: its defaults, then the overrides."""
    for override in overrides:
        if not override.startswith(("selection.", "method.")):
            raise InputError(f"override '{override}': --method takes selection.key=value and method.key=value")
    values = {"selection": {}, "method": {"name": name}}
    return parse(MethodConfig, apply_overrides(values, overrides, "--method"), "--method", overrides=overrides)


class Reconstruction(Protocol):
    """From an event to its candidates; `recipe` is all that these depend on beside the dataset.

    `product` names what is made, in PRODUCTS: a stage of a pipeline makes edges for the next one.
    """

    product: str
    draw: Draw
    recipe: dict[str, Any]

    def __call__(self, row: int) -> tuple[Built, Timing]:
        """Candidates of event `row`, or its edges, and what they took."""


class ByModel:
    """A checkpoint's model, and a builder on what it puts out; its graph is that of `config`, unless one is given.

    `checked`: the checksum of the checkpoint's state has been compared.
    """

    def __init__(
        self,
        config: InferConfig,
        path: Path,
        data: Dataset,
        device: torch.device,
        *,
        graph: PassedEdges | None = None,
        checked: bool = False,
    ) -> None:
        self._data, self._device = data, device
        self._model = load_model(config, path, device, checked)
        self._load = EventLoader(
            data,
            config.features,
            config.selection,
            AugmentConfig(),
            (config.seed, INFER),
            dtype=WEIGHTS[config.precision],
            graph=graph or build_graph(config.graph, data.folder, data),
            labels=False,
        )
        self.draw = self._load.draw
        self._builder = build_builder(config.builder)
        self.product = self._builder.product
        self._precision = Precision(config.precision, device)
        self.recipe = {"model_digest": checkpoint.digest(self._model), **config.model_dump(mode="json")}
        self.recipe["selection"] = config.selection.recorded()
        if used := run_settings.package_versions(config):
            self.recipe["versions"] = used

    def __call__(self, row: int) -> tuple[Built, Timing]:
        """Read the event, predict, build."""
        times = [time.perf_counter()]
        batch = Batch.from_data_list([self._load(row, 0)]).to(self._device)
        times.append(time.perf_counter())
        with torch.inference_mode(), self._precision.autocast():
            outputs = to_numpy(self._model(batch), batch)
        check_finite(outputs, int(batch.event_id))
        times.append(time.perf_counter())
        n_hits = int(self._data.n_hits[row])
        hit_rows = batch.hit_row.cpu().numpy()
        found: Built = self._builder.build(outputs, hit_rows, n_hits, int(batch.event_id))
        if isinstance(found, Candidates):
            found = with_parameters(found, outputs, hit_rows)
        times.append(time.perf_counter())
        seconds = zip(("read_s", "model_s", "build_s"), np.diff(times).tolist(), strict=True)
        return found, Timing(batch.num_nodes, dict(seconds))


class Chain:
    """Stages of a pipeline one after another: each sees the edges that the one before has found, nothing is stored.

    Raises InputError if a stage before the last makes no edges, or one after the first sees no edges of another.
    `checked`: as of ByModel.
    """

    def __init__(
        self,
        configs: Sequence[InferConfig],
        paths: Sequence[Path],
        data: Dataset,
        device: torch.device,
        checked: bool = False,
    ) -> None:
        later = zip(configs[1:], paths[1:], strict=True)
        self._graphs = [passed_edges(config, path) for config, path in later]  # of all but the first
        stages = zip(configs, paths, [None, *self._graphs], strict=True)
        self._stages = [
            ByModel(config, path, data, device, graph=graph, checked=checked) for config, path, graph in stages
        ]
        for stage, path in zip(self._stages[:-1], paths, strict=False):
            if stage.product != "edges":
                raise InputError(f"{path}: its builder makes {stage.product}, but the next stage needs edges")
        last = self._stages[-1]
        self.product, self.draw = last.product, last.draw
        before = [stage.recipe for stage in self._stages[:-1]]
        self.recipe = last.recipe | ({"stages": before} if before else {})  # whose edges take the place of stored ones

    def __call__(self, row: int) -> tuple[Built, Timing]:
        """What the last stage finds; seconds are sums over the stages, with those of each besides."""
        found, took = self._stages[0](row)
        total, stage_s = dict(took.seconds), [took.total_s]
        for stage, graph in zip(self._stages[1:], self._graphs, strict=True):
            if isinstance(found, Edges):  # as all stages before the last make them
                graph.found = found
            found, took = stage(row)
            stage_s.append(took.total_s)
            total = {name: total[name] + seconds for name, seconds in took.seconds.items()}
        return found, Timing(took.n_hits, total, stage_s) if len(stage_s) > 1 else took


def passed_edges(config: InferConfig, path: Path) -> PassedEdges:
    """The graph of a stage that sees stored edges, for edges that are passed on instead."""
    if config.graph is None or config.graph.name != "stored":
        name = config.graph.name if config.graph else "none"
        raise InputError(f"{path}: its graph is {name}, so it cannot follow a stage; its recipe needs 'stored'")
    return PassedEdges(parse(StoredEdges.Options, config.graph.options, "graph", "graph"))


class NotFinite(MachineError):
    """A model has given infinities or not-a-number for an event, from which nothing is built."""


def check_finite(outputs: dict[str, np.ndarray], event_id: int) -> None:
    """NotFinite that names the event and the first of a model's outputs that is not finite."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            raise NotFinite(f"event {event_id}: the model's output '{name}' is not finite (row {row} of {len(values)})")


def load_model(config: InferConfig, path: Path, device: torch.device, checked: bool = False) -> torch.nn.Module:
    """The checkpoint's model, ready for prediction."""
    model = build_model(config.model, config.features).to(device, WEIGHTS[config.precision])
    state = checkpoint.read_state(path, mapped=True, checked=checked)  # no memory for the optimizer's part
    checkpoint.load_model(model, state["model"], path)
    return model.eval()
