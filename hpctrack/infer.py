"""`torchrun -m hpctrack.infer --checkpoint RUN --data DATASET --out FOLDER`: write track candidates.

Each event goes to exactly one rank, by cost, and is committed when it is done. The same command again finishes what a
kill left; the result does not depend on the number of ranks.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
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
from hpctrack.data.partition import longest_first
from hpctrack.data.store import Dataset
from hpctrack.data.trackml import write_submission
from hpctrack.errors import InputError, verb
from hpctrack.models import build_model
from hpctrack.parallel.collectives import barrier, broadcast, gather
from hpctrack.parallel.env import Env, distributed
from hpctrack.parallel.strategy import PRECISIONS
from hpctrack.runtime import checkpoint
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


@verb("infer")
def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the verb."""
    parser = argparse.ArgumentParser(prog="hpctrack infer", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="run folder, or one of its checkpoints")
    parser.add_argument("--data", required=True, help="dataset folder")
    parser.add_argument("--out", required=True, type=Path, help="folder for the candidates")
    parser.add_argument("--submission", type=Path, help="also write this TrackML submission CSV")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads per rank (default 1)")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="selection.* (default: every hit) and builder.* of this inference",
    )
    args = parser.parse_args(argv)
    path = checkpoint.find(args.checkpoint)
    meta = checkpoint.read_meta(path)
    config = infer_config(meta, args.overrides, path)
    with distributed(ParallelConfig(device=args.device), args.threads) as env:
        infer(config, path, Dataset(args.data), args.out, env)
        if args.submission and env.is_main:
            write_submission(args.submission, submission_blocks(Dataset(args.data), args.out))
            print(f"submission: {args.submission}")


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


def infer(config: InferConfig, path: Path, data: Dataset, out: Path, env: Env) -> None:
    """Build candidates of every event of `data` that has none in `out` yet, then join them beside the shards."""
    model = load_model(config, path, env.device)
    attributes = {
        "dataset_fingerprint": data.fingerprint,
        "model_digest": checkpoint.digest(model),
        **config.model_dump(mode="json"),
    }
    done = broadcast(prepare(out, attributes) if env.is_main else None, env)
    if done is None:
        say(env, f"{out}: complete, nothing to do")
        return
    todo = np.array([row for row, event in enumerate(data.event_ids) if int(event) not in done], dtype=np.int64)
    mine = todo[longest_first(expected_hits(data, config.selection)[todo], env.world)[0] == env.rank]
    say(env, f"{out}: {len(todo)} events to do, {len(done)} done before, {env.world} x {env.device.type}")
    build(config, model, data, mine, out, env)
    barrier(env)
    join(data, out, attributes, env)


def load_model(config: InferConfig, path: Path, device: torch.device) -> torch.nn.Module:
    """The checkpoint's model, ready for prediction."""
    model = build_model(config.model, len(config.features)).to(device, PRECISIONS[config.precision])
    state = checkpoint.read_state(path, device)
    checkpoint.load_into(model, state.get("model", {}), path)
    return model.eval()


def prepare(out: Path, attributes: dict[str, Any]) -> set[int] | None:
    """Events committed in `out` by an earlier start with the same settings; None if all is done."""
    settings = out / candidates.PARTS / "settings.json"
    if (out / candidates.INDEX).exists():
        differs(candidates.CandidateStore(out).attributes, attributes, out)
        candidates.clean(out)  # a kill may have come between the index and this
        return None
    if settings.exists():
        differs(json.loads(settings.read_text()), attributes, out)
        return set(candidates.committed(out))
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, attributes)
    return set()


def differs(then: dict[str, Any], now: dict[str, Any], out: Path) -> None:
    """InputError if candidates in `out` were begun with other settings."""
    for key in sorted(then.keys() | now.keys()):
        if then.get(key) != now.get(key):
            raise InputError(
                f"{out}: holds candidates made with {key}={then.get(key)!r}, now {now.get(key)!r}; choose another --out"
            )


def build(config: InferConfig, model: torch.nn.Module, data: Dataset, rows: np.ndarray, out: Path, env: Env) -> None:
    """Read, predict, build and commit the events `rows` of this rank."""
    load = EventLoader(
        data, config.features, config.selection, AugmentConfig(), (config.seed, INFER), PRECISIONS[config.precision]
    )
    builder = build_builder(config.builder)
    journal = candidates.Journal(out, f"rank-{env.rank:05d}")
    bf16 = torch.autocast(env.device.type, torch.bfloat16, enabled=config.precision == "bf16")
    path = out / candidates.PARTS / f"rank-{env.rank:05d}.timings"
    with naming(path), open(path, "a") as timings:
        for count, row in enumerate(rows, 1):
            times = [time.perf_counter()]
            batch = Batch.from_data_list([load(int(row), 0)]).to(env.device)
            times.append(time.perf_counter())
            with torch.inference_mode(), bf16:
                outputs = {name: value.float().cpu().numpy() for name, value in model(batch).items()}
            times.append(time.perf_counter())
            event_id, n_hits = int(batch.event_id), int(data.n_hits[row])
            found = builder.build(outputs, batch.hit_row.cpu().numpy(), n_hits, event_id)
            times.append(time.perf_counter())
            journal.append(found)
            read_s, model_s, build_s = np.diff(times).tolist()
            entry = {"event_id": event_id, "n_hits": batch.num_nodes, "n_candidates": len(found), "rank": env.rank}
            timings.write(json.dumps(entry | {"read_s": read_s, "model_s": model_s, "build_s": build_s}) + "\n")
            timings.flush()
            if count % max(1, len(rows) // 10) == 0:
                say(env, f"event {event_id}: {len(found)} candidates  ({count}/{len(rows)} on this rank)")
    journal.close()


def join(data: Dataset, out: Path, attributes: dict[str, Any], env: Env) -> None:
    """Write the final files, each rank its share of the shards, then the index; then the journals go."""
    sources = candidates.committed(out)
    files = {}
    for shard, _ in enumerate(data.shards):
        if shard % env.world == env.rank:
            rows = np.flatnonzero(data.shard == shard)
            events = data.event_ids[rows[np.argsort(data.row[rows])]]
            name = f"candidates-{shard:05d}.h5"
            files[shard] = (name, events, candidates.write_shard(out, name, events, sources))
    joined = {shard: file for part in gather(files, env) for shard, file in part.items()}
    if env.is_main:
        write_timings(out)
        candidates.write_index(out, [joined[shard] for shard in sorted(joined)], attributes)
        candidates.clean(out)
        store = candidates.CandidateStore(out)
        print(f"{out}: candidates of {len(store)} events, digest {store.digest}")
    barrier(env)


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
