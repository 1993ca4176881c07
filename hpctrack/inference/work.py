"""Inference on the ranks of one call: which events are whose, and from an event to its committed candidates."""

from __future__ import annotations

import argparse
import contextlib
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named, Section, Seed, SelectionConfig, parse
from hpctrack.errors import InputError, MachineError
from hpctrack.events import sizes
from hpctrack.events.loader import EventLoader
from hpctrack.events.selection import Draw
from hpctrack.files.atomic import write_text
from hpctrack.files.jsonlines import Lines
from hpctrack.graphs import build_graph
from hpctrack.graphs.stored import HandedEdges, StoredEdges
from hpctrack.models import build_model
from hpctrack.parallel.collectives import all_sum, gather, run_on_main
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import WEIGHTS, Precision
from hpctrack.parallel.preemption import Preemption
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.planning.partition import longest_first
from hpctrack.storage import candidates, edges, journals
from hpctrack.storage.schema import Candidates
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builder import to_numpy, with_parameters
from hpctrack.tracking.builders import OF_EDGES, build_builder
from hpctrack.training import checkpoint
from hpctrack.training.size_table import SizeTable

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


@dataclass(frozen=True)
class Part:
    """Share `number` (from 0) of the events, one of `of`, done by a job of its own."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """From I/N; for argparse."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if not found or not int(found[1]) < int(found[2]):
            raise argparse.ArgumentTypeError(f"'{text}' must be I/N with I from 0 to N - 1, e.g. 3/16")
        return cls(int(found[1]), int(found[2]))

    @property
    def name(self) -> str:
        """The beginning of what it writes."""
        return f"part-{self.number:05d}-of-{self.of:05d}"

    def is_beside(self, name: str) -> bool:
        """Whether what `name` begins is of another of the same `of` parts."""
        return name.startswith("part-") and f"-of-{self.of:05d}" in name and not name.startswith(self.name)

    def end(self, out: Path) -> int:
        """Say on disk that this share is done; how many are."""
        write_text(out / journals.PARTS / f"{self.name}.done", "")
        return len(list((out / journals.PARTS).glob(f"part-*-of-{self.of:05d}.done")))


@dataclass(frozen=True)
class Product:
    """How what inference makes of events is stored: a journal of records, files beside the shards, an index."""

    encode: Callable[[Any], bytes]
    write_shard: Callable[..., str]
    write_index: Callable[..., None]
    open_store: Callable[[Path], candidates.CandidateStore]


PRODUCTS = {
    "candidates": Product(journals.encode, candidates.write_shard, candidates.write_index, candidates.open_store),
    "edges": Product(edges.encode, edges.write_shard, edges.write_index, edges.open_store),
}


class Reconstruction(Protocol):
    """From an event to its candidates; `recipe` is all that these depend on beside the dataset.

    `product` names what is made, in PRODUCTS: a stage of a pipeline makes edges for the next one.
    """

    product: str
    draw: Draw
    recipe: dict[str, Any]

    def __call__(self, row: int) -> tuple[Candidates, dict[str, float]]:
        """Candidates of event `row`; `n_hits` seen and seconds of the parts (`read_s`, `model_s`, `build_s`, …)."""


class ByModel:
    """A checkpoint's model, and a builder on what it puts out; its graph is that of `config`, unless one is given."""

    def __init__(
        self, config: InferConfig, path: Path, data: Dataset, device: torch.device, graph: HandedEdges | None = None
    ) -> None:
        self._data, self._device = data, device
        self._model = load_model(config, path, device)
        self._load = EventLoader(
            data,
            config.features,
            config.selection,
            AugmentConfig(),
            (config.seed, INFER),
            WEIGHTS[config.precision],
            graph=graph or build_graph(config.graph, data.folder, data),
            labels=False,
        )
        self.draw = self._load.draw
        self._builder = build_builder(config.builder)
        self.product = "edges" if config.builder.name in OF_EDGES else "candidates"
        self._precision = Precision(config.precision, device)
        self.recipe = {"model_digest": checkpoint.digest(self._model), **config.model_dump(mode="json")}

    def __call__(self, row: int) -> tuple[Candidates, dict[str, float]]:
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
        found = self._builder.build(outputs, hit_rows, n_hits, int(batch.event_id))
        if self.product == "candidates":
            found = with_parameters(found, outputs, hit_rows)
        times.append(time.perf_counter())
        seconds = zip(("read_s", "model_s", "build_s"), np.diff(times).tolist(), strict=True)
        return found, {"n_hits": batch.num_nodes} | dict(seconds)


class Chain:
    """Stages of a pipeline one after another: each sees the edges that the one before has found, nothing is stored.

    Raises InputError if a stage before the last makes no edges, or one after the first sees no edges of another.
    """

    def __init__(
        self, configs: Sequence[InferConfig], paths: Sequence[Path], data: Dataset, device: torch.device
    ) -> None:
        self._handed = [None] + [handed(config, path) for config, path in zip(configs[1:], paths[1:], strict=True)]
        stages = zip(configs, paths, self._handed, strict=True)
        self._stages = [ByModel(config, path, data, device, graph) for config, path, graph in stages]
        for stage, path in zip(self._stages[:-1], paths, strict=False):
            if stage.product != "edges":
                raise InputError(f"{path}: its builder makes {stage.product}, but the next stage needs edges")
        last = self._stages[-1]
        self.product, self.draw = last.product, last.draw
        before = [stage.recipe for stage in self._stages[:-1]]
        self.recipe = last.recipe | ({"stages": before} if before else {})  # whose edges take the place of stored ones

    def __call__(self, row: int) -> tuple[Candidates, dict[str, float]]:
        """What the last stage finds; seconds are sums over the stages, with those of each besides, as `stage_s`."""
        found, total, stage_s = None, {}, []
        for stage, graph in zip(self._stages, self._handed, strict=True):
            if graph is not None:
                graph.found = found
            found, took = stage(row)
            stage_s.append(took["read_s"] + took["model_s"] + took["build_s"])
            total = {key: value if key == "n_hits" else total.get(key, 0.0) + value for key, value in took.items()}
        return found, total if len(stage_s) == 1 else total | {"stage_s": stage_s}


def handed(config: InferConfig, path: Path) -> HandedEdges:
    """The graph of a stage that sees stored edges, for edges that are handed on instead."""
    if config.graph is None or config.graph.name != "stored":
        name = config.graph.name if config.graph else "none"
        raise InputError(f"{path}: its graph is {name}, so it cannot follow a stage; its recipe needs 'stored'")
    return HandedEdges(parse(StoredEdges.Options, config.graph.options, "graph", "graph"))


class Task:
    """The events of this call, spread over its ranks."""

    def __init__(
        self, how: Reconstruction, data: Dataset, out: Path, env: Env, part: Part | None, watchdog: Watchdog | None
    ) -> None:
        self.how, self.data, self.out, self.env = how, data, out, env
        self.part, self.watchdog = part, watchdog
        self.writer = f"{part.name + '-' if part else ''}rank-{env.rank:05d}"
        self.sources: dict[int, Any] = {}  # where each event's record is, of all ranks

    def look(self) -> None:
        """Know the events' sizes before anything is written; InputError if the selection leaves no hit of any."""
        if self.data.n_hits.any() and not self.hits.any():
            run_on_main(self._refuse, self.env)

    @cached_property
    def hits(self) -> np.ndarray:
        """Hits of each event that the selection leaves, exact; the first time, all ranks must ask together."""
        data, draw = self.data, self.how.draw
        if draw.keeps_all:
            return data.n_hits
        alive = self.watchdog.feed if self.watchdog else None
        return SizeTable(data, draw, self.env, [data.folder], alive).in_epoch(0).hits

    def _refuse(self) -> None:
        raise sizes.nothing_left(self.data, self.how.draw, sizes.key_of("selection"))

    def rows(self) -> np.ndarray:
        """Rows of this rank's events: an equal share, by cost, of those that have no record yet."""
        env, part = self.env, self.part
        cost = self.hits.astype(np.float64)
        chosen = longest_first(cost, part.of)[0] == part.number if part else np.ones(len(cost), dtype=bool)
        others = part.is_beside if part else None  # their events are theirs
        self.sources = done = everyones(journals.committed(self.out, env.rank, env.world, others), env)
        ids = self.data.event_ids
        todo = np.array([row for row in np.flatnonzero(chosen) if int(ids[row]) not in done], dtype=np.int64)
        of = f"part {part.number} of {part.of}, " if part else ""
        env.say(f"{self.out}: {of}{len(todo)} events to do, {len(done)} done before, {env.world} x {env.device.type}")
        return todo[longest_first(cost[todo], env.world)[0] == env.rank]

    def build(self) -> int:
        """Reconstruct and commit this rank's events; an exit code if the ranks were told to end before the last."""
        rows, done, places, faults = self.rows(), 0, {}, []
        journal = journals.Journal(self.out, self.writer)
        path = self.out / journals.PARTS / f"{self.writer}.timings"
        with Preemption("infer") as preemption, contextlib.closing(Lines(path)) as timings:
            while done < len(rows) and not preemption.noticed:
                if self.watchdog:
                    self.watchdog.feed(f"event {self.data.event_ids[rows[done]]}")
                try:
                    found, took = self.how(int(rows[done]))
                except NotFinite as error:  # the other events are not its fault; all ranks end with its name
                    faults.append(str(error))
                    done += 1
                    continue
                sizes.check(self.data, [found.event_id], [took["n_hits"]], [self.hits[rows[done]]])
                entry = {"event_id": found.event_id, f"n_{self.how.product}": len(found), "rank": self.env.rank} | took
                timings.append(entry)
                payload = PRODUCTS[self.how.product].encode(found)
                places[found.event_id] = journal.append_payload(found.event_id, payload)
                done += 1
                if done % max(1, len(rows) // 10) == 0:
                    place = f"({done}/{len(rows)} on this rank)"
                    self.env.say(f"event {found.event_id}: {len(found)} {self.how.product}  {place}")
            journal.close()
            if self.watchdog:
                self.watchdog.rest()
            self.sources = self.sources | everyones(places, self.env)
            faults = sorted(fault for part in gather(faults, self.env) for fault in part)
            if faults:
                more = f", and {len(faults) - 1} events more" if len(faults) > 1 else ""
                raise MachineError(f"{faults[0]}{more}; no {self.how.product} are made of them, all others are there")
            left = int(all_sum([len(rows) - done], self.env)[0])
            if not left:
                return 0
            code = preemption.agree(self.env)
            self.env.say(f"{preemption.said(code)}: {left} events are left, the same command goes on with them")
            return code


class NotFinite(MachineError):
    """A model has given infinities or not-a-number for an event, from which nothing is built."""


def check_finite(outputs: dict[str, np.ndarray], event_id: int) -> None:
    """NotFinite that names the event and the first of a model's outputs that is not finite."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))[0])
            raise NotFinite(f"event {event_id}: the model's output '{name}' is not finite (row {row} of {len(values)})")


def load_model(config: InferConfig, path: Path, device: torch.device) -> torch.nn.Module:
    """The checkpoint's model, ready for prediction."""
    model = build_model(config.model, config.features).to(device, WEIGHTS[config.precision])
    state = checkpoint.read_state(path, mapped=True)  # no memory for the optimizer's part
    checkpoint.load_model(model, state["model"], path)
    return model.eval()


def everyones(found: dict[int, Any], env: Env) -> dict[int, Any]:
    """The union of what the ranks found; of an event that is there twice, the lowest rank's."""
    union: dict[int, Any] = {}
    for part in gather(found, env):
        union = part | union
    return union
