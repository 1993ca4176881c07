"""Inference of a dataset into a folder: begun or gone on with, each event on exactly one rank, joined at the end.

Each event goes to exactly one rank, by cost, and is committed when it is done. The same call again finishes what a kill
left; the result does not depend on the number of ranks. Parts (`--part 3/16`) are jobs that each do a share, in any
order and side by side; the last one to end joins them.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from hpctrack.config import parse
from hpctrack.division.exchange import Exchange
from hpctrack.errors import EXIT_INPUT, EXIT_MACHINE, InputError
from hpctrack.files.atomic import write_json, write_text
from hpctrack.files.jsonlines import TIMINGS, read_lines
from hpctrack.files.lock import LOCK, only_writer, owner_of
from hpctrack.inference.stages import InferConfig, Reconstruction
from hpctrack.inference.work import PRODUCTS, Part, Task, union_over_ranks
from hpctrack.parallel.collectives import barrier, broadcast, on_main, run_on_main
from hpctrack.parallel.env import Env
from hpctrack.parallel.mpi import launched, mpi_world
from hpctrack.parallel.watchdog import Watchdog
from hpctrack.storage import journals, products
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.hdf5 import INDEX, has_parallel_hdf5
from hpctrack.storage.store import Dataset
from hpctrack.tracking.builders import build_builder
from hpctrack.tracking.methods import MethodConfig
from hpctrack.training import run_settings

FOR_ALL = "all"  # the share of a call without --part


def infer(
    how: Reconstruction,
    data: Dataset,
    out: Path,
    env: Env,
    *,
    part: Part | None = None,
    watchdog: Watchdog | None = None,
    exchange: Exchange | None = None,
) -> int:
    """Build candidates of every event of `data` that has none in `out` yet, then join them beside the shards.

    With `part`, of its share; whoever does the last one joins all. `exchange`: the ranks that hold each event together
    with this one; the first of them writes. The verb's exit code.
    """
    attributes = {"dataset_fingerprint": data.fingerprint, **how.recipe}
    task = Task(how, data, out, env, part=part, watchdog=watchdog, exchange=exchange)
    task.look()
    with on_main(lambda: claim(out, attributes, how.product, part), env) as complete:
        if broadcast(complete, env):
            env.say(f"{out}: complete, nothing to do")
            return 0
        if code := task.build():
            return code
        if part is None:
            join(data, out, attributes, task.sources, env, product=how.product, watchdog=watchdog)
            return 0
        with on_main(lambda: only_writer(out, wait=True), env):
            done = run_on_main(lambda: part.end(out), env)
            env.say(f"{out}: {done} of {part.of} parts done")
            if done == part.of:
                sources = union_over_ranks(journals.committed(out, env.rank, env.world), env)
                join(data, out, attributes, sources, env, product=how.product, watchdog=watchdog)
    return 0


@contextlib.contextmanager
def claim(out: Path, attributes: dict[str, Any], product: str, part: Part | None) -> Iterator[bool]:
    """Whether `out` is complete; else, until the end, this call owns its events there. On rank 0.

    A call for all owns the folder; parts hold it only while they begin and end, so that they work side by side, each
    the owner of its part. InputError if other calls are under way, but for other parts of as many.
    """
    parts = out / journals.PARTS
    own = parts / (part.name if part else FOR_ALL)
    with contextlib.ExitStack() as stack:
        if part is not None:
            check_not_running(parts / FOR_ALL)  # else this call would wait for its end
        with contextlib.ExitStack() as beginning:
            (beginning if part else stack).enter_context(only_writer(out, wait=part is not None))
            complete = prepare(out, attributes, product)
            if not complete:
                for other in sorted(parts.iterdir()):
                    if other.is_dir() and other != own and not (part and part.is_beside(other.name)):
                        check_not_running(other)
                        (other / LOCK).unlink(missing_ok=True)  # of one that was killed; nobody begins meanwhile
                stack.enter_context(only_writer(own))
        yield complete


def check_not_running(folder: Path) -> None:
    """InputError if another call is at the share that `folder` stands for; only looks, since others look, too."""
    if said := owner_of(folder / LOCK):
        what = "a call for all" if folder.name == FOR_ALL else folder.name
        raise InputError(
            f"{folder.parents[1]}: {what} is under way ({said}); wait for its end, since only parts of as many go "
            "side by side"
        )


def prepare(out: Path, attributes: dict[str, Any], product: str = "candidates") -> bool:
    """Whether `out` is complete; else it is ready for its journals. InputError if it was begun with other settings."""
    settings = out / journals.PARTS / journals.SETTINGS
    if (out / INDEX).exists():
        found = PRODUCTS[product].open(out)
        check_same_settings(found.attributes, attributes, out)
        found.check_files()
        products.clean(out)  # a kill may have come between the index and this
        return True
    if settings.exists():
        check_same_settings(json.loads(settings.read_text()), attributes, out)
        return False
    journals.begin(out, product)
    write_json(settings, attributes)
    return False


def begun_in(out: Path, last: InferConfig) -> list[str]:
    """The number formats of the stages by which what is in `out` was begun, or made; none of a new folder.

    `last`: the stage whose builder says what is made.
    """
    settings = out / journals.PARTS / journals.SETTINGS
    if (out / INDEX).exists():
        recipe = PRODUCTS[build_builder(last.builder).product].open(out).attributes
    elif settings.exists():
        recipe = json.loads(settings.read_text())
    else:
        return []
    stages = [*recipe.get("stages", []), recipe]
    return [stage["precision"] for stage in stages if "precision" in stage]


def check_same_settings(then: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """InputError if candidates in `out` were begun with other settings."""
    if found := run_settings.difference(with_defaults(then, out), with_defaults(now, out)):
        again = ", or start it again, if it has been begun just now" if "precision=" in found else ""
        raise InputError(f"{out}: holds candidates made with {found}; choose another --out{again}")


def with_defaults(recipe: dict[str, Any], out: Path) -> dict[str, Any]:
    """A recipe's settings by key, with those that an older version did not know."""
    kind = InferConfig if "model" in recipe else MethodConfig
    own = {key: value for key, value in recipe.items() if key in kind.model_fields}
    rest = {key: value for key, value in recipe.items() if key not in own and key != "stages"}
    stages = [with_defaults(stage, out) for stage in recipe.get("stages", [])]
    return run_settings.settings(parse(kind, own, str(out)), str(out)) | rest | ({"stages": stages} if stages else {})


def join(
    data: Dataset,
    out: Path,
    attributes: dict[str, Any],
    sources: dict[int, Any],
    env: Env,
    *,
    product: str = "candidates",
    watchdog: Watchdog | None = None,
) -> None:
    """Write the final files from everybody's records, `sources`, then the index; then the journals go.

    Each rank writes its share of the files; where h5py has MPI and the ranks are MPI's, all write each file together.
    """
    files, world, form = {}, mpi_ranks(env), PRODUCTS[product]
    order = np.lexsort((data.row, data.shard))
    ends = np.searchsorted(data.shard[order], np.arange(len(data.shards) + 1))
    for shard, _ in enumerate(data.shards):
        if world is not None or shard % env.world == env.rank:
            events = data.event_ids[order[ends[shard] : ends[shard + 1]]]
            name = f"{product}-{shard:05d}.h5"
            if watchdog:
                watchdog.feed(f"the writing of {name}")
            with abort_together(world):
                files[shard] = (name, events, form.write_shard(out, name, events, sources, world))
    if watchdog:
        watchdog.rest()
    joined = union_over_ranks(files, env)
    if env.is_main:
        write_timings(out)
        form.write_index(out, [joined[shard] for shard in sorted(joined)], attributes)
        products.clean(out)
        store = form.open(out)
        print(f"{out}: {product} of {len(store)} events, digest {store.digest}")
    barrier(env)


def mpi_ranks(env: Env) -> Any:
    """The MPI communicator of these ranks if they can write one file together, else None."""
    if env.world == 1 or launched()[1] != env.world or not has_parallel_hdf5():
        return None
    return mpi_world(env.world)


@contextlib.contextmanager
def abort_together(world: Any) -> Iterator[None]:
    """An error amid collective writes ends all ranks at once: the others would wait for this one for ever."""
    try:
        yield
    except (InputError, OSError) as error:
        if world is None:
            raise
        print(f"hpctrack infer [rank {world.rank}]: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        world.Abort(EXIT_INPUT if isinstance(error, InputError) else EXIT_MACHINE)


def write_timings(out: Path) -> None:
    """Gather the ranks' timing lines, the last one of each event, into `timings.jsonl`."""
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted((out / journals.PARTS).glob("*.timings")):
        lines |= {entry["event_id"]: entry for entry in read_lines(path, "no timing of an event", {"event_id": int})}
    write_text(out / TIMINGS, "".join(f"{json.dumps(lines[event])}\n" for event in sorted(lines)))


def submission_blocks(data: Dataset, out: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(event id, hit ids, track ids) of every event, in the order of the dataset."""
    store = CandidateStore(out)
    position = {int(event): i for i, event in enumerate(store.event_ids)}
    for row, event in enumerate(data.event_ids):
        hit_id = data.read(row, ["hits.hit_id"]).column("hits.hit_id")
        yield int(event), hit_id, store.read(position[int(event)]).track_ids
