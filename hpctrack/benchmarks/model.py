"""How the seconds of a pass grow with an event's hits: the default backbone up to full events, the dense one beside."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from hpctrack.benchmarks.measure import FEATURES, Figure, Page, command, ratio, simulate, slopes, time_in_turn
from hpctrack.config import AugmentConfig, SelectionConfig
from hpctrack.errors import InputError
from hpctrack.events.loader import EventLoader
from hpctrack.models.backbones import BACKBONES
from hpctrack.storage.store import Dataset

SIZES = [1000, 2000, 4000, 8000, 16000, 32000, 64000, 120000]
DENSE_SIZES = SIZES[:4]  # beyond, the dense backbone only makes the benchmark long
COMPILED_SIZES = [2000, 4000, 6000]
Seconds = dict[str, list[list[float]]]  # pass -> [rounds][sizes]


def run(quick: bool, data: Path | None = None) -> Page:
    """Slopes of log(seconds) against log(hits), on random parts of one event (helices, or the largest of `data`)."""
    sizes, rounds = (SIZES[:6], 2) if quick else (SIZES, 3)
    x_NF = event(data, sizes[-1])
    default = measure("neighbours", x_NF, sizes, rounds)
    dense = measure("transformer", x_NF, DENSE_SIZES, rounds)
    figures = [
        Figure("slope_forward", slopes(default["forward"], sizes), "power of hits", "default backbone, forward"),
        Figure("slope_step", slopes(default["step"], sizes), "power of hits", "default backbone, forward + backward"),
        Figure("slope_dense", slopes(dense["step"], DENSE_SIZES), "power of hits", "dense transformer, the same"),
        *(
            Figure(f"seconds_{name}", [row[-1] for row in default[name]], "s", f"default backbone, {sizes[-1]} hits")
            for name in default
        ),
        *compiled(x_NF, COMPILED_SIZES[: 2 if quick else 3]),
    ]
    return Page(figures, table(sizes, default, dense), partial(plot, sizes, default, dense))


def event(data: Path | None, n_hits: int) -> Tensor:
    """Features [N, F] of one event's hits in random order; InputError if `data` has none of `n_hits`."""
    with tempfile.TemporaryDirectory(prefix="hpctrack-bench-") as folder:
        if data is None:
            csv, data = simulate(Path(folder) / "csv", 1, 1, particles=11000), Path(folder) / "data"
            command([sys.executable, "-m", "hpctrack.convert", str(csv), str(data), "--jobs", "1"])
        dataset = Dataset(data)
        row = int(np.argmax(dataset.n_hits))
        if dataset.n_hits[row] < n_hits:
            raise InputError(f"{data}: its largest event has {dataset.n_hits[row]} hits; this benchmark takes {n_hits}")
        x_NF = EventLoader(dataset, FEATURES, SelectionConfig(), AugmentConfig(), (0, 0))(row, 0).x
        return x_NF[torch.randperm(len(x_NF), generator=torch.Generator().manual_seed(0))]


def measure(name: str, x_NF: Tensor, sizes: Sequence[int], rounds: int) -> Seconds:
    """Seconds of a forward pass without gradients, and of forward + backward, of a backbone with default options."""
    torch.manual_seed(0)
    backbone = BACKBONES[name](FEATURES, BACKBONES[name].Options())

    def forward(n: int) -> Callable[[], None]:
        def call() -> None:
            with torch.no_grad():
                backbone(x_NF[:n], [n])

        return call

    def step(n: int) -> Callable[[], None]:
        return partial(train_on, backbone, x_NF, n)

    out = {}
    for kind, work in (("forward", forward), ("step", step)):
        seconds = time_in_turn({str(n): work(n) for n in sizes}, rounds)
        out[kind] = [list(row) for row in zip(*seconds.values(), strict=True)]
    return out


def compiled(x_NF: Tensor, sizes: Sequence[int]) -> list[Figure]:
    """Eager over compiled seconds of forward + backward, and the seconds that compiling took, for two backbones."""
    figures = []
    for name in ("neighbours", "transformer"):
        torch.manual_seed(0)
        eager = BACKBONES[name](FEATURES, BACKBONES[name].Options())
        fast = copy.deepcopy(eager)
        fast.compile(dynamic=True)
        begin = time.perf_counter()
        train_on(fast, x_NF, 300)
        train_on(fast, x_NF, 400)  # another size, as events have
        cold = time.perf_counter() - begin
        work = {
            f"{which} {n}": partial(train_on, model, x_NF, n)
            for which, model in (("eager", eager), ("compiled", fast))
            for n in sizes
        }
        seconds = time_in_turn(work, 3)
        ratios = [ratio(seconds[f"eager {n}"], seconds[f"compiled {n}"]) for n in sizes]
        about = f"{name}, eager s / compiled s, forward + backward, {sizes[0]} to {sizes[-1]} hits"
        figures += [
            Figure(f"compile_speedup_{name}", [value for row in ratios for value in row], "x", about),
            Figure(f"compile_cold_{name}", [cold], "s", "two passes on other sizes before that, mostly compiling"),
        ]
    return figures


def train_on(backbone: nn.Module, x_NF: Tensor, n: int) -> None:
    """Forward + backward on the first n hits."""
    h_NH, more = backbone(x_NF[:n], [n])
    (h_NH.square().mean() + sum(value.square().mean() for value in more.values())).backward()


def table(sizes: Sequence[int], default: Seconds, dense: Seconds) -> str:
    """Median seconds by size, as Markdown."""
    columns = [np.median(np.array(default[kind]), axis=0) for kind in ("forward", "step")]
    beside = dict(zip(DENSE_SIZES, np.median(np.array(dense["step"]), axis=0), strict=True))
    rows = [
        f"| {n:,} | {forward:.3f} | {step:.3f} | {f'{beside[n]:.3f}' if n in beside else ''} |"
        for n, forward, step in zip(sizes, *columns, strict=True)
    ]
    head = ["| hits | forward s | forward + backward s | dense transformer s |", "|---|---|---|---|"]
    about = "Default options, weights as initialised, memory mode plain. Parts of one event, drawn at random.\n"
    return "\n".join([about, *head, *rows, ""])


def plot(sizes: Sequence[int], default: Seconds, dense: Seconds, file: BinaryIO) -> None:
    """Seconds against hits, both axes logarithmic."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(6, 4), layout="constrained")
    axes = canvas.subplots()
    for label, x, rows in (
        ("neighbours, forward", sizes, default["forward"]),
        ("neighbours, forward + backward", sizes, default["step"]),
        ("transformer, forward + backward", DENSE_SIZES, dense["step"]),
    ):
        axes.loglog(x, np.median(np.array(rows), axis=0), "o-", ms=4, label=label)
    axes.set(xlabel="hits of the event", ylabel="s, one core")
    axes.grid(alpha=0.3)
    axes.legend()
    canvas.savefig(file, dpi=120, format="png")
