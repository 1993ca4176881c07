"""kill -9 of torchrun while its ranks start, then another command at the same port: only its own ranks train it.

    python tests/campaigns/launchers_killed.py --tries 4 --seed 1

Each try starts a training of two ranks, kills torchrun (not its ranks) after a random time, and starts a training with
another seed in another folder at once, at the same port. It must end, with an exact ledger and the curve of the same
command on its own, and no process of the first may be left. The campaign ends with exit code 1 at the first failure.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from toys import losses

from hpctrack.config import dump_yaml
from hpctrack.testing.toys import toy_config, toy_dataset
from hpctrack.training.ledger import problems

LATEST_S = 8.0  # of a kill: from before the ranks' first line to their first steps
LEFT_S = 10.0  # for ranks to end after their launcher
STEPS = 40


def command(port: int, config: Path) -> list[str]:
    """torchrun with two ranks that meet at a port."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"]
    return [*words, "--master-addr", "127.0.0.1", "--master-port", str(port), "-m", "hpctrack.train", str(config)]


def written(folder: Path, data: Path, name: str, seed: int) -> Path:
    """The recipe of a run in a folder of its own."""
    settings = {"steps": STEPS, "checkpoint_every": 10, "valid_every": 1000}
    config = toy_config(folder / name, data, train=settings).model_copy(update={"seed": seed})
    path = folder / f"{name}.yaml"
    path.write_text(dump_yaml(config))
    return path


def left(config: Path) -> list[int]:
    """Processes that work on a recipe."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(config).encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue
    return found


def attempt(folder: Path, data: Path, after_s: float, expected: list[float]) -> list[str]:
    """What is wrong after one try."""
    first, second = written(folder, data, "first", 7), written(folder, data, "second", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = open(folder / "first.log", "w")  # noqa: SIM115 - its processes have it
    launcher = subprocess.Popen(command(port, first), stdout=log, stderr=log)
    time.sleep(after_s)
    launcher.kill()
    launcher.wait()
    done = subprocess.run(command(port, second), check=False, capture_output=True, text=True, timeout=600)
    end = time.monotonic() + LEFT_S
    while left(first) and time.monotonic() < end:
        time.sleep(0.2)
    wrong = [f"process {pid} of the first is left" for pid in left(first)]
    if done.returncode:
        return [*wrong, f"the second ended with {done.returncode}: {done.stderr[-2000:]}"]
    wrong += problems(folder / "second")
    return wrong if losses(folder / "second") == expected else [*wrong, "another curve than on its own"]


def main() -> int:
    """Command line of the campaign."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tries", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        data = toy_dataset(root / "data")
        (root / "alone").mkdir()
        alone = written(root / "alone", data, "second", 1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        subprocess.run(command(port, alone), check=True, capture_output=True)
        expected = losses(root / "alone/second")
        for number in range(args.tries):
            folder, after_s = root / str(number), rng.uniform(0.0, LATEST_S)
            folder.mkdir()
            wrong = attempt(folder, data, after_s, expected)
            print(f"try {number + 1}: torchrun killed after {after_s:.1f} s: {'; '.join(wrong) or 'right'}", flush=True)
            if wrong:
                return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
