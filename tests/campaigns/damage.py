"""Damage copies of a dataset, candidates, journals and a checkpoint; the reader or `inspect --verify` must say so.

    python tests/campaigns/damage.py --n 2000 --seed 1 [--json F]

Each damaged copy is read in a child process with a limit on time and memory: verified, unverified, and by
`inspect --verify`. What must not happen: a crash, a hang, an exception that is no one-line error, or data that differ
from the truth without a word of it.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as hypothesis_seed
from toys import toy_checkpoint, toy_model

from campaigns import mutations
from hpctrack import inspect
from hpctrack.errors import InputError, MachineError
from hpctrack.inspection import kinds
from hpctrack.storage import candidates, journals, products, schema, shard_writer, store
from hpctrack.storage.candidates import CANDIDATES, CandidateStore
from hpctrack.storage.schema import Candidates
from hpctrack.testing.toys import toy_event
from hpctrack.training import checkpoint, checkpoint_metadata
from tests.helpers import commit

SECONDS, MEMORY = 60, 4 << 30  # limits of one reading, on top of what the process has already
SIZES = (4, 6, 5, 3, 7, 2)  # tracks of the events
FAILURES = ("crash", "hang", "stray exception", "silent wrong read", "unnamed")
AREAS = ("dataset", "candidates", "journal", "checkpoint")
Truth = dict[object, object]


# ------------------------------------------------------------------------------------------------ what is damaged


def toy_candidates(event: schema.Event, rng: np.random.Generator) -> Candidates:
    """Random candidates of an event."""
    n = event.n_hits
    lists = [np.sort(rng.choice(n, rng.integers(3, 9), replace=False)) for _ in range(rng.integers(1, 8))]
    bounds = products.bounds([len(rows) for rows in lists])
    scores, track_ids = rng.random(len(lists)).astype(np.float32), rng.integers(0, len(lists) + 1, n)
    return Candidates(
        event.event_id, bounds, np.concatenate(lists).astype(np.int32), scores, track_ids.astype(np.int32)
    )


def make(root: Path, seed: int) -> None:
    """A dataset, candidates, journals and a checkpoint in `root`, the same sizes for each seed."""
    events = [toy_event(10 + i, n, seed=seed) for i, n in enumerate(SIZES)]
    names = [shard_writer.shard_name(k) for k in range(2)]
    (root / "dataset").mkdir(parents=True)
    for name, part in zip(names, (events[:3], events[3:]), strict=True):
        with shard_writer.ShardWriter(root / "dataset" / name, {"recipe": "toy"}) as writer:
            for event in part:
                writer.add(event)
    origin = json.dumps({"kind": "toy"})
    shard_writer.write_index(
        root / "dataset", names, {"n_source": 6, "n_skipped": 0, "recipe": "toy", "origin": origin}
    )
    rng = np.random.default_rng(seed)
    found = [toy_candidates(event, rng) for event in events]
    for area in ("candidates", "journal"):
        (root / area).mkdir()
        journal = journals.Journal(root / area, "rank-00000")
        for one in found:
            commit(journal, one)
        journal.close()
    made_with = {"dataset_fingerprint": store.open_dataset(root / "dataset").fingerprint, "seed": 1}
    (root / "journal" / journals.PARTS / "settings.json").write_text(json.dumps(made_with))
    sources, files = journals.committed(root / "candidates"), []
    for k, part in enumerate((events[:3], events[3:])):
        name, ids = f"candidates-{k:05d}.h5", [event.event_id for event in part]
        files.append((name, ids, CANDIDATES.write_shard(root / "candidates", name, ids, sources)))
    CANDIDATES.write_index(root / "candidates", files, made_with)
    products.clean(root / "candidates")
    toy_checkpoint(root / "checkpoint", 6, lambda state: state["model"].update(toy_model(seed).state_dict()))


# ------------------------------------------------------------------------------------------------ reading it


def read_dataset(folder: Path, verify: bool) -> Truth:
    """Everything of a dataset, or, unverified, what a model needs."""
    dataset = store.Dataset(folder)
    columns = None if verify else ["hits.x", "hits.z", "truth.particle_row", "particles.px"]
    out: Truth = {"ids": dataset.event_ids.tobytes(), "n_hits": dataset.n_hits.tobytes()}
    out |= {"fingerprint": dataset.fingerprint, "n_noise": dataset.n_noise.tobytes()}
    for i, event_id in enumerate(dataset.event_ids):
        event = dataset.read(i, columns, verify)
        for table, found in event.tables.items():
            for name, values in found.items():
                out[int(event_id), f"{table}.{name}"] = (values.dtype.str, values.shape, values.tobytes())
    dataset.close()
    return out


def _bytes(event: Candidates) -> tuple:
    arrays = [getattr(event, name) for name in candidates.COLUMNS]
    return tuple((values.dtype.str, values.shape, values.tobytes()) for values in arrays)


def read_candidates(folder: Path, verify: bool) -> Truth:
    """Everything of a candidates folder; only `inspect --verify` and `evaluate --data` check its content."""
    found = CandidateStore(folder)
    out: Truth = {"ids": found.event_ids.tobytes(), "attributes": found.attributes, "digest": found.digest}
    return out | {int(event): _bytes(found.read(i)) for i, event in enumerate(found.event_ids)}


def read_journal(folder: Path, verify: bool) -> Truth:
    """The whole records of the journals; an event without one is made again, so it is no wrong read."""
    out: Truth = {}
    for path in sorted((folder / journals.PARTS).glob("*.journal")):
        out |= {event: _bytes(candidates.decode(event, payload)) for event, _, payload in journals.records(path)}
    return out


def read_checkpoint(folder: Path, verify: bool) -> Truth:
    """The newest checkpoint's weights and meta data."""
    newest = checkpoint.latest(folder)
    if newest is None:
        return {}
    meta, state = checkpoint.read_meta(newest), checkpoint.read_state(newest)
    about = {
        key: json.dumps(meta.get(key))
        for key in (*checkpoint_metadata.Meta.model_fields, *checkpoint_metadata.Resumable.model_fields)
    }
    return about | {name: tensor.numpy().tobytes() for name, tensor in state["model"].items()}


READERS: dict[str, Callable[[Path, bool], Truth]] = {
    "dataset": read_dataset,
    "candidates": read_candidates,
    "journal": read_journal,
    "checkpoint": read_checkpoint,
}


def attempt(act: Callable[[], object]) -> dict[str, object]:
    """What came of it: a value, an error in one line, or a stray exception."""
    try:
        return {"value": act()}
    except (InputError, MachineError, OSError) as error:
        return {"error": str(error), "lines": len(str(error).splitlines())}
    except BaseException as error:  # noqa: BLE001 - to be counted, whatever it is
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        where = f"{Path(place.tb_frame.f_code.co_filename).name}:{place.tb_lineno}" if place else ""
        return {"stray": f"{type(error).__name__} at {where}: {error}"[:300]}


def observe(folder: Path, area: str, truth: Truth) -> dict[str, dict]:
    """In the child: read verified, read unverified, inspect and verify."""

    def right() -> bool:
        found = READERS[area](folder, True)
        if area == "journal":  # a prefix is right
            return all(truth.get(key) == value for key, value in found.items())
        return found == truth

    def inspected() -> list[str]:
        kind = kinds.kind_of(folder)
        return [str(problem) for problem in inspect.verify(folder, kind, jobs=0)]

    def described() -> bool:
        return bool(inspect.describe(folder, kinds.kind_of(folder)))

    def one_by_one() -> list[dict]:
        """Each file alone; what is said of it does not count, but no stray exception may come of it."""
        stray = []
        for path in sorted(folder.rglob("*.*")):
            for act in (inspect.describe, lambda path, kind: inspect.verify(path, kind, jobs=0)):
                found = attempt(lambda path=path, act=act: bool(act(path, kinds.kind_of(path))))
                stray += [found["stray"]] if "stray" in found else []
        if stray:
            raise RuntimeError("; ".join(stray))
        return stray

    return {
        "alone": attempt(one_by_one),
        "read": attempt(right),
        "quick": attempt(lambda: bool(READERS[area](folder, False))),
        "verify": attempt(inspected),
        "describe": attempt(described),
    }


def in_child(act: Callable[[], object]) -> tuple[str, object]:
    """('done', result) of a forked child, or 'crash' / 'hang' and the signal."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        os.close(receive)
        faulthandler.disable()
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        with os.fdopen(send, "wb") as pipe:
            pickle.dump(act(), pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        hang = os.WTERMSIG(status) == signal.SIGALRM
        return ("hang" if hang else "crash"), signal.Signals(os.WTERMSIG(status)).name
    if os.WEXITSTATUS(status) or not content:
        return "crash", f"exit code {os.WEXITSTATUS(status)}"
    return "done", pickle.loads(content)  # our own child's


# ------------------------------------------------------------------------------------------------ judging


@dataclass
class Campaign:
    """Counts of all cases, and the failures word for word."""

    root: Path
    counts: Counter = field(default_factory=Counter)
    failures: list[dict] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        make(self.root / "good", 1)
        make(self.root / "twin", 2)
        self.truth = {area: READERS[area](self.root / "good" / area, True) for area in AREAS}

    def case(self, area: str, kind: str, damage: Callable[[Path], object], note: object) -> str:
        """Damage a copy, look at it, and count the outcome."""
        folder = self.root / "case" / area
        shutil.rmtree(folder.parent, ignore_errors=True)
        shutil.copytree(self.root / "good" / area, folder)
        damage(folder)
        state, seen = in_child(lambda: observe(folder, area, self.truth[area]))
        outcome, why = judge(state, seen, folder)
        self.counts[area, kind, outcome] += 1
        if outcome in FAILURES:
            self.failures.append({"area": area, "kind": kind, "outcome": outcome, "why": why, "note": str(note)})
        self.examples.setdefault(f"{area}: {kind}: {outcome}", str(why).replace(str(self.root / "case"), "…"))
        return outcome


def judge(state: str, seen: object, folder: Path) -> tuple[str, object]:
    """(outcome, what was said)."""
    if state != "done":
        return state, seen
    assert isinstance(seen, dict)
    for way, result in seen.items():
        if "stray" in result:
            return "stray exception", f"{way}: {result['stray']}"
        if result.get("lines", 1) != 1:
            return "stray exception", f"{way}: more than one line: {result['error']}"
    read, verify = seen["read"], seen["verify"]
    problems = verify.get("value") or ([verify["error"]] if "error" in verify else [])
    said = [*([read["error"]] if "error" in read else []), *problems]
    if said and not any(str(folder.name) in text or folder.parent.name in text for text in said):
        return "unnamed", said
    if "error" in read:
        return ("found by the reader and --verify" if problems else "found by the reader"), said[0]
    if problems:
        return "found by --verify", problems[0]
    if not read["value"]:
        return "silent wrong read", "read without an error, but not the truth; --verify says ok"
    return "no meaning changed", ""


def file_names(folder: Path) -> list[str]:
    """All files in a folder, relative."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def run(n: int, seed: int, root: Path, say: Callable[[str], None] = print) -> Campaign:
    """`n` cases: two fifths knowingly (hypothesis), two fifths blindly, one fifth whole files."""
    campaign, rng = Campaign(root), random.Random(seed)
    done, start = 0, time.monotonic()

    def tick() -> None:
        nonlocal done
        done += 1
        if done % 200 == 0:
            say(f"{done}/{n} cases, {len(campaign.failures)} failures, {time.monotonic() - start:.0f} s")

    blind, whole = n * 2 // 5, n // 5
    for _ in range(blind):
        area = rng.choices(AREAS, (5, 4, 2, 1))[0]
        name, kind = rng.choice(file_names(root / "good" / area)), rng.choice(sorted(mutations.BYTES))
        note = rng.getrandbits(32)

        def damage(folder: Path, name: str = name, kind: str = kind, note: int = note) -> None:
            data = bytearray((folder / name).read_bytes())
            (folder / name).write_bytes(mutations.BYTES[kind](data, random.Random(note)))

        campaign.case(area, kind, damage, (name, kind, note))
        tick()
    for _ in range(whole):
        area, kind = rng.choice(("dataset", "candidates")), rng.choice(sorted(mutations.FILES))
        names, note = file_names(root / "good" / area), rng.getrandbits(32)
        twin = root / "twin" / area

        def damage(folder: Path, kind: str = kind, names: list = names, twin: Path = twin, note: int = note) -> None:
            mutations.FILES[kind](folder, twin, names, random.Random(note))

        campaign.case(area, kind, damage, (kind, note))
        tick()
    for area in ("dataset", "candidates"):
        share = (n - blind - whole) // 2 if area == "dataset" else n - done
        _structured(campaign, area, share, seed, tick)
    return campaign


def _structured(campaign: Campaign, area: str, n: int, seed: int, tick: Callable[[], None]) -> None:
    good = campaign.root / "good" / area
    changes = mutations.structured(good, [name for name in file_names(good) if name.endswith(".h5")])
    quiet = settings(
        max_examples=n, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
    )

    @quiet
    @hypothesis_seed(seed)
    @given(changes)
    def one(change: mutations.Structured) -> None:
        campaign.case(area, change.kind, change.apply, change)
        tick()

    one()


def table(campaign: Campaign) -> str:
    """Counts by kind of damage and outcome, as markdown."""
    outcomes = sorted({outcome for _, _, outcome in campaign.counts}, key=lambda o: (o in FAILURES, o))
    lines = ["| what | damage | " + " | ".join(outcomes) + " |", "|---|---|" + "---:|" * len(outcomes)]
    for area, kind in sorted({(area, kind) for area, kind, _ in campaign.counts}):
        row = [campaign.counts[area, kind, outcome] for outcome in outcomes]
        lines.append(f"| {area} | {kind} | " + " | ".join(map(str, row)) + " |")
    totals = [sum(c for (_, _, o), c in campaign.counts.items() if o == outcome) for outcome in outcomes]
    return "\n".join([*lines, "| **all** | | " + " | ".join(f"**{c}**" for c in totals) + " |"])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write counts, failures and an example of each outcome")
    args = parser.parse_args()
    print(f"damage: --n {args.n} --seed {args.seed}")
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        campaign = run(args.n, args.seed, Path(root))
    print(table(campaign))
    for failure in campaign.failures:
        print(json.dumps(failure))
    if args.json:
        counts = [[*key, count] for key, count in sorted(campaign.counts.items())]
        found = {"n": args.n, "seed": args.seed, "counts": counts}
        found |= {"failures": campaign.failures, "examples": campaign.examples}
        args.json.write_text(json.dumps(found, indent=1))
    return bool(campaign.failures)


if __name__ == "__main__":
    raise SystemExit(main())
