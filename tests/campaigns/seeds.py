"""Figures over seeds: mean, spread, and differences of runs that are paired by their seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence


def error(values: Sequence[float]) -> float:
    """Standard error of the mean; not a number for one value."""
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


def mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, which is not a number for one value."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else float("nan")


def difference(values: Mapping[int, float], base: Mapping[int, float]) -> tuple[float, float] | None:
    """Mean of `values` - `base`, both by seed, over the seeds of both, with its standard error; None without such."""
    paired = [value - base[seed] for seed, value in values.items() if seed in base]
    return (statistics.mean(paired), error(paired)) if paired else None


def text(value: float, spread: float, sign: str = "") -> str:
    """`0.9812 ± 0.0031`, without a spread that is not known; `sign`: "+" to show it."""
    return f"{value:{sign}.4f}" + (f" ± {spread:.4f}" if spread == spread else "")
