"""Benchmarks: one file each, one line here. `run(quick) -> list[Figure]`, peers measured in the same run."""

from __future__ import annotations

from hpctrack.benchmarks import io, loss

BENCHES = {"io": io.run, "loss": loss.run}
