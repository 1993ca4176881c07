"""Seconds an event of pipelines, stage by stage, beside ACTS' combinatorial Kalman filter on the same events and core.

Every hit goes in. The pipelines and the filter take turns event by event, so that the machine's moods hit all alike.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from hpctrack.benchmarks.measure import Figure, Page, helix_dataset, ratio
from hpctrack.errors import InputError
from hpctrack.inference.stages import INFER, Chain, Reconstruction, in_formats_of, method_config, stages
from hpctrack.inference.suitability import check_method, check_stages
from hpctrack.storage.store import Dataset
from hpctrack.tracking.methods import ByMethod, Timing

CPU = torch.device("cpu")
PEER = "ckf"
CHAINS = ("chain=pipeline-embedding,pipeline-filter,pipeline-gnn", "influencer=influencer-every-hit")
EVENTS = 10  # at most; with --quick 2
PARTICLES = 4000  # of an event that is made where no dataset is given
Took = dict[str, list[Timing]]  # by pipeline, an entry an event


def run(quick: bool, data: Path | None = None, chain: Sequence[str] = CHAINS) -> Page:
    """Ratio of seconds to those of the filter, and seconds by stage.

    `chain`: NAME=RUN,RUN: pipelines, each the names or folders of its checkpoints in order. InputError for one that is
    written otherwise, or that does not fit the dataset.
    """
    pipelines = dict(map(parse, chain))
    with tempfile.TemporaryDirectory(prefix="hpctrack-bench-") as folder:
        dataset = Dataset(data or helix_dataset(Path(folder), 2, PARTICLES), verify=True)
        how = {name: pipeline(runs, dataset) for name, runs in pipelines.items()} | {PEER: peer(dataset)}
        took = measure(how, range(min(len(dataset), 2 if quick else EVENTS)))
    seconds = {name: [timing.total_s for timing in of] for name, of in took.items()}
    figures = [
        Figure(f"{name}_over_{PEER}", ratio(seconds[name], seconds[PEER]), "x", f"s of {', '.join(runs)} / s of {PEER}")
        for name, runs in pipelines.items()
    ]
    figures += [
        Figure(f"{name}_s", of, "s", "an event, from reading it to its candidates") for name, of in seconds.items()
    ]
    hits = [timing.n_hits for timing in took[PEER]]
    return Page(figures, table(took, pipelines, hits))


def parse(text: str) -> tuple[str, list[str]]:
    """A pipeline's name and its checkpoints, of NAME=RUN,RUN."""
    name, _, runs = text.partition("=")
    if not name.isidentifier() or name == PEER or not all(runs.split(",")):
        raise InputError(f"--chain {text}: must be NAME=RUN,RUN with the checkpoints of a pipeline in order")
    return name, runs.split(",")


def pipeline(runs: Sequence[str], data: Dataset) -> Chain:
    """The pipeline of these checkpoints on the CPU, which sees every hit."""
    names = [Path(run) for run in runs]
    paths, configs = stages(names, [])
    check_stages(data, configs, paths, names)
    configs, lines = in_formats_of(CPU, configs, names)
    for line in lines:
        print(line, file=sys.stderr)
    return Chain(configs, paths, data, CPU)


def peer(data: Dataset) -> ByMethod:
    """ACTS' filter with its defaults, which sees every hit."""
    config = method_config(PEER, [])
    check_method(data, config)
    return ByMethod(config, data, INFER)


def measure(how: Mapping[str, Reconstruction], rows: Sequence[int]) -> Took:
    """What each takes for each event, in turns; the first event comes once more before, to warm up."""
    took: Took = {name: [] for name in how}
    for position, row in enumerate([rows[0], *rows]):
        for name, call in how.items():
            timing = call(row)[1]
            if position:
                took[name].append(timing)
    return took


def table(took: Took, pipelines: Mapping[str, Sequence[str]], hits: Sequence[int]) -> str:
    """Median seconds by stage, as Markdown."""
    lines = [
        f"{len(hits)} events of {min(hits):,} to {max(hits):,} hits, all of which go in; medians.",
        "",
        "| | stage | s an event |",
        "|---|---|---|",
    ]
    for name, timings in took.items():
        runs = pipelines.get(name, [])
        if len(runs) > 1:
            each = np.median([timing.stage_s for timing in timings], axis=0)
            lines += [f"| {name} | {run} | {seconds:.2f} |" for run, seconds in zip(runs, each, strict=True)]
        total = np.median([timing.total_s for timing in timings])
        lines.append(f"| {name} | {runs[0] if len(runs) == 1 else 'in all'} | {total:.2f} |")
    return "\n".join([*lines, ""])
