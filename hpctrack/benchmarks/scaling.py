"""Strong and weak scaling of training: the shipped influencer recipe on events of 500 tracks, one thread a rank.

Each point is a short run of `hpctrack train` under torchrun, its figures those of the run's own metrics, the first step
left out. Runs take turns, round by round. On a cluster slurm/scaling.sh makes the runs, over numbers of nodes, and
`hpctrack bench scaling --runs FOLDER` makes figures and page of them. Figures and lines named `projected` are not
measured:

    step = max over ranks (sum of the seconds of its events) + all-reduce of the gradient + three small all-reduces

The plan is the real one (planning/plan.py), made from predicted seconds; each event takes its predicted seconds times a
drawn ratio of measured to predicted ones, so that what the cost model does not know stays in. Communication is not
overlapped with computing, and costs alpha + beta bytes on each link of a ring or a tree, whichever is faster.
"""

from __future__ import annotations

import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from hpctrack.benchmarks.measure import Figure, Page, helix_dataset
from hpctrack.benchmarks.measured_gpu import Speed, speed
from hpctrack.errors import InputError, MachineError
from hpctrack.files.jsonlines import read_metrics
from hpctrack.named_recipes import path_of
from hpctrack.planning.plan import plan_epoch
from hpctrack.resources.cost_model import CostModel, event_terms
from hpctrack.training import checkpoint

CONFIG = "influencer"  # a recipe by name
PROBE_EVERY = 2
ROUNDS = 4
SETTINGS = [
    "data.valid=null",
    "data.selection.tracks=500",
    "builder.radius=0.1",
    "plan.hits_per_micro_batch=8000",  # an event at a time
    "train.log_every=1",
    f"train.probe_every={PROBE_EVERY}",
    "train.valid_every=1000000",
    "train.checkpoint_every=1000000",
]
PARTS = ("compute_s", "wait_s", "communicate_s", "data_s")


@dataclass(frozen=True)
class Run:
    """A run's number of ranks, events a step, metrics of its steps from the second on, and what its last step saved."""

    ranks: int
    batch: int
    round: int
    steps: list[dict[str, Any]]
    cost: dict[str, Any]
    parameters: int

    def shares(self, part: str) -> list[float]:
        """Share of `part` in each probed step, mean over ranks."""
        probed = [s for s in self.steps if "wait_s" in s and (self.ranks == 1 or s["step"] % PROBE_EVERY == 0)]
        return [step[part] / sum(step[name] for name in PARTS) for step in probed]


def run(quick: bool, data: Path | None = None, runs: Path | None = None) -> Page:
    """Figures, tables and plot, of runs that are there (`runs`), or of 1 and 2 ranks on this machine."""
    if runs is not None:
        return page(read_runs(runs))
    with tempfile.TemporaryDirectory() as folder:
        rounds, more = (1, ["data.selection.tracks=100", "train.steps=3"]) if quick else (ROUNDS, ["train.steps=5"])
        measure(Path(folder), data or helix_dataset(Path(folder), 16, 2500), (1, 2), rounds, more)
        return page(read_runs(Path(folder)))


def measure(folder: Path, data: Path, ranks: Sequence[int], rounds: int, more: Sequence[str]) -> None:
    """Train on each number of ranks, with the same events a step (strong) and with as many a rank (weak)."""
    points = sorted({(n, batch) for n in ranks for batch in (PER_RANK * max(ranks), PER_RANK * n)})
    for round_ in range(rounds):
        for n, batch in points:
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
            words = [f"run={folder / name_of(n, batch, round_)}", f"data.train={data}", f"plan.events_per_step={batch}"]
            command = [*launcher, "-m", "hpctrack.train", str(path_of(CONFIG)), *SETTINGS, *words, *more]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                raise MachineError(f"{n} ranks: {' '.join(done.stderr.split())[-300:]}")


def name_of(ranks: int, batch: int, round_: int) -> str:
    """Folder of a run."""
    return f"ranks-{ranks}-batch-{batch}-round-{round_}"


def read_runs(folder: Path) -> list[Run]:
    """All runs in a folder, the fewest ranks first; InputError if there is none, or one has not ended."""
    found = []
    for path in folder.glob("ranks-*-batch-*-round-*"):
        ranks, batch, round_ = map(int, re.findall(r"\d+", path.name))
        steps = [line for line in read_metrics(path) if line["kind"] == "train" and line["step"] > 1]
        newest = checkpoint.find(path)
        weights = checkpoint.read_state(newest)["model"].values()
        parameters = sum(weight.numel() for weight in weights)
        found.append(Run(ranks, batch, round_, steps, cost=checkpoint.read_meta(newest)["cost"], parameters=parameters))
    if not found:
        raise InputError(f"{folder}: no runs ranks-N-batch-B-round-I in here; slurm/scaling.sh makes them")
    return sorted(found, key=lambda run: (run.ranks, run.batch, run.round))


# ------------------------------------------------------------------------------------------------ figures


def efficiencies(runs: list[Run]) -> dict[tuple[str, int], list[float]]:
    """By kind and ranks, against the fewest ranks: of each step (strong), or each round (weak: hits/s a rank)."""
    fewest, smallest, largest = runs[0].ranks, runs[0].batch, max(run.batch for run in runs)
    by_place = {(run.ranks, run.batch, run.round): run for run in runs}
    found: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        weak = smallest // fewest * run.ranks
        for kind, batch, base_batch in (("strong", largest, largest), ("weak", weak, smallest)):
            base = by_place.get((fewest, base_batch, run.round))
            if base is None or run.batch != batch:
                continue
            if kind == "strong":
                pairs = zip(base.steps, run.steps, strict=False)
                values = [a["step_s"] * fewest / (b["step_s"] * run.ranks) for a, b in pairs]
            else:
                speeds = [statistics.median(s["hits_per_s"] for s in r.steps) / r.ranks for r in (run, base)]
                values = [speeds[0] / speeds[1]]
            found.setdefault((kind, run.ranks), []).extend(values)
    return found


def page(runs: list[Run]) -> Page:
    """Everything that the runs say, and the projection."""
    largest = max(run.batch for run in runs)
    most = runs[-1].ranks
    found = efficiencies(runs)
    if torch.cuda.is_available():
        gpu = Speed(1.0, "A GPU is taken to be as fast as those measured.", measured=True)
    else:
        gpu = speed(PERLMUTTER_LIKE.flops / core_flops())
    best = max((r for r in runs if r.ranks == runs[0].ranks), key=lambda r: len(r.cost["samples"]))
    projected = project(best.cost, best.parameters, gpu.ratio, PERLMUTTER_LIKE)
    figures = [
        Figure(f"{kind}_{n}", values, "", f"efficiency on {n} ranks against {runs[0].ranks}: {about(kind, largest)}")
        for (kind, n), values in sorted(found.items())
        if n > runs[0].ranks
    ]
    last = [run for run in runs if run.ranks == most and run.batch == largest]
    for name, part, what in (
        ("imbalance_share", "wait_s", "waiting for the slowest rank"),
        ("data_wait_share", "data_s", "waiting for data"),
        ("communication_share", "communicate_s", "summing gradients, without overlap"),
    ):
        values = [value for run in last for value in run.shares(part)]
        figures.append(Figure(name, values, "", f"share of a step's time {what}, {most} ranks"))
    for n in sorted({run.ranks for run in runs}):
        steps = [step for run in runs if run.ranks == n and run.batch == largest for step in run.steps]
        figures.append(Figure(f"hits_per_s_{n}", [s["hits_per_s"] for s in steps], "hits/s", f"{n} ranks"))
        figures.append(Figure(f"peak_gib_{n}", [s["peak_gib"] for s in steps], "GiB", f"largest of {n} ranks"))
    figures += [
        Figure(
            f"projected_{p.kind}_{p.world}",
            [p.efficiency],
            "",
            f"PROJECTION, not measured, GPU speed {gpu.word}: efficiency on {p.world} GPUs, {PERLMUTTER_LIKE.name}",
        )
        for p in projected
        if p.world >= 64
    ]
    return Page(figures, text(runs, found, projected, gpu), partial(plot, found, projected, gpu))


def about(kind: str, largest: int) -> str:
    """What stays the same."""
    return f"{largest} events a step" if kind == "strong" else "as many events a rank"


def text(runs: list[Run], found: dict, projected: list[Projected], gpu: Speed) -> str:
    """Tables below the figures."""
    lines = [
        "## Measured",
        "",
        f"![efficiency over ranks, measured and, with a speed of GPUs that is {gpu.word}, projected](scaling.png)",
        "",
        "| ranks | events a step | s a step | hits/s | efficiency | compute | imbalance | data | communication | GiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    largest, per_rank = max(run.batch for run in runs), runs[0].batch // runs[0].ranks
    for ranks, batch in sorted({(run.ranks, run.batch) for run in runs}):
        same = [run for run in runs if (run.ranks, run.batch) == (ranks, batch)]
        steps = [step for run in same for step in run.steps]
        kinds = [k for k, b in (("strong", largest), ("weak", per_rank * ranks)) if b == batch]
        reached = ", ".join(f"{k} {statistics.median(found[k, ranks]):.3f}" for k in kinds if (k, ranks) in found)
        shares = [statistics.mean(v for r in same for v in r.shares(part)) for part in PARTS]
        compute, wait, communicate, data = (f"{100 * share:.1f} %" for share in shares)
        seconds, speed = (statistics.median(s[name] for s in steps) for name in ("step_s", "hits_per_s"))
        memory = max(step["peak_gib"] for step in steps)
        lines.append(
            f"| {ranks} | {batch} | {seconds:.2f} | {speed:,.0f} | {reached} | {compute} | {wait} | {data} | "
            f"{communicate} | {memory:.2f} |"
        )
    lines += [
        "",
        f"## Projected, not measured: the speed of a GPU is {gpu.word}",
        "",
        f"To {PERLMUTTER_LIKE.name}, by simulating the plan with the measured cost model and its errors, and an "
        "alpha-beta model of a hierarchical all-reduce, not overlapped with computing. " + gpu.source,
        "",
        f"Parameters: {PERLMUTTER_LIKE.source}.",
        "",
        "| projected | GPUs | efficiency | imbalance | communication | s a step |",
        "|---|---|---|---|---|---|",
        *(
            f"| {p.kind} | {p.world} | {p.efficiency:.3f} | {100 * p.imbalance:.1f} % | "
            f"{100 * p.communication:.1f} % | {p.step_s:.4f} |"
            for p in projected
        ),
        "",
    ]
    return "\n".join(lines)


def plot(found: dict[tuple[str, int], list[float]], projected: list[Projected], gpu: Speed, file: BinaryIO) -> None:
    """Efficiency over ranks: measured points, projected lines."""
    from matplotlib.figure import Figure as Canvas

    figure = Canvas(figsize=(7, 3.8), layout="constrained")
    axes = figure.subplots()
    for colour, kind in (("C0", "strong"), ("C1", "weak")):
        points = [p for p in projected if p.kind == kind]
        axes.plot(
            [p.world for p in points],
            [p.efficiency for p in points],
            "--",
            color=colour,
            lw=1,
            label=f"{kind}, PROJECTED to {PERLMUTTER_LIKE.name}, GPU speed {gpu.word}",
        )
        measured = sorted((n, values) for (k, n), values in found.items() if k == kind)
        middle = [statistics.median(values) for _, values in measured]
        axes.plot([n for n, _ in measured], middle, "o-", color=colour, ms=5, label=f"{kind}, measured")
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1.1)
    axes.set_xlabel("ranks")
    axes.set_ylabel("efficiency against the fewest ranks")
    axes.legend(fontsize=7, loc="lower left")
    axes.grid(alpha=0.25)
    figure.savefig(file, dpi=130, format="png")


# ------------------------------------------------------------------- projection to thousands of GPUs, not a measurement


WORLDS = (1, 4, 16, 64, 256, 1024, 4096)
PER_RANK, STRONG_BATCH, STEPS = 4, 16384, 3  # events a rank in weak, events a step in strong scaling, steps simulated
SMALL = 3  # all-reduces of a few numbers a step: counts, losses, gradient norm


@dataclass(frozen=True)
class Machine:
    """Nodes of `gpus` GPUs; latencies in s a hop, bandwidths in bytes/s a GPU and direction; `flops` of fp32."""

    name: str
    source: str
    gpus: int
    flops: float
    node_latency: float
    node_bandwidth: float
    net_latency: float
    net_bandwidth: float
    base_latency: float

    def all_reduce(self, size: float, world: int) -> float:
        """Seconds to sum `size` bytes over `world` GPUs: scattered within nodes, summed between them, gathered."""
        inside, nodes = min(world, self.gpus), math.ceil(world / self.gpus)
        if world == 1:
            return 0.0
        seconds = self.base_latency
        seconds += 2 * (inside - 1) * (self.node_latency + size / inside / self.node_bandwidth)
        if nodes > 1:
            share = size / inside  # each GPU has a network card of its own
            ring = 2 * (nodes - 1) * (self.net_latency + share / nodes / self.net_bandwidth)
            tree = 2 * math.ceil(math.log2(nodes)) * self.net_latency + 2 * share / self.net_bandwidth
            seconds += min(ring, tree)
        return seconds


PERLMUTTER_LIKE = Machine(
    name="nodes of 4 A100 on Slingshot 11",
    source="A100 data sheet (NVIDIA): 19.5 TFLOP/s in fp32, NVLink 3 at 25 GB/s a link and direction, four links "
    "between two of four GPUs; one 200 Gb/s Slingshot 11 card a GPU (D. De Sensi et al., SC24, arXiv:2408.14090, on "
    "such networks); latencies: NCCL's own tuning model (src/graph/tuning.cc, Simple: 8.4 us, 3.4 us a hop on "
    "NVLink, 14 us on a network)",
    gpus=4,
    flops=19.5e12,
    node_latency=3.4e-6,
    node_bandwidth=100e9,
    net_latency=14e-6,
    net_bandwidth=25e9,
    base_latency=8.4e-6,
)


@dataclass(frozen=True)
class Projected:
    """A projected point: efficiency against one rank, shares of the step's time."""

    kind: str
    world: int
    efficiency: float
    imbalance: float
    communication: float
    step_s: float


def core_flops(repeats: int = 5, size: int = 1024) -> float:
    """FLOP/s that a matrix product in fp32 reaches here, with the threads that are set."""
    a = torch.rand(size, size)
    best = math.inf
    for _ in range(repeats):
        begin = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - begin)
    return 2 * size**3 / best


def project(cost_state: dict[str, Any], parameters: int, speedup: float, machine: Machine) -> list[Projected]:
    """Strong and weak scaling of events like those that the cost model saw, each event `speedup` times faster."""
    cost = CostModel(cost_state)
    cost.learn(1)
    samples = cost.samples[cost.samples[:, 1] > 0]
    ratio = samples[:, -1] / cost.seconds(samples[:, :-1])
    off = np.abs(np.log(ratio / np.median(ratio)))
    usual = off <= 3 * 1.4826 * max(np.median(off), 1e-9)  # the machine's hiccups are not the events'
    hits, ratio = samples[usual, 1], ratio[usual]
    points = []
    for kind in ("strong", "weak"):
        for world in WORLDS:
            batch = STRONG_BATCH if kind == "strong" else PER_RANK * world
            rng = np.random.default_rng([world, batch])
            drawn = rng.integers(len(hits), size=(STEPS * batch, 2))
            sizes = hits[drawn[:, 0]] * rng.lognormal(0, 0.02, STEPS * batch)  # no two events alike
            terms = event_terms(sizes)
            terms[:, 0] = 1.0
            predicted = cost.seconds(terms) / speedup
            measured = predicted * ratio[drawn[:, 1]]
            loads = plan_epoch(predicted, world, 0, 0, batch).loads(measured, world)
            summed = machine.all_reduce(4.0 * parameters, world) + SMALL * machine.all_reduce(8.0 * 16, world)
            slowest, mean = loads.max(axis=1).mean(), loads.mean()
            step = slowest + summed
            points.append(
                Projected(
                    kind,
                    world,
                    mean / step,
                    imbalance=(slowest - mean) / step,
                    communication=summed / step,
                    step_s=step,
                )
            )
    return points
