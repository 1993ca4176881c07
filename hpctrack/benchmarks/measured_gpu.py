"""How fast a GPU is against a core here: from what was measured on one (FILE), else assumed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpctrack.benchmarks.gpu import Bench, Sizes, training
from hpctrack.errors import InputError

FILE = Path(__file__).parents[2] / "docs" / "benchmarks" / "gpu.json"  # of a checkout; written by launch/gpu_check.sh
FIGURE = "gpu_step_500_s"  # of the recipe that is projected


@dataclass(frozen=True)
class Speed:
    """A GPU's over that of a rank here, where it is from, and whether it was measured."""

    ratio: float
    source: str
    measured: bool

    @property
    def word(self) -> str:
        """For headlines."""
        return "measured" if self.measured else "assumed"


def speed(assumed: float, file: Path = FILE) -> Speed:
    """Measured seconds of a training step on a GPU against those here, or `assumed`; InputError for a damaged file."""
    if not file.exists():
        return Speed(
            assumed,
            f"A GPU is taken to be {assumed:.0f} times as fast as a rank here: its fp32 peak over what a matrix "
            "product reaches here. Faster GPUs scale worse, so this matters; it has not been measured with this code.",
            measured=False,
        )
    try:
        found = json.loads(file.read_text())
        name, seconds = found["machine"]["gpu"], float(found["figures"][FIGURE]["median"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: has no figure {FIGURE} of a GPU; write it anew with launch/gpu_check.sh") from error
    bench = Bench(torch.device("cpu"), Sizes(), 3)
    here = float(np.median(training(bench, "influencer-500", bench.sizes.small, "here")[0].values))
    return Speed(
        here / seconds,
        f"A GPU is {here / seconds:.0f} times as fast as a rank here: a step on 500 tracks takes {seconds:.4f} s on "
        f"{name} (docs/benchmarks/gpu.md), {here:.2f} s here.",
        measured=True,
    )
