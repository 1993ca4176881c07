"""Benchmarks: one file each, one name here. `run(quick) -> list[Figure] | Page`, peers measured in the same run.

A `run(quick, data=None)` also takes a dataset (`--data FOLDER`), one with `chain` pipelines (`--chain NAME=RUN,RUN`),
one with `parts` some parts alone (`--parts A,B`).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

BENCHES = ("chain", "event-parallel", "gpu", "inference", "io", "layout", "loss", "memory", "model", "plan", "scaling")


def benchmark(name: str) -> Callable:
    """The `run` of one; others are not imported, so that a benchmark's processes hold nothing else."""
    return import_module(f"{__name__}.{name.replace('-', '_')}").run
