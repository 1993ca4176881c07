"""`hpctrack convert SOURCE OUT`: TrackML CSV -> sharded HDF5, or a dataset -> a dataset of sub-events.

A shard is the unit of work: a task reads its events and writes one file. Shards get their names when they are whole,
the index is written last, and a rerun keeps the shards that the same call made before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from hpctrack import __version__
from hpctrack.data import schema, store, trackml
from hpctrack.data.selection import draw_rows, target_particles
from hpctrack.errors import InputError, MachineError, verb

SKIPPED = "skipped.json"
DRAWS_PER_EVENT = 1000  # a sub-event's id is 1000 * the event's id + the draw


# ------------------------------------------------------------------------------------------------ sources of events


class Reader(Protocol):
    """What a task needs of a source of events; picklable, so small or lazily loaded."""

    def event_ids(self) -> list[int]:
        """The source's event ids, ascending."""

    def stamp(self, event_id: int) -> object:
        """JSON-able; changes when the event's input or the options change."""

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The events to write for one event of the source; InputError if it is bad."""


@dataclass
class TrackmlReader:
    """Events from TrackML CSV files."""

    source: trackml.Source
    detectors: str | None
    with_truth: bool

    def event_ids(self) -> list[int]:
        return list(self.source.events)

    def stamp(self, event_id: int) -> object:
        outside = trackml.find_detectors(self.source, self.detectors)
        if outside is not None:
            geometry = [str(outside), outside.stat().st_size, outside.stat().st_mtime_ns]
        else:
            geometry = self.source.detectors and self.source.stamp(self.source.detectors)
        files = [self.source.stamp(member) for _, member in sorted(self.source.events[event_id].items())]
        return [str(self.source.path.absolute()), event_id, files, geometry, self.with_truth]

    def read(self, event_id: int) -> Iterator[schema.Event]:
        modules = _detectors(str(self.source.path), self.detectors)
        yield trackml.read_event(self.source, event_id, modules, self.with_truth)


@lru_cache(maxsize=2)
def _detectors(source: str, path: str | None) -> trackml.Detectors | None:
    """Once a process."""
    return trackml.read_detectors(trackml.find_events(source), path)


@dataclass
class SubEventReader:
    """Disjoint groups of `tracks` target particles of a dataset's events, up to `draws` an event (None: all)."""

    dataset: store.Dataset
    tracks: int
    draws: int | None
    pt_min_gev: float
    min_hits: int
    remove_noise: bool
    seed: int

    def event_ids(self) -> list[int]:
        return self.dataset.event_ids.tolist()

    def stamp(self, event_id: int) -> object:
        options = {key: value for key, value in vars(self).items() if key != "dataset"}
        return [self.dataset.fingerprint, event_id, options]

    def read(self, event_id: int) -> Iterator[schema.Event]:
        event = self.dataset.read(int(np.searchsorted(self.dataset.event_ids, event_id)), verify=True)
        target = target_particles(event, self.pt_min_gev, self.min_hits)
        order = np.random.default_rng([self.seed, event_id]).permutation(np.flatnonzero(target))
        groups = len(order) // self.tracks
        if self.draws is not None:
            groups = min(groups, self.draws)
        if groups > DRAWS_PER_EVENT:
            raise InputError(f"event {event_id}: {groups} draws, at most {DRAWS_PER_EVENT} are possible; set --draws")
        if event_id > (np.iinfo(np.int64).max - DRAWS_PER_EVENT) // DRAWS_PER_EVENT:
            raise InputError(f"event {event_id}: sub-event ids ({DRAWS_PER_EVENT} * id + draw) exceed 64 bits")
        noise = event.column("truth.particle_row") < 0
        for draw in range(groups):
            drawn = np.zeros(len(target), dtype=bool)
            drawn[order[draw * self.tracks : (draw + 1) * self.tracks]] = True
            rng = np.random.default_rng([self.seed, event_id, draw])
            rows = draw_rows(event, drawn, noise & (not self.remove_noise), self.tracks / len(order), rng)
            yield sub_event(event, DRAWS_PER_EVENT * event_id + draw, rows, drawn)


def sub_event(event: schema.Event, event_id: int, rows: np.ndarray, drawn: np.ndarray) -> schema.Event:
    """The hits `rows` (ascending) and the particles `drawn` (bool [P]) of an event, under a new id."""
    tables = {t: {c: values[rows] for c, values in event.tables[t].items()} for t in schema.HIT_TABLES}
    tables["particles"] = {c: values[drawn] for c, values in event.tables["particles"].items()}
    new_row = np.where(drawn, np.cumsum(drawn) - 1, -1).astype(np.int32)
    row = tables["truth"]["particle_row"]
    tables["truth"]["particle_row"] = np.where(row >= 0, new_row[row], np.int32(-1)) if len(new_row) else row
    return schema.Event(event_id, tables)


# ------------------------------------------------------------------------------------------------ tasks


@dataclass
class Task:
    """One shard to make: `recipe` says from what, so that a rerun can tell a finished shard from another's."""

    reader: Reader
    event_ids: list[int]
    path: Path
    recipe: str
    skip_bad: bool


@dataclass
class Done:
    """What became of a task; `name` is None if every event of it was bad."""

    name: str | None
    n_source: int
    n_events: int
    kept: bool = False
    skipped: list[dict[str, object]] = field(default_factory=list)


def plan_tasks(reader: Reader, out: Path, events_per_shard: int, limit: int | None, skip_bad: bool) -> list[Task]:
    """Cut the source's (first `limit`) events, in the order of their ids, into shards."""
    ids = reader.event_ids()[:limit]
    tasks = []
    for number, start in enumerate(range(0, len(ids), events_per_shard)):
        chunk = ids[start : start + events_per_shard]
        stamps = [schema.FORMAT, schema.VERSION, __version__, [reader.stamp(event_id) for event_id in chunk]]
        recipe = xxhash.xxh3_128_hexdigest(json.dumps(stamps).encode())
        tasks.append(Task(reader, chunk, out / store.shard_name(number), recipe, skip_bad))
    return tasks


def run_task(task: Task) -> Done:
    """Make one shard, or keep the one that an earlier run of the same call left."""
    found = store.shard_attributes(task.path)
    if found and found.get("recipe") == task.recipe:
        skipped = json.loads(found["skipped"])
        if task.skip_bad or not skipped:
            return Done(task.path.name, len(task.event_ids), found["n_events"], kept=True, skipped=skipped)
    skipped, events = [], []
    for event_id in task.event_ids:
        try:
            events.extend(task.reader.read(event_id))
        except InputError as error:
            if not task.skip_bad:
                raise
            skipped.append({"event_id": event_id, "reason": " ".join(str(error).split())})
    with store.ShardWriter(task.path, {"recipe": task.recipe, "skipped": json.dumps(skipped)}) as writer:
        for event in events:
            writer.add(event)
    return Done(task.path.name if events else None, len(task.event_ids), len(events), skipped=skipped)


def run_tasks(tasks: Sequence[Task], jobs: int) -> Iterator[Done]:
    """Run the tasks in `jobs` processes; results, and the first error, come in the order of the tasks."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        yield from map(run_task, tasks)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_task, task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise MachineError("a worker process died (out of memory?); run the same command again to go on") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


# ------------------------------------------------------------------------------------------------ the verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hpctrack convert", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", help="folder or zip of TrackML files, or a dataset folder")
    parser.add_argument("out", type=Path, help="dataset folder to write")
    parser.add_argument("--events-per-shard", type=_positive, default=16, metavar="N", help="of the source; default 16")
    parser.add_argument("--jobs", type=_positive, default=_cores(), metavar="J", help="processes; default: the cores")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N events")
    parser.add_argument("--skip-bad", action="store_true", help=f"leave bad events out and list them in {SKIPPED}")
    parser.add_argument("--overwrite", action="store_true", help="replace the dataset in OUT")
    csv = parser.add_argument_group("TrackML files")
    csv.add_argument("--detectors", metavar="FILE", help="detectors.csv[.gz]; default: in SOURCE or beside it")
    csv.add_argument("--no-truth", action="store_true", help="events without truth: all hits become noise")
    sub = parser.add_argument_group("sub-events of a dataset")
    sub.add_argument("--tracks", type=_positive, metavar="T", help="tracks a sub-event")
    sub.add_argument("--draws", type=_positive, metavar="D", help="at most D sub-events an event; default: all")
    sub.add_argument("--pt-min-gev", type=float, metavar="PT", help="least pT of a track; default 0")
    sub.add_argument("--min-hits", type=_positive, metavar="H", help="least hits of a track; default 3")
    sub.add_argument("--remove-noise", action="store_true", help="else noise is thinned like the tracks")
    sub.add_argument("--seed", type=int, help="default 0")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_reader(args: argparse.Namespace) -> Reader:
    """The reader that SOURCE and the options ask for; InputError if they do not fit together."""
    sub = {key: getattr(args, key) for key in ("tracks", "draws", "pt_min_gev", "min_hits", "remove_noise", "seed")}
    given = [f"--{key.replace('_', '-')}" for key, value in sub.items() if value not in (None, False)]
    if (Path(args.source) / store.INDEX).is_file():
        if args.detectors or args.no_truth:
            raise InputError(f"{args.source}: is a dataset already; --detectors and --no-truth are for TrackML files")
        if args.tracks is None:
            raise InputError(f"{args.source}: is a dataset already; --tracks T makes sub-events of it")
        if args.draws is not None and args.draws > DRAWS_PER_EVENT:
            raise InputError(f"--draws is {args.draws}, must be at most {DRAWS_PER_EVENT}")
        options = {"pt_min_gev": sub["pt_min_gev"] or 0.0, "min_hits": sub["min_hits"] or 3, "seed": sub["seed"] or 0}
        return SubEventReader(store.open_dataset(args.source), **(sub | options))
    source = trackml.find_events(args.source)
    if given:
        raise InputError(f"{args.source}: holds TrackML files; {given[0]} is for a dataset, so convert these first")
    trackml.check_files(source, with_truth=not args.no_truth)
    if source.faults and not args.skip_bad:
        raise InputError(next(iter(source.faults.values())))
    return TrackmlReader(source, args.detectors, with_truth=not args.no_truth)


@verb("convert")
def main(argv: Sequence[str] | None = None) -> int | None:
    """The verb: plan the shards, make them, write the index, say what was done."""
    args = _parser().parse_args(argv)
    reader = make_reader(args)
    if isinstance(reader, TrackmlReader) and _detectors(args.source, args.detectors) is None:
        print("convert: no detectors.csv: module ids are not checked", file=sys.stderr)
    tasks = plan_tasks(reader, args.out, args.events_per_shard, args.limit, args.skip_bad)
    recipe = xxhash.xxh3_128_hexdigest("".join(task.recipe for task in tasks).encode())
    if _prepare(args.out, recipe, args.overwrite, args.skip_bad):
        print(f"convert: {args.out} is complete already", file=sys.stderr)
    else:
        done = list(_show_progress(run_tasks(tasks, args.jobs), tasks))
        _finish(args.out, recipe, done, reader)
    _summary(args.out)
    return None


def _prepare(out: Path, recipe: str, overwrite: bool, skip_bad: bool) -> bool:
    """Make OUT ready; True if the same call has finished it before. InputError if it holds another dataset."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; OUT must be a folder")
    out.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in (store.INDEX, SKIPPED):
            (out / name).unlink(missing_ok=True)
        for path in out.glob("events-*.h5"):
            path.unlink()
    if (out / store.INDEX).exists():
        attributes = store.open_dataset(out).attributes
        if attributes.get("recipe") == recipe and (skip_bad or not attributes["n_skipped"]):
            return True
        raise InputError(f"{out}: holds another dataset; choose another folder, or --overwrite to replace it")
    return False


def _finish(out: Path, recipe: str, done: Sequence[Done], reader: Reader) -> None:
    """Write skipped.json and the index, and remove what earlier, broken runs left."""
    skipped = [entry for result in done for entry in result.skipped]
    shards = [result.name for result in done if result.name]
    if not shards:
        if skipped:
            raise InputError(f"none of the {len(skipped)} events can be used; the first: {skipped[0]['reason']}")
        raise InputError("no event has enough tracks for a sub-event; lower --tracks, --pt-min-gev or --min-hits")
    for path in [*out.glob("events-*.h5"), *out.glob(".events-*.tmp"), *out.glob(f".{store.INDEX}.*.tmp")]:
        if path.name not in shards:
            path.unlink()
    if skipped:
        store.write_json(out / SKIPPED, skipped)
    else:
        (out / SKIPPED).unlink(missing_ok=True)
    store.write_index(out, shards, {"recipe": recipe, "n_skipped": len(skipped)})


def _show_progress(results: Iterator[Done], tasks: Sequence[Task]) -> Iterator[Done]:
    """Pass the results on; a line on stderr now and then."""
    total, start, last, events = sum(len(task.event_ids) for task in tasks), time.monotonic(), 0.0, 0
    for number, result in enumerate(results, 1):
        events += result.n_source
        now = time.monotonic()
        if now - last > 2 or number == len(tasks):
            rate, last = events / (now - start + 1e-9), now
            left = (total - events) / rate
            print(f"convert: {events}/{total} events, {rate:.2f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
        yield result


def _summary(out: Path) -> None:
    dataset = store.open_dataset(out)
    hits, noise, particles = (int(n.sum()) for n in (dataset.n_hits, dataset.n_noise, dataset.n_particles))
    print(f"{out}: {len(dataset)} events, {hits} hits ({noise} noise), {particles} particles, ", end="")
    print(f"{len(dataset.shards)} shards, fingerprint {dataset.fingerprint}")
    if dataset.attributes["n_skipped"]:
        for entry in json.loads((out / SKIPPED).read_text()):
            print(f"left out: event {entry['event_id']}: {entry['reason']}")


if __name__ == "__main__":
    raise SystemExit(main())
