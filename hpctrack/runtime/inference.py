"""Inference on the ranks of one call: which events are whose, and from an event to its committed candidates."""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack.config import AugmentConfig, Named, Section, SelectionConfig
from hpctrack.data import candidates
from hpctrack.data.files import naming, write_text
from hpctrack.data.loader import EventLoader, expected_hits
from hpctrack.data.partition import longest_first
from hpctrack.data.schema import Candidates
from hpctrack.data.store import Dataset
from hpctrack.models import build_model
from hpctrack.parallel.collectives import all_sum, gather
from hpctrack.parallel.env import Env
from hpctrack.parallel.precision import WEIGHTS, Precision
from hpctrack.runtime import checkpoint
from hpctrack.runtime.preempt import Preemption
from hpctrack.runtime.watchdog import Watchdog
from hpctrack.tracking.builders import build_builder

INFER = 2  # random stream of draws in inference


class InferConfig(Section):
    """What inference takes from the checkpoint's run, or from overrides."""

    seed: int
    features: list[str]
    selection: SelectionConfig = SelectionConfig()
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

    def end(self, out: Path) -> int:
        """Say on disk that this share is done; how many are."""
        write_text(out / candidates.PARTS / f"{self.name}.done", "")
        return len(list((out / candidates.PARTS).glob(f"part-*-of-{self.of:05d}.done")))


class Task:
    """The events of this call, spread over its ranks."""

    def __init__(
        self,
        config: InferConfig,
        model: torch.nn.Module,
        data: Dataset,
        out: Path,
        env: Env,
        part: Part | None,
        watchdog: Watchdog | None,
    ) -> None:
        self.config, self.model, self.data, self.out, self.env = config, model, data, out, env
        self.part, self.watchdog = part, watchdog
        self.load = EventLoader(
            data, config.features, config.selection, AugmentConfig(), (config.seed, INFER), WEIGHTS[config.precision]
        )
        self.builder = build_builder(config.builder)
        self.precision = Precision(config.precision, env.device)
        self.writer = f"{part.name + '-' if part else ''}rank-{env.rank:05d}"
        self.sources: dict[int, Any] = {}  # where each event's record is, of all ranks

    def rows(self) -> np.ndarray:
        """Rows of this rank's events: an equal share, by cost, of those that have no record yet."""
        env, part = self.env, self.part
        cost = expected_hits(self.data, self.config.selection)
        chosen = longest_first(cost, part.of)[0] == part.number if part else np.ones(len(cost), dtype=bool)
        writers = f"{part.name}-*" if part else "*"
        self.sources = done = everyones(candidates.committed(self.out, env.rank, env.world, writers), env)
        ids = self.data.event_ids
        todo = np.array([row for row in np.flatnonzero(chosen) if int(ids[row]) not in done], dtype=np.int64)
        of = f"part {part.number} of {part.of}, " if part else ""
        say(env, f"{self.out}: {of}{len(todo)} events to do, {len(done)} done before, {env.world} x {env.device.type}")
        return todo[longest_first(cost[todo], env.world)[0] == env.rank]

    def build(self) -> bool:
        """Read, predict, build and commit this rank's events; False if the ranks were told to end before the last."""
        rows, done, places = self.rows(), 0, {}
        journal = candidates.Journal(self.out, self.writer)
        path = self.out / candidates.PARTS / f"{self.writer}.timings"
        with Preemption() as preemption, naming(path), open(path, "a") as timings:
            while done < len(rows) and not preemption.noticed:
                if self.watchdog:
                    self.watchdog.feed(f"event {self.data.event_ids[rows[done]]}")
                found, entry = self.event(int(rows[done]))
                timings.write(json.dumps(entry) + "\n")
                timings.flush()
                places[found.event_id] = journal.append(found)
                done += 1
                if done % max(1, len(rows) // 10) == 0:
                    place = f"({done}/{len(rows)} on this rank)"
                    say(self.env, f"event {found.event_id}: {len(found)} candidates  {place}")
            journal.close()
            if self.watchdog:
                self.watchdog.rest()
            self.sources = self.sources | everyones(places, self.env)
            left = int(all_sum([len(rows) - done], self.env)[0])
            if left:
                say(self.env, f"{preemption.said()}: {left} events are left, the same command goes on with them")
        return not left

    def event(self, row: int) -> tuple[Candidates, dict[str, Any]]:
        """Candidates of one event, and what they took."""
        times = [time.perf_counter()]
        batch = Batch.from_data_list([self.load(row, 0)]).to(self.env.device)
        times.append(time.perf_counter())
        with torch.inference_mode(), self.precision.autocast():
            outputs = {name: value.float().cpu().numpy() for name, value in self.model(batch).items()}
        times.append(time.perf_counter())
        n_hits = int(self.data.n_hits[row])
        found = self.builder.build(outputs, batch.hit_row.cpu().numpy(), n_hits, int(batch.event_id))
        times.append(time.perf_counter())
        sizes = {"event_id": found.event_id, "n_hits": batch.num_nodes, "n_candidates": len(found)}
        seconds = zip(("read_s", "model_s", "build_s"), np.diff(times).tolist(), strict=True)
        return found, sizes | {"rank": self.env.rank} | dict(seconds)


def load_model(config: InferConfig, path: Path, device: torch.device) -> torch.nn.Module:
    """The checkpoint's model, ready for prediction."""
    model = build_model(config.model, config.features).to(device, WEIGHTS[config.precision])
    state = checkpoint.read_state(path, device)
    checkpoint.load_into(model, state.get("model", {}), path)
    return model.eval()


def everyones(found: dict[int, Any], env: Env) -> dict[int, Any]:
    """The union of what the ranks found; of an event that is there twice, the lowest rank's."""
    union: dict[int, Any] = {}
    for part in gather(found, env):
        union = part | union
    return union


def say(env: Env, text: str) -> None:
    """Print on rank 0."""
    if env.is_main:
        print(text, flush=True)
