"""Timing side by side, figures with their spread; and synthetic events and embeddings with the geometry of a trained
model's: clusters around tracks, and noise.

Legend: N hits, E embedding dimensions, T tracks.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch_geometric.data import Batch, Data

from hpctrack.errors import MachineError


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
    """What a benchmark found: figures, and if it has more to show, Markdown below them and a plot beside the page.

    `plot(file)` writes it as PNG into an open file.
    """

    figures: list[Figure]
    text: str = ""
    plot: Callable[[BinaryIO], None] | None = None


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
    """Processor, cores, memory and system; the GPU, if there is one."""
    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    memory = next((int(line.split()[1]) / 2**20 for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return gpu | {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": platform.system(),
    }


def commit() -> str:
    """The project's commit, with `+` if there are changes on top of it; empty outside a checkout."""
    root = Path(__file__).parent

    def git(*args: str) -> str:
        try:
            done = subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=False)
        except FileNotFoundError:  # no git on this machine
            return ""
        return done.stdout.strip()

    return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []


# ------------------------------------------------------------------------------------------------ commands


def command(arguments: Sequence[str]) -> tuple[float, float]:
    """Run a command; its seconds and the peak memory, MiB, of its largest process; RuntimeError if it fails."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(arguments, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(arguments)}: exit code {process.returncode}: {said.read().decode()}")
    return time.perf_counter() - begin, usage.ru_maxrss / 1024


def simulate(folder: Path, simulated: int, events: int, particles: int = 8000) -> Path:
    """TrackML CSV files of `events` events, of which `simulated` differ; the others are links to these."""
    options = ["--source", "helix", "--particles", str(particles), "--events", str(simulated)]
    command([sys.executable, "-m", "hpctrack.simulate", str(folder), *options])
    for event_id in range(simulated, events):
        for kind in ("hits", "cells", "particles", "truth"):
            name = "event{:09d}-{}.csv"
            os.link(folder / name.format(event_id % simulated, kind), folder / name.format(event_id, kind))
    return folder


def helix_dataset(folder: Path, events: int, particles: int) -> Path:
    """A dataset of helix events, made in `folder`; MachineError if it cannot be made."""
    out = folder / "data"
    try:
        csv = simulate(folder / "csv", events, 1, particles=particles)
        command([sys.executable, "-m", "hpctrack.convert", str(csv), str(out), "--jobs", "1"])
    except RuntimeError as error:
        raise MachineError(f"the events for the benchmark could not be made: {error}") from None
    return out


# -------------------------------------------------------------------------------------- synthetic events and embeddings


FEATURES = ["r", "phi", "cos_phi", "sin_phi", "z", "eta", "inverse_r"]
HITS_PER_TRACK = 12
FREE_DIMENSIONS = 4  # tracks are told apart by about so many numbers: direction, curvature, z0
SPACING = 1.3  # of tracks, in margins: the loss pushes them apart to the margin, whatever their number
SCATTER = 0.08  # of users and influencers about their track, per dimension


def embeddings(track_N: np.ndarray, dimensions: int, copies: int = 1, scale: float = 1.0, seed: int = 0) -> list:
    """`copies` embeddings float32 [N, E] about common centres: hits of a track lie together, others are spread evenly.

    `scale` 1 is as trained; a small one draws all hits together, as in a model that has not been.
    """
    rng = np.random.default_rng(seed)
    n_tracks = track_N.max(initial=-1) + 1
    free = min(FREE_DIMENSIONS, dimensions)
    turn = np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0][:free]
    side = SPACING * max(1, len(track_N) / HITS_PER_TRACK) ** (1 / free)
    centre_TE = rng.uniform(0, side, (n_tracks, free)) @ turn
    place_NE = rng.uniform(0, side, (len(track_N), free)) @ turn
    place_NE[track_N >= 0] = centre_TE[track_N[track_N >= 0]]
    found = [place_NE + rng.normal(0, SCATTER, place_NE.shape) for _ in range(copies)]
    return [(scale * values).astype(np.float32) for values in found]


def tracks(n_hits: int, noise: float = 0.15, seed: int = 0) -> np.ndarray:
    """Track [N] of each hit, -1 for the share `noise` of them; hits in random order."""
    n_tracks = round(n_hits * (1 - noise)) // HITS_PER_TRACK
    track = np.full(n_hits, -1)
    track[: n_tracks * HITS_PER_TRACK] = np.repeat(np.arange(n_tracks), HITS_PER_TRACK)
    return np.random.default_rng(seed).permutation(track)


def straight_tracks(n_tracks: int, seed: int = 0) -> Batch:
    """One event of straight tracks through twelve layers, with FEATURES, without noise."""
    rng = np.random.default_rng(seed)
    track = rng.permutation(np.repeat(np.arange(n_tracks), HITS_PER_TRACK))
    order = np.argsort(track, kind="stable")
    layer = np.empty(len(track))
    layer[order] = np.tile(np.linspace(0.03, 1.0, HITS_PER_TRACK), n_tracks)
    phi, eta = rng.uniform(-np.pi, np.pi, n_tracks)[track], rng.uniform(-2, 2, n_tracks)[track]
    values = [layer, phi / np.pi, np.cos(phi), np.sin(phi), layer * np.sinh(eta), eta / 3, 0.03 / layer]
    data = Data(
        x=torch.tensor(np.stack(values, 1), dtype=torch.float32),
        track=torch.from_numpy(track),
        n_tracks=torch.tensor([n_tracks]),
        num_nodes=len(track),
    )
    return Batch.from_data_list([data])
