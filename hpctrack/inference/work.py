"""Inference on the ranks of one call: which events are whose, and from an event to its committed candidates."""

from __future__ import annotations

import argparse
import contextlib
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpctrack.division.exchange import Exchange
from hpctrack.errors import MachineError
from hpctrack.events import sizes
from hpctrack.files.atomic import write_text
from hpctrack.files.jsonlines import Lines
from hpctrack.inference.stages import NotFinite, Reconstruction
from hpctrack.parallel.collectives import all_sum, gather, run_on_main
from hpctrack.parallel.env import Env
from hpctrack.parallel.preemption import Preemption
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.planning.partition import longest_first
from hpctrack.storage import journals
from hpctrack.storage.candidates import CANDIDATES
from hpctrack.storage.edges import EDGES
from hpctrack.storage.hits import HITS
from hpctrack.storage.products import Product
from hpctrack.storage.store import Dataset
from hpctrack.training.size_table import SizeTable


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


PRODUCTS: dict[str, Product] = {product.name: product for product in (CANDIDATES, EDGES, HITS)}


class Task:
    """The events of this call, spread over its ranks."""

    def __init__(
        self,
        how: Reconstruction,
        data: Dataset,
        out: Path,
        env: Env,
        *,
        part: Part | None,
        watchdog: Watchdog | None,
        exchange: Exchange | None = None,
    ) -> None:
        self.exchange, self.together = exchange, 1 if exchange is None else exchange.of
        self.leads = exchange is None or exchange.number == 0  # of the ranks that hold an event together one writes
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
        self.sources = done = union_over_ranks(journals.committed(self.out, env.rank, env.world, others), env)
        ids = self.data.event_ids
        todo = np.array([row for row in np.flatnonzero(chosen) if int(ids[row]) not in done], dtype=np.int64)
        of = f"part {part.number} of {part.of}, " if part else ""
        env.say(f"{self.out}: {of}{len(todo)} events to do, {len(done)} done before, {env.world} x {env.device.type}")
        group = longest_first(cost[todo], env.world // self.together)[0]
        return todo[group == env.rank // self.together]

    def ends(self, noticed: bool) -> bool:
        """Whether this rank was told to end, or one that holds events together with it."""
        if self.exchange is None:
            return noticed
        return bool(self.exchange.all_sum(torch.tensor([int(noticed)], device=self.env.device)))

    def build(self) -> int:
        """Reconstruct and commit this rank's events; an exit code if the ranks were told to end before the last."""
        rows, done, places, faults = self.rows(), 0, {}, []
        form = PRODUCTS[self.how.product]
        journal = journals.Journal(self.out, self.writer)
        path = self.out / journals.PARTS / f"{self.writer}.timings"
        with Preemption("infer") as preemption, contextlib.closing(Lines(path)) as timings:
            while done < len(rows) and not self.ends(preemption.noticed):
                if self.watchdog:
                    self.watchdog.feed(f"event {self.data.event_ids[rows[done]]}")
                try:
                    found, took = self.how(int(rows[done]))
                except NotFinite as error:  # the other events are not its fault; all ranks end with its name
                    faults += [str(error)] if self.leads else []
                    done += 1
                    continue
                sizes.check(self.data, [found.event_id], [took.n_hits], [self.hits[rows[done]]])
                if not self.leads:
                    done += 1
                    continue
                entry = {"event_id": found.event_id, form.count_name: len(found), "rank": self.env.rank}
                timings.append(entry | took.entry())
                payload = form.encode(found)
                places[found.event_id] = journal.append(found.event_id, payload)
                done += 1
                if done % max(1, len(rows) // 10) == 0:
                    place = f"({done}/{len(rows)} on this rank)"
                    self.env.say(f"event {found.event_id}: {len(found)} {self.how.product}  {place}")
            journal.close()
            if self.watchdog:
                self.watchdog.rest()
            self.sources = self.sources | union_over_ranks(places, self.env)
            faults = sorted(fault for part in gather(faults, self.env) for fault in part)
            if faults:
                more = f", and {len(faults) - 1} events more" if len(faults) > 1 else ""
                raise MachineError(f"{faults[0]}{more}; no {self.how.product} are made of them, all others are there")
            left = int(all_sum([len(rows) - done if self.leads else 0], self.env)[0])
            if not left:
                return 0
            code = preemption.agree(self.env)
            self.env.say(f"{preemption.said(code)}: {left} events are left, the same command goes on with them")
            return code


def union_over_ranks(found: dict[int, Any], env: Env) -> dict[int, Any]:
    """The union of what the ranks found; of an event that is there twice, the lowest rank's."""
    union: dict[int, Any] = {}
    for part in gather(found, env):
        union = part | union
    return union
