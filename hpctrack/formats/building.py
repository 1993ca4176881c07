"""A dataset made of a source of events: folder and lock, shards on processes or MPI ranks, the index last.

A shard is the unit of work, given by size to processes of one machine or to MPI ranks. Shards get their names when they
are whole, and a rerun keeps the shards that the same call made before. The files do not depend on the number of
processes, byte for byte.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import EXIT_MACHINE, InputError
from hpctrack.events.subevents import MAX_DRAWS
from hpctrack.files.atomic import write_json
from hpctrack.files.lock import only_writer
from hpctrack.formats import replacement
from hpctrack.formats.conversion import (
    CUT,
    KEEPING_COST,
    SKIPPED,
    Reader,
    ShardResult,
    ShardTask,
    TrackmlReader,
    cut_down,
    left_out_of,
    plan_tasks,
    recipe_of,
    retry_events,
    run_task,
    run_tasks,
)
from hpctrack.planning.partition import partition
from hpctrack.process.ends import verb
from hpctrack.storage import schema, shard_writer, store
from hpctrack.storage.detector import TEXT
from hpctrack.storage.hdf5 import INDEX, SHARDS


@dataclass(frozen=True)
class Conversion:
    """What is to be made: a dataset in `out` of the events that `make_reader` finds, the first `limit` if that is set.

    `make_reader` says the versions of other packages, too, that its reader is of: another version is other input.
    `skip_bad` leaves bad events out; `overwrite` lets a new dataset take the place of another.
    """

    make_reader: Callable[[], tuple[Reader, dict[str, str]]]
    out: Path
    events_per_shard: int
    limit: int | None = None
    skip_bad: bool = False
    overwrite: bool = False


def ending(run: Callable[[], int | None]) -> int:
    """Exit code of `run`, errors said in one line."""
    return verb("convert")(lambda _: run())(None)


@dataclass
class Plan:
    """What is to be made: the dataset of `tasks`, in `folder`, which is OUT or in it."""

    reader: Reader
    tasks: list[ShardTask]
    folder: Path
    versions: dict[str, str]


def _plan(conversion: Conversion) -> Plan | None:
    """The work, the folder ready for it; None if the same call has finished it before."""
    (reader, versions), out = conversion.make_reader(), conversion.out
    if isinstance(reader, TrackmlReader) and reader.modules is None:
        print("convert: no detectors.csv: module ids are not checked", file=sys.stderr)
    tasks = plan_tasks(
        reader, out, conversion.events_per_shard, conversion.limit, conversion.skip_bad, versions=versions
    )
    folder = _prepare(conversion, reader, tasks)
    if folder is None:
        print(f"convert: {out} is complete already", file=sys.stderr)
        _summary(out)
        return None
    return Plan(reader, tasks, folder, versions)


def convert(conversion: Conversion, jobs: int) -> None:
    """Convert with so many processes of this machine."""
    with _locked(conversion.out):
        plan = _plan(conversion)
        if plan is not None:
            results = run_tasks(plan.reader, plan.tasks, jobs)
            _finish(conversion.out, plan, list(_show_progress(results, plan.tasks)))


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The lock of OUT, if a dataset may be made there."""
    replacement.check_folder(out)
    with only_writer(out):
        yield


# ------------------------------------------------------------------------------------------------ MPI


def convert_on_ranks(conversion: Conversion, world: Any) -> int:
    """Convert with MPI ranks: the first plans and finishes, each makes its share of the shards.

    What the first rank finds wrong ends all ranks in turn; an error amid the work ends them at once.
    """
    plan: Plan | None = None

    def first() -> None:
        nonlocal plan
        stack.enter_context(_locked(conversion.out))
        plan = _plan(conversion)

    with _or_abort(world), contextlib.ExitStack() as stack:
        code = ending(first) if world.rank == 0 else 0
        code, plan = world.bcast((code, plan))
        if plan is None:
            return code
        mine: list[ShardResult] = []
        if code := ending(lambda: mine.extend(_share(plan, world))):
            world.Abort(code)
        results = world.gather(mine)
        if world.rank == 0:
            code = ending(lambda: _finish(conversion.out, plan, [done for part in results for done in part]))
        return world.bcast(code)


@contextlib.contextmanager
def _or_abort(world: Any) -> Iterator[None]:
    """A bug on one rank must not leave the others waiting for it."""
    try:
        yield
    except BaseException:  # noqa: BLE001 - whatever it is
        traceback.print_exc()
        sys.stderr.flush()
        world.Abort(EXIT_MACHINE)


def _share(plan: Plan, world: Any) -> Iterator[ShardResult]:
    """Make the shards of this rank: an equal share of the bytes, the largest first; finished ones cost little."""
    present = world.bcast([task.path.exists() for task in plan.tasks] if world.rank == 0 else None)
    costs = np.array([task.cost for task in plan.tasks]) * np.where(present, KEEPING_COST, 1.0)
    mine = np.flatnonzero(partition(costs, world.size) == world.rank)
    last = time.monotonic()
    for k in mine[np.argsort(-costs[mine], kind="stable")]:
        yield run_task(plan.reader, plan.tasks[k])
        if world.rank == 0 and time.monotonic() - last > 2:
            last = time.monotonic()
            there = sum(task.path.exists() for task in plan.tasks)
            print(f"convert: {there}/{len(plan.tasks)} shards on {world.size} ranks", file=sys.stderr, flush=True)


# ------------------------------------------------------------------------------------------------ before and after


def _prepare(conversion: Conversion, reader: Reader, tasks: Sequence[ShardTask]) -> Path | None:
    """Make the output ready: the folder to write into; None if the same call has finished it before.

    InputError if it holds anything else. A finished dataset stays as it is until another is whole. If more is known of
    its detector than its index says, the index alone is new.
    """
    out = conversion.out
    replacement.clear(out)
    otherwise = "choose another folder, or --overwrite to replace it"
    if not (out / INDEX).exists():
        replacement.discard(out)
        for path in _of_others(out, tasks):
            if not conversion.overwrite:
                raise InputError(f"{path}: left by a convert of other input or options; {otherwise}")
            path.unlink()
        return out
    if conversion.overwrite:
        return _beside(out, tasks, tasks)
    dataset = store.open_dataset(out)  # a damaged one is an InputError here
    left_out = left_out_of(dataset)
    if dataset.attributes.get("recipe") not in (recipe_of(tasks, left_out), recipe_of(tasks)):
        raise InputError(f"{out}: holds a dataset of other input or options; {otherwise}")
    bad = retry_events(reader, left_out, conversion.skip_bad)
    if left_out == bad and dataset.attributes.get(TEXT) == _said(reader):  # else the index is written again
        replacement.discard(out)
        return None
    changed = {entry["event_id"] for entry in left_out if entry not in bad}
    return _beside(out, tasks, [task for task in tasks if changed & set(task.event_ids)])


def _said(reader: Reader) -> str | None:
    """Of the detector; readers of other packages need not say it."""
    return getattr(reader, "detector", None)


def _beside(out: Path, tasks: Sequence[ShardTask], to_make: Sequence[ShardTask]) -> Path:
    """A folder beside the finished dataset in OUT, where the shards `to_make` are made."""
    folder = out / replacement.NEW
    folder.mkdir(exist_ok=True)
    for task in to_make:
        task.path = folder / task.path.name
    for path in _of_others(folder, tasks):
        path.unlink()
    return folder


def _of_others(folder: Path, tasks: Sequence[ShardTask]) -> Iterator[Path]:
    """Shards in `folder` that are none of these tasks'; a damaged one is made again, so it is."""
    own = {task.path.name: task for task in tasks}
    for path in sorted(folder.glob(SHARDS)):
        found, task = store.shard_attributes(path), own.get(path.name)
        if task is None or (found and not task.fits(found.get("recipe"), json.loads(found.get("skipped", "[]")))):
            yield path


def _finish(out: Path, plan: Plan, done: Sequence[ShardResult]) -> None:
    """Write skipped.json and then the index, and say what was done."""
    skipped = sorted((entry for result in done for entry in result.skipped), key=lambda entry: entry["event_id"])
    shards = sorted(result.name for result in done if result.name)
    if not shards:
        replacement.discard(out)
        if skipped:
            raise InputError(f"none of the {len(skipped)} events can be used; the first: {skipped[0]['reason']}")
        raise InputError("no event has enough tracks for a sub-event; lower --tracks, --pt-min-gev or --min-hits")
    if skipped:
        write_json(plan.folder / SKIPPED, skipped)
    else:
        (plan.folder / SKIPPED).unlink(missing_ok=True)
    n_source = sum(result.n_source for result in done)
    attributes = {"recipe": recipe_of(plan.tasks, skipped), "n_source": n_source, "n_skipped": len(skipped)}
    if n_cut := sum(result.n_cut for result in done):
        attributes[CUT] = n_cut
    if plan.reader.field_t is not None:
        attributes["field_t"] = plan.reader.field_t
    else:
        attributes["assumed_field_t"] = schema.FIELD_T
    origin = plan.reader.origin() | ({"versions": plan.versions} if plan.versions else {})
    attributes["origin"] = json.dumps(origin)
    texts = {"skipped": json.dumps(skipped)}
    if (said := _said(plan.reader)) is not None:
        texts[TEXT] = said
    shard_writer.write_index(plan.folder, shards, attributes, texts, beside=out)
    if plan.folder != out:
        replacement.move(out)
    _summary(out)


def _show_progress(results: Iterator[ShardResult], tasks: Sequence[ShardTask]) -> Iterator[ShardResult]:
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
    if cut := cut_down(dataset):
        print(f"cut down: {cut}; hits are counted")
    for entry in left_out_of(dataset):
        print(f"left out: event {entry['event_id']}: {entry['reason']}")
