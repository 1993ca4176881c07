"""`hpctrack convert SOURCE OUT`: TrackML CSV -> sharded HDF5, or a dataset -> a dataset of sub-events.

A shard is the unit of work, handed out by size to processes of one machine or, under `mpirun` or `srun`, to the MPI
ranks. Shards get their names when they are whole, the index is written last, and a rerun keeps the shards that the same
call made before. The files do not depend on the number of processes, byte for byte.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.errors import EXIT_INPUT, EXIT_MACHINE, InputError
from hpctrack.events.subevents import MAX_DRAWS, SubEventReader
from hpctrack.files.atomic import write_json
from hpctrack.files.lock import only_writer
from hpctrack.formats import replacement
from hpctrack.formats.conversion import (
    KEEPING_COST,
    SKIPPED,
    Done,
    Reader,
    Task,
    TrackmlReader,
    left_out_of,
    plan_tasks,
    recipe_of,
    run_task,
    run_tasks,
    try_again,
)
from hpctrack.formats.trackml_files import check_files, find_events
from hpctrack.parallel.mpi import launched, mpi_world
from hpctrack.planning.partition import partition
from hpctrack.process import arguments
from hpctrack.process.ends import verb
from hpctrack.storage import shard_writer, store


def parser() -> arguments.Parser:
    """The verb's options."""
    p = arguments.Parser(prog="hpctrack convert", description=__doc__.split("\n\n")[0])
    p.add_argument("source", help="folder or zip of TrackML files, or a dataset folder")
    p.add_argument("out", type=Path, help="dataset folder to write")
    p.add_argument(
        "--events-per-shard", type=arguments.positive, default=16, metavar="N", help="of the source; default 16"
    )
    p.add_argument("--jobs", type=arguments.positive, metavar="J", help="processes; default: the cores; not under MPI")
    p.add_argument("--limit", type=arguments.positive, metavar="N", help="only the first N events")
    p.add_argument("--skip-bad", action="store_true", help=f"leave bad events out and list them in {SKIPPED}")
    p.add_argument("--overwrite", action="store_true", help="replace the dataset in OUT, once the new one is whole")
    csv = p.add_argument_group("TrackML files")
    csv.add_argument("--detectors", metavar="FILE", help="detectors.csv[.gz]; default: in SOURCE or beside it")
    csv.add_argument("--no-truth", action="store_true", help="events without truth: all hits become noise")
    sub = p.add_argument_group("sub-events of a dataset")
    sub.add_argument("--tracks", type=_positive_or_all, metavar="T", help="tracks a sub-event; all: those of an event")
    sub.add_argument(
        "--draws", type=arguments.positive, metavar="D", help="at most D sub-events an event; default: all"
    )
    sub.add_argument(
        "--pt-min-gev", type=arguments.real(0, of=" in GeV"), metavar="PT", help="least pT of a track; default 0"
    )
    sub.add_argument("--min-hits", type=arguments.positive, metavar="H", help="least hits of a track; default 3")
    sub.add_argument("--remove-noise", action="store_true", help="else noise is thinned like the tracks")
    sub.add_argument("--seed", type=arguments.seed, help="default 0")
    return p


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _positive_or_all(text: str) -> int:
    return 0 if text == "all" else arguments.positive(text)


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


# ------------------------------------------------------------------------------------------------ the verb


def main(argv: Sequence[str] | None = None) -> int:
    """The verb: plan the shards, make them, write the index, say what was done."""
    _, size = launched()
    if size == 1:
        return _ending(lambda: _alone(parser().parse_args(argv)))
    with _quiet_but_on_first_rank():
        args = parser().parse_args(argv)
    return _ending(lambda: _on_ranks(args, _world(args, size)))


def _ending(run: Callable[[], int | None]) -> int:
    """Exit code of `run`, errors said in one line."""
    return verb("convert")(lambda _: run())(None)


@dataclass
class Plan:
    """What is to be made: the dataset of `tasks`, in `folder`, which is OUT or in it."""

    reader: Reader
    tasks: list[Task]
    folder: Path


def _plan(args: argparse.Namespace) -> Plan | None:
    """The work, OUT ready for it; None if the same call has finished it before."""
    reader = make_reader(args)
    if isinstance(reader, TrackmlReader) and reader.modules is None:
        print("convert: no detectors.csv: module ids are not checked", file=sys.stderr)
    tasks = plan_tasks(reader, args.out, args.events_per_shard, args.limit, args.skip_bad)
    folder = _prepare(args, reader, tasks)
    if folder is None:
        print(f"convert: {args.out} is complete already", file=sys.stderr)
        _summary(args.out)
        return None
    return Plan(reader, tasks, folder)


def _alone(args: argparse.Namespace) -> None:
    """Convert with processes of this machine."""
    with _locked(args.out):
        plan = _plan(args)
        if plan is not None:
            results = run_tasks(plan.reader, plan.tasks, args.jobs or _cores())
            _finish(args.out, plan, list(_show_progress(results, plan.tasks)))


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The lock of OUT; a folder that was made for nothing goes again."""
    replacement.check_folder(out)
    new = not out.exists()
    try:
        with only_writer(out):
            yield
    finally:
        if new and out.is_dir() and not any(out.iterdir()):
            out.rmdir()


# ------------------------------------------------------------------------------------------------ MPI


@contextlib.contextmanager
def _quiet_but_on_first_rank() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if launched()[0]:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
            stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        yield


def _world(args: argparse.Namespace, size: int) -> Any:
    if args.jobs is not None:
        if launched()[0]:
            raise SystemExit(EXIT_INPUT)
        raise InputError("--jobs is for one machine without MPI; under mpirun or srun the ranks are the processes")
    return mpi_world(size)


def _on_ranks(args: argparse.Namespace, world: Any) -> int:
    """Convert with MPI ranks: the first plans and finishes, each makes its share of the shards.

    What the first rank finds wrong ends all ranks in turn; an error amid the work ends them at once.
    """
    plan: Plan | None = None

    def first() -> None:
        nonlocal plan
        stack.enter_context(_locked(args.out))
        plan = _plan(args)

    with _or_abort(world), contextlib.ExitStack() as stack:
        code = _ending(first) if world.rank == 0 else 0
        code, plan = world.bcast((code, plan))
        if plan is None:
            return code
        mine: list[Done] = []
        if code := _ending(lambda: mine.extend(_share(plan, world))):
            world.Abort(code)
        results = world.gather(mine)
        if world.rank == 0:
            code = _ending(lambda: _finish(args.out, plan, [done for part in results for done in part]))
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


def _share(plan: Plan, world: Any) -> Iterator[Done]:
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


def _prepare(args: argparse.Namespace, reader: Reader, tasks: Sequence[Task]) -> Path | None:
    """Make OUT ready: the folder to write into; None if the same call has finished it before.

    InputError if it holds anything else. A finished dataset stays as it is until another is whole.
    """
    out: Path = args.out
    replacement.clear(out)
    otherwise = "choose another folder, or --overwrite to replace it"
    if not (out / store.INDEX).exists():
        replacement.discard(out)
        for path in _of_others(out, tasks):
            if not args.overwrite:
                raise InputError(f"{path}: left by a convert of other input or options; {otherwise}")
            path.unlink()
        return out
    if args.overwrite:
        return _beside(out, tasks, tasks)
    dataset = store.open_dataset(out)  # a damaged one is an InputError here
    left_out = left_out_of(dataset)
    if dataset.attributes.get("recipe") not in (recipe_of(tasks, left_out), recipe_of(tasks)):
        raise InputError(f"{out}: holds a dataset of other input or options; {otherwise}")
    if left_out == (bad := try_again(reader, left_out, args.skip_bad)):
        replacement.discard(out)
        return None
    changed = {entry["event_id"] for entry in left_out if entry not in bad}
    return _beside(out, tasks, [task for task in tasks if changed & set(task.event_ids)])


def _beside(out: Path, tasks: Sequence[Task], to_make: Sequence[Task]) -> Path:
    """A folder beside the finished dataset in OUT, where the shards `to_make` are made."""
    folder = out / replacement.NEW
    folder.mkdir(exist_ok=True)
    for task in to_make:
        task.path = folder / task.path.name
    for path in _of_others(folder, tasks):
        path.unlink()
    return folder


def _of_others(folder: Path, tasks: Sequence[Task]) -> Iterator[Path]:
    """Shards in `folder` that are none of these tasks'; a damaged one is made again, so it is."""
    own = {task.path.name: task for task in tasks}
    for path in sorted(folder.glob(replacement.SHARDS)):
        found, task = store.shard_attributes(path), own.get(path.name)
        if task is None or (found and not task.fits(found.get("recipe"), json.loads(found.get("skipped", "[]")))):
            yield path


def _finish(out: Path, plan: Plan, done: Sequence[Done]) -> None:
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
    if plan.reader.field_t is not None:
        attributes["field_t"] = plan.reader.field_t
    attributes["origin"] = json.dumps(plan.reader.origin())
    shard_writer.write_index(plan.folder, shards, attributes, {"skipped": json.dumps(skipped)}, beside=out)
    if plan.folder != out:
        replacement.move(out)
    _summary(out)


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
    for entry in left_out_of(dataset):
        print(f"left out: event {entry['event_id']}: {entry['reason']}")


if __name__ == "__main__":
    raise SystemExit(main())
