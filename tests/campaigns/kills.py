"""kill -9 at random moments: does conversion, or inference, always end as an unbroken run does?

    python tests/campaigns/kills.py --what convert|infer --n 500 --seed 0

A run is a process group forked from this warm process and killed as a whole after a random part of the time that an
unbroken run takes. After each kill the same command runs again, and is killed again or left to end; at the end every
file must be, byte for byte, that of an unbroken run: no event lost, none twice. The last line counts the kills and what
stood on disk when they came; at the first difference the exit code is 1, and the seed and the kill's number are said.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import make_trackml

from hpctrack import convert
from hpctrack.storage import store
from hpctrack.storage.candidates import CandidateStore
from hpctrack.storage.hdf5 import INDEX
from hpctrack.storage.journals import PARTS

GOES_ON = 0.75  # chance that the run after a kill is killed, too
N_EVENTS = 9


class Convert:
    """Nine small events into five shards, by one process or by two workers."""

    modes = {"1 process": 0.7, "2 workers": 0.3}
    shards, index = "events-*.h5", INDEX

    def __init__(self, folder: Path) -> None:
        self.source = make_trackml(folder / "csv", range(100, 100 + N_EVENTS))
        self.ids = list(range(100, 100 + N_EVENTS))

    def run(self, out: Path, mode: str) -> int:
        """Exit code of the verb."""
        return convert.main([str(self.source), str(out), "--events-per-shard", "2", "--jobs", mode[0]])

    def content(self, out: Path) -> dict[str, bytes]:
        """Every file of a finished run, once its events and checksums have been looked at."""
        dataset = store.open_dataset(out)
        assert dataset.event_ids.tolist() == self.ids, dataset.event_ids
        assert store.digest(dataset)[:16] == dataset.fingerprint
        return {path.name: path.read_bytes() for path in out.iterdir()}


class Infer:
    """Nine toy events on one, two or three ranks."""

    modes = {"1 rank": 0.6, "2 ranks": 0.3, "3 ranks": 0.1}
    shards, index = "candidates-*.h5", "index.h5"

    def __init__(self, folder: Path) -> None:
        import hpctrack.infer  # noqa: F401  to be warm before the fork
        from hpctrack.parallel.env import distributed
        from hpctrack.testing.toys import (  # not above: the workers of a conversion import this file
            toy_config,
            toy_dataset,
        )
        from hpctrack.training.loop import train

        self.data = toy_dataset(folder / "data", sizes=(4, 0, 9, 5, 1, 2, 6, 7, 3), n_noise=2, per_shard=2)
        config = toy_config(folder / "run", self.data, train={"precision": "fp32", "steps": 20})
        self.checkpoint = folder / "run"
        with distributed(config.parallel, 1) as env:
            train(config, env)

    def run(self, out: Path, mode: str) -> int:
        """Exit code of the verb on all ranks."""
        from hpctrack import infer
        from hpctrack.testing.ranks import run_ranks

        argv = ["--checkpoint", str(self.checkpoint), "--data", str(self.data), "--out", str(out)]
        return infer.main(argv) if mode[0] == "1" else max(run_ranks(int(mode[0]), infer.main, argv))

    def content(self, out: Path) -> dict[str, bytes]:
        """Every file of a finished run but the timings, once its events have been read."""
        found = CandidateStore(out)
        assert found.event_ids.tolist() == list(range(N_EVENTS)), found.event_ids
        assert [found.read(i).event_id for i in range(N_EVENTS)] == list(range(N_EVENTS))
        timed = [json.loads(line)["event_id"] for line in (out / "timings.jsonl").read_text().splitlines()]
        assert timed == list(range(N_EVENTS)), timed
        assert not (out / PARTS).exists()
        return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "timings.jsonl"}


def start(run: Callable[[Path, str], int], out: Path, mode: str, log: Path) -> int:
    """Fork a process group that runs; its id."""
    child = os.fork()
    if child:
        os.setpgid(child, child)  # both do it, or a kill could come before there is a group
        return child
    code = 70
    try:
        os.setpgid(0, 0)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = run(out, mode)
    except BaseException:  # noqa: BLE001 - whatever it is goes to the log
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def end_or_kill(child: int, delay: float) -> int | None:
    """Exit code of the group's leader if it ends within `delay` seconds, None if it had to be killed."""
    deadline = time.monotonic() + delay
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(min(0.0005, max(deadline - time.monotonic(), 0)))
    os.killpg(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    wait_for_group(child)
    return None if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def wait_for_group(group: int) -> None:
    """Return when no process of the group is left."""
    while True:
        try:
            os.killpg(group, 0)
        except (ProcessLookupError, PermissionError):
            return
        time.sleep(0.0005)


def state(job: Convert | Infer, out: Path) -> str:
    """What a kill left on disk."""
    if (out / job.index).exists():
        return "index there"
    n, temporary = len(list(out.glob(job.shards))), bool(list(out.glob(".*.tmp")))
    journals = [path.stat().st_size for path in out.glob(f"{PARTS}/*.journal")]
    what = "all files, no index" if n == 5 else f"{'some' if n else 'no'} files"
    if not n and any(journals):
        what = "events in journals"
    return what + (", one half-written" if temporary else "")


def campaign(job: Convert | Infer, folder: Path, n: int, seed: int) -> None:
    """Kill n times; SystemExit with the seed and the kill's number if a rerun does not end as an unbroken run."""
    log, expected, seconds = folder / "log", None, {}
    for mode in job.modes:
        for attempt in range(2):  # the first one is not yet warm
            whole, begin = folder / f"whole-{mode[0]}-{attempt}", time.monotonic()
            code = end_or_kill(start(job.run, whole, mode, log), 300)
            seconds[mode] = time.monotonic() - begin
            assert code == 0, log.read_text()
            content = job.content(whole)
            expected = expected or content
            assert content == expected, f"{mode}: an unbroken run differs"
    print("unbroken: " + ", ".join(f"{mode} {value:.2f} s" for mode, value in seconds.items()), flush=True)
    rng, kills, finished, states = random.Random(seed), 0, 0, collections.Counter()
    out, begin = folder / "out", time.monotonic()
    while True:
        mode = rng.choices(list(job.modes), list(job.modes.values()))[0]
        lucky = kills == n or (out.exists() and rng.random() > GOES_ON)
        delay = 300.0 if lucky else rng.uniform(0, 1.1) * seconds[mode]
        fresh, started = not out.exists(), time.monotonic()
        code = end_or_kill(start(job.run, out, mode, log), delay)
        if code is None:
            if lucky:
                raise SystemExit(f"seed {seed}, after kill {kills} ({mode}): the rerun hangs:\n{log.read_text()}")
            kills += 1
            states[state(job, out)] += 1
            if kills % 50 == 0:
                print(f"seed {seed}: {kills} kills, {finished} ends compared", flush=True)
            continue
        if code or job.content(out) != expected:
            raise SystemExit(
                f"seed {seed}, after kill {kills} ({mode}): exit code {code}, or another content than an "
                f"unbroken run's, in {out}:\n{log.read_text()}"
            )
        finished += 1
        if fresh:  # other work on the machine comes and goes: the delays follow
            seconds[mode] += 0.3 * (time.monotonic() - started - seconds[mode])
        shutil.rmtree(out)
        if kills == n:
            break
    spread = ", ".join(f"{what} {count}" for what, count in states.most_common())
    print(
        f"{type(job).__name__.lower()}: seed {seed}: {kills} kills, {finished} runs ended and equal an unbroken one, "
        f"0 differ, {time.monotonic() - begin:.0f} s; at the kill: {spread}"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--what", required=True, choices=("convert", "infer"))
    parser.add_argument("--n", type=int, default=500, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="no runs that are slow to start")
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    folder = Path(tempfile.mkdtemp(prefix="hpctrack-kills-"))
    job = {"convert": Convert, "infer": Infer}[args.what](folder)
    if args.quick:
        job.modes = {mode: weight for mode, weight in job.modes.items() if weight > 0.2}
    campaign(job, folder, args.n, args.seed)
    shutil.rmtree(folder)  # kept after a failure


if __name__ == "__main__":
    main()
