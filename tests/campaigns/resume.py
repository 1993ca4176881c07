"""Kill training at random moments and go on with another number of ranks, again and again.

    python tests/campaigns/resume.py --kills 200 --seed 1

Runs of 100 steps in float64, each killed 20 times; at its end a run's ledger must be exact and its loss curve that of
an unbroken one within 1e-9. Runs are short because training amplifies rounding: summing gradients over another number
of ranks changes the last bit, and at a learning rate of 1e-3 that grows to 1e-11 in 150 steps and 1e-7 in 300, kills
or not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from ranks import run_ranks, start_ranks
from toys import toy_config, toy_dataset

from hpctrack.config import RunConfig
from hpctrack.parallel.env import distributed
from hpctrack.runtime.ledger import problems
from hpctrack.train import train

TOLERANCE = 1e-9
KILLS_A_RUN, STEPS = 20, 100
PLANS = [{}, {"window": "epoch", "cost": "learned", "hits_per_micro_batch": 50, "locality": True}]


def quiet_run(config: RunConfig) -> None:
    """Train on this rank without printing."""
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        distributed(config.parallel, 1) as env,
    ):
        train(config, env)


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
    data = toy_dataset(folder / "data", sizes=(4, 6, 5, 7, 3, 9, 2, 8, 5, 6, 1))
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
    assert problems(Path(broken.run)) == [], problems(Path(broken.run))
    expected, found = losses(whole), losses(broken)
    assert [step for step, _ in found] == [step for step, _ in expected]
    worst = max(abs(a - b) / abs(a) for (_, a), (_, b) in zip(expected, found, strict=True))
    assert worst < TOLERANCE, worst
    return (
        f"{kills} kills, ranks {'-'.join(map(str, used[:12]))}{'…' if kills > 12 else ''}, {steps} steps: "
        f"ledger exact, largest relative difference of the loss {worst:.1e}"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    begin, done = time.time(), 0
    for run in range(-(-args.kills // KILLS_A_RUN)):
        plan = PLANS[run % len(PLANS)]
        kills = min(KILLS_A_RUN, args.kills - done)
        with tempfile.TemporaryDirectory() as folder:
            line = campaign(Path(folder), kills, args.seed + run, STEPS, plan)
        done += kills
        print(f"seed {args.seed + run}, plan {plan}: {line}", flush=True)
    print(f"{done} kills in {time.time() - begin:.0f} s: every ledger exact, every curve within {TOLERANCE:.0e}")


if __name__ == "__main__":
    main()
