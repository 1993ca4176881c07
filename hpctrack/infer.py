"""`torchrun -m hpctrack.infer --checkpoint RUN --data DATASET --out FOLDER`: write track candidates.

Each event goes to exactly one rank, by cost, and is committed when it is done. The same command again finishes what a
kill left; the result does not depend on the number of ranks. With `--part 3/16`, sixteen jobs each do a share, in any
order and side by side; the last one to end joins them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch_geometric.data import Batch

from hpctrack.config import (
    AugmentConfig,
    Named,
    ParallelConfig,
    RunConfig,
    Section,
    SelectionConfig,
    apply_overrides,
    parse,
)
from hpctrack.data import candidates
from hpctrack.data.files import naming, write_json, write_text
from hpctrack.data.loader import EventLoader, expected_hits
from hpctrack.data.lock import only_writer
from hpctrack.data.partition import longest_first
from hpctrack.data.schema import Candidates
from hpctrack.data.store import Dataset
from hpctrack.data.trackml import write_submission
from hpctrack.errors import EXIT_INPUT, EXIT_MACHINE, EXIT_PREEMPTED, InputError, verb
from hpctrack.models import build_model
from hpctrack.parallel.collectives import all_sum, barrier, broadcast, gather
from hpctrack.parallel.env import Env, distributed, launcher_argument
from hpctrack.parallel.mpi import launched, mpi_world
from hpctrack.parallel.precision import WEIGHTS, Precision
from hpctrack.runtime import checkpoint
from hpctrack.runtime.preempt import Preemption
from hpctrack.runtime.watchdog import Watchdog
from hpctrack.tracking.builders import build_builder

INFER = 2  # random stream of draws in inference
WAIT_S = 86400.0  # for ranks that have more to do; those that are lost, or hang at an event, are noticed at once


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


class InferConfig(Section):
    """What inference takes from the checkpoint's run, or from overrides."""

    seed: int
    features: list[str]
    selection: SelectionConfig = SelectionConfig()
    model: Named
    builder: Named
    precision: str


@verb("infer")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the verb."""
    parser = argparse.ArgumentParser(prog="hpctrack infer", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the candidates")
    parser.add_argument("--part", type=Part.parse, metavar="I/N", help="share I, from 0, of N jobs that do it together")
    parser.add_argument("--submission", type=Path, help="also write this TrackML submission CSV")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per rank (default 1)")
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, help="an event that takes longer ends it; default 600"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="selection.* (default: every hit) and builder.* of this inference",
    )
    launcher_argument(parser)
    args = parser.parse_args(argv)
    path = checkpoint.find(args.checkpoint)
    meta = checkpoint.read_meta(path)
    config = infer_config(meta, args.overrides, path)
    if args.part and args.submission:
        raise InputError("--submission: is written from all events; give it to a last call without --part")
    parallel = ParallelConfig(device=args.device, timeout_s=WAIT_S)
    with distributed(parallel, args.threads) as env, Watchdog(args.timeout_s, env, "--timeout-s") as watchdog:
        code = infer(config, path, Dataset(args.data, verify=True), args.out, env, args.part, watchdog)
        if args.submission and env.is_main and code == 0:
            write_submission(args.submission, submission_blocks(Dataset(args.data), args.out))
            print(f"submission: {args.submission}")
    return code


def infer_config(meta: dict[str, Any], overrides: Sequence[str], path: Path) -> InferConfig:
    """Settings of this inference: the run's model and (tuned) builder, then the overrides."""
    run = parse(RunConfig, meta["config"], str(path / checkpoint.META))
    for override in overrides:
        if not override.startswith(("selection.", "builder.")):
            raise InputError(f"override '{override}': inference takes selection.key=value and builder.key=value")
    values = {
        "seed": run.seed,
        "features": run.data.features,
        "selection": {},
        "model": run.model.model_dump(),
        "builder": run.builder.model_dump() | meta["tuned"],
        "precision": run.train.precision,
    }
    config = parse(InferConfig, apply_overrides(values, overrides, str(path)), f"{path} with overrides")
    if build_builder(config.builder).needs_tuning:
        raise InputError(f"{path}: training has not ended, so the builder is not tuned; give builder.radius=…")
    return config


def infer(
    config: InferConfig,
    path: Path,
    data: Dataset,
    out: Path,
    env: Env,
    part: Part | None = None,
    watchdog: Watchdog | None = None,
) -> int:
    """Build candidates of every event of `data` that has none in `out` yet, then join them beside the shards.

    With `part`, of its share; whoever does the last one joins all. The verb's exit code.
    """
    model = load_model(config, path, env.device)
    attributes = {
        "dataset_fingerprint": data.fingerprint,
        "model_digest": checkpoint.digest(model),
        **config.model_dump(mode="json"),
    }
    task = Task(config, model, data, out, env, part, watchdog)
    if part is None:
        with on_main(lambda: only_writer(out), env):
            if run_on_main(lambda: prepare(out, attributes), env):
                say(env, f"{out}: complete, nothing to do")
                return 0
            if not task.build():
                return EXIT_PREEMPTED
            join(data, out, attributes, env)
        return 0
    with on_main(lambda: only_writer(out, wait=True), env):
        if run_on_main(lambda: prepare(out, attributes), env):
            say(env, f"{out}: complete, nothing to do")
            return 0
    with on_main(lambda: only_writer(out / candidates.PARTS / part.name), env):
        if not task.build():
            return EXIT_PREEMPTED
    with on_main(lambda: only_writer(out, wait=True), env):
        done = run_on_main(lambda: part.end(out), env)
        say(env, f"{out}: {done} of {part.of} parts done")
        if done == part.of:
            join(data, out, attributes, env)
    return 0


@contextlib.contextmanager
def on_main(enter: Callable[[], contextlib.AbstractContextManager], env: Env) -> Iterator[None]:
    """Hold a context on rank 0 while all ranks work."""
    with contextlib.ExitStack() as stack:
        run_on_main(lambda: stack.enter_context(enter()) and None, env)
        yield


def run_on_main(action: Callable[[], Any], env: Env) -> Any:
    """What `action` returns on rank 0, on all ranks; if it refuses, rank 0 says so and all ranks end."""
    result, refusal = None, None
    if env.is_main:
        try:
            result = action()
        except (InputError, OSError) as error:
            refusal = error
    result, refused = broadcast((result, refusal is not None), env)
    if refusal is not None:
        raise refusal
    if refused:
        raise SystemExit(EXIT_INPUT)
    return result


def everyones(found: dict[int, Any], env: Env) -> dict[int, Any]:
    """The union of what the ranks found; of an event that is there twice, the lowest rank's."""
    union: dict[int, Any] = {}
    for part in gather(found, env):
        union = part | union
    return union


def load_model(config: InferConfig, path: Path, device: torch.device) -> torch.nn.Module:
    """The checkpoint's model, ready for prediction."""
    model = build_model(config.model, config.features).to(device, WEIGHTS[config.precision])
    state = checkpoint.read_state(path, device)
    checkpoint.load_into(model, state.get("model", {}), path)
    return model.eval()


def prepare(out: Path, attributes: dict[str, Any]) -> bool:
    """Whether `out` is complete; else it is ready for its journals. InputError if it was begun with other settings."""
    settings = out / candidates.PARTS / "settings.json"
    if (out / candidates.INDEX).exists():
        differs(candidates.CandidateStore(out).attributes, attributes, out)
        candidates.clean(out)  # a kill may have come between the index and this
        return True
    if settings.exists():
        differs(json.loads(settings.read_text()), attributes, out)
        return False
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, attributes)
    return False


def differs(then: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """InputError if candidates in `out` were begun with other settings."""
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{out}: holds candidates made with {key}={then.get(key)!r}, now {now.get(key)!r}; choose another --out"
            )


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

    def rows(self) -> np.ndarray:
        """Rows of this rank's events: an equal share, by cost, of those that have no record yet."""
        env, part = self.env, self.part
        cost = expected_hits(self.data, self.config.selection)
        chosen = longest_first(cost, part.of)[0] == part.number if part else np.ones(len(cost), dtype=bool)
        done = everyones(candidates.committed(self.out, env.rank, env.world, f"{part.name}-*" if part else "*"), env)
        ids = self.data.event_ids
        todo = np.array([row for row in np.flatnonzero(chosen) if int(ids[row]) not in done], dtype=np.int64)
        of = f"part {part.number} of {part.of}, " if part else ""
        say(env, f"{self.out}: {of}{len(todo)} events to do, {len(done)} done before, {env.world} x {env.device.type}")
        return todo[longest_first(cost[todo], env.world)[0] == env.rank]

    def build(self) -> bool:
        """Read, predict, build and commit this rank's events; False if the ranks were told to end before the last."""
        rows, done = self.rows(), 0
        journal = candidates.Journal(self.out, self.writer)
        path = self.out / candidates.PARTS / f"{self.writer}.timings"
        with Preemption() as preemption, naming(path), open(path, "a") as timings:
            while done < len(rows) and not preemption.noticed:
                if self.watchdog:
                    self.watchdog.feed(f"event {self.data.event_ids[rows[done]]}")
                found, entry = self.event(int(rows[done]))
                timings.write(json.dumps(entry) + "\n")
                timings.flush()
                journal.append(found)
                done += 1
                if done % max(1, len(rows) // 10) == 0:
                    place = f"({done}/{len(rows)} on this rank)"
                    say(self.env, f"event {found.event_id}: {len(found)} candidates  {place}")
            journal.close()
            if self.watchdog:
                self.watchdog.rest()
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


def join(data: Dataset, out: Path, attributes: dict[str, Any], env: Env) -> None:
    """Write the final files from what everybody has committed, then the index; then the journals go.

    Each rank writes its share of the files; where h5py has MPI and the ranks are MPI's, all write each file together.
    """
    sources = everyones(candidates.committed(out, env.rank, env.world), env)
    files, world = {}, mpi_ranks(env)
    order = np.lexsort((data.row, data.shard))
    ends = np.searchsorted(data.shard[order], np.arange(len(data.shards) + 1))
    for shard, _ in enumerate(data.shards):
        if world is not None or shard % env.world == env.rank:
            events = data.event_ids[order[ends[shard] : ends[shard + 1]]]
            name = f"candidates-{shard:05d}.h5"
            with all_or_none(world):
                files[shard] = (name, events, candidates.write_shard(out, name, events, sources, world))
    joined = everyones(files, env)
    if env.is_main:
        write_timings(out)
        candidates.write_index(out, [joined[shard] for shard in sorted(joined)], attributes)
        candidates.clean(out)
        store = candidates.CandidateStore(out)
        print(f"{out}: candidates of {len(store)} events, digest {store.digest}")
    barrier(env)


def mpi_ranks(env: Env) -> Any:
    """The MPI communicator of these ranks if they can write one file together, else None."""
    if env.world == 1 or launched()[1] != env.world or not candidates.has_parallel_hdf5():
        return None
    return mpi_world(env.world)


@contextlib.contextmanager
def all_or_none(world: Any) -> Iterator[None]:
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
    lines = {}
    for path in sorted((out / candidates.PARTS).glob("*.timings")):
        for line in path.read_text().splitlines():
            if line.endswith("}"):  # a kill may cut the last one short
                lines[json.loads(line)["event_id"]] = line
    write_text(out / "timings.jsonl", "".join(f"{lines[event]}\n" for event in sorted(lines)))


def submission_blocks(data: Dataset, out: Path) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(event id, hit ids, track ids) of every event, in the order of the dataset."""
    store = candidates.CandidateStore(out)
    position = {int(event): i for i, event in enumerate(store.event_ids)}
    for row, event in enumerate(data.event_ids):
        hit_id = data.read(row, ["hits.hit_id"]).column("hits.hit_id")
        yield int(event), hit_id, store.read(position[int(event)]).track_ids


def say(env: Env, text: str) -> None:
    """Print on rank 0."""
    if env.is_main:
        print(text, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
