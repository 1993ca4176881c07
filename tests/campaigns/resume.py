"""Training that ends early again and again, and goes on with another number of ranks and another strategy.

    python tests/campaigns/resume.py --kills 200 --seed 1
    python tests/campaigns/resume.py --trainings 100 --seed 1 --jobs 2 [--json F]

`--kills`: runs of 100 steps in float64, each killed 20 times at random moments. `--trainings`: runs of 30 steps that
are resumed three times, each time on another number of ranks and with the other strategy (ddp, fsdp): after SIGTERM,
after kill -9 of all ranks, and after SIGUSR1 as slurm/common.sh sends it before a walltime ends, in turn. At its end a
run's ledger must be exact and its loss curve that of an unbroken one within 1e-9. Runs are short because training
amplifies rounding: summing gradients over another number of ranks changes the last bit, and at a learning rate of 1e-3
that grows to 1e-11 in 150 steps and 1e-7 in 300, kills or not.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from hpctrack.config import RunConfig
from hpctrack.errors import EXIT_PREEMPTED
from hpctrack.parallel.env import distributed
from hpctrack.process.versions import versions
from hpctrack.testing.ranks import run_ranks, start_ranks
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training import checkpoint
from hpctrack.training.ledger import problems, read
from hpctrack.training.loop import train

TOLERANCE = 1e-9
SIZES = (4, 6, 5, 7, 3, 9, 2, 8, 5, 6, 1)
KILLS_A_RUN, STEPS = 20, 100
HANG_S = 120.0
PLANS = [{}, {"window": "epoch", "cost": "learned", "hits_per_micro_batch": 50, "locality": True}]


def quiet_run(config: RunConfig) -> int:
    """Train on this rank without printing; the exit code."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        distributed(config.parallel, 1) as env,
    ):
        return train(config, env)


def losses(config: RunConfig) -> list[tuple[int, float]]:
    """(step, loss) of every training step that is logged."""
    path = Path(config.run) / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]


def last_step(config: RunConfig) -> int:
    """Steps in the ledger so far; a line that is being written does not count."""
    path = Path(config.run) / "ledger.jsonl"
    return path.read_bytes().count(b"\n") - 1 if path.exists() else 0


def campaign(folder: Path, kills: int, seed: int, steps: int, plan: dict[str, Any]) -> str:
    """Run it in `folder`; the summary line. AssertionError if the ledger or the curve is not exact."""
    rng = random.Random(seed)
    data = toy_dataset(folder / "data", sizes=SIZES)
    whole, broken = (
        toy_config(
            folder / name,
            data,
            plan=plan,
            optim={"lr": 1e-3},
            train={"steps": steps, "checkpoint_every": 3, "probe_every": 2},
        )
        for name in ("whole", "broken")
    )
    run_ranks(1, quiet_run, whole)
    used = []
    for _ in range(kills):
        ranks = rng.choice([n for n in (1, 2, 3, 4) if not used or n != used[-1]])
        used.append(ranks)
        processes, _ = start_ranks(ranks, quiet_run, broken)
        begin, target = last_step(broken), rng.randint(0, max(1, 2 * steps // kills))
        while all(p.is_alive() for p in processes) and last_step(broken) - begin < target:
            time.sleep(0.002)
        time.sleep(rng.random() * 0.03)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGKILL)
            process.join()
    run_ranks(rng.choice([1, 2, 3, 4]), quiet_run, broken)
    worst = difference(whole, broken)
    return (
        f"{kills} kills, ranks {'-'.join(map(str, used[:12]))}{'…' if kills > 12 else ''}, {steps} steps: "
        f"ledger exact, largest relative difference of the loss {worst:.1e}"
    )


def difference(whole: RunConfig, broken: RunConfig) -> float:
    """The largest relative difference of the loss; AssertionError if it is not small, or the ledger not exact."""
    assert problems(Path(broken.run)) == [], problems(Path(broken.run))
    ledgers = [read(Path(config.run)) for config in (whole, broken)]
    assert ledgers[0] == ledgers[1], "the ledger is exact, but not that of the unbroken run"
    expected, found = losses(whole), losses(broken)
    assert [step for step, _ in found] == [step for step, _ in expected]
    worst = max(abs(a - b) / abs(a) for (_, a), (_, b) in zip(expected, found, strict=True))
    assert worst < TOLERANCE, worst
    return worst


# ------------------------------------------------------------------------------------------------ three times each


SHORT = 30  # steps
WAYS = (signal.SIGTERM, signal.SIGKILL, signal.SIGUSR1)
STRATEGIES = ("ddp", "fsdp")
SEEDS = 4  # of runs, each with either plan


def short_config(run: Path, data: Path, number: int, strategy: str = "ddp") -> RunConfig:
    """The `number`-th run's settings; those that decide its result repeat."""
    config = toy_config(
        run,
        data,
        plan=PLANS[number % len(PLANS)],
        optim={"lr": 1e-3},
        train={"steps": SHORT, "checkpoint_every": 4, "probe_every": 2},
        parallel={"strategy": strategy},
    )
    return config.model_copy(update={"seed": number // len(PLANS) % SEEDS})


def interrupt(config: RunConfig, ranks: int, way: signal.Signals, steps: int) -> int:
    """Train on so many ranks until they have taken `steps` more, then end them that way; the step of the ledger."""
    begin = last_step(config)
    processes, pipes = start_ranks(ranks, quiet_run, config)
    deadline = time.monotonic() + HANG_S
    while last_step(config) - begin < steps and all(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, f"{config.run}: not {steps} steps in {HANG_S} s on {ranks} ranks"
        time.sleep(0.002)
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, way)
    if way != signal.SIGKILL:
        for pipe in pipes:
            assert pipe.poll(HANG_S), f"{config.run}: a rank of {ranks} does not end after {way.name}"
        ends = [pipe.recv() for pipe in pipes]
        assert ends == [(True, EXIT_PREEMPTED)] * ranks, ends
    for process in processes:
        process.join()
    step = last_step(config)
    if way != signal.SIGKILL:
        saved = checkpoint.read_meta(checkpoint.find(Path(config.run)))["step"]
        assert saved == step, f"{config.run}: step {saved} is saved, but the ledger has {step}"
    return step


def three_times(folder: Path, data: Path, number: int, seed: int) -> dict[str, Any]:
    """The `number`-th training: how it was interrupted, and how far its curve is from the unbroken run's."""
    rng = random.Random(f"{seed} {number}")
    whole = short_config(folder / f"whole-{number % (len(PLANS) * SEEDS)}", data, number)
    if not Path(whole.run).exists():
        assert run_ranks(1, quiet_run, whole, timeout=HANG_S) == [0]
    ranks = rng.sample((1, 2, 3, 4), 4)
    first = rng.randrange(len(STRATEGIES))
    strategies = [STRATEGIES[(first + k) % len(STRATEGIES)] for k in range(4)]
    ways = [WAYS[(number + k) % len(WAYS)] for k in range(3)]
    run, segments = folder / f"run-{number}", []
    for n, strategy, way in zip(ranks, strategies, ways, strict=False):
        steps = rng.randint(1, SHORT // 4)
        step = interrupt(short_config(run, data, number, strategy), n, way, steps)
        segments.append({"ranks": n, "strategy": strategy, "ended": way.name, "at_step": step})
    broken = short_config(run, data, number, strategies[-1])
    assert run_ranks(ranks[-1], quiet_run, broken, timeout=HANG_S) == [0] * ranks[-1]
    segments.append({"ranks": ranks[-1], "strategy": strategies[-1], "ended": "done", "at_step": SHORT})
    worst = difference(whole, broken)
    shutil.rmtree(run)
    return {"training": number, "segments": segments, "difference": worst}


def trainings(numbers: range, seed: int) -> list[dict[str, Any]]:
    """These trainings one after another; a failure is kept as its text, and its folder stays."""
    folder = Path(tempfile.mkdtemp(prefix="hpctrack-resume-"))
    data, found = toy_dataset(folder / "data", sizes=SIZES), []
    for number in numbers:
        try:
            found.append(three_times(folder, data, number, seed))
        except (AssertionError, ValueError, OSError, EOFError) as error:
            found.append({"training": number, "failure": f"{folder}/run-{number}: {type(error).__name__}: {error}"})
            print(found[-1]["failure"], flush=True)
        if len(found) % 10 == 0:
            bad = sum("failure" in one for one in found)
            print(f"seed {seed}: {len(found)} of {len(numbers)} trainings, {bad} failures", flush=True)
    if not any("failure" in one for one in found):
        shutil.rmtree(folder)
    return found


def resumed_three_times(n: int, seed: int, jobs: int) -> list[dict[str, Any]]:
    """`n` trainings, shared by so many processes."""
    children, pipes = start_ranks(jobs, share, n, seed, jobs)
    found = [pipe.recv() for pipe in pipes]
    for child in children:
        child.join()
    failed = [value for ok, value in found if not ok]
    assert not failed, failed
    return sorted((one for _, part in found for one in part), key=lambda one: one["training"])


def share(n: int, seed: int, jobs: int) -> list[dict[str, Any]]:
    """Every `jobs`-th training."""
    job = int(os.environ["RANK"])
    return trainings(range(job, n, jobs), seed)


def summary(found: list[dict[str, Any]], seconds: float) -> str:
    """What came of all trainings, in a line."""
    good = [one for one in found if "failure" not in one]
    segments = [segment for one in good for segment in one["segments"]]
    count = collections.Counter(segment["ended"] for segment in segments)
    on = collections.Counter(f"{segment['strategy']} x {segment['ranks']}" for segment in segments)
    worst = max((one["difference"] for one in good), default=float("nan"))
    return (
        f"{len(found)} trainings resumed three times in {seconds:.0f} s: {len(found) - len(good)} failures, else every "
        f"ledger exact, largest relative difference of the loss {worst:.1e}; ends: "
        f"{', '.join(f'{name} {n}' for name, n in count.most_common())}; "
        f"segments: {', '.join(f'{name} {n}' for name, n in sorted(on.items()))}"
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--kills", type=int, default=200)
    what.add_argument("--trainings", type=int, help="resumed three times each, instead of --kills")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--json", type=Path, help="with --trainings: how each ended and went on")
    args = parser.parse_args()
    begin, done = time.time(), 0
    if args.trainings:
        os.environ["OMP_NUM_THREADS"] = "1"
        found = resumed_three_times(args.trainings, args.seed, args.jobs)
        line = summary(found, time.time() - begin)
        print(line)
        if args.json:
            about = {"command": " ".join(sys.argv), "seed": args.seed, "versions": versions(), "summary": line}
            args.json.write_text(json.dumps(about | {"trainings": found}, indent=1))
        return int(any("failure" in one for one in found))
    for run in range(-(-args.kills // KILLS_A_RUN)):
        plan = PLANS[run % len(PLANS)]
        kills = min(KILLS_A_RUN, args.kills - done)
        with tempfile.TemporaryDirectory() as folder:
            line = campaign(Path(folder), kills, args.seed + run, STEPS, plan)
        done += kills
        print(f"seed {args.seed + run}, plan {plan}: {line}", flush=True)
    print(f"{done} kills in {time.time() - begin:.0f} s: every ledger exact, every curve within {TOLERANCE:.0e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
