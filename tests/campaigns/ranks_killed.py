"""kill -9 of a rank, of all ranks, or of the launcher too, at random moments, under torchrun's restarts.

    python tests/campaigns/ranks_killed.py --kills 100 --seed 1
    python tests/campaigns/ranks_killed.py --kills 50 --seed 1 --ranks-per-event 2   # both hold each event together

Runs of 100 steps in float64 on two ranks, started by torchrun's agent (forked from this warm process) and killed ten
times each. After a kill the agent starts the ranks again; if it was killed too, the same command is given again. When a
run has ended its ledger must be exact, and its curve, bit by bit, that of an unbroken one. A run that does nothing for
`HANG_S` seconds hangs: the campaign ends with exit code 1, as it does at the first difference.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import contextlib

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hpctrack.config import RunConfig, dump_yaml
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.train import main as train_verb
from hpctrack.training.ledger import problems

RANKS, STEPS, KILLS_A_RUN = 2, 100, 10
TIMEOUT_S = 20.0  # parallel.timeout_s of the runs
HANG_S = 3 * TIMEOUT_S
EARLY = 0.25  # of the kills come at any time, which is mostly before the restarted ranks have taken a step
WHAT = {"one rank": 0.5, "all ranks": 0.35, "ranks and launcher": 0.15}


def rank(path: str, log: str) -> None:
    """One rank of the run, its output in a file."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # the agent's handler would not be there in a new process
    code = train_verb([path])
    if code:
        sys.exit(code)


def agent(path: Path, log: Path) -> None:
    """torchrun's agent: starts the ranks, and all of them again when one fails."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as launch/node.py does, and says why
    handle = os.open(log.with_suffix(".agent"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 2)
    launch = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=RANKS,
        run_id=str(time.time_ns()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=1000,
        monitor_interval=0.05,
        start_method="fork",
    )
    elastic_launch(launch, rank)(str(path), str(log))


def children(parent: int) -> list[int]:
    """Living child processes."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            text = status.read_text()
        except OSError:
            continue
        if f"PPid:\t{parent}\n" in text and "State:\tZ" not in text:
            found.append(int(status.parent.name))
    return sorted(found)


def kill(pid: int) -> None:
    """kill -9; it may have ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def sign_of_life(config: RunConfig, process: multiprocessing.Process) -> tuple:
    """Changes while a run goes on."""
    path = Path(config.run) / "ledger.jsonl"
    size = path.stat().st_size if path.exists() else -1
    return size, tuple(children(process.pid)), process.is_alive()


def steps_done(config: RunConfig) -> int:
    """Steps in the ledger, whole lines only; the first line is its head."""
    path = Path(config.run) / "ledger.jsonl"
    return max(0, path.read_bytes().count(b"\n") - 1) if path.exists() else 0


def wait(
    config: RunConfig, process: multiprocessing.Process, seconds: float, enough: Callable[[], bool] = lambda: False
) -> None:
    """Until the run ends, or `enough`, or for so long; SystemExit if it hangs."""
    end, last, seen = time.monotonic() + seconds, None, time.monotonic()
    while process.is_alive() and time.monotonic() < end and not enough():
        now = sign_of_life(config, process)
        if now != last:
            last, seen = now, time.monotonic()
        if time.monotonic() - seen > HANG_S:
            raise SystemExit(f"{config.run}: nothing has happened for {HANG_S:.0f} s: a hang")
        time.sleep(0.005)


def curve(config: RunConfig) -> list[tuple]:
    """(step, loss, norm of the gradient) of every step."""
    lines = [json.loads(line) for line in (Path(config.run) / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"], line["grad_norm"]) for line in lines if line["kind"] == "train"]


def start(path: Path, log: Path) -> multiprocessing.Process:
    """The command that a user would give."""
    process = multiprocessing.get_context("fork").Process(target=agent, args=(path, log))
    process.start()
    return process


def broken_run(
    folder: Path, name: str, data: Path, kills: int, rng: random.Random, ranks_per_event: int = 1
) -> tuple[RunConfig, list[str]]:
    """A run that is killed so many times and then left to end; what was killed, and when."""
    config = toy_config(
        folder / name,
        data,
        train={"steps": STEPS, "checkpoint_every": 3, "valid_every": 1000},
        parallel={"timeout_s": TIMEOUT_S, "ranks_per_event": ranks_per_event},
    )
    path, log, what = folder / f"{name}.yaml", folder / f"{name}.log", []
    path.write_text(dump_yaml(config))
    process = start(path, log)
    while len(what) < kills:
        began = steps_done(config)
        if rng.random() < EARLY:  # while ranks start, meet, or load
            wait(config, process, rng.uniform(0.0, 1.5))
        else:
            target = began + rng.randint(1, 8)
            wait(config, process, HANG_S, lambda target=target: steps_done(config) >= target)
            time.sleep(rng.random() * 0.05)
        if not process.is_alive():
            break
        chosen = rng.choices(list(WHAT), list(WHAT.values()))[0]
        ranks = children(process.pid)
        if not ranks:
            continue
        if chosen == "ranks and launcher":
            kill(process.pid)
        for pid in [rng.choice(ranks)] if chosen == "one rank" else ranks:
            kill(pid)
        what.append(f"{chosen}, {'amid training' if steps_done(config) > began else 'before a step'}")
        if chosen == "ranks and launcher":
            process.join()
            process = start(path, log)
    wait(config, process, float("inf"))
    process.join()
    if process.exitcode or problems(Path(config.run)):
        raise SystemExit(f"{config.run}: exit code {process.exitcode}, ledger {problems(Path(config.run))}; see {log}")
    return config, what


def campaign(folder: Path, kills: int, seed: int, ranks_per_event: int = 1) -> str:
    """The summary line; SystemExit at a hang, a ledger that is not exact, or another curve than an unbroken run's."""
    rng = random.Random(seed)
    data = toy_dataset(folder / "data", sizes=(4, 6, 5, 7, 3, 9, 2, 8, 5, 6, 1))
    whole, _ = broken_run(folder, "whole", data, 0, rng, ranks_per_event)
    done, runs, count, begin = 0, 0, collections.Counter(), time.monotonic()
    while done < kills:
        times = min(KILLS_A_RUN, kills - done)
        config, what = broken_run(folder, f"run-{runs}", data, times, rng, ranks_per_event)
        if curve(config) != curve(whole):
            raise SystemExit(f"{config.run}: another curve than that of {whole.run}")
        done, runs = done + len(what), runs + 1
        count.update(what)
        print(f"seed {seed}: {done} kills, {runs} runs ended, every ledger exact", flush=True)
    spread = ", ".join(f"{what} {n}" for what, n in count.most_common())
    seconds = time.monotonic() - begin
    return f"{done} kills, {runs} runs: no hang, every ledger exact, every curve bit-equal, {seconds:.0f} s; {spread}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--ranks-per-event", type=int, default=1, choices=[1, RANKS])
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="hpctrack-ranks-") as folder:
        print(campaign(Path(folder), args.kills, args.seed, args.ranks_per_event))


if __name__ == "__main__":
    main()
