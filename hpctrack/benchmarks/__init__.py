"""Benchmarks: one file each, one line here. `run(quick) -> list[Figure] | Page`, peers measured in the same run.

A `run(quick, data=None)` also takes a dataset (`--data FOLDER`).
"""

from __future__ import annotations

from hpctrack.benchmarks import inference, io, layout, loss, memory, model, plan, scaling

BENCHES = {
    "inference": inference.run,
    "io": io.run,
    "layout": layout.run,
    "loss": loss.run,
    "memory": memory.run,
    "model": model.run,
    "plan": plan.run,
    "scaling": scaling.run,
}
