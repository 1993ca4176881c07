"""`hpctrack convert SOURCE OUT`: TrackML CSV -> sharded HDF5, or a dataset -> a dataset of sub-events.

A shard is the unit of work: a task reads its events and writes one file. Shards get their names when they are whole,
the index is written last, and a rerun keeps the shards that the same call made before.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Protocol

import xxhash

from hpctrack import __version__
from hpctrack.data import schema, store
from hpctrack.data.detectors import Detectors, find_detectors, read_detectors
from hpctrack.data.files import write_json
from hpctrack.data.subevents import MAX_DRAWS, SubEventReader
from hpctrack.data.trackml import read_event
from hpctrack.data.trackml_source import Source, check_files, find_events
from hpctrack.errors import InputError, MachineError, verb

SKIPPED = "skipped.json"


# ------------------------------------------------------------------------------------------------ sources of events


class Reader(Protocol):
    """What a task needs of a source of events; picklable, so small or lazily loaded."""

    def event_ids(self) -> list[int]:
        """The source's event ids, ascending."""

    def origin(self) -> dict[str, object]:
        """What the events come from, for the index."""

    def stamp(self, event_id: int) -> object:
        """JSON-able; changes when the event's input or the options change."""

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The events to write for one event of the source; InputError if it is bad."""


@dataclass
class TrackmlReader:
    """Events from TrackML CSV files."""

    source: Source
    detectors: str | None
    with_truth: bool

    def event_ids(self) -> list[int]:
        """The source's."""
        return list(self.source.events)

    def origin(self) -> dict[str, object]:
        """The format alone: where the files lay says nothing of their content."""
        return {"kind": "trackml", "truth": self.with_truth}

    def stamp(self, event_id: int) -> object:
        """Names, sizes and versions of the event's files and of the detectors' file."""
        files = [self.source.stamp(member) for _, member in sorted(self.source.events[event_id].items())]
        return [str(self.source.path.absolute()), event_id, files, self._geometry, self.with_truth]

    @cached_property
    def _geometry(self) -> object:
        found = find_detectors(self.source, self.detectors)
        return found and [str(found[0].path.absolute()), found[0].stamp(found[1])]

    @cached_property
    def modules(self) -> Detectors | None:
        """The detector's modules, None if the source has no detectors.csv."""
        return read_detectors(self.source, self.detectors)

    def read(self, event_id: int) -> Iterator[schema.Event]:
        """The event."""
        yield read_event(self.source, event_id, self.modules, self.with_truth)


# ------------------------------------------------------------------------------------------------ tasks


@dataclass
class Task:
    """One shard to make: `recipe` says from what, so that a rerun can tell a finished shard from another's."""

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
        tasks.append(Task(chunk, out / store.shard_name(number), recipe, skip_bad))
    return tasks


def run_task(reader: Reader, task: Task) -> Done:
    """Make one shard, or keep the one that an earlier run of the same call left."""
    found = store.shard_attributes(task.path)
    if found and found.get("recipe") == task.recipe:
        skipped = json.loads(found["skipped"])
        if task.skip_bad or not skipped:
            return Done(task.path.name, len(task.event_ids), found["n_events"], kept=True, skipped=skipped)
    skipped, events = [], []
    for event_id in task.event_ids:
        try:
            events.extend(reader.read(event_id))
        except InputError as error:
            if not task.skip_bad:
                raise
            skipped.append({"event_id": event_id, "reason": " ".join(str(error).split())})
    with store.ShardWriter(task.path, {"recipe": task.recipe, "skipped": json.dumps(skipped)}) as writer:
        for event in events:
            writer.add(event)
    return Done(task.path.name if events else None, len(task.event_ids), len(events), skipped=skipped)


def run_tasks(reader: Reader, tasks: Sequence[Task], jobs: int) -> Iterator[Done]:
    """Run the tasks in `jobs` processes; results, and the first error, come in the order of the tasks."""
    jobs = min(jobs, len(tasks))
    if jobs <= 1:
        for task in tasks:
            yield run_task(reader, task)
        return
    with ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (reader,)) as pool:
        futures = [pool.submit(_work, task) for task in tasks]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise MachineError("a worker process died (out of memory?); run the same command again to go on") from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_READER: Reader  # of a worker process


def _start_worker(reader: Reader) -> None:
    global _READER  # noqa: PLW0603  the pool has no other place for what all tasks share
    _READER = reader
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent's workers would wait for tasks for ever."""
    parent_process().join()
    os._exit(1)


def _work(task: Task) -> Done:
    return run_task(_READER, task)


# ------------------------------------------------------------------------------------------------ the verb


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hpctrack convert", description=__doc__.split("\n\n")[0])
    parser.add_argument("source", help="folder or zip of TrackML files, or a dataset folder")
    parser.add_argument("out", type=Path, help="dataset folder to write")
    parser.add_argument("--events-per-shard", type=_positive, default=16, metavar="N", help="of the source; default 16")
    parser.add_argument("--jobs", type=_positive, default=_cores(), metavar="J", help="processes; default: the cores")
    parser.add_argument("--limit", type=_positive, metavar="N", help="only the first N events")
    parser.add_argument("--skip-bad", action="store_true", help=f"leave bad events out and list them in {SKIPPED}")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier convert left in OUT")
    csv = parser.add_argument_group("TrackML files")
    csv.add_argument("--detectors", metavar="FILE", help="detectors.csv[.gz]; default: in SOURCE or beside it")
    csv.add_argument("--no-truth", action="store_true", help="events without truth: all hits become noise")
    sub = parser.add_argument_group("sub-events of a dataset")
    sub.add_argument("--tracks", type=_positive, metavar="T", help="tracks a sub-event")
    sub.add_argument("--draws", type=_positive, metavar="D", help="at most D sub-events an event; default: all")
    sub.add_argument("--pt-min-gev", type=_momentum, metavar="PT", help="least pT of a track; default 0")
    sub.add_argument("--min-hits", type=_positive, metavar="H", help="least hits of a track; default 3")
    sub.add_argument("--remove-noise", action="store_true", help="else noise is thinned like the tracks")
    sub.add_argument("--seed", type=_natural, help="default 0")
    return parser


def _number(convert: Callable, lowest: float, what: str) -> Callable:
    """A type for argparse."""

    def parse(text: str) -> float:
        try:
            value = convert(text)
        except ValueError:
            value = math.nan
        if not lowest <= value < math.inf:
            raise argparse.ArgumentTypeError(f"'{text}' must be {what}")
        return value

    return parse


_positive = _number(int, 1, "a whole number from 1")
_natural = _number(int, 0, "a whole number from 0")
_momentum = _number(float, 0.0, "a number from 0, in GeV")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_reader(args: argparse.Namespace) -> Reader:
    """The reader that SOURCE and the options ask for; InputError if they do not fit together."""
    if Path(args.source).resolve() == args.out.resolve():
        raise InputError(f"{args.out}: OUT is SOURCE; choose another folder")
    sub = {key: getattr(args, key) for key in ("tracks", "draws", "pt_min_gev", "min_hits", "remove_noise", "seed")}
    given = [f"--{key.replace('_', '-')}" for key, value in sub.items() if value not in (None, False)]
    if (Path(args.source) / store.INDEX).is_file():
        if args.detectors or args.no_truth:
            raise InputError(f"{args.source}: is a dataset already; --detectors and --no-truth are for TrackML files")
        if args.tracks is None:
            raise InputError(f"{args.source}: is a dataset already; --tracks T makes sub-events of it")
        if args.draws is not None and args.draws > MAX_DRAWS:
            raise InputError(f"--draws is {args.draws}, must be at most {MAX_DRAWS}")
        options = {"pt_min_gev": sub["pt_min_gev"] or 0.0, "min_hits": sub["min_hits"] or 3, "seed": sub["seed"] or 0}
        return SubEventReader(store.open_dataset(args.source), **(sub | options))
    source = find_events(args.source)
    if given:
        raise InputError(f"{args.source}: holds TrackML files; {given[0]} is for a dataset, so convert these first")
    check_files(source, with_truth=not args.no_truth)
    faults = [source.faults[event_id] for event_id in list(source.events)[: args.limit] if event_id in source.faults]
    if faults and not args.skip_bad:
        raise InputError(faults[0])
    return TrackmlReader(source, args.detectors, with_truth=not args.no_truth)


@verb("convert")
def main(argv: Sequence[str] | None = None) -> int | None:
    """The verb: plan the shards, make them, write the index, say what was done."""
    args = _parser().parse_args(argv)
    reader = make_reader(args)
    if isinstance(reader, TrackmlReader) and reader.modules is None:
        print("convert: no detectors.csv: module ids are not checked", file=sys.stderr)
    tasks = plan_tasks(reader, args.out, args.events_per_shard, args.limit, args.skip_bad)
    recipe = xxhash.xxh3_128_hexdigest("".join(task.recipe for task in tasks).encode())
    if _prepare(args.out, tasks, recipe, args):
        print(f"convert: {args.out} is complete already", file=sys.stderr)
    else:
        done = list(_show_progress(run_tasks(reader, tasks, args.jobs), tasks))
        _finish(args.out, recipe, done, reader)
    _summary(args.out)
    return None


def _prepare(out: Path, tasks: Sequence[Task], recipe: str, args: argparse.Namespace) -> bool:
    """Make OUT ready; True if the same call has finished it before. InputError if it holds anything else."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; OUT must be a folder")
    out.mkdir(parents=True, exist_ok=True)
    for path in [*out.glob(".events-*.tmp"), *out.glob(f".{store.INDEX}.*.tmp"), *out.glob(f".{SKIPPED}.*.tmp")]:
        path.unlink()  # of a killed run
    if args.overwrite:
        for path in [out / store.INDEX, out / SKIPPED, *out.glob("events-*.h5")]:
            path.unlink(missing_ok=True)
    otherwise = "choose another folder, or --overwrite to replace it"
    if (out / store.INDEX).exists():  # a damaged one is an InputError here
        attributes = store.open_dataset(out).attributes
        if attributes.get("recipe") == recipe and (args.skip_bad or not attributes["n_skipped"]):
            return True
        raise InputError(f"{out}: holds a dataset of other input or options; {otherwise}")
    recipes = {task.path: task.recipe for task in tasks}
    for path in sorted(out.glob("events-*.h5")):
        if (store.shard_attributes(path) or {}).get("recipe") != recipes.get(path):
            raise InputError(f"{path}: left by a convert of other input or options; {otherwise}")
    return False


def _finish(out: Path, recipe: str, done: Sequence[Done], reader: Reader) -> None:
    """Write skipped.json and then the index."""
    skipped = [entry for result in done for entry in result.skipped]
    shards = [result.name for result in done if result.name]
    if not shards:
        if skipped:
            raise InputError(f"none of the {len(skipped)} events can be used; the first: {skipped[0]['reason']}")
        raise InputError("no event has enough tracks for a sub-event; lower --tracks, --pt-min-gev or --min-hits")
    if skipped:
        write_json(out / SKIPPED, skipped)
    else:
        (out / SKIPPED).unlink(missing_ok=True)
    n_source = sum(result.n_source for result in done)
    attributes = {"recipe": recipe, "n_source": n_source, "n_skipped": len(skipped)}
    store.write_index(out, shards, attributes | {"origin": json.dumps(reader.origin())})


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
    if json.loads(dataset.attributes["origin"])["kind"] == "sub-events":
        used = len(set((dataset.event_ids // MAX_DRAWS).tolist()))
        few = dataset.attributes["n_source"] - dataset.attributes["n_skipped"] - used
        print(f"from {used} events; {few} have too few tracks for a sub-event")
    if dataset.attributes["n_skipped"]:
        for entry in json.loads((out / SKIPPED).read_text()):
            print(f"left out: event {entry['event_id']}: {entry['reason']}")


if __name__ == "__main__":
    raise SystemExit(main())
