"""What an event goes through: a checkpoint's model and a builder, or several as the stages of a pipeline.

Settings of each stage come from its checkpoint's run, then from overrides. A method that needs no training
(tracking/methods.py) may stand in their place.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, KeptConfig, Named, Section, Seed, SelectionConfig, parse
from hpctrack.division.divided import Place, collect_outputs
from hpctrack.division.exchange import Exchange, Way
from hpctrack.errors import InputError, MachineError
from hpctrack.events.kept_hits import HITS_DIGEST, PASSED_ON, PassedHits, stored_hits
from hpctrack.events.loader import EventLoader
from hpctrack.events.padding import padded, unpadded
from hpctrack.events.selection import Draw
from hpctrack.graphs import build_graph
from hpctrack.graphs.passed import EdgeTensors, PassedEdges
from hpctrack.graphs.stored import StoredEdges
from hpctrack.models import Model, build_model
from hpctrack.parallel.precision import WEIGHTS, Precision, emulated
from hpctrack.recipes import apply_overrides
from hpctrack.storage.edges import Edges
from hpctrack.storage.hits import Hits
from hpctrack.storage.schema import Candidates
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builder import Built, arrays, with_edges, with_parameters
from hpctrack.tracking.builders import build_builder
from hpctrack.tracking.methods import MethodConfig, Timing
from hpctrack.training import checkpoint, checkpoint_metadata, run_settings
from hpctrack.training.compiled import compile_for_sizes, compiler_errors

ONE_RANK = "parallel.ranks_per_event=1"
INFER = 2  # random stream of draws in inference
PRECISION = "precision="  # the override
OF_ALL = ("selection.", "hits.", "hits=", PRECISION)  # beginnings of overrides that are for all stages
AS_TRAINED = f"{PRECISION}trained"  # the same of each stage its own, whatever the processor


class InferConfig(Section):
    """What inference takes from the checkpoint's run, or from overrides."""

    seed: Seed
    features: list[str]
    hits: KeptConfig | None = None
    selection: SelectionConfig = SelectionConfig()
    graph: Named | None = None
    model: Named
    builder: Named
    precision: Literal["fp32", "bf16", "fp16", "fp64"]


def stages(runs: Sequence[Path], overrides: Sequence[str]) -> tuple[list[Path], list[InferConfig]]:
    """Checkpoints and settings of a pipeline's stages: hits and precision are for all, the rest is for the last one."""
    paths = [checkpoint.find(run) for run in runs]
    overrides = [override for override in overrides if override != AS_TRAINED]
    of_all = [override for override in overrides if override.startswith(OF_ALL)]
    each = [of_all] * (len(paths) - 1) + [overrides]
    return paths, [infer_config(checkpoint.read_meta(path), own, path) for path, own in zip(paths, each, strict=True)]


def infer_config(meta: dict[str, Any], overrides: Sequence[str], path: Path) -> InferConfig:
    """Settings of this inference: the run's model and (tuned) builder, then the overrides."""
    run = run_settings.run_config(meta, path / checkpoint_metadata.META)
    for override in overrides:
        if not override.startswith((*OF_ALL, "graph.", "builder.", "builder=")):
            raise InputError(
                f"override '{override}': inference takes selection.key=value, hits.key=…, hits=…, graph.key=…, "
                "builder.key=…, builder=… and precision=…"
            )
    graph, hits = run.data.graph, run.data.hits
    values = {
        "seed": run.seed,
        "features": run.data.features,
        "hits": hits.model_dump() if hits else None,
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


def in_formats_of(
    device: torch.device, configs: Sequence[InferConfig], names: Sequence[Path], begun: Sequence[str] = ()
) -> tuple[list[InferConfig], list[str]]:
    """The settings with fp32 in the place of formats that the processor only emulates, and lines that say so.

    What was `begun` in other formats, one a stage, goes on in these. `names`: the checkpoints as they were asked for.
    """
    found, lines = [], []
    goes_on = len(begun) == len(configs)
    for number, (config, name) in enumerate(zip(configs, names, strict=True)):
        slow = emulated(config.precision, device)
        chosen = begun[number] if goes_on else "fp32" if slow else config.precision
        found.append(config.model_copy(update={"precision": chosen}))
        if goes_on and (chosen != config.precision or slow):
            many = ", of which this processor has no arithmetic: it takes tens of times as long as in fp32"
            lines.append(f"{name}: goes on in {chosen}, as it was begun{many if emulated(chosen, device) else ''}")
        elif chosen != config.precision:
            lines.append(
                f"{name}: trained in {config.precision}, of which this processor has no arithmetic: computed in fp32; "
                f"{AS_TRAINED} takes tens of times as long"
            )
    return found, lines


class Together(Section):
    """How ranks work together in inference."""

    ranks_per_event: Literal[1, 2, 4, 8] = 1
    exchange: Way = "boundary"


class HowRanks(Section):
    """The section of overrides that are for ranks."""

    parallel: Together = Together()


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], Together]:
    """Overrides of what is computed, and how ranks hold an event together; InputError for another number of them."""
    own = [override for override in overrides if override.startswith("parallel.")]
    values = apply_overrides({"parallel": {}}, own, "hpctrack infer")
    together = parse(HowRanks, values, "hpctrack infer", overrides=own).parallel
    return [override for override in overrides if override not in own], together


def method_config(name: str, overrides: Sequence[str]) -> MethodConfig:
    """Settings of a method: its defaults, then the overrides."""
    for override in overrides:
        if not override.startswith(("selection.", "method.")):
            raise InputError(f"override '{override}': --method takes selection.key=value and method.key=value")
    values = {"selection": {}, "method": {"name": name}}
    return parse(MethodConfig, apply_overrides(values, overrides, "--method"), "--method", overrides=overrides)


class Reconstruction(Protocol):
    """From an event to its candidates; `recipe` is all that these depend on beside the dataset.

    `product` names what is made, in PRODUCTS: a stage of a pipeline makes hits or edges for those behind it. `draw`:
    which hits of an event are seen, where several stages do, by the first.
    """

    product: str
    draw: Draw
    recipe: dict[str, Any]

    def __call__(self, row: int) -> tuple[Built, Timing]:
        """What is made of event `row`, and what it took."""


INSTEAD = ", or give it as the first --checkpoint"  # of a stage whose kept hits are not there


@dataclass(frozen=True)
class Passed:
    """What stages before one hand on to it, for one event after the other; None: it sees what is stored, or all."""

    hits: PassedHits | None = None
    edges: PassedEdges | None = None

    def take(self, found: Built | EdgeTensors) -> None:
        """Take what an earlier stage has found of the next event."""
        if isinstance(found, Hits) and self.hits:
            self.hits.found = found
        if isinstance(found, (Edges, EdgeTensors)) and self.edges:
            self.edges.found = found

    @classmethod
    def to(cls, config: InferConfig, path: Path, before: Sequence[str]) -> Passed:
        """What a stage takes of those `before` it, which make these products.

        Hits, whether or not it was trained on some, and edges. InputError if the stage right before it makes edges, but
        it sees none of another stage.
        """
        hits = PassedHits(config.hits.score_min if config.hits else 0.0) if "hits" in before else None
        graph = config.graph
        if graph is not None and graph.name == "stored" and "edges" in before:
            return cls(hits, PassedEdges(parse(StoredEdges.Options, graph.options, "graph", "graph")))
        if before[-1:] == ["edges"]:
            name = graph.name if graph else "none"
            raise InputError(f"{path}: its graph is {name}, so it cannot follow a stage; its recipe needs 'stored'")
        return cls(hits)


class ByModel:
    """A checkpoint's model, and a builder on what it puts out.

    Its hits and its graph are those of `config`, unless they are `passed` on by stages before it. `checked`: the
    checksum of the checkpoint's state has been compared. `exchange`: the ranks that hold each event together with this
    one; all of them build what it says, which is the same. InputError for a model that takes whole events alone.
    `compiled`: by torch.compile, equal but for rounding; a model that is static (models/contracts.py) on events padded
    to sizes of buckets (events/padding.py).
    """

    def __init__(
        self,
        config: InferConfig,
        path: Path,
        data: Dataset,
        device: torch.device,
        passed: Passed | None = None,
        *,
        checked: bool = False,
        exchange: Exchange | None = None,
        compiled: bool = False,
    ) -> None:
        passed, self._exchange = passed or Passed(), exchange
        self._data, self._device, self.passed = data, device, passed
        self._model = load_model(config, path, device, checked)
        if exchange is not None and not self._model.divisible:
            raise InputError(f"{path}: the model '{config.model.name}' takes whole events; use {ONE_RANK}")
        self._compiled = compiled
        if compiled:
            compile_stage(self._model, config, path, whole=exchange is None)
        stored = None if passed.hits else stored_hits(config.hits, data.folder, data, INSTEAD)
        self._load = EventLoader(
            data,
            config.features,
            config.selection,
            AugmentConfig(),
            (config.seed, INFER),
            dtype=WEIGHTS[config.precision],
            kept=passed.hits or stored,
            graph=passed.edges or build_graph(config.graph, data.folder, data),
            labels=False,
        )
        self.draw = self._load.draw
        self._builder = build_builder(config.builder)
        self.product = self._builder.product
        self._precision = Precision(config.precision, device)
        settings = config.model_dump(mode="json", exclude=None if config.hits else {"hits"})
        self.recipe = {"model_digest": checkpoint.digest(self._model), **settings}
        self.recipe["selection"] = config.selection.recorded()
        if passed.hits or stored:
            self.recipe[HITS_DIGEST] = stored.store.digest if stored else PASSED_ON
        if used := run_settings.package_versions(config):
            self.recipe["versions"] = used
        if compiled:
            self.recipe["compiled"] = True

    def __call__(self, row: int) -> tuple[Built, Timing]:
        """Read the event, predict, build."""
        made, n_hits, times = self._make(row)
        found = made.stored() if isinstance(made, EdgeTensors) else made
        return found, timing(n_hits, times)

    def hand_on(self, row: int) -> tuple[Built | EdgeTensors, Timing]:
        """The same for a stage behind it: edges stay on the device, where they are wanted, but of a divided event.

        A divided event is built whole, by each of its ranks, on the host: a device may have no memory for all of it.
        """
        if self._exchange is not None:
            return self(row)
        made, n_hits, times = self._make(row)
        return made, timing(n_hits, times)

    def _make(self, row: int) -> tuple[Built | EdgeTensors, int, list[float]]:
        """What is made of an event, how many hits were seen, and when it was begun, read and predicted."""
        times = [time.perf_counter()]
        batch, part = self.read(row)
        times.append(time.perf_counter())
        with torch.inference_mode(), self._precision.autocast():
            here = self._predict(batch if part is None else part)
            if part is not None:
                here = {name: value.cpu() for name, value in collect_outputs(here, part, batch).items()}
            outputs = with_edges(here, batch)
        event_id = int(batch.event_id)
        check_finite(outputs, event_id)
        times.append(time.perf_counter())
        hit_rows, n_hits = batch.hit_row.cpu().numpy(), int(self._data.n_hits[row])
        with torch.inference_mode():
            made = self._builder.build_where(outputs, hit_rows, n_hits, event_id)
        if isinstance(made, Candidates) and "parameters" in outputs:
            made = with_parameters(made, arrays(outputs), hit_rows)
        return made, batch.num_nodes, times

    def _predict(self, batch: Batch) -> dict[str, Tensor]:
        """The model's outputs."""
        if not self._compiled:
            return self._model(batch)
        with compiler_errors("--compile", "leave it out"):
            if not self._model.static:
                return self._model(batch)
            return unpadded(self._model(padded(batch.get_example(0))), batch)

    def read(self, row: int) -> tuple[Batch, Batch | None]:
        """An event, and this rank's part of it if it is divided."""
        if self._exchange is None:
            return Batch.from_data_list([self._load(row, 0)]).to(self._device), None
        event, part = self._load.whole_and_part(row, 0, Place(self._exchange.number, self._exchange.of))
        part = part.to(self._device)
        part.division.join(self._exchange)
        return Batch.from_data_list([event]), part


class Chain:
    """Stages of a pipeline one after another: each sees what those before it have found, nothing is stored.

    All stages behind a hit filter see the hits that it has kept, and a stage behind one that makes edges sees these.
    Raises InputError if a stage before the last makes neither, or one behind edges sees no edges of another stage.
    `checked`, `exchange`, `compiled`: as of ByModel.
    """

    def __init__(
        self,
        configs: Sequence[InferConfig],
        paths: Sequence[Path],
        data: Dataset,
        device: torch.device,
        *,
        checked: bool = False,
        exchange: Exchange | None = None,
        compiled: bool = False,
    ) -> None:
        products = [build_builder(config.builder).product for config in configs]
        for product, path in zip(products[:-1], paths, strict=False):
            if product not in ("hits", "edges"):
                raise InputError(f"{path}: its builder makes {product}, but the next stage needs hits or edges")
        passed = [
            Passed.to(config, path, products[:k]) for k, (config, path) in enumerate(zip(configs, paths, strict=True))
        ]
        stages = zip(configs, paths, passed, strict=True)
        make = partial(ByModel, checked=checked, exchange=exchange, compiled=compiled)
        self._stages = [make(config, path, data, device, own) for config, path, own in stages]
        first, last = self._stages[0], self._stages[-1]
        self.product, self.draw = last.product, first.draw
        before = [stage.recipe for stage in self._stages[:-1]]  # what they find takes the place of what is stored
        self.recipe = last.recipe | ({"stages": before} if before else {})

    def __call__(self, row: int) -> tuple[Built, Timing]:
        """What the last stage finds, and the hits of the first; seconds are sums, with those of each stage besides."""
        took = []
        for k, stage in enumerate(self._stages[:-1], 1):
            passed, of_stage = stage.hand_on(row)
            took.append(of_stage)
            for later in self._stages[k:]:
                later.passed.take(passed)
        found, last = self._stages[-1](row)
        if not took:
            return found, last
        took.append(last)
        total = {name: sum(one.seconds[name] for one in took) for name in last.seconds}
        return found, Timing(took[0].n_hits, total, [one.total_s for one in took])


def timing(n_hits: int, times: Sequence[float]) -> Timing:
    """What an event with so many hits took, from when it was begun, read and predicted; it ends now."""
    seconds = np.diff([*times, time.perf_counter()]).tolist()
    return Timing(n_hits, dict(zip(("read_s", "model_s", "build_s"), seconds, strict=True)))


class NotFinite(MachineError):
    """A model has given infinities or not-a-number for an event, from which nothing is built."""


def check_finite(outputs: Mapping[str, Tensor], event_id: int) -> None:
    """NotFinite that names the event and the first of a model's outputs that is not finite."""
    for name, value in outputs.items():
        if not bool(value.isfinite().all()):
            row = int((~value.isfinite()).reshape(len(value), -1).any(dim=1).nonzero()[0])
            raise NotFinite(f"event {event_id}: the model's output '{name}' is not finite (row {row} of {len(value)})")


def compile_stage(model: Model, config: InferConfig, path: Path, whole: bool) -> None:
    """Let the model be compiled; InputError if that would not hold for a size, or if events are not `whole`."""
    if not whole:
        raise InputError(f"--compile: takes whole events; use {ONE_RANK}, or leave it out")
    if not (model.static or model.row_wise):
        raise InputError(
            f"--compile: what the model '{config.model.name}' of {path} computes has other shapes in every event; "
            "leave it out: it is for models of edges, and for those with backbone mlp or neighbours"
        )
    compile_for_sizes(model)


def load_model(config: InferConfig, path: Path, device: torch.device, checked: bool = False) -> Model:
    """The checkpoint's model, ready for prediction."""
    model = build_model(config.model, config.features).to(device, WEIGHTS[config.precision])
    state = checkpoint.read_state(path, mapped=True, checked=checked)  # no memory for the optimizer's part
    checkpoint.load_model(model, state["model"], path)
    return model.eval()
