"""Timing side by side, and figures with their spread."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figure:
    """A measured figure: its values over repeats, and their unit (`x` for ratios)."""

    name: str
    values: Sequence[float]
    unit: str
    meaning: str

    def summary(self) -> dict[str, Any]:
        """Median and spread, as in the JSON."""
        return {
            "median": statistics.median(self.values),
            "min": min(self.values),
            "max": max(self.values),
            "unit": self.unit,
            "n": len(self.values),
            "meaning": self.meaning,
        }


@dataclass(frozen=True)
class Page:
    """What a benchmark found: figures, and if it has more to show, Markdown below them and a plot beside the page."""

    figures: list[Figure]
    text: str = ""
    plot: Callable[[Path], None] | None = None


def time_in_turn(work: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each piece of work, `repeats` times; they take turns, so that the machine's moods hit all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for round_ in range(-warm_up, repeats):
        for name, call in work.items():
            begin = time.perf_counter()
            call()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> list[float]:
    """Ratios round by round."""
    return [a / b for a, b in zip(numerator, denominator, strict=True)]


def slopes(rows: Sequence[Sequence[float]], sizes: Sequence[int]) -> list[float]:
    """Exponent of the power law seconds(size) fitted to each round."""
    return [float(np.polyfit(np.log(sizes), np.log(row), 1)[0]) for row in rows]


def new_high_water_gib() -> float:
    """This process's resident memory, at which its high-water mark (VmHWM) starts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return status_gib("VmRSS")


def status_gib(field: str) -> float:
    """A size in /proc/self/status."""
    return next(int(line.split()[1]) / 2**20 for line in _lines("/proc/self/status") if line.startswith(f"{field}:"))


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
    }


def commit() -> str:
    """The project's commit, with `+` if there are changes on top of it; empty outside a checkout."""
    root = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *args], capture_output=True, text=True, check=False
        ).stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
